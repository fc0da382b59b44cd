"""Text <-> values: URIs, notification bodies, and the requests that the engine sends.

Everything here is pure.  What a remote node got wrong is returned as a count or raises WireError;
nothing is guessed.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple

METHOD = "KDMQ"
#: Option tag (RFC 3261, 19.2) by which Python nodes know each other; the number is the version of
#: what they say to each other beyond the C module's protocol.
OPTION_TAG = "kemi_dmq-1"
SUPPORTED = f"Supported: {OPTION_TAG}\r\n"
TRANSPORTS = ("udp", "tcp", "tls", "sctp")
#: A list longer than this is refused whole (413): a datagram of 64 KB holds fewer nodes.
MAX_LINES = 1500

#: Statuses on the wire -> "is it active?".  timeout and pending are the words of 5.6 to 6.0,
#: not_active came with 6.1.
WIRE_STATUSES = {
    "active": "active",
    "not_active": "not_active",
    "timeout": "not_active",
    "pending": "not_active",
    "disabled": "disabled",
}

_HOST = r"\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_URI = re.compile(
    rf"(?P<scheme>sips?):(?:(?P<user>[^@:;?<>\s\"]+)(?::[^@\s]*)?@)?(?P<host>{_HOST})"
    r"(?::(?P<port>[0-9]{1,5}))?(?P<params>(?:;[^;?<>\s\"]+)*)(?:\?\S*)?",
    re.IGNORECASE,
)


_PARAMETER = re.compile(r"[a-z_]+=[A-Za-z0-9.:\[\]_-]*")


class WireError(ValueError):
    """The other side (or a setting) sent something that is not what RFC 3261 or DMQ defines."""


@dataclass(frozen=True, slots=True)
class SipUri:
    """The parts of a SIP URI that DMQ looks at."""

    host: str
    port: int
    transport: str = "udp"
    user: str = ""
    #: Whether the URI names its port; without, RFC 3263 asks for SRV records.
    port_given: bool = field(default=True, compare=False)

    @property
    def key(self) -> tuple[str, int]:
        """What makes two URIs the same node: host and port (as in the C module)."""
        return (self.host, self.port)

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        transport = "" if self.transport == "udp" else f";transport={self.transport}"
        return f"sip:{user}{self.host}:{self.port}{transport}"

    def with_transport(self, transport: str) -> SipUri:
        return self if transport == self.transport else replace(self, transport=transport)

    def with_user(self, user: str) -> SipUri:
        return self if user == self.user else replace(self, user=user)


def normal_host(host: str) -> str:
    """One spelling for one host: lower case, IPv6 in brackets and in its short form."""
    bare = host[1:-1] if host.startswith("[") else host
    if ":" in bare:
        try:
            return f"[{ipaddress.IPv6Address(bare).compressed}]"
        except ValueError:
            raise WireError(f"not an IPv6 address: {host!r}") from None
    if re.fullmatch(r"[0-9.]+", bare):
        try:
            return str(ipaddress.IPv4Address(bare))
        except ValueError:
            raise WireError(f"not an IPv4 address: {host!r}") from None
    if ".." in bare:
        raise WireError(f"not a host name: {host!r}")
    return bare.lower()


def is_address(host: str) -> bool:
    """Whether a host (as normal_host gives it) is an IP address, not a name to resolve."""
    return host.startswith("[") or re.fullmatch(r"[0-9.]+", host) is not None


@lru_cache(maxsize=4096)
def _parse(text: str) -> tuple[SipUri, str]:
    match = _URI.fullmatch(text)
    if match is None:
        raise WireError(f"not a SIP URI: {text[:200]!r}")
    params = match["params"]
    transport = ""
    for param in params.split(";")[1:]:
        name, _, value = param.partition("=")
        if name.lower() == "transport":
            transport = value.lower()
            if transport not in TRANSPORTS:
                raise WireError(f"unknown transport in {text[:200]!r}")
    if not transport:
        transport = "tls" if match["scheme"].lower() == "sips" else "udp"
    port = int(match["port"]) if match["port"] else (5061 if transport == "tls" else 5060)
    if not 0 < port < 65536:
        raise WireError(f"port out of range in {text[:200]!r}")
    given = match["port"] is not None
    uri = SipUri(normal_host(match["host"]), port, transport, match["user"] or "", given)
    return uri, params


def parse_uri(text: str) -> SipUri:
    """A SIP URI's host, port, transport and user; WireError for anything else."""
    return _parse(text)[0]


