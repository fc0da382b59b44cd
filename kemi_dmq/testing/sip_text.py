"""SIP messages as the simulated nodes send them: text <-> values.  Not a parser for others'."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from ..wire import METHOD, SipUri, Via


@dataclass(frozen=True, slots=True)
class SipText:
    """A request (code is 0) or a reply (uri is ``""``).  Bytes of a body that are not UTF-8 are
    surrogates in it."""

    uri: str
    code: int
    reason: str
    headers: Mapping[str, str]  # names in lower case
    body: str

    def header(self, name: str) -> str:
        return self.headers.get(name.lower(), "")

    @property
    def from_uri(self) -> str:
        return self.header("From").partition("<")[2].partition(">")[0]


#: The short forms (RFC 3261, 7.3.3) that kemi_dmq writes.
_SHORT = {
    "v": "via",
    "t": "to",
    "f": "from",
    "i": "call-id",
    "c": "content-type",
    "l": "content-length",
}


@lru_cache(maxsize=4096)  # retransmissions, copies, and the transcript's look at it
def parse(text: str) -> SipText:
    head, _, body = text.partition("\r\n\r\n")
    first, *lines = head.split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        name = name.lower()
        headers[_SHORT.get(name, name)] = value.strip()
    if int(headers["content-length"]) != size(body):
        raise ValueError(f"Content-Length is wrong in {text!r}")
    if first.startswith("SIP/2.0 "):
        _, code, reason = first.split(" ", 2)
        return SipText("", int(code), reason, headers, body)
    method, uri, version = first.split(" ")
    if (method, version) != (METHOD, "SIP/2.0"):
        raise ValueError(f"not a KDMQ request: {text!r}")
    return SipText(uri, 0, "", headers, body)


def size(text: str) -> int:
    """In bytes."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogateescape"))


def build_reply(
    request: SipText, code: int, reason: str, body: str, content_type: str, more: str
) -> str:
    """more: further header lines."""
    copied = "".join(
        f"{name}: {request.header(name)}\r\n" for name in ("Via", "From", "To", "CSeq", "Call-ID")
    )
    typed = f"Content-Type: {content_type}\r\n" if body else ""
    length = size(body)
    return f"SIP/2.0 {code} {reason}\r\n{copied}{typed}{more}Content-Length: {length}\r\n\r\n{body}"


def build_request(
    via: Via, call_id: str, from_uri: SipUri, to_uri: SipUri, headers: str, body: str
) -> str:
    """A request as tm sends it.  headers: whole lines."""
    return (
        f"{METHOD} {to_uri} SIP/2.0\r\n"
        f"Via: SIP/2.0/{via.transport.upper()} {via.host}:{via.port};branch=z9hG4bK{call_id}\r\n"
        f"To: <{to_uri}>\r\n"
        f"From: <{from_uri}>;tag={call_id}\r\n"
        f"CSeq: 10 {METHOD}\r\n"
        f"Call-ID: {call_id}\r\n"
        f"{headers}"
        f"Content-Length: {size(body)}\r\n"
        "\r\n"
        f"{body}"
    )


def build_c_request(
    via: Via, call_id: str, from_uri: SipUri, to_uri: SipUri, body: str, max_forwards: int, ua: str
) -> str:
    """A request as the C module sends it."""
    headers = f"User-Agent: {ua}\r\nMax-Forwards: {max_forwards}\r\nContent-Type: text/plain\r\n"
    return build_request(via, call_id, from_uri, to_uri, headers, body)


def short(key: tuple[str, int]) -> str:
    """A node's host and port, as people write it: without the port where it is 5060."""
    return key[0] if key[1] == 5060 else f"{key[0]}:{key[1]}"
