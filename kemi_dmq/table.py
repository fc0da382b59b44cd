"""The node list in a table of Kamailio's htable module, for ``kamcmd htable.dump dmq_nodes``
(kamailio-cfg/kemi_dmq_rpc.cfg)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from .node import Node


class Htable(Protocol):
    """What the table needs of its host; False when Kamailio refuses."""

    def table_set(self, table: str, key: str, value: str) -> bool: ...
    def table_remove(self, table: str, key: str) -> bool: ...


class NodeTable:
    """Writer: the callbacks process alone.  (The engine must not wait for a lock of htable's: at
    the stop of Kamailio its holder may be dead already, and the engine still has to say goodbye.)
    """

    def __init__(self, host: Htable, name: str) -> None:
        self._host = host
        self.name = name
        self._shown: dict[str, str] = {}

    def show(self, nodes: Iterable[Node]) -> bool:
        """Write what has changed; False if Kamailio refused any of it, which is tried again."""
        rows = {node.uri: row(node) for node in nodes}
        good = True
        for uri in self._shown.keys() - rows.keys():
            if self._host.table_remove(self.name, uri):
                del self._shown[uri]
            else:
                good = False
        for uri, text in rows.items():
            if self._shown.get(uri) != text:
                if self._host.table_set(self.name, uri, text):
                    self._shown[uri] = text
                else:
                    good = False
        return good


def row(node: Node) -> str:
    """A node with the names of the C module's dmq.list_nodes, as parameters."""
    return (
        f"status={node.status.value};proto={node.transport};resolved_ip={node.address};"
        f"local={int(node.local)};kemi_dmq={int(node.python)}"
    )