def is_sip_uri(text: str) -> bool:
    try:
        _parse(text)
    except WireError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a notification body: a node and the status its sender gives it.

    Python nodes add parameters, which C nodes pass over: ``inc``, the node's incarnation, and
    others (gossip.py).  To a C node any line that we write says status=active, since it may not
    know another word.
    """

    uri: SipUri
    status: str  # "active", "not_active" or "disabled"
    incarnation: int = 0  # 0: its sender does not know one
    #: the other parameters, as they are written: "state=suspect;by=1f.a0"
    more: str = ""

    def __str__(self) -> str:
        incarnation = f";inc={self.incarnation}" if self.incarnation else ""
        more = f";{self.more}" if self.more else ""
        return f"{self.uri};status={self.status}{incarnation}{more}"

    def parameters(self) -> dict[str, str]:
        """Those of more."""
        return dict(part.partition("=")[::2] for part in self.more.split(";") if part)


#: Longer parameters than this are not what a Python node sends.
MAX_MORE = 300
_INCARNATION = re.compile(r"[1-9][0-9]{0,17}")


def parse_line(text: str) -> Line:
    text = text.strip()
    # Python nodes write the status before their parameters: so a URI is parsed once.
    uri_text, found, rest = text.partition(";status=")
    if not found or ";transport=" in rest.lower():
        uri_text, rest = text, ""
    uri, params = _parse(uri_text)
    status = None
    incarnation, more = 0, []
    for param in rest.split(";") if rest else params.split(";")[1:]:
        name, equals, value = param.partition("=")
        name = name.lower()
        if rest and status is None and not equals:
            name, value = "status", param
        if name == "status":
            status = WIRE_STATUSES.get(value.lower())
            if status is None:
                raise WireError(f"unknown status in {text[:200]!r}")
        elif name == "inc":
            if not _INCARNATION.fullmatch(value):
                raise WireError(f"no incarnation in {text[:200]!r}")
            incarnation = int(value)
        elif name != "transport" and _PARAMETER.fullmatch(param):
            more.append(param)
    if status is None:
        raise WireError(f"no status in {text[:200]!r}")
    kept = ";".join(more)
    if len(kept) > MAX_MORE:
        raise WireError(f"too many parameters in {text[:200]!r}")
    return Line(uri.with_user(""), status, incarnation, kept)


def parse_body(body: str) -> tuple[list[Line], int]:
    """The good lines of a notification body and the number of bad ones.

    A node named twice counts once, as its last line says.  WireError when there are more than
    MAX_LINES lines.
    """
    if body.count("\n") > MAX_LINES:
        raise WireError(f"more than {MAX_LINES} lines")
    lines: dict[tuple[str, int], Line] = {}
    bad = 0
    for text in body.splitlines():
        if not text.strip():
            continue
        try:
            line = parse_line(text)
        except WireError:
            bad += 1
        else:
            lines[line.uri.key] = line
    return list(lines.values()), bad


def build_body(uris: Iterable[SipUri], status: str = "active") -> str:
    return "".join(f"{uri};status={status}\r\n" for uri in uris)


#: A list for a Python node stays within what 6.0 and later receive over UDP.
LIST_BYTES = 30_000


@dataclass(frozen=True, slots=True)
class Agent:
    """Who the other side is, by its Supported and User-Agent or Server headers."""

    python: bool = False
    version: tuple[int, int] | None = None  # Kamailio's, where it says so


_VERSION = re.compile(r"kamailio[ /(]+(\d+)\.(\d+)", re.IGNORECASE)


@lru_cache(maxsize=256)
def parse_agent(supported: str, product: str) -> Agent:
    """Agent from the values of Supported and of User-Agent (or Server); both may be empty."""
    tags = [tag.strip().lower() for tag in supported.split(",")]
    python = any(tag.startswith("kemi_dmq-") for tag in tags)
    match = _VERSION.search(product)
    return Agent(python, (int(match[1]), int(match[2])) if match else None)


def leave_status(agent: Agent | None) -> str:
    """The word with which a node leaves, so that who is told understands it and will take the
    node back: ``disabled`` sticks in C nodes up to 6.1, and an unknown word stops them."""
    if agent is None or (not agent.python and agent.version is None):
        return "disabled"
    if agent.python or (agent.version is not None and agent.version >= (6, 1)):
        return "not_active"
    return "timeout"


#: Ends the Content-Type of a body that travels as base64: texts without a transaction cannot hold
#: NUL, nor bytes that are not UTF-8.  Between Python nodes only.
ENCODED = ";kemi_dmq=base64"


def as_text(body: str | bytes) -> str | None:
    """A body as text that can travel; None if it is none."""
    try:
        text = body if isinstance(body, str) else body.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def encode(body: str | bytes) -> str:
    """A body that is no text, as text."""
    raw = body.encode() if isinstance(body, str) else body
    return base64.b64encode(raw).decode()


def decode_body(content_type: str, body: str | bytes | None) -> tuple[str, bytes | None]:
    """The Content-Type and body that were sent, of a Content-Type that ends with ENCODED; None
    for a body that is not base64."""
    try:
        return content_type.removesuffix(ENCODED), base64.b64decode(body or "", validate=True)
    except (binascii.Error, ValueError):
        return content_type, None


@dataclass(frozen=True, slots=True)
class Via:
    """The part of a request that says who sends it: the listening socket and the From URI."""

    transport: str
    host: str
    port: int


def build_request(
    *,
    via: Via,
    branch: str,
    call_id: str,
    tag: str,
    from_uri: SipUri,
    to_uri: SipUri,
    body: str,
    max_forwards: int,
    user_agent: str,
    content_type: str = "text/plain",
    headers: str = "",
) -> str:
    """A whole KDMQ request, for a host that sends text.  headers: further header lines."""
    form = Form(via, from_uri, to_uri, max_forwards, content_type, user_agent)
    return form.request(branch, call_id, tag, body, headers)


class Form:
    """What KDMQ requests from one peer to another have in common (RFC 3261, 8.1.1), written once.

    compact: in the short form of headers (7.3.3) and without what can be left out, for a Python
    node that knows this one.  signed: they get a header that signs them, and with them the URIs as
    these say.
    """

    def __init__(
        self,
        via: Via,
        from_uri: SipUri,
        to_uri: SipUri,
        max_forwards: int,
        content_type: str,
        user_agent: str,
        *,
        compact: bool = False,
        signed: bool = False,
    ) -> None:
        to, sender = str(to_uri), str(from_uri.with_transport("udp"))
        sent_by = f"{via.host}:{via.port}"
        if compact and via.transport != "tls":  # whose own port is another one
            sent_by = _without_port(sent_by)
        if compact and not signed:
            to, sender = _without_port(to), _without_port(sender)
        names = _SHORT if compact else _LONG
        start = f"{METHOD} {to} SIP/2.0\r\n{names.via}SIP/2.0/{via.transport.upper()} {sent_by}"
        self._to_branch = f"{start};branch="
        self._to_tag = f"\r\n{names.to}<{to}>\r\n{names.sender}<{sender}>;tag="
        self._to_call_id = f"\r\n{names.cseq}10 {METHOD}\r\n{names.call_id}"
        more = "" if compact else f"{SUPPORTED}User-Agent: {user_agent}\r\n"
        self._to_type = f"\r\n{names.max_forwards}{max_forwards}\r\n{more}"
        self._type = f"{names.content_type}{content_type}\r\n"
        self._length = names.length

    def request(self, branch: str, call_id: str, tag: str, body: str, headers: str = "") -> str:
        return (
            f"{self._to_branch}{branch}{self._to_tag}{tag}{self._to_call_id}{call_id}"
            f"{self._to_type}{self._type if body else ''}{headers}"
            f"{self._length}{size_of(body)}\r\n\r\n{body}"
        )


class _Names(NamedTuple):
    """Of headers, as they stand in a request."""

    via: str
    to: str
    sender: str
    cseq: str
    call_id: str
    max_forwards: str
    content_type: str
    length: str


_LONG = _Names(
    "Via: ",
    "To: ",
    "From: ",
    "CSeq: ",
    "Call-ID: ",
    "Max-Forwards: ",
    "Content-Type: ",
    "Content-Length: ",
)
_SHORT = _Names("v:", "t:", "f:", "CSeq:", "i:", "Max-Forwards:", "c:", "l:")


def size_of(text: str) -> int:
    """Bytes of UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def _without_port(uri: str) -> str:
    """Without the one that is meant where none is written."""
    return uri.removesuffix(":5060")
