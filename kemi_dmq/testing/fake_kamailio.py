"""What stands around KSR in tests without Kamailio: brings messages in, keeps what went out.

kamailio = FakeKamailio(listen=["udp:10.0.0.1:5060"])
kamailio.install()                          # from now on: import KSR
script = importlib.import_module("my_script")
handler = script.mod_init()
replies = kamailio.receive(Request(body=b"hello"), handler.ksr_request_route)
"""

from __future__ import annotations

import base64
import binascii
import itertools
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..wire import WireError, parse_uri

if TYPE_CHECKING:
    from .fake_ksr import FakeKSR

_numbers = itertools.count(1)

_Value = bytes | int | None

#: $uac_req(name) -> the largest number of bytes that Kamailio stores in it.
_UAC_LIMITS = {
    **dict.fromkeys(("method", "callid", "evparam", "auser", "arealm", "apasswd"), 127),
    **dict.fromkeys(("ruri", "turi", "furi", "ouri", "sock"), 1023),
    "hdrs": 2047,
    "body": 32767,
}
_UAC_NUMBERS = ("evroute", "evcode", "evtype")
#: What a transformation can give at most, whatever pv_buffer_size is.
_TRANSFORMED = 65535
_COMPACT = {
    "v": "via",
    "f": "from",
    "t": "to",
    "i": "call-id",
    "c": "content-type",
    "k": "supported",
}


# What comes in and goes out ------------------------------------------------------------------


@dataclass
class Request:
    """A request that Kamailio receives.  str fields may hold bytes that are not UTF-8 as
    surrogates (``b"...".decode(errors="surrogateescape")``)."""

    ruri: str = "sip:acme@10.0.0.1:5060"
    from_uri: str = "sip:acme@10.0.0.2:5060"
    body: bytes = b""
    content_type: str | None = "text/plain"  # None, or no body: no such header
    headers: Mapping[str, str] = field(default_factory=dict)
    method: str = "KDMQ"
    max_forwards: str | None = "1"
    via: str = ""  # by default one of its own
    call_id: str = ""
    source: tuple[str, int] = ("10.0.0.2", 5060)

    def __post_init__(self) -> None:
        number = next(_numbers)
        self.via = self.via or f"SIP/2.0/UDP 10.0.0.2:5060;branch=z9hG4bK{number}"
        self.call_id = self.call_id or f"{number}@10.0.0.2"

    def _head(self) -> dict[str, str]:
        head = {
            "via": self.via,
            "from": f"<{self.from_uri}>;tag=1",
            "to": f"<{self.ruri}>",
            "call-id": self.call_id,
            "cseq": f"10 {self.method}",
        }
        if self.max_forwards is not None:
            head["max-forwards"] = self.max_forwards
        if self.body and self.content_type is not None:
            head["content-type"] = self.content_type
        return head | {name.lower(): value for name, value in self.headers.items()}


@dataclass
class ReceivedReply:
    """A reply that Kamailio receives."""

    code: int = 200
    reason: str = "OK"
    body: bytes = b""
    content_type: str | None = "text/plain"
    headers: Mapping[str, str] = field(default_factory=dict)
    call_id: str = ""
    from_uri: str = "sip:acme@10.0.0.1:5060"
    source: tuple[str, int] = ("10.0.0.2", 5060)
    method: str = "KDMQ"

    def _head(self) -> dict[str, str]:
        head = {"from": f"<{self.from_uri}>;tag=1", "call-id": self.call_id}
        if self.body and self.content_type is not None:
            head["content-type"] = self.content_type
        return head | {name.lower(): value for name, value in self.headers.items()}


@dataclass(frozen=True)
class SentReply:
    """A reply that the script sent."""

    code: int
    reason: str
    headers: str
    body: str
    content_type: str


@dataclass(frozen=True)
class SentRequest:
    """A request that uac_req_send() took."""

    method: str
    ruri: str
    furi: str
    headers: str
    body: bytes
    sock: str
    evroute: int
    evparam: str


@dataclass(frozen=True)
class SentText:
    """A whole message that sendx() took."""

    to: str
    sock: str
    text: str


@dataclass(frozen=True)
class Replicated:
    """The request being handled, as t_replicate() sent it on."""

    uri: str
    sock: str


@dataclass(frozen=True)
class LogLine:
    level: str
    text: str


# The other side --------------------------------------------------------------------------------


