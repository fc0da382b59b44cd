"""dmq_api_t: what a script (or a module that it imports) uses of the bus."""

from __future__ import annotations

from collections.abc import Callable

from .bus import Bus
from .message import ResponseCallback
from .node import Node
from .peer import ChannelTakenError, Peer, Registry
from .settings import SettingError
from .wire import WireError


class DmqApi:
    """The names and arguments are those of the C module's dmq_api_t."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._bus: Bus | None = None
        self._refuse: Callable[[str], None] | None = None

    def _bind(self, bus: Bus, refuse: Callable[[str], None]) -> None:
        """refuse: of a script that is wrong; at start it does not return."""
        self._bus = bus
        self._refuse = refuse

    @property
    def _ready(self) -> Bus:
        if self._bus is None:
            raise RuntimeError("there is no bus yet; create kemi_dmq.DMQ() first")
        return self._bus

    def register_dmq_peer(self, peer: Peer) -> Peer:
        """Register a peer, while the script loads.

        ValueError when its name is taken, RuntimeError after loading (in child_init or a route):
        the other processes would not know it.  Registrations of the script are replaced as a
        whole when it is loaded again; those of modules that it imports stay.
        """
        try:
            return self._registry.register(peer)
        except ChannelTakenError:
            assert self._refuse is not None
            self._refuse(str(channel_taken(peer.peer_id)))
            return peer

    def bcast_message(
        self,
        peer: Peer,
        body: str | bytes,
        except_node: Node | None = None,
        resp_cback: ResponseCallback | None = None,
        max_forwards: int = 1,
        content_type: str = "text/plain",
        ordered: bool = False,
        deadline: float | None = None,
    ) -> int:
        """Send a message to peer on all active nodes except the local one and except_node.

        Any process.  0: it is on its way to each of them (also if there are none); -1: one or
        more were not accepted, with an error logged; the others got it.  resp_cback is called
        once for each node.  TypeError or ValueError for what the caller does wrong, before
        anything is sent.

        ordered: each node's peer gets this Kamailio's ordered messages in the order of the calls,
        one after the other; a node that is away gets them when it is back within deadline seconds
        (32 unless given).  deadline alone: kept as long, but without an order.  With a deadline the
        message goes to all nodes on the list, also to those that are not active now, and to those
        that have left it and are not forgotten (reconnect_timeout).  Either way resp_cback hears of
        one outcome for each node that was accepted (see Reply.outcome), in the callbacks process.
        """
        listed = self._ready.node_list()
        nodes = listed.active if deadline is None else listed.kept
        outbox = self._ready.settings.outbox
        if except_node is not None:
            if not isinstance(except_node, Node):
                raise TypeError(f"except_node is {except_node!r}; it must be a Node or None")
            excluded = (except_node.host, except_node.port)
            nodes = tuple(node for node in nodes if (node.host, node.port) != excluded)
        return self._ready.send(
            _peer_id(peer),
            body,
            nodes,
            resp_cback,
            max_forwards,
            content_type,
            ordered,
            deadline,
            outbox,
        )

    def send_message(
        self,
        peer: Peer,
        body: str | bytes,
        node: Node,
        resp_cback: ResponseCallback | None = None,
        max_forwards: int = 1,
        content_type: str = "text/plain",
        ordered: bool = False,
        deadline: float | None = None,
    ) -> int:
        """Send a message to peer on one node, whatever its status.

        As bcast_message; ValueError also when the node is not on the list (with a deadline: nor
        one that has left it and is not forgotten).
        """
        if not isinstance(node, Node):
            raise TypeError(f"node is {node!r}; it must be a Node (see find_dmq_node_uri)")
        listed, key = self._ready.node_list(), (node.host, node.port)
        known = listed.by_key.get(key)
        if known is None and deadline is not None:
            known = listed.kept_by_key.get(key)
        if known is None:
            raise ValueError(f"node {node.uri} is not on the list of this bus")
        return self._ready.send(
            _peer_id(peer),
            body,
            (known,),
            resp_cback,
            max_forwards,
            content_type,
            ordered,
            deadline,
        )

    def find_dmq_node_uri(self, uri: str) -> Node | None:
        """The node with the host and port of a SIP URI, or None."""
        try:
            return self._ready.find_node(uri)
        except WireError:
            return None

    def get_dmq_server_socket(self) -> str:
        """The socket that messages leave from, for example ``udp:10.0.0.20:5060``."""
        socket = self._ready.settings.server_socket
        return f"{socket.transport}:{socket.host}:{socket.port}"


def _peer_id(peer: Peer) -> str:
    if not isinstance(peer, Peer):
        raise TypeError(f"peer is {peer!r}; it must be the Peer that was registered")
    return peer.peer_id


def channel_taken(name: str) -> SettingError:
    return SettingError("notification_channel", name, "another name than that of a peer")
