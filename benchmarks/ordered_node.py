"""The KEMI script for ordered.py.

An INFO makes it send messages that bear the time: its user part says how, its body how many, how
many in a second (0: as fast as they are taken) and to whom.  Peer timed writes how long each was on
its way into the file that BENCH_TIMES names, and when it ran.
"""

from __future__ import annotations

import os
import struct
import time
from typing import Any

import KSR

import kemi_dmq

dmq = kemi_dmq.DMQ.from_defs()
api = kemi_dmq.dmq_load_api()
times = os.open(os.environ["BENCH_TIMES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
HOW: dict[str, dict[str, Any]] = {
    "ordered": {"ordered": True},
    "deadline": {"deadline": 60},
    "plain": {},
    "plain_told": {},
    "ordered_told": {"ordered": True},
}


def on_timed(message: kemi_dmq.Message, node: kemi_dmq.Node | None) -> None:
    now = time.monotonic_ns()
    os.write(times, struct.pack("QQ", now - int(message.body[:20]), now))


def on_reply(reply: kemi_dmq.Reply, node: kemi_dmq.Node | None, param: Any) -> None:
    pass


timed = api.register_dmq_peer(kemi_dmq.Peer("timed", "notes how long it took", on_timed))


class Kamailio:
    def child_init(self, rank: int) -> int:
        return 0

    def ksr_request_route(self, msg: object) -> int:
        if KSR.is_method("KDMQ"):
            return dmq.handle_message()
        if KSR.is_method("INFO"):
            how = str(KSR.pv.get("$rU"))
            count, rate, uri = str(KSR.pv.get("$rb")).split()
            self.send(how, int(count), float(rate), uri)
            KSR.sl.send_reply(200, "OK")
        elif KSR.is_method("OPTIONS"):
            names = [n.uri for n in dmq.nodes() if n.status.value == "active"]
            KSR.sl.send_reply(200, " ".join(sorted(names)))
        return 1

    def send(self, how: str, count: int, rate: float, uri: str) -> None:
        node = api.find_dmq_node_uri(uri)
        assert node is not None
        callback = kemi_dmq.ResponseCallback(on_reply, "x") if how.endswith("_told") else None
        begin = time.monotonic()
        for number in range(count):
            if rate:
                time.sleep(max(0.0, begin + number / rate - time.monotonic()))
            body = f"{time.monotonic_ns():020}".ljust(200, "x")
            while api.send_message(timed, body, node, callback, **HOW[how]) < 0:
                time.sleep(0.001)


def mod_init() -> Any:
    return dmq.attach(Kamailio())
