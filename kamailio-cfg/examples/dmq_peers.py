"""The peers of a node that routes in kamailio.cfg (see dmq_native_node.cfg)."""

import KSR

import kemi_dmq

api = kemi_dmq.dmq_load_api()


def on_acme(message, node):
    KSR.warn(f"acme from {node.uri if node else message.from_uri}: {message.body}\n")
    return kemi_dmq.Response(200, "OK")


acme = api.register_dmq_peer(kemi_dmq.Peer("acme", "an example", on_acme))
