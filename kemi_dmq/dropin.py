"""KSR.dmq.* as dmq.so exports it, with its arguments and return values.

1 is true, -1 false and 0 ends the script.  Where the C module would send nothing at all (no user
in the R-URI, a callback that failed) there is a reply all the same; the value returned is C's.
"""

from __future__ import annotations

from .bus import Bus, describe
from .message import Message
from .node import Node, place
from .peer import RawPeer, is_peer_id
from .wire import WireError, as_text, is_sip_uri


class DropIn:
    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def handle_message(self) -> int:
        """Run the peer of the KDMQ request being handled and reply; 0.  With num_workers above 0
        a worker does both, and for a C module, if the message is large, the callbacks process."""
        return self._bus.handle(0)

    def handle_message_rc(self, rc: int) -> int:
        """The same, returning rc."""
        return self._bus.handle(rc)

    def process_message(self) -> int:
        """The same, at once and in this SIP worker, whatever num_workers is."""
        return self._bus.handle(0, at_once=True)

    def process_message_rc(self, rc: int) -> int:
        return self._bus.handle(rc, at_once=True)

    def send_message(self, peer: str, node_uri: str, body: str, content_type: str) -> int:
        """Send to one node of the list, whatever its status: 1, or -1 with an error logged."""
        try:
            node = self._bus.find_node(node_uri)
        except WireError as error:
            return self._wrong("send_message", error)
        if node is None:
            return self._wrong("send_message", ValueError(f"no node {node_uri} on the list"))
        return self._send("send_message", peer, body, (node,), content_type)

    def bcast_message(self, peer: str, body: str, content_type: str) -> int:
        """Send to all active nodes: 1 (also if there are none), or -1 with an error logged."""
        active = self._bus.node_list().active
        outbox = self._bus.settings.outbox
        return self._send("bcast_message", peer, body, active, content_type, outbox)

    def is_from_node(self) -> int:
        """1 if the request's source IP is that of a node, of any status; else -1."""
        ip = self._bus.host.source()[0].strip("[]")
        return 1 if any(node.address == ip for node in self._bus.node_list().others) else -1

    def t_replicate(self) -> int:
        """Send the request to all active nodes, unless it came from one: 0, or -1 (also when
        only some got it)."""
        return self.t_replicate_mode(0)

    def t_replicate_mode(self, skip_loop_test: int) -> int:
        """The same; with skip_loop_test other than 0 also if it came from a node."""
        if not skip_loop_test and self.is_from_node() == 1:
            return -1
        # Names were looked up by the engine; nobody here waits for the DNS.
        places = [place(node) for node in self._bus.node_list().active]
        return 0 if self._bus.host.replicate(places) else -1

    def process_custom_message(self, peer: str, from_uri: str, body: str, content_type: str) -> int:
        """Give a message to a peer of this node as if from_uri had sent it; the answer is
        dropped.  1, or -1 if there is no such peer or its callback failed."""
        return self._custom(peer, from_uri, body, content_type, at_once=True)

    def handle_custom_message(self, peer: str, from_uri: str, body: str, content_type: str) -> int:
        """The same; with num_workers above 0 a worker runs the peer: 1, or -1 if there is no such
        peer or no room in the queue."""
        at_once = self._bus.settings.num_workers == 0
        return self._custom(peer, from_uri, body, content_type, at_once)

    def _custom(self, peer: str, from_uri: str, body: str, content_type: str, at_once: bool) -> int:
        what = "process_custom_message" if at_once else "handle_custom_message"
        found = self._bus.registry.live.get(peer)
        if found is None or not is_sip_uri(from_uri):
            reason = f"no peer {peer!r}" if found is None else f"{from_uri!r} is not a SIP URI"
            return self._wrong(what, ValueError(reason))
        if isinstance(found, RawPeer):
            error = ValueError(f"peer {peer!r} is a C module's, which needs a SIP message")
            return self._wrong(what, error)
        if found.callback is None:
            return 1
        local = self._bus.settings.server_address
        message = (peer, body or "", content_type, from_uri, (local.host, local.port), 1)
        if not at_once:
            return 1 if self._bus.queue_custom(message) else -1
        node = self._bus.node_list().of_uri(from_uri)
        return 1 if self._bus.call_peer(found, Message(*message), node)[1] else -1

    def _send(
        self,
        what: str,
        peer: str,
        body: str,
        nodes: tuple[Node, ...],
        content_type: str,
        outbox: int = 0,
    ) -> int:
        if not is_peer_id(peer):
            return self._wrong(what, ValueError(f"{peer!r} is no peer's name"))
        bus = self._bus
        if peer not in bus.registry.live and peer != bus.settings.notification_channel:
            # From now on all processes answer this channel with 202, as the C module does.
            if not bus.shared.names.add(peer):
                return self._wrong(what, ValueError("too many peers that are only sent to"))
        try:
            kind = content_type or "text/plain"
            if outbox and isinstance(body, (str, bytes)) and as_text(body) is None:
                # As it is, as dmq.so does: the peer may be a route, and undoes no base64.
                outbox = 0
            sent = bus.send(peer, body, nodes, None, 1, kind, outbox=outbox)
        except (TypeError, ValueError) as error:
            return self._wrong(what, error)
        return 1 if sent == 0 else -1

    def _wrong(self, what: str, error: Exception) -> int:
        self._bus.host.log("err", f"kemi_dmq: KSR.dmq.{what}: {describe(error)}")
        return -1
