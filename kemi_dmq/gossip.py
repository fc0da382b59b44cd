"""What Python nodes tell each other beyond the C module's protocol.

A notification between Python nodes is a short list: a line about its sender, with the digest of
the sender's list, and lines about what has changed lately (rumours).  Whole lists travel only when
digests differ.  All of it is written as parameters of lines that C nodes read as ``status=active``
(wire.Line), since the address of a Python node may be a C node's by the time a message is there::

    sip:10.0.0.1:5060;status=active;inc=1764057600123;digest=9f0c66bd41a7e2d1
    sip:10.0.0.2:5060;status=active;inc=1764057600456;state=suspect;by=1f3a.09c2

Parameters of the sender's line: ``digest``; ``want=list``: answer with the whole list;
``probe=host:port``: probe that node for me; ``reached=`` and ``missed=host:port``: what came of it.
Parameters of others' lines: ``state``: suspect, down or left (else it is alive), and ``by``: who
suspects it (marks).  Pure.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from .trust import sha256
from .wire import Line, SipUri

Key = tuple[str, int]

#: Bytes of rumours in one message: with headers it stays within one Ethernet frame.
RUMOUR_BYTES = 700
#: Bytes in one piece of a list that is sent in several.
PIECE_BYTES = 8_000


def mark(uri: SipUri) -> str:
    """A short name for a node, where a URI would be long; two nodes may have the same one."""
    return f"{zlib.crc32(str(uri).encode()) & 0xFFFF:04x}"


def fingerprint(uri: SipUri, incarnation: int) -> int:
    """A node's part in the digest of a list (they are joined by xor): 64 bits."""
    # No checksum: those are linear, and such of nodes with like names would cancel out.
    digest = sha256(f"{uri} {incarnation}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


@dataclass(frozen=True, slots=True)
class Head:
    """The sender's line of a message between Python nodes."""

    uri: SipUri
    incarnation: int
    digest: int | None = None
    wants_list: bool = False
    probe: Key | None = None
    reached: Key | None = None
    missed: Key | None = None

    def line(self) -> str:
        more = [] if self.digest is None else [f"digest={self.digest:016x}"]
        if self.wants_list:
            more.append(WANTS_LIST)
        for name in ("probe", "reached", "missed"):
            key = getattr(self, name)
            if key is not None:
                more.append(f"{name}={key[0]}:{key[1]}")
        return f"{Line(self.uri, 'active', self.incarnation, ';'.join(more))}\r\n"


WANTS_LIST = "want=list"


def parse_head(line: Line) -> Head:
    """The sender's line, read leniently: what is not understood is not there."""
    found = line.parameters()
    digest = found.get("digest", "")
    try:
        number = int(digest, 16) if digest else None
    except ValueError:
        number = None
    return Head(
        line.uri,
        line.incarnation,
        number,
        found.get("want") == "list",
        _key(found.get("probe", "")),
        _key(found.get("reached", "")),
        _key(found.get("missed", "")),
    )


def _key(text: str) -> Key | None:
    host, _, port = text.rpartition(":")
    return (host, int(port)) if host and port.isdigit() else None


def rumour_line(uri: SipUri, incarnation: int, state: str, by: Iterable[str] = ()) -> str:
    """A line about another node.  state: alive, suspect, down or left."""
    more = "" if state == "alive" else f"state={state}"
    marks = ".".join(sorted(by))
    if marks:
        more += f";by={marks}"
    return f"{Line(uri, 'active', incarnation, more)}\r\n"


def rumour_of(line: Line) -> tuple[str, frozenset[str]]:
    """(state, by) of a line that has an incarnation."""
    if line.status != "active":
        return "left", frozenset()  # a goodbye, in the C module's words
    if not line.more:
        return "alive", frozenset()
    found = line.parameters()
    state = found.get("state", "alive")
    if state not in ("alive", "suspect", "down", "left"):
        state = "alive"
    return state, frozenset(part for part in found.get("by", "").split(".") if part)


class Rumours:
    """What is still to be told, and how often each has been told: the least told goes first."""

    def __init__(self) -> None:
        self._told: dict[Key, int] = {}
        self._lines: dict[Key, str] = {}

    def __bool__(self) -> bool:
        return bool(self._lines)

    def add(self, key: Key, line: str) -> None:
        """News of a node take the place of older ones."""
        self._lines[key] = line
        self._told[key] = 0

    def drop(self, key: Key) -> None:
        self._lines.pop(key, None)
        self._told.pop(key, None)

    def peek(self, room: int = RUMOUR_BYTES) -> str:
        """The same without counting: for answers, which others send."""
        chosen = []
        for line in self._lines.values():
            if len(line) > room:
                break
            room -= len(line)
            chosen.append(line)
        return "".join(chosen)

    def take(self, limit: int, room: int = RUMOUR_BYTES) -> str:
        """Lines for one message; each is told limit times in all."""
        chosen = []
        for key in sorted(self._told, key=self._told.__getitem__):
            line = self._lines[key]
            if len(line) > room:
                break
            room -= len(line)
            chosen.append(line)
            self._told[key] += 1
            if self._told[key] >= limit:
                self.drop(key)
        return "".join(chosen)


def pieces(lines: Iterable[str], size: int = PIECE_BYTES) -> list[str]:
    """Lines, as few texts of at most size bytes."""
    texts: list[str] = []
    text = ""
    for line in lines:
        if text and len(text) + len(line) > size:
            texts.append(text)
            text = ""
        text += line
    return [*texts, text] if text else texts
