"""A KEMI script that answers every request and does nothing else: without kemi_dmq."""

from __future__ import annotations

import KSR


class Kamailio:
    def child_init(self, rank: int) -> int:
        return 0

    def ksr_request_route(self, msg: object) -> int:
        if KSR.is_method("KDMQ"):
            KSR.sl.send_reply(200, "OK")
            return 1
        KSR.sl.send_reply(200, "OK")
        return 1

    def ksr_reply_route(self, msg: object) -> int:
        return 1

    def ksr_uac_event(self, msg: object, event: str) -> int:
        return 1

    def ksr_dmq_engine(self, msg: object, event: str) -> int:
        return 1

    ksr_dmq_callbacks = ksr_dmq_engine


def mod_init() -> Kamailio:
    return Kamailio()
