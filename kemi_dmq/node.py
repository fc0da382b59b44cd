"""A node of the bus, as scripts see it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from .wire import SipUri


class Status(enum.Enum):
    """What this Kamailio knows of a node (C module: dmq_node status)."""

    ACTIVE = "active"
    NOT_ACTIVE = "not_active"
    DISABLED = "disabled"


@dataclass(frozen=True, slots=True)
class Node:
    """One Kamailio on the bus: a value, of the moment when it was read.

    ``host`` is as in the URI (an IPv6 address in brackets), ``transport`` one of udp, tcp, tls
    and sctp.  ``address`` is the IP address behind host, ``python`` tells whether the node has said
    that it runs kemi_dmq.  ``fail_count``: pings that it has not answered since it last did.
    """

    uri: str
    host: str
    port: int
    transport: str
    status: Status
    local: bool = False
    python: bool = False
    address: str = ""
    fail_count: int = field(default=0, compare=False)

    @property
    def active(self) -> bool:
        return self.status is Status.ACTIVE


def place(node: Node) -> SipUri:
    """Where a node is, with its address for its name."""
    host = f"[{node.address}]" if ":" in node.address else node.address
    return SipUri(host or node.host, node.port, node.transport)


def next_hop(node: Node) -> str:
    """Where to send what bears the node's name ("": where its URI says): a name was looked up by
    the engine, and nobody else waits for the DNS."""
    return str(place(node)) if node.address not in node.host else ""
