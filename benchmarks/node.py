"""The KEMI script of the measured node.

An INFO makes it send: its user part says how (plain, callback) and its body how many and to whom.
"""

from __future__ import annotations

from typing import Any

import KSR

import kemi_dmq

dmq = kemi_dmq.DMQ.from_defs()
api = kemi_dmq.dmq_load_api()
BODY = "x" * 200


def on_silent(message: kemi_dmq.Message, node: kemi_dmq.Node | None) -> kemi_dmq.Response:
    return kemi_dmq.Response(200, "OK")


def on_reply(reply: kemi_dmq.Reply, node: kemi_dmq.Node | None, param: Any) -> None:
    pass


silent = api.register_dmq_peer(kemi_dmq.Peer("silent", "answers 200 OK", on_silent))


class Kamailio:
    def child_init(self, rank: int) -> int:
        return 0

    def ksr_request_route(self, msg: object) -> int:
        if KSR.is_method("KDMQ"):
            return dmq.handle_message()
        if KSR.is_method("INFO"):
            count, uri = str(KSR.pv.get("$rb")).split()
            node = api.find_dmq_node_uri(uri)
            assert node is not None
            callback = None
            if KSR.pv.get("$rU") == "callback":
                callback = kemi_dmq.ResponseCallback(on_reply, "x")
            for _ in range(int(count)):
                api.send_message(silent, BODY, node, resp_cback=callback)
            KSR.sl.send_reply(200, "OK")
        elif KSR.is_method("OPTIONS"):
            names = [n.uri for n in dmq.nodes() if n.status.value == "active"]
            KSR.sl.send_reply(200, " ".join(sorted(names)))
        return 1


def mod_init() -> Any:
    return dmq.attach(Kamailio())
