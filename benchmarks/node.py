"""The KEMI script of the measured node.

An INFO makes it send or broadcast: the user part of its R-URI is send or bcast, and its headers say
to which peer (silent, or timed: that notes when each message came), how (a key of modes.HOW),
how many, and to which node; X-Body is the kind and size of the bodies.  It is answered with the
microseconds that one call took.  A REGISTER is saved and broadcast.
"""

from __future__ import annotations

import os
import time
from typing import Any

import KSR

import kemi_dmq
from benchmarks.modes import HOW

dmq = kemi_dmq.DMQ.from_defs()
api = kemi_dmq.dmq_load_api()
bodies: dict[str, str | bytes] = {}


def on_silent(message: kemi_dmq.Message, node: kemi_dmq.Node | None) -> kemi_dmq.Response:
    return kemi_dmq.Response(200, "OK")


def on_timed(message: kemi_dmq.Message, node: kemi_dmq.Node | None) -> None:
    os.write(2, b"T %s %.6f\n" % (message.body_bytes[:17], time.time()))


def on_reply(reply: kemi_dmq.Reply, node: kemi_dmq.Node | None, param: Any) -> None:
    pass


told = kemi_dmq.ResponseCallback(on_reply, "x")
peers = {
    "silent": api.register_dmq_peer(kemi_dmq.Peer("silent", "answers 200 OK", on_silent)),
    "timed": api.register_dmq_peer(kemi_dmq.Peer("timed", "notes when it came", on_timed)),
}


def body_of(name: str) -> str | bytes:
    """text-200: so many bytes."""
    body = bodies.get(name)
    if body is None:
        kind, size = name.split("-")
        body = bodies[name] = (
            "x" * int(size)
            if kind == "text"
            else bytes(range(256)) * (int(size) // 256) + bytes(int(size) % 256)
        )
    return body


class Kamailio:
    def child_init(self, rank: int) -> int:
        return 0

    def ksr_request_route(self, msg: object) -> int:
        if KSR.is_method("KDMQ"):
            return dmq.handle_message()
        if KSR.is_method("INFO"):
            KSR.sl.send_reply(200, str(self.send(str(KSR.pv.get("$rU")))))
        elif KSR.is_method("REGISTER"):
            KSR.registrar.save("location", 0)
            body = f"{time.time():.6f} {KSR.pv.get('$tu')} {KSR.pv.get('$ct')}".ljust(200, "x")
            _, how, *_ = str(KSR.pv.get("$hdr(X-What)")).split()
            api.bcast_message(peers["timed"], body, **HOW[how])
        elif KSR.is_method("OPTIONS"):
            names = [n.uri for n in dmq.nodes() if n.status.value == "active"]
            KSR.sl.send_reply(200, " ".join(sorted(names)))
        elif KSR.is_method("MESSAGE"):
            KSR.sl.send_reply(200, str(dmq.counters()["delivered"]))
        return 1

    def send(self, what: str) -> int:
        """Microseconds that one call took."""
        peer, how, count, name, rate = str(KSR.pv.get("$hdr(X-What)")).split()
        callback = told if how == "callback" or how.endswith("_told") else None
        arguments = HOW[how]
        if what == "send":
            node = api.find_dmq_node_uri(str(KSR.pv.get("$hdr(X-Node)")))
            assert node is not None
            to = node
        is_timed, channel, body = peer == "timed", peers[peer], body_of(name)
        begin = time.perf_counter()
        for number in range(int(count)):
            if rate != "0":
                time.sleep(max(0.0, begin + number / float(rate) - time.perf_counter()))
            if is_timed:
                body = f"{time.time():.6f}".ljust(200, "x")
            if what == "send":
                while api.send_message(channel, body, to, callback, **arguments) < 0:
                    time.sleep(0.001)  # what waits in order is bounded
            else:
                while api.bcast_message(channel, body, resp_cback=callback, **arguments) < 0:
                    time.sleep(0.001)  # the engine has more than it can do: not lost, but late
        return int((time.perf_counter() - begin) * 1_000_000 / int(count))


def mod_init() -> Any:
    return dmq.attach(Kamailio())
