"""Requests and replies as values: what a peer gets, gives back, and hears of what it sent."""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .node import Node

#: A param of a response callback, as JSON, is at most this long.
MAX_PARAM = 4096


#: A reply with a longer body does not reach a Kamailio of 6.0 or later over UDP.
MAX_RESPONSE_BODY = 31_000


def is_unicode(text: str) -> bool:
    """Whether text is UTF-8 when it is encoded: it has no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Body:
    """A body that is read as text or as bytes; it is converted when asked for, not before."""

    __slots__ = ("_raw",)
    _raw: str | bytes

    @property
    def body(self) -> str:
        """The body as UTF-8 text; what does not decode is replaced, it never raises."""
        raw = self._raw
        return raw if isinstance(raw, str) else raw.decode("utf-8", "replace")

    @property
    def body_bytes(self) -> bytes:
        """The body, byte for byte."""
        raw = self._raw
        return raw.encode() if isinstance(raw, str) else raw


class Message(_Body):
    """A KDMQ request for a peer."""

    __slots__ = ("content_type", "from_uri", "max_forwards", "peer_id", "source")

    def __init__(
        self,
        peer_id: str,
        body: str | bytes,
        content_type: str,
        from_uri: str,
        source: tuple[str, int],
        max_forwards: int,
    ) -> None:
        self.peer_id = peer_id
        self._raw = body
        self.content_type = content_type
        self.from_uri = from_uri
        self.source = source
        self.max_forwards = max_forwards


class Outcome(enum.StrEnum):
    """What became of a message to one node; exactly one of these (docs/messages.md)."""

    ANSWERED = "answered"
    TIMED_OUT = "timed_out"
    EXPIRED = "expired"


class Reply(_Body):
    """The final answer to a message, or its absence: then code is 408 and timed_out True.

    outcome: ``answered``: the node has answered, whatever the code.  ``timed_out``: no answer; the
    message may have run there or not.  ``expired`` (only with a deadline or ordered): the node was
    away until the deadline; it has not run.
    """

    __slots__ = ("code", "content_type", "outcome", "reason", "timed_out")

    def __init__(
        self,
        code: int,
        reason: str,
        body: str | bytes,
        content_type: str,
        timed_out: bool,
        outcome: Outcome | None = None,
    ) -> None:
        self.code = code
        self.reason = reason
        self._raw = body
        self.content_type = content_type
        self.timed_out = timed_out
        self.outcome = outcome or (Outcome.TIMED_OUT if timed_out else Outcome.ANSWERED)


@dataclass(frozen=True, slots=True, init=False)
class Response:
    """What a peer's callback answers.  None instead of one means 200 OK.

    code: 200 to 699.  body: str, or bytes that are UTF-8 without NUL (Kamailio's reply functions
    take no other).  To a node that is not known to run kemi_dmq a 200 with a body goes out as
    202 and a 408 as 480, since a C node takes the one for a node list and the other for the death
    of the node.
    """

    code: int = 200
    reason: str = "OK"
    body: str | bytes = b""
    content_type: str = "text/plain"

    def __new__(
        cls,
        code: int = 200,
        reason: str = "OK",
        body: str | bytes = b"",
        content_type: str = "text/plain",
    ) -> Response:
        if (
            type(code) is int
            and code == 200
            and reason == "OK"
            and body == b""
            and content_type == "text/plain"
        ):
            return OK  # nearly all answers: made and checked once
        return _response(code, reason, body, content_type)

    def __reduce__(self) -> tuple[Any, ...]:
        return Response, (self.code, self.reason, self.body, self.content_type)

    def _check(self) -> None:
        if not isinstance(self.code, int) or not 200 <= self.code <= 699:
            raise ValueError(f"code is {self.code!r}; it must be a final SIP code, 200 to 699")
        for name, value in (("reason", self.reason), ("content_type", self.content_type)):
            if not isinstance(value, str) or any(c in value for c in "\r\n\0"):
                raise ValueError(f"{name} is {value!r}; it must be a str of one line")
            if len(value) > 250 or not is_unicode(value):
                raise ValueError(f"{name} is {value[:300]!r}; it must be UTF-8 of at most 250")
        if not self.reason:
            raise ValueError("reason is empty; Kamailio sends no reply without one")
        if isinstance(self.body, bytes):
            try:
                text = self.body.decode()
            except UnicodeDecodeError:
                raise ValueError(
                    "body of a Response must be UTF-8; send bytes as a message"
                ) from None
        elif isinstance(self.body, str):
            text = self.body
        else:
            raise TypeError(f"body is {type(self.body).__name__}; it must be str or bytes")
        if not is_unicode(text):
            raise ValueError("body of a Response has lone surrogates; it must be UTF-8")
        if len(text.encode()) > MAX_RESPONSE_BODY:
            raise ValueError(
                f"body of a Response has {len(text.encode())} bytes; at most {MAX_RESPONSE_BODY}"
            )
        if "\0" in text:
            raise ValueError("body of a Response must be without NUL; send bytes as a message")
        if self.body and not self.content_type:
            raise ValueError("content_type is empty; a body needs one")


def _response(code: int, reason: str, body: str | bytes, content_type: str) -> Response:
    new = object.__new__(Response)
    for name, value in zip(
        ("code", "reason", "body", "content_type"), (code, reason, body, content_type), strict=True
    ):
        object.__setattr__(new, name, value)
    new._check()
    return new


OK = _response(200, "OK", b"", "text/plain")

ResponseFunction = Callable[[Reply, Node | None, Any], object]


@dataclass(frozen=True, slots=True)
class ResponseCallback:
    """Call function(reply, node, param) once when the answer to a message is here.

    It runs in whichever process gets the answer (a SIP worker; for a timeout the callbacks
    process), so function must be importable, or one of the script's own at module level, and
    param a plain value of at most 4 KB as JSON.
    """

    function: ResponseFunction
    param: Any = None


def function_reference(function: Any) -> str:
    """``module:name`` under which any process finds the function again."""
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", None)
    found: Any = sys.modules.get(module) if isinstance(module, str) else None
    for part in (name or "").split("."):
        found = getattr(found, part, None)
    # A method of an object bears the name of the class's function.
    method = hasattr(function, "__self__") and found != function
    if method or not callable(found) or getattr(found, "__qualname__", None) != name:
        raise ValueError(
            f"resp_cback function is {function!r}; it must be a function at the top level of a "
            "module, since another process may get the answer"
        )
    return f"{module}:{name}"


def find_function(reference: str) -> ResponseFunction:
    module, _, name = reference.partition(":")
    found: Any = sys.modules.get(module)
    if found is None:
        found = __import__(module, fromlist=["_"])
    for part in name.split("."):
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"{reference} is not callable")
    return found  # type: ignore[no-any-return]


_encode = json.JSONEncoder(separators=(",", ":")).encode
#: The param of a response callback again.
unpack_param = json.JSONDecoder().decode


def pack_param(param: Any) -> str:
    if param is None:
        return "null"
    if type(param) is str and len(param) < MAX_PARAM // 12:
        return _encode(param)
    try:
        text = _encode(param)
        same = json.loads(text)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"resp_cback param cannot be stored ({error}); it must be a str, number, list or dict"
        ) from None
    if same != (list(param) if isinstance(param, tuple) else param):
        raise TypeError("resp_cback param changes when stored; dict keys must be str")
    if len(text) > MAX_PARAM:
        raise ValueError(f"resp_cback param has {len(text)} bytes as JSON; at most {MAX_PARAM}")
    return text
