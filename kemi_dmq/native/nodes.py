"""Nodes as C structures (dmq_node_t) that are the same in all processes and stay for ever.

C modules get them with a message or a reply, may keep the pointer, in shared memory too, and give
it back to send_message().  So they lie in memory that was mapped before the fork.

Writers: any process that meets a node for the first time, under a file lock.  They are only
added; the status in them is that of the moment when the pointer was given out last.  Strangers,
whom anybody can invent, have a part of their own and replace each other there.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..node import Node, Status
from ..shared import shared_map
from ..wire import SipUri
from .core import Core

COUNT = 16384
#: Of senders that are not on the list: the last so many whose answer a C module waits for.
STRANGERS = 4096
SIZE = 1024
_TEXT = 512  # where the URI's text lies, after the structure
_STATUS = {Status.ACTIVE: 1 << 1, Status.NOT_ACTIVE: 1 << 2, Status.DISABLED: 1 << 3}


class NodeStructs:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._map = shared_map((COUNT + STRANGERS) * SIZE)
        self._count = memoryview(shared_map(4096)).cast("Q")  # nodes; strangers so far
        self._base = core.ffi.cast("char *", core.ffi.from_buffer(self._map))
        self._lock_fd = os.memfd_create("kemi_dmq_nodes")
        self._known = 0
        self._pointers: dict[str, Any] = {}  # by URI
        self._uris: dict[int, str] = {}  # by address
        self._strangers: dict[int, Node] = {}  # by address, while their message is handled

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

    @contextmanager
    def stranger(self, uri: SipUri) -> Iterator[Any]:
        """A structure for a sender that is not on the list, as long as its message is handled.

        A node that has just joined is asked for what it has by nodes that it has not heard of yet;
        C modules then answer to this.
        """
        address = uri.host.strip("[]")
        try:
            ipaddress.ip_address(address)
        except ValueError:
            address = ""  # a name, which nobody here looks up
        node = Node(str(uri), uri.host, uri.port, uri.transport, Status.NOT_ACTIVE, address=address)
        memory = self._core.ffi.new("char[]", SIZE)
        if not self._write(memory, node):
            yield self._core.ffi.NULL
            return
        pointer = self._core.ffi.cast("dmq_node_t *", memory)
        pointer.status = _STATUS[node.status]
        key = int(self._core.ffi.cast("uintptr_t", pointer))
        self._strangers[key] = node
        try:
            yield pointer
        finally:
            del self._strangers[key]

    def known_stranger(self, pointer: Any) -> Node | None:
        """The stranger whose structure this is, if it can be sent to."""
        node = self._strangers.get(int(self._core.ffi.cast("uintptr_t", pointer)))
        return node if node is not None and node.address else None

    def number(self, node: Node, listed: bool) -> int:
        """What names a structure that stays in one number, from 1 on; 0 if there is none."""
        if not listed:
            return self._stranger_number(node)
        pointer = self.pointer(node)
        if not pointer:
            return 0
        return int((self._core.ffi.cast("char *", pointer) - self._base) // SIZE) + 1

    def _stranger_number(self, node: Node) -> int:
        fcntl.lockf(self._lock_fd, fcntl.LOCK_EX)
        try:
            number = COUNT + self._count[1] % STRANGERS
            self._count[1] += 1
            if not self._write(self._base + number * SIZE, node):
                return 0
            self._at(number).status = _STATUS[node.status]
        finally:
            fcntl.lockf(self._lock_fd, fcntl.LOCK_UN)
        return number + 1

    def numbered(self, number: int) -> Any:
        return self._at(number - 1) if number else self._core.ffi.NULL

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
        if number >= COUNT or not self._write(self._base + number * SIZE, node):
            return False
        self._count[0] = number + 1
        return True

    def _write(self, memory: Any, node: Node) -> bool:
        text = node.uri.encode()
        if len(text) >= SIZE - _TEXT:
            return False
        pointer = self._core.ffi.cast("dmq_node_t *", memory)
        place = memory + _TEXT
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
        return True
