"""A reply as text (RFC 3261, 8.2.6), for a process that did not receive the request itself."""

from __future__ import annotations

import re

from .wire import SUPPORTED

_WANTED = ("Via", "From", "To", "Call-ID", "CSeq", "Supported", "User-Agent")
#: What is kept of the headers, under the names that most write; "" for what is often there, too.
_KEPT = {
    **{name: name.lower() for name in _WANTED},
    **{name.lower(): name.lower() for name in _WANTED},
    "v": "via",
    "f": "from",
    "t": "to",
    "i": "call-id",
    "k": "supported",
    **dict.fromkeys(("Max-Forwards", "Content-Type", "Content-Length"), ""),
}
#: sent-by's host and port, and the parameters, of the first value in a Via header.
_VIA = re.compile(
    r"SIP\s*/\s*2\.0\s*/\s*\w+\s+(\[[^\]]*\]|[^\s:;,]+)(?:\s*:\s*([0-9]{1,5}))?"
    r'([^,"]*(?:"(?:\\.|[^"\\])*"[^,"]*)*)',
    re.IGNORECASE,
)
_RPORT = re.compile(r";\s*rport(?=\s*(=|;|$))", re.IGNORECASE)
_FOLD = re.compile(r"\n[ \t]+")
_TAG = re.compile(r";\s*tag\s*=", re.IGNORECASE)


class RequestHead:
    """What a reply needs of the headers of its request."""

    __slots__ = ("_more_vias", "_values", "_via")

    def __init__(self, headers: str) -> None:
        self._values: dict[str, str] = {}
        self._more_vias: list[str] = []
        headers = headers.replace("\r\n", "\n")
        if "\n " in headers or "\n\t" in headers:
            headers = _FOLD.sub(" ", headers)
        for line in headers.split("\n"):
            name, _, value = line.partition(":")
            key = _KEPT.get(name)
            if key is None:
                key = _KEPT.get(name.strip().lower(), "")
            if key and key not in self._values:
                self._values[key] = value.strip()
            elif key == "via":
                self._more_vias.append(value.strip())
        self._via = _VIA.match(self.value("via"))

    def value(self, name: str) -> str:
        """A header's value, of several the first; "" if there is none."""
        return self._values.get(name, "")

    def back_to(self, transport: str, source: tuple[str, int]) -> tuple[str, int]:
        """Where the reply goes: over UDP to the port in the topmost Via unless that says rport
        (RFC 3261, 18.2.2; RFC 3581, 4)."""
        if transport != "udp":
            return source
        via = self._via
        if via is None or _RPORT.search(via[3]):
            return source
        return source[0], int(via[2] or 5060)

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
        vias = f"Via: {self._topmost_via(source)}\r\n"
        for value in self._more_vias:
            vias += f"Via: {value}\r\n"
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

    def _topmost_via(self, source: tuple[str, int]) -> str:
        """With where the request came from."""
        value, via = self.value("via"), self._via
        if via is None:
            return value
        ip = source[0].strip("[]")
        params, rport = via[3], None
        if "rport" in params.lower():
            rport = _RPORT.search(params)
            if rport and rport[1] != "=":
                params = f"{params[: rport.end()]}={source[1]}{params[rport.end() :]}"
        if rport is None and via[1].strip("[]").lower() == ip:
            return value
        return f"{value[: via.start(3)]}{params.rstrip()};received={ip}{value[via.end() :]}"
