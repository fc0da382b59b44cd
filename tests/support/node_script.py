"""The KEMI script of the test nodes.

A test drives it with INFO requests (user part: the command, body: JSON, reply: JSON) and reads
what happened from the file events.jsonl in the node's directory.
"""

import itertools
import json
import os
import time

import KSR

import kemi_dmq

VERSION = 1  # tests of reload replace this line
EVENTS = os.environ["NODE_EVENTS"]

dmq = kemi_dmq.DMQ.from_defs()
api = kemi_dmq.dmq_load_api()
dmq.install()


def note(kind, **what):
    line = {"kind": kind, "time": time.time(), "pid": os.getpid(), "version": VERSION, **what}
    fd = os.open(EVENTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, json.dumps(line).encode() + b"\n")
    os.close(fd)


def on_acme(message, node):
    note(
        "message",
        peer=message.peer_id,
        body=message.body_bytes.hex(),
        size=len(message.body_bytes),
        sender=message.from_uri,
        node=node.uri if node else None,
        content_type=message.content_type,
        max_forwards=message.max_forwards,
        source=list(message.source),
    )
    if message.body == "raise":
        raise RuntimeError("as the message asked for")
    if message.body.startswith("sleep "):
        time.sleep(float(message.body[6:]))
    if message.body.startswith("answer "):
        code, reason, body = message.body[7:].split(" ", 2)
        return kemi_dmq.Response(int(code), reason, body, "text/x-test")
    if message.body == "version":
        return kemi_dmq.Response(202, f"v{VERSION}")
    return None


def on_silent(message, node):
    return kemi_dmq.Response(200, "OK")


def on_init(node):
    note("init", node=node.uri if node else None)


def on_reply(reply, node, param):
    note(
        "reply",
        code=reply.code,
        reason=reply.reason,
        body=reply.body,
        content_type=reply.content_type,
        timed_out=reply.timed_out,
        outcome=reply.outcome,
        node=node.uri if node else None,
        param=param,
    )


acme = api.register_dmq_peer(kemi_dmq.Peer("acme", "tests", on_acme, init_callback=on_init))
silent = api.register_dmq_peer(kemi_dmq.Peer("silent", "counts only", on_silent))
only_sent = api.register_dmq_peer(kemi_dmq.Peer("only_sent"))


def body_of(args):
    if "hex" in args:
        return bytes.fromhex(args["hex"])
    return args.get("body", "") * args.get("times", 1)


def outbox_of(args):
    return {name: args[name] for name in ("ordered", "deadline") if name in args}


numbers = itertools.count(1)


class Kamailio:
    def child_init(self, rank):
        return 0

    def ksr_request_route(self, msg):
        if KSR.is_method("KDMQ"):
            return dmq.handle_message()
        if KSR.is_method("INFO"):
            self.command(KSR.pv.get("$rU"), KSR.pv.get("$rb") or "{}")
        elif KSR.is_method("REGISTER"):
            # First the reply: tm refuses it once a node has answered the replicated request.
            KSR.sl.send_reply(200, "OK")
            from_node = KSR.dmq.is_from_node()
            note("register", from_node=from_node, result=KSR.dmq.t_replicate())
        return 1

    def command(self, name, text):
        try:
            result = getattr(self, "do_" + name)(json.loads(text))
        except Exception as error:
            result = {"error": type(error).__name__, "text": str(error)}
        KSR.textops.set_reply_body(json.dumps(result), "application/json")
        KSR.sl.send_reply(200, "OK")

    def do_nodes(self, args):
        return {
            "pid": os.getpid(),
            "version": VERSION,
            "nodes": [[n.uri, n.status.value, n.local, n.python] for n in dmq.nodes()],
        }

    def do_counters(self, args):
        return dmq.counters()

    def do_health(self, args):
        return dmq.health()

    def do_bcast(self, args):
        callback = None
        if "param" in args:
            callback = kemi_dmq.ResponseCallback(on_reply, args["param"])
        excluded = args.get("without")
        return api.bcast_message(
            acme,
            body_of(args),
            except_node=api.find_dmq_node_uri(excluded) if excluded else None,
            resp_cback=callback,
            max_forwards=args.get("max_forwards", 1),
            content_type=args.get("content_type", "text/plain"),
            **outbox_of(args),
        )

    def do_send(self, args):
        callback = None
        if "param" in args:
            callback = kemi_dmq.ResponseCallback(on_reply, args["param"])
        return api.send_message(
            only_sent if args.get("only_sent") else acme,
            body_of(args),
            api.find_dmq_node_uri(args["to"]),  # type: ignore[arg-type]
            resp_cback=callback,
            **outbox_of(args),
        )

    def do_post(self, args):
        """Messages with this process's pid and a number of its own; what each call gave."""
        callback = kemi_dmq.ResponseCallback(on_reply, "posted") if args.get("told") else None
        return [
            api.bcast_message(
                acme, f"{os.getpid()} {next(numbers)}", resp_cback=callback, **outbox_of(args)
            )
            for _ in range(args["count"])
        ]

    def do_silent(self, args):
        return [api.bcast_message(silent, args["body"]) for _ in range(args["count"])]

    def do_lambda(self, args):
        return api.bcast_message(acme, "x", resp_cback=kemi_dmq.ResponseCallback(lambda *a: None))

    def do_register(self, args):
        api.register_dmq_peer(kemi_dmq.Peer("late", "", on_acme))

    def do_socket(self, args):
        return api.get_dmq_server_socket()

    def do_dropin(self, args):
        return getattr(KSR.dmq, args["function"])(*args["args"])

    def on_event(self, msg, name):
        note("event", name=name, node=KSR.pv.get("$ru"))


# What a kamailio.cfg that routes by itself calls by name (DMQ_PEERS_FILE is then this file).
route = Kamailio().ksr_request_route
on_event = Kamailio().on_event


def mod_init():
    return dmq.attach(Kamailio())
