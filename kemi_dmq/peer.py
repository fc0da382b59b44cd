"""Peers: named handlers of messages, and the registry that survives a reload of the script.

A registration belongs to the script, or to an imported module.  The script's ones form a
generation: it opens with DMQ(), is collected aside, and replaces the one before it as a whole
when the script has loaded; a script that fails on the way changes nothing.  Those of imported
modules stay, since a reload does not import them again.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

from .batch import PEER as BATCH
from .message import Message, Response
from .node import Node
from .once import Answer
from .wire import SipUri

PeerCallback = Callable[[Message, Node | None], Response | None]
InitCallback = Callable[[Node | None], object]
_TOKEN = re.compile(r"[A-Za-z0-9._~!$&'()*+,=-]{1,64}")


@dataclass(frozen=True, slots=True)
class Peer:
    """A named handler.

    peer_id: the user part of the R-URI, at most 64 characters.
    callback(message, node): runs in the process that received the request; node is None for a
    sender that is not on the list.  None: a peer for sending only, which answers 202.
    init_callback(node): runs in the callbacks process when the first node list has arrived, and
    again for each node that comes back.
    """

    peer_id: str
    description: str = ""
    callback: PeerCallback | None = None
    init_callback: InitCallback | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.peer_id, str) or not _TOKEN.fullmatch(self.peer_id):
            raise ValueError(f"peer_id is {self.peer_id!r}; it must be the user part of a SIP URI")
        object.__setattr__(self, "peer_id", "".join((self.peer_id,)))  # not an enum's
        for name in ("callback", "init_callback"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise TypeError(f"{name} of peer {self.peer_id} is {value!r}; it must be callable")


@dataclass(frozen=True, slots=True)
class RawPeer(Peer):
    """A peer that reads the SIP message itself: one of a C module (kemi_dmq.native).

    answer(sender, text): runs in the process that received the request, text being None, or in
    another one with the request as text; sender is a URI when it is not on the list.  Gives what to
    answer, and what went wrong ("": nothing).
    """

    answer: Callable[[Node | SipUri, bytes | None], tuple[Answer, str]] | None = None


def is_peer_id(text: object) -> bool:
    return isinstance(text, str) and _TOKEN.fullmatch(text) is not None


class ChannelTakenError(ValueError):
    """A peer has the name of the notification channel."""


class Registry:
    """All peers of this process.  Writer and reader: this process."""

    def __init__(self, channel: str = "") -> None:
        self.channel = channel
        self._permanent: dict[str, Peer] = {}
        self._script: dict[str, Peer] = {}
        self._collecting: dict[str, Peer] | None = None
        self._load: FrameType | None = None  # what Kamailio has called to load the script
        #: What requests are answered by, at this moment.
        self.live: dict[str, Peer] = {}

    def open_generation(self) -> None:
        """A script begins to load; a second DMQ() in the same load changes nothing."""
        load = outermost(sys._getframe(1))
        if self._collecting is None or self._load is not load:
            self._collecting = {}
        self._load = load

    def commit(self) -> None:
        """The script has loaded: its registrations replace those of the script before it."""
        self._load = None
        if self._collecting is not None:
            self._script, self._collecting = self._collecting, None
        self.live = {**self._permanent, **self._script}

    def discard(self) -> None:
        """The script is not taken: its registrations are forgotten."""
        self._collecting = None

    def register(self, peer: Peer) -> Peer:
        if not isinstance(peer, Peer):
            raise TypeError(f"peer is {peer!r}; it must be a kemi_dmq.Peer")
        module = importing_module(sys._getframe(2))
        if module is None and self._collecting is None:
            raise RuntimeError(
                f"peer {peer.peer_id!r} is registered outside of loading; create DMQ() first and "
                "register before dmq.attach()"
            )
        if peer.peer_id == BATCH:
            raise ValueError(f"peer_id {BATCH!r} is taken by messages that travel together")
        if peer.peer_id == self.channel:
            raise ChannelTakenError(f"peer_id {peer.peer_id!r} is taken by the node lists")
        ours = self._script if self._collecting is None else self._collecting
        if peer.peer_id in (*self._permanent, *ours):
            raise ValueError(f"peer_id {peer.peer_id!r} is taken; each peer is registered once")
        if module is not None:
            self._permanent[peer.peer_id] = peer
            self.live = {**self._permanent, **self._script}
        elif self._collecting is not None:
            self._collecting[peer.peer_id] = peer
        return peer

    def register_permanent(self, peer: Peer) -> None:
        """Register a peer that is not the script's: it stays when that is loaded again.
        ValueError if its name is taken."""
        if peer.peer_id in (
            *self._permanent,
            *self._script,
            *(self._collecting or ()),
            self.channel,
            BATCH,
        ):
            raise ValueError(f"peer_id {peer.peer_id!r} is taken; each peer is registered once")
        self._permanent[peer.peer_id] = peer
        self.live = {**self._permanent, **self._script}

    def peers(self) -> tuple[Peer, ...]:
        return tuple(self.live.values())


def outermost(frame: FrameType | None) -> FrameType | None:
    found = frame
    while frame is not None:
        if not frame.f_globals.get("__name__", "").startswith("importlib"):
            found = frame
        frame = frame.f_back
    return found


def importing_module(frame: FrameType | None) -> str | None:
    """The module that is being imported in this call stack, or None if the script itself runs.

    The script is what Kamailio calls: the outermost Python code apart from the import machinery.
    """
    innermost: str | None = None
    outermost = ""
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if not name.startswith("importlib"):
            outermost = name
            if frame.f_code.co_name == "<module>" and innermost is None:
                innermost = name
        frame = frame.f_back
    return innermost if innermost is not None and innermost != outermost else None
