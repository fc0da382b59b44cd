"""A node with the C module, as far as its notification peer goes: its rules, and its failures.

What stops a real one for good (a list that does not fit its 1,024 bytes; in 5.6 to 5.8.0 a line
that it cannot read) is kept in ``stuck``: from then on it neither pings nor answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..settings import Settings
from ..transaction import T1, T2
from ..wire import SipUri, WireError, is_address, parse_uri
from .simulated_host import ANSWER_TIME
from .simulated_node import SimulatedNode
from .sip_text import SipText, build_c_request, build_reply, parse
from .timeline import Clock

if TYPE_CHECKING:
    from .simulator import Simulator

LIST_BYTES = 1024


@dataclass
class _Entry:
    uri: SipUri
    status: str
    contact: bool = False


class SimulatedCNode(SimulatedNode):
    """version: Kamailio's, (5, 6) to (6, 1)."""

    def __init__(
        self, simulator: Simulator, settings: Settings, clock: Clock, version: tuple[int, int]
    ) -> None:
        super().__init__(simulator, settings, clock)
        self.version = version
        self.stuck = ""
        #: How many nodes it asked for their state, which it does once; None: not yet.
        self.asked_for_state: int | None = None
        self._entries: dict[tuple[str, int], _Entry] = {}
        self._open: dict[str, SipUri] = {}
        self._count = 0
        self._agent = f"kamailio ({version[0]}.{version[1]}.0 (x86_64/linux))"
        self._not_active = "not_active" if version >= (6, 1) else "timeout"
        words = ("not_active",) if version >= (6, 1) else ("timeout", "pending")
        self._words = ("active", "disabled", *words)

    def start(self) -> None:
        for contact in self.settings.notification_address:
            if contact.key != self.uri.key:
                self._entries[contact.key] = _Entry(contact, self._not_active, contact=True)
                self._notify(contact, 2)
        self.after(self.settings.ping_interval, self._ping_all)

    def leave(self) -> None:
        """At SIGTERM nothing is seen on the wire."""
        self.stop()

    def listed(self) -> dict[SipUri, str]:
        return {self.uri: "active"} | {e.uri: e.status for e in self._entries.values()}

    def receive(self, text: str, source: tuple[str, int]) -> None:
        if self.stuck:
            return
        message = parse(text)
        if message.code:
            self._answered(message)
        elif parse_uri(message.uri).user != self.settings.notification_channel:
            self._reply(message, source, 404, "User Not Found", "")
        else:
            news = self._merge(message.body)
            self._ask_for_state()
            hops = int(message.header("Max-Forwards"))
            if news and hops > 1:
                for entry in list(self._entries.values()):
                    if entry.status == "active":
                        self._notify(entry.uri, hops - 1)
            body = self._body()
            if not self.stuck:
                self._reply(message, source, 200, "OK", body)

    def _merge(self, body: str) -> bool:
        """True if the list told something new."""
        news = False
        for line in body.splitlines():
            try:
                text, _, parameters = line.partition(";status=")
                uri, status = parse_uri(text), parameters.partition(";")[0]
                if not is_address(uri.host) and uri.host not in self.simulator.names:
                    raise WireError(f"{uri.host} does not resolve")
                if status not in self._words:
                    raise WireError(f"unknown status {status!r}")
            except WireError as error:
                if self.version <= (5, 8):
                    self._stop(f"stopped by a line: {error}")
                return news
            entry = self._entries.get(uri.key)
            if uri.key == self.uri.key:
                continue
            if entry is None:
                self._entries[uri.key] = _Entry(uri, status)
                news = True
            elif entry.status not in (status, "disabled"):
                entry.status = status
                news = True
        return news

    def _ask_for_state(self) -> None:
        """At the first notification, whatever is in it: a C module's init_callback."""
        if self.asked_for_state is None:
            active = [entry for entry in self._entries.values() if entry.status == "active"]
            self.asked_for_state = len(active)

    def _body(self) -> str:
        uris = [self.uri, *(e.uri for e in self._entries.values() if e.status == "active")]
        body = "".join(f"{uri};status=active\r\n" for uri in uris)
        if len(body) > LIST_BYTES:
            self._stop(f"stopped by a list of {len(body)} bytes")
        return body

    def _stop(self, why: str) -> None:
        self.stuck = self.stuck or why
        self.simulator.note(self.uri, why)

    def _notify(self, to: SipUri, max_forwards: int) -> None:
        body = self._body()
        if self.stuck:
            return
        self._count += 1
        channel = self.settings.notification_channel
        call_id = f"c{self._count}@{self.uri.host}-{self.simulator.now:.6f}"
        text = build_c_request(
            self.settings.server_socket,
            call_id,
            self.uri.with_transport("udp").with_user(channel),
            to.with_user(channel),
            body,
            max_forwards,
            self._agent,
        )
        self._open[call_id] = to
        self._send_until_answered(call_id, to, text, T1, self.monotonic() + ANSWER_TIME)

    def _send_until_answered(
        self, call_id: str, to: SipUri, text: str, pause: float, end: float
    ) -> None:
        if call_id not in self._open:
            return
        left = end - self.monotonic()
        if left <= 1e-6:
            del self._open[call_id]
            self._no_answer(to)
            return
        self.send(to, text)
        self.after(
            min(pause, left),
            self._send_until_answered,
            call_id,
            to,
            text,
            min(2 * pause, T2),
            end,
        )

    def _answered(self, reply: SipText) -> None:
        to = self._open.pop(reply.header("Call-ID"), None)
        if to is not None and reply.code == 200:
            if to.key in self._entries:
                self._entries[to.key].status = "active"
            self._merge(reply.body)
            self._ask_for_state()
        elif to is not None and reply.code == 408:
            self._no_answer(to)

    def _no_answer(self, to: SipUri) -> None:
        entry = self._entries.get(to.key)
        if entry is None or self.stuck:
            return
        if entry.contact or not self.settings.remove_inactive:
            entry.status = self._not_active
        elif entry.status == "disabled":
            del self._entries[to.key]
        else:
            entry.status = "disabled"

    def _ping_all(self) -> None:
        if self.stuck:
            return
        for entry in list(self._entries.values()):
            self._notify(entry.uri, 1)
        self.after(self.settings.ping_interval, self._ping_all)

    def _reply(
        self, request: SipText, source: tuple[str, int], code: int, reason: str, body: str
    ) -> None:
        text = build_reply(request, code, reason, body, "text/plain", f"Server: {self._agent}\r\n")
        self.send(SipUri(*source), text)