class FakeKamailio:
    """What stands around KSR: brings messages in and keeps what went out.

    listen: the sockets that it listens on, as ``udp:10.0.0.1:5060``.  defines: what kamailio.cfg
    defines, quotes included.
    """

    def __init__(
        self,
        listen: Iterable[str] = ("udp:10.0.0.1:5060",),
        defines: Mapping[str, str] | None = None,
        version: str = "5.6.3",
        pv_buffer_size: int = 131072,
    ) -> None:
        self.listen = list(listen)
        self.defines = dict(defines or {})
        self.version = version
        self.pv_buffer_size = pv_buffer_size
        self.current: Request | ReceivedReply | None = None
        self.ruri = ""  # of the current request, as the script left it
        self.replies: list[SentReply] = []
        self.requests: list[SentRequest] = []
        self.texts: list[SentText] = []
        self.replicated: list[Replicated] = []
        self.log: list[LogLine] = []
        self.dropped = False
        self.refuse_replies = False  # True: send_reply() fails
        self.refuse_requests = False  # True: uac_req_send(), sendx() and t_replicate() fail
        self.uac: dict[str, bytes | int] = {}
        self.variables: dict[str, bytes | int] = {}
        self.htables: dict[str, dict[str, str]] = {}  # those that kamailio.cfg declares
        self.rpc: list[str] = []  # what jsonrpcs was given
        self.calls: Counter[str] = Counter()  # of KSR functions, such as pv.get
        self._reply_headers = ""
        self._reply_body: tuple[str, str] | None = None
        self._send_socket = ""

    def install(self) -> FakeKSR:
        """Make ``import KSR`` give this one."""
        from .fake_ksr import FakeKSR

        sys.modules["KSR"] = ksr = FakeKSR(self)
        return ksr

    def receive(self, request: Request, route: Callable[[Any], object]) -> list[SentReply]:
        """A request arrives and is given to route(msg); the replies that this sent."""
        self._enter(request)
        before = len(self.replies)
        route(None)
        return self.replies[before:]

    def receive_reply(self, reply: ReceivedReply, route: Callable[[Any], object]) -> bool:
        """A reply that belongs to no transaction arrives; True if it was not dropped."""
        self._enter(reply)
        route(None)
        return not self.dropped

    def answer(
        self, sent: SentRequest, reply: ReceivedReply, route: Callable[[Any, str], object]
    ) -> None:
        """The final answer to a request of uac arrives: the uac event, if it was asked for."""
        self._outcome(sent, reply, 1, route)

    def time_out(self, sent: SentRequest, route: Callable[[Any, str], object]) -> None:
        """A request of uac is not answered: tm makes a 408."""
        self._outcome(sent, ReceivedReply(408, "Request Timeout"), 2, route)

    def lines(self, level: str) -> list[str]:
        """What was logged at a level."""
        return [line.text for line in self.log if line.level == level]

    def _outcome(
        self,
        sent: SentRequest,
        reply: ReceivedReply,
        kind: int,
        route: Callable[[Any, str], object],
    ) -> None:
        self._enter(reply)
        if sent.evroute:
            self.uac |= {"evcode": reply.code, "evtype": kind, "evparam": sent.evparam.encode()}
            route(None, "uac:reply")

    def _enter(self, message: Request | ReceivedReply) -> None:
        self.current = message
        self.ruri = message.ruri if isinstance(message, Request) else ""
        self.dropped = False
        self._reply_headers, self._reply_body, self._send_socket = "", None, ""

    # Values of the current message; what is not there is None

    def _ruri_user(self) -> bytes | None:
        match = re.match(r"sips?:([^@:;?]+)(?::[^@]*)?@", self.ruri)
        return _bytes(match[1]) if match else None

    def _header(self, name: str) -> bytes | None:
        if self.current is None:
            return None
        name = name.lower()
        value = self.current._head().get(_COMPACT.get(name, name))
        return None if value is None else _bytes(value)

    def _pv(self, name: str, argument: str | None) -> _Value:
        """The value of a variable; KeyError where Kamailio knows no such variable."""
        message = self.current
        if name == "var":
            return self.variables.get(argument or "", 0)
        if name == "uac_req":
            assert argument is not None
            if argument in _UAC_NUMBERS:
                return self.uac.get(argument, 0)
            return self.uac.get(argument, b"") or None if argument in _UAC_LIMITS else self._no()
        if name == "version":
            return self.version.encode()
        if name == "def":
            value = self.defines.get(argument or "")
            return None if value is None else value.encode()
        if name == "hdr":
            return self._header(argument or "")
        if name == "msg" and argument == "hdrs":
            lines = () if message is None else message._head().items()
            return _bytes("\r\n".join(f"{header}: {value}" for header, value in lines)) or None
        if name == "rtimer_worker":
            return 0
        if name in ("rs", "rr"):
            if not isinstance(message, ReceivedReply):
                return None
            return message.code if name == "rs" else _bytes(message.reason)
        if name == "ru":
            return _bytes(self.ruri) or None
        if name == "rU":
            return self._ruri_user()
        if name == "cT":
            return self._header("content-type")
        if name == "ci":
            return self._header("call-id")
        if name == "ou":
            return _bytes(message.ruri) if isinstance(message, Request) else None
        if name == "cl":
            length = self._header("content-length")
            return len(message.body) if message and length is None else int(length or 0)
        if name not in ("rb", "fu", "rm", "si", "sp"):
            self._no()
        if message is None:
            return None
        values: dict[str, _Value] = {
            "rb": message.body,
            "fu": _bytes(message.from_uri),
            "rm": message.method.encode(),
            "si": message.source[0].encode(),
            "sp": message.source[1],
        }
        return values[name]

    @staticmethod
    def _no() -> _Value:
        raise KeyError("no such variable")

    def _evaluate(self, text: str) -> _Value:
        """The value of ``$name``, ``$name(arg)`` or ``$(name(arg){transformation})``."""
        match = _VARIABLE.fullmatch(text)
        if match is None:
            raise KeyError(text)
        name, argument = match["n1"] or match["n2"], match["a1"] or match["a2"]
        value = self._pv(name, argument)
        for transformation in re.findall(r"\{([^}]*)\}", match["t"] or ""):
            value = self._transform(transformation, value)
        return value

    def _transform(self, name: str, value: _Value) -> _Value:
        if value is None:
            return None
        raw = str(value).encode() if isinstance(value, int) else value
        if name == "s.len":
            return len(raw)
        if name == "s.encode.base64":
            result = base64.b64encode(raw)
        elif name == "s.decode.base64":
            try:
                result = base64.b64decode(raw, validate=True)
            except binascii.Error:
                return None
        else:
            raise KeyError(name)
        return result if len(result) <= min(_TRANSFORMED, self.pv_buffer_size) else None

    def _assign(self, text: str, value: _Value) -> bool:
        match = _VARIABLE.fullmatch(text)
        if match is None or match["t"]:
            return False
        name, argument = match["n1"] or match["n2"], match["a1"] or match["a2"] or ""
        if name == "var":
            self.variables[argument] = 0 if value is None else value
            return True
        if name == "uac_req":
            return self._assign_uac(argument, value)
        if name == "ru" and isinstance(value, bytes):
            self.ruri = value.decode(errors="surrogateescape")
            return True
        return False

    def _assign_uac(self, name: str, value: _Value) -> bool:
        if name == "all":
            self.uac.clear()
        elif name in _UAC_NUMBERS:
            if isinstance(value, bytes):
                return False
            self.uac[name] = value or 0
        elif name not in _UAC_LIMITS or isinstance(value, int):
            return False
        elif len(value or b"") > _UAC_LIMITS[name]:
            # the old value stays, as in Kamailio
            self.log.append(LogLine("err", "Value size too big\n"))
            return False
        else:
            self.uac[name] = value or b""
        return True

    def _is_myself(self, uri: str) -> bool:
        try:
            asked = parse_uri(uri)
        except WireError:
            return False
        given = (asked.transport if ";transport=" in uri.lower() else None, asked.host, asked.port)
        for sock in self.listen:
            transport, _, rest = sock.partition(":")
            host, _, port = rest.rpartition(":")
            if given in ((transport, host, int(port)), (None, host, int(port))):
                return True
        return False


_NAME = r"[A-Za-z_]+"
_VARIABLE = re.compile(
    rf"\$(?:\((?P<n1>{_NAME})(?:\((?P<a1>[^()]*)\))?(?P<t>(?:\{{[^}}]*\}})*)\)"
    rf"|(?P<n2>{_NAME})(?:\((?P<a2>[^()]*)\))?)"
)


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")
