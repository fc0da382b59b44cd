"""The KEMI script of the demo's nodes A and B.

Its SIP requests, from the demo: MESSAGE sip:say@… is told to all nodes; INFO sip:state@… is
answered with what this node lists and what it got.
"""

import json
import time

import KSR

import kemi_dmq

dmq = kemi_dmq.DMQ.from_defs()
api = kemi_dmq.dmq_load_api()


def on_demo(message, node):
    """A broadcast is here: its body is "sender number time"."""
    sender, number, _ = message.body.split()
    # In an htable, so that all processes of this Kamailio see it.
    KSR.htable.sht_sets("got", sender, f"{number} {time.time():.6f}")
    return kemi_dmq.Response(200, "OK")


demo = api.register_dmq_peer(kemi_dmq.Peer("demo", "the demo's broadcasts", on_demo))


class Kamailio:
    def child_init(self, rank):
        return 0

    def ksr_request_route(self, msg):
        if KSR.is_method("KDMQ"):
            return dmq.handle_message()
        if KSR.is_method("MESSAGE"):
            sent = api.bcast_message(demo, str(KSR.pv.get("$rb") or ""))
            KSR.sl.send_reply(200 if sent == 0 else 500, "Told" if sent == 0 else "Not Told")
        elif KSR.is_method("INFO"):
            KSR.textops.set_reply_body(json.dumps(self.state()), "application/json")
            KSR.sl.send_reply(200, "OK")
        return 1

    def state(self):
        got = {name: KSR.htable.sht_get("got", name) for name in "ABC"}
        return {
            "nodes": {node.uri: node.status.value for node in dmq.nodes()},
            "got": {name: value for name, value in got.items() if value},
        }


def mod_init():
    return dmq.attach(Kamailio())
