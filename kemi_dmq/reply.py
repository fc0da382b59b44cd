"""A reply as text (RFC 3261, 8.2.6), for a process that did not receive the request itself."""

from __future__ import annotations

import re

from .wire import SUPPORTED

_COPIED = re.compile(
    r"^(via|v|from|f|to|t|call-id|i|cseq|supported|k|user-agent)[ \t]*:[ \t]*"
    r"([^\r\n]*(?:\r?\n[ \t][^\r\n]*)*)",
    re.IGNORECASE | re.MULTILINE,
)
_LONG = {"v": "via", "f": "from", "t": "to", "i": "call-id", "k": "supported"}
_FIRST_VIA = re.compile(r'(?:"(?:\\.|[^"\\])*"|[^,"])*')
_RPORT = re.compile(r";\s*rport(?=\s*(?:;|$))", re.IGNORECASE)
_SENT_BY = re.compile(r"SIP\s*/\s*2\.0\s*/\s*\w+\s+(\[[^\]]*\]|[^\s:;,]+)", re.IGNORECASE)
_TAG = re.compile(r";\s*tag\s*=", re.IGNORECASE)


class RequestHead:
    """What a reply needs of the headers of its request."""

    __slots__ = ("_values",)

    def __init__(self, headers: str) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in _COPIED.findall(headers):
            name = name.lower()
            self._values.setdefault(_LONG.get(name, name), []).append(value.rstrip())

    def value(self, name: str) -> str:
        """A header's value, of several the first; "" if there is none."""
        values = self._values.get(name)
        return values[0] if values else ""

    def reply(
        self,
        code: int,
        reason: str,
        *,
        source: tuple[str, int],
        tag: str,
        server: str,
        body: str = "",
        content_type: str = "",
    ) -> str:
        """The whole reply.  source: where the request came from (RFC 3581, 4)."""
        via, *more = self._values.get("via", [""])
        vias = "".join(f"Via: {value}\r\n" for value in (_received(via, source), *more))
        to = self.value("to")
        if not _TAG.search(to, to.rfind(">") + 1):
            to = f"{to};tag={tag}"
        typed = f"Content-Type: {content_type}\r\n" if body else ""
        return (
            f"SIP/2.0 {code} {reason}\r\n"
            f"{vias}"
            f"To: {to}\r\n"
            f"From: {self.value('from')}\r\n"
            f"CSeq: {self.value('cseq')}\r\n"
            f"Call-ID: {self.value('call-id')}\r\n"
            f"{SUPPORTED}"
            f"Server: {server}\r\n"
            f"{typed}"
            f"Content-Length: {len(body.encode())}\r\n"
            "\r\n"
            f"{body}"
        )


def _received(via: str, source: tuple[str, int]) -> str:
    """The topmost Via with where the request came from."""
    ip, port = source
    match = _FIRST_VIA.match(via)
    assert match is not None  # it matches nothing, too
    first, others = match[0].rstrip(), via[match.end() :]
    first, rport = _RPORT.subn(f";rport={port}", first, count=1)
    sent_by = _SENT_BY.match(first)
    if rport or sent_by is None or sent_by[1].strip("[]").lower() != ip.strip("[]"):
        first += f";received={ip.strip('[]')}"
    return first + others
