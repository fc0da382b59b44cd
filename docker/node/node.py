"""The image's own script: peer `log` prints what it gets, MESSAGE is told to all nodes, and INFO
answers with this node's view of the bus (see health.py)."""

import json

import KSR

import kemi_dmq

dmq = kemi_dmq.DMQ.from_defs()
api = kemi_dmq.dmq_load_api()


def on_log(message, node):
    KSR.notice(f"log from {node.uri if node else message.from_uri}: {message.body}\n")


log = api.register_dmq_peer(kemi_dmq.Peer("log", "prints what it gets", on_log))


class Kamailio:
    def child_init(self, rank):
        return 0

    def ksr_request_route(self, msg):
        if KSR.is_method("KDMQ"):
            return dmq.handle_message()
        if KSR.is_method("MESSAGE"):
            sent = api.bcast_message(log, KSR.pv.get("$rb") or "")
            KSR.sl.send_reply(200 if sent == 0 else 500, "OK" if sent == 0 else "Not Sent")
        elif KSR.is_method("INFO"):
            seen = {
                "nodes": [[n.uri, n.status.value, n.local, n.python] for n in dmq.nodes()],
                "counters": dmq.counters(),
                "health": dmq.health(),
            }
            KSR.textops.set_reply_body(json.dumps(seen), "application/json")
            KSR.sl.send_reply(200, "OK")
        else:
            KSR.sl.send_reply(405, "Method Not Allowed")
        return 1


def mod_init():
    return dmq.attach(Kamailio())
