"""A complete node: peer acme logs what it gets; a MESSAGE to this Kamailio is told to all nodes."""

import KSR

import kemi_dmq

dmq = kemi_dmq.DMQ.from_defs()
api = kemi_dmq.dmq_load_api()


def on_acme(message, node):
    KSR.warn(f"acme from {node.uri if node else message.from_uri}: {message.body}\n")
    return kemi_dmq.Response(200, "OK")


acme = api.register_dmq_peer(kemi_dmq.Peer("acme", "an example", on_acme))


class Kamailio:
    def child_init(self, rank):
        return 0

    def ksr_request_route(self, msg):
        if KSR.is_method("KDMQ"):
            return dmq.handle_message()
        if KSR.is_method("MESSAGE"):
            api.bcast_message(acme, KSR.pv.get("$rb") or "")
            KSR.sl.send_reply(202, "Accepted")
        return 1


def mod_init():
    return dmq.attach(Kamailio())
