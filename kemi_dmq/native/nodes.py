"""Nodes as C structures (dmq_node_t) that are the same in all processes and stay for ever.

C modules get them with a message or a reply, may keep the pointer, in shared memory too, and give
it back to send_message().  So they lie in memory that was mapped before the fork.

Writers: any process that meets a node for the first time, under a file lock.  They are only
added; the status in them is that of the moment when the pointer was given out last.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
from typing import Any

from ..node import Node, Status
from ..shared import shared_map
from .core import Core

COUNT = 16384
SIZE = 1024
_TEXT = 512  # where the URI's text lies, after the structure
_STATUS = {Status.ACTIVE: 1 << 1, Status.NOT_ACTIVE: 1 << 2, Status.DISABLED: 1 << 3}


class NodeStructs:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._map = shared_map(COUNT * SIZE)
        self._count = memoryview(shared_map(4096)).cast("Q")
        self._base = core.ffi.from_buffer(self._map)
        self._lock_fd = os.memfd_create("kemi_dmq_nodes")
        self._known = 0
        self._pointers: dict[str, Any] = {}  # by URI
        self._uris: dict[int, str] = {}  # by address

    def pointer(self, node: Node | None) -> Any:
        """The structure of a node; NULL for None, and where there is no room for one more."""
        if node is None:
            return self._core.ffi.NULL
        found = self._pointers.get(node.uri) or self._find(node)
        if found is None:
            return self._core.ffi.NULL
        found.status = _STATUS[node.status]
        return found

    def uri(self, pointer: Any) -> str:
        """The URI of a node that C gives us: one of ours, or a copy of one."""
        address = int(self._core.ffi.cast("uintptr_t", pointer))
        return self._uris.get(address) or self._core.text(pointer.orig_uri)

    def _find(self, node: Node) -> Any:
        fcntl.lockf(self._lock_fd, fcntl.LOCK_EX)
        try:
            while self._known < self._count[0]:
                self._know(self._known)
            if node.uri not in self._pointers and self._add(node):
                self._know(self._known)
        finally:
            fcntl.lockf(self._lock_fd, fcntl.LOCK_UN)
        return self._pointers.get(node.uri)

    def _know(self, number: int) -> None:
        pointer = self._at(number)
        uri = self._core.text(pointer.orig_uri)
        self._pointers[uri] = pointer
        self._uris[int(self._core.ffi.cast("uintptr_t", pointer))] = uri
        self._known = number + 1

    def _at(self, number: int) -> Any:
        return self._core.ffi.cast("dmq_node_t *", self._base + number * SIZE)

    def _add(self, node: Node) -> bool:
        number = self._count[0]
        text = node.uri.encode()
        if number >= COUNT or len(text) >= SIZE - _TEXT:
            return False
        pointer = self._at(number)
        place = self._base + number * SIZE + _TEXT
        self._core.ffi.memmove(place, text, len(text))
        pointer.orig_uri.s = place
        pointer.orig_uri.len = len(text)
        if self._core.parse_uri(place, len(text), self._core.ffi.addressof(pointer, "uri")) < 0:
            return False
        pointer.local = 1 if node.local else 0
        try:
            address = ipaddress.ip_address((node.address or node.host).strip("[]"))
        except ValueError:
            pass  # a name that was not looked up yet
        else:
            six = address.version == 6
            pointer.ip_address.af = socket.AF_INET6 if six else socket.AF_INET
            pointer.ip_address.len = len(address.packed)
            self._core.ffi.memmove(pointer.ip_address.addr, address.packed, len(address.packed))
        self._count[0] = number + 1
        return True
