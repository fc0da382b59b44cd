"""What the bus needs of its host.  The request methods speak of the request being handled."""

from __future__ import annotations

from typing import Protocol

from ..trust import Parts
from ..wire import SipUri, Via


class Host(Protocol):
    # The request or reply being handled
    def ruri_user(self) -> str | None: ...
    def from_uri(self) -> str | None: ...
    def call_id(self) -> str | None: ...
    def identity(self) -> object:
        """What a retransmission has in common with the request and no other request has."""

    def request(self, source_ip: str) -> tuple[str, str | bytes | None, str, tuple[str, int], int]:
        """From URI ("" if there is none that can be read), body(), Content-Type, source() and
        max_forwards() in one call; source_ip is what source_ip() has given."""

    def signed_parts(self) -> Parts | None:
        """What a signature covers; None where it cannot be read, or headers contradict each other
        or the body, so that somebody could read another message than was signed."""

    def is_myself(self, uri: str) -> bool:
        """Whether the host takes a URI to name itself."""

    def body(self) -> str | bytes | None:
        """The body; bytes where it is not UTF-8, None where it cannot be read at all."""

    def content_type(self) -> str: ...
    def max_forwards(self) -> int: ...
    def source(self) -> tuple[str, int]: ...
    def source_ip(self) -> str | None: ...
    def header(self, name: str) -> str: ...
    def headers(self) -> str | None:
        """All headers as they came; None where they are not UTF-8 without NUL."""

    def size(self) -> int:
        """Bytes of the whole request."""

    def whole(self) -> bytes | None:
        """All of the request as it came; None where it cannot be read."""

    def way_back(self) -> tuple[str, str]:
        """The request's transport, and the socket that it came to, as ``udp:ip:port``."""

    def reply(
        self, code: int, reason: str, body: str = "", content_type: str = "", headers: str = ""
    ) -> bool:
        """headers: further header lines."""

    def send_reply(self, way_back: tuple[str, str], to: tuple[str, int], text: str) -> bool:
        """Send a whole reply, from any process; over TCP and TLS on the request's connection."""

    def reply_code(self) -> int: ...
    def reply_reason(self) -> str: ...

    def drop(self) -> None:
        """Let Kamailio do nothing more with the reply being handled."""

    # Sending
    def send(
        self,
        to: SipUri,
        from_uri: SipUri,
        headers: str,
        body: str | bytes,
        event_param: str,
        next_hop: str = "",
    ) -> bool:
        """Send a KDMQ in a transaction, to next_hop where the URI's host is a name that the
        host should not look up; with event_param its outcome is told to the script."""

    def send_text(self, to: SipUri, text: str) -> bool:
        """Send a whole request without a transaction."""

    def replicate(self, places: list[SipUri]) -> bool:
        """Send the request being handled to each of places, within its own transaction; False if
        one of them is not sent to."""

    def event(self) -> tuple[str, int, bool]:
        """Of an outcome: event_param, code, and whether it is a timeout."""

    # Kamailio
    def log(self, level: str, text: str) -> None: ...
    def define(self, name: str) -> str | None: ...
    def listens_on(self, socket: Via) -> bool: ...
    def version(self) -> str: ...
