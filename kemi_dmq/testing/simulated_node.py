"""What all simulated nodes have in common: a machine with clocks, that may be slow or paused."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Set
from typing import TYPE_CHECKING, Any

from ..settings import Settings
from ..wire import SipUri
from .network import Key
from .sip_text import size
from .timeline import Clock

if TYPE_CHECKING:
    from .simulator import Simulator

#: So many datagrams wait for a node that stands still, or is slow; the rest is lost (the socket's
#: buffer of 256 KB, of which the kernel counts some 1 KB for a datagram).
RECEIVE_BUFFER = 256


class SimulatedNode:
    """told: what callbacks were told: event or init, and which node.  errors: what it logged as
    err or crit.  sent, sent_bytes: datagrams that it sent and their bodies and headers."""

    def __init__(self, simulator: Simulator, settings: Settings, clock: Clock) -> None:
        self.simulator = simulator
        self.settings = settings
        self.uri = settings.server_address
        self.clock = clock
        self.alive = True
        self.paused = False
        self.delay = 0.0  # seconds that each datagram and timer takes it
        self.told: list[tuple[str, str]] = []
        self.errors: list[str] = []
        self.sent = 0
        self.sent_bytes = 0
        self._latest = clock.monotonic(simulator.now)
        self._waiting: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._waiting_datagrams = 0
        self._works = False

    # For subclasses to say

    def start(self) -> None:
        raise NotImplementedError

    def leave(self) -> None:
        """It is stopped: what it still says is said now."""
        raise NotImplementedError

    def receive(self, text: str, source: Key) -> None:
        raise NotImplementedError

    def listed(self) -> dict[SipUri, str]:
        """Its list: the status of each node, itself included."""
        raise NotImplementedError

    def active_keys(self) -> Set[Key]:
        return frozenset(uri.key for uri, status in self.listed().items() if status == "active")

    # Clocks

    def monotonic(self) -> float:
        """Its time.monotonic()."""
        self._latest = max(self._latest, self.clock.monotonic(self.simulator.now))
        return self._latest

    def wall(self) -> float:
        """Its time.time()."""
        return self.clock.wall(self.simulator.now)

    def after(self, seconds: float, do: Callable[..., None], *args: Any) -> None:
        """Call do(*args) on this node after so many of its seconds: later if it stands still or is
        slow then, not if it is dead."""
        simulator = self.simulator
        simulator.at(simulator.now + seconds / self.clock.rate, self.take, do, *args)

    def clock_changed(self) -> None:
        """Its clock runs at another rate from now on."""

    # Work, one thing after the other where it is paused or slow

    def take(self, do: Callable[..., None], *args: Any) -> None:
        """Something to do: now, or when its turn comes."""
        if not self.alive:
            return
        if self.paused or self.delay or self._waiting:
            self._waiting.append((do, args))
            self._go_on()
        else:
            do(*args)

    def deliver(self, text: str, source: Key) -> None:
        """A datagram has arrived."""
        if not (self.paused or self.delay or self._waiting):
            self.receive(text, source)
        elif self._waiting_datagrams < RECEIVE_BUFFER:
            self._waiting_datagrams += 1
            self.take(self._receive_late, text, source)
        else:
            self.simulator.note(self.uri, "loses a datagram: its buffer is full")

    def _receive_late(self, text: str, source: Key) -> None:
        self._waiting_datagrams -= 1
        self.receive(text, source)

    def _go_on(self) -> None:
        if not self._works and self._waiting and not self.paused:
            self._works = True
            self.simulator.after(self.delay, self._work)

    def _work(self) -> None:
        self._works = False
        if self.alive and self._waiting and not self.paused:
            do, args = self._waiting.popleft()
            do(*args)
            self._go_on()

    def pause(self) -> None:
        """All its processes stand still."""
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        self._go_on()

    def stop(self) -> None:
        """It is gone."""
        self.alive = False
        self._waiting.clear()
        self.simulator.running_changed()

    # Network

    def send(self, to: SipUri, text: str) -> None:
        self.sent += 1
        self.sent_bytes += size(text)
        self.simulator.transmit(self.uri, to.key, text)

    # What it tells

    def log(self, level: str, text: str) -> None:
        if level in ("err", "crit"):
            self.errors.append(text)
        self.simulator.note(self.uri, f"{level}: {text}")
