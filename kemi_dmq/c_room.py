"""Whom C nodes know, and for whom they still have room.

A C node writes its own list into a buffer of 1,024 bytes for each ping and each answer, and stops
working when it is full, whoever told it of the nodes.  So, unless there is room for all, a Python
node tells it of nobody whom it does not list, but of itself; and all Python nodes reckon the same
from what C nodes list and from their own lists.  Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import NamedTuple

from .wire import SipUri

Key = tuple[str, int]

#: For the last node a C node wants room for the URI as it was told (with our parameters) and 32
#: bytes.
C_LIST_BYTES = 880


class CShare(NamedTuple):
    known: list[SipUri]  # active nodes that some C node lists, and C nodes
    fitting: list[SipUri]  # Python nodes that there is room for besides
    left_out: int  # how many Python nodes there is none for


def c_share(
    listed: Mapping[Key, SipUri],
    c_nodes: Set[Key],
    active: Mapping[Key, SipUri],
    python: Mapping[Key, SipUri],
) -> CShare:
    """listed: what C nodes list as active, also what is dead by now; c_nodes: those themselves;
    active: all active nodes; python: those of them that are Python nodes.  First C nodes, then
    those that are listed, then the others, each by host and port."""
    known: list[SipUri] = []
    room = C_LIST_BYTES
    for key in sorted(listed.keys() | c_nodes, key=lambda key: (key not in c_nodes, key)):
        uri = active.get(key)
        room -= _size(uri or listed[key])
        if uri is not None and room >= 0:
            known.append(uri)
    fitting: list[SipUri] = []
    for key in sorted(python.keys() - listed.keys()):
        room -= _size(python[key])
        if room < 0:
            break
        fitting.append(python[key])
    left_out = len(python.keys() - {uri.key for uri in (*known, *fitting)})
    return CShare(known, fitting, left_out)


def _size(uri: SipUri) -> int:
    return len(f"{uri};status=active\r\n")
