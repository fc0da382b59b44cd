"""A counter that all nodes of a bus share."""

import json
import time

import kemi_dmq


class Counter:
    """Each node counts in a part of its own; the value is the sum of all parts.

    parts: a mapping that all processes of this Kamailio share, such as a wrapper of KSR.htable.
    """

    def __init__(self, api, parts, clock=time.time):
        self.parts = parts
        self._api = api
        # A node that starts again must not count on where it has forgotten to be.
        self._own = f"{api.get_dmq_server_socket()} {clock():.3f}"
        self._peer = api.register_dmq_peer(
            kemi_dmq.Peer("counter", "a shared counter", self.on_message, self.on_init)
        )

    def value(self):
        return sum(self.parts.values())

    def add(self, amount=1):
        self.parts[self._own] = self.parts.get(self._own, 0) + amount
        self._api.bcast_message(self._peer, self._state({self._own: self.parts[self._own]}))

    def on_message(self, message, node):
        state = json.loads(message.body)
        for name, count in state["parts"].items():
            self.parts[name] = max(count, self.parts.get(name, 0))  # also if they come out of order
        if state["wants"] and node is not None:
            self._api.send_message(self._peer, self._state(self.parts), node)

    def on_init(self, node):
        """A node is back, or the first one is here: tell each other all."""
        if node is not None:
            self._api.send_message(self._peer, self._state(self.parts, wants=True), node)

    def _state(self, parts, wants=False):
        return json.dumps({"parts": dict(parts), "wants": wants})
