"""node.py, with its messages run by Kamailio's async workers: for the comparison in workers.py."""

from __future__ import annotations

from typing import Any

import KSR

import kemi_dmq

dmq = kemi_dmq.DMQ.from_defs()
api = kemi_dmq.dmq_load_api()


def on_silent(message: kemi_dmq.Message, node: kemi_dmq.Node | None) -> kemi_dmq.Response:
    return kemi_dmq.Response(200, "OK")


silent = api.register_dmq_peer(kemi_dmq.Peer("silent", "answers 200 OK", on_silent))


class Kamailio:
    def child_init(self, rank: int) -> int:
        return 0

    def ksr_request_route(self, msg: object) -> int:
        if KSR.is_method("KDMQ"):
            if KSR.pv.get("$rU") != "silent":
                return dmq.process_message()
            KSR.tm.t_newtran()
            getattr(KSR, "async").task_group_route("ksr_run", "dmq")
            return 0
        names = [n.uri for n in dmq.nodes() if n.status.value == "active"]
        KSR.sl.send_reply(200, " ".join(sorted(names)))
        return 1

    def ksr_run(self, msg: object) -> int:
        return dmq.process_message()


def mod_init() -> Any:
    return dmq.attach(Kamailio())
