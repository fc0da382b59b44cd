"""Peers that C modules register: their callbacks, as the bus calls peers."""

from __future__ import annotations

from typing import Any

from ..node import Node
from ..once import PLAIN_OK, Answer
from ..peer import Peer, RawPeer
from ..wire import SipUri
from .core import ALL_HEADERS, Core
from .nodes import NodeStructs

_FAILED = "Peer Callback Failed"


class CPeer:
    """One peer of a C module: its dmq_peer_t, copied and kept for ever, and what calls it."""

    def __init__(self, core: Core, nodes: NodeStructs, given: Any, init_with_single: bool) -> None:
        self._core = core
        self._nodes = nodes
        ffi = core.ffi
        self.peer_id = core.text(given.peer_id)
        self.description = core.text(given.description)
        self._strings = [ffi.new("char[]", core.raw(s)) for s in (given.peer_id, given.description)]
        #: What C gets of register_dmq_peer() and gives to bcast_message() and send_message().
        self.struct = ffi.new("dmq_peer_t *")
        for string, buffer in zip(
            (self.struct.peer_id, self.struct.description), self._strings, strict=True
        ):
            string.s = buffer
            string.len = len(buffer) - 1
        self._callback = self.struct.callback = given.callback
        self._init = self.struct.init_callback = given.init_callback

        self._single = init_with_single
        self._has_asked = False  # in the callbacks process
        #: While init_callback runs with init_with_single: whom alone its broadcast is for.
        self.asks: Node | None = None

    def peer(self) -> Peer:
        """For the registry."""
        init = self._run_init if self._init else None
        if not self._callback:
            return Peer(self.peer_id, self.description, None, init)
        return RawPeer(self.peer_id, self.description, None, init, self._answer)

    def _answer(self, sender: Node | SipUri, text: bytes | None) -> tuple[Answer, str]:
        """Run the C callback on the request being handled, or on that in text; what to answer,
        and what went wrong."""
        if text is not None:
            with self._core.parsed(text) as message:
                return self._answer_to(sender, message)
        return self._answer_to(sender, self._core.message())

    def _answer_to(self, sender: Node | SipUri, message: Any) -> tuple[Answer, str]:
        if isinstance(sender, Node):
            return self._run(self._nodes.pointer(sender), message)
        with self._nodes.stranger(sender) as pointer:
            return self._run(pointer, message)

    def _run(self, node: Any, message: Any) -> tuple[Answer, str]:
        core = self._core
        # C modules read parsed headers, and count on all of them.
        if not message or core.parse_headers(message, ALL_HEADERS, 0) < 0:
            return Answer(400, "Bad Headers", b"", ""), ""
        response = core.ffi.new("peer_response_t *")
        result = self._callback(message, response, node)
        code = response.resp_code
        if result < 0:
            return _failed(f"returned {result}")
        if not 200 <= code <= 699:
            return _failed(f"answered with the code {code}")
        reason, body = core.text(response.reason), core.raw(response.body)
        if code == 200 and reason == "OK" and not body:
            return PLAIN_OK, ""
        if body:
            try:
                if b"\0" in body:
                    raise ValueError
                body.decode()
            except ValueError:
                return _failed("answered with a body that is no UTF-8 text")
        return Answer(code, reason, body, core.text(response.content_type) if body else ""), ""

    def _run_init(self, node: Node | None) -> None:
        """Run in the callbacks process: once, when the first list has arrived, as dmq.so does it.
        C modules broadcast here a request for all that the others have, and what they get
        overwrites what they have.  So a node that is back is not asked: it may have been cut off,
        and know only what was.  One that was started again asks for itself.

        The node itself is not passed on: C's init_callback takes none up to 6.1.
        """
        if self._has_asked:
            return
        self._has_asked = True
        self.asks = node if self._single else None
        try:
            result = self._init()
        finally:
            self.asks = None
        if result < 0:
            raise RuntimeError(f"the C module's init_callback returned {result}")


def _failed(what: str) -> tuple[Answer, str]:
    return Answer(500, _FAILED, b"", ""), what
