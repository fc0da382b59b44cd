"""Detecting that a Python node has died: SWIM with Lifeguard's remedies.

SWIM: Das, Gupta and Motivala, 2002.  Lifeguard: Dadgar, Phillips and Currey, 2017; the settings are
named as in HashiCorp's memberlist.  Each node probes one other after the other; one that does not
answer, neither directly nor to indirect_checks others, is suspected; it is down when it has not
refuted that (by a higher incarnation) before a timeout, which is the shorter the more others
confirm the suspicion.  A node that is slow itself doubts itself first: what it misses raises its
health score, which stretches its probes.

Pure: membership.py gives time and carries out what comes back.
"""

from __future__ import annotations

import enum
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from .settings import Settings

Key = tuple[str, int]


class State(enum.Enum):
    """What this node believes of a Python node."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    DOWN = "down"
    LEFT = "left"


class Cause(enum.Enum):
    """Why that changes."""

    ANSWERED = "it answers us"
    NEWER = "a newer incarnation of it is heard of"
    MISSED = "our probe was answered neither directly nor through others"
    SUSPECTED = "another node suspects this incarnation or a later one"
    EXPIRED = "the suspicion was not refuted in time"
    CALLED_DOWN = "another node says that it is down"
    LEAVES = "it says goodbye"


#: All changes; what is not here changes nothing.  docs/membership.md shows it as a diagram.
TRANSITIONS: dict[tuple[State, Cause], State] = {
    (State.ALIVE, Cause.MISSED): State.SUSPECT,
    (State.ALIVE, Cause.SUSPECTED): State.SUSPECT,
    # Others may be on the other side of a cut that has just healed.
    (State.ALIVE, Cause.CALLED_DOWN): State.SUSPECT,
    (State.ALIVE, Cause.LEAVES): State.LEFT,
    (State.SUSPECT, Cause.NEWER): State.ALIVE,
    (State.SUSPECT, Cause.EXPIRED): State.DOWN,
    (State.SUSPECT, Cause.CALLED_DOWN): State.DOWN,
    (State.SUSPECT, Cause.LEAVES): State.LEFT,
    (State.DOWN, Cause.ANSWERED): State.ALIVE,
    (State.DOWN, Cause.NEWER): State.ALIVE,
    (State.DOWN, Cause.LEAVES): State.LEFT,
    # A datagram that was on its way when it said goodbye revives nobody.
    (State.LEFT, Cause.NEWER): State.ALIVE,
}


@dataclass(slots=True)
class Suspicion:
    """Since when a node is suspected, and by whom (marks)."""

    since: float
    by: set[str]
    expected: int  # confirmations that shorten the timeout to the shortest
    shortest: float
    longest: float
    asked: bool = False  # it was told itself, once more, before it is taken as down

    def expires(self) -> float:
        """Lifeguard's timeout: it shrinks with the logarithm of the confirmations."""
        confirmed = min(max(0, len(self.by) - 1), self.expected)
        timeout = self.shortest
        if self.expected > 0:
            share = math.log(confirmed + 1) / math.log(self.expected + 1)
            timeout = self.longest - (self.longest - self.shortest) * share
        return self.since + timeout

    def asks(self) -> float:
        """When it is told itself."""
        return self.since + (self.expires() - self.since) * 0.6

    def due(self) -> float:
        return self.expires() if self.asked else self.asks()


@dataclass(slots=True)
class _Round:
    """One node's turn."""

    key: Key
    ask_at: float  # when others are asked to probe it
    ends: float
    answered: bool = False
    helpers: list[Key] = field(default_factory=list)
    missed_by: set[Key] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Probe:
    """Probe this node."""

    key: Key


@dataclass(frozen=True, slots=True)
class AskOthers:
    """Ask helpers to probe it."""

    key: Key
    helpers: list[Key]


@dataclass(frozen=True, slots=True)
class Missed:
    """It answered nobody; confirmed_by could not reach it either."""

    key: Key
    confirmed_by: list[Key]


Step = Probe | AskOthers | Missed


class Detector:
    """Whose turn it is to be probed, and what its silence means."""

    def __init__(self, settings: Settings, rng: random.Random) -> None:
        self._settings = settings
        self._rng = rng
        self._interval = settings.probe_interval / 1000
        self._timeout = settings.probe_timeout / 1000
        self.health = 0  # 0 is well; Lifeguard's local health multiplier
        self._round: _Round | None = None
        self._next = float("-inf")
        self._turns: list[Key] = []
        self._seen: set[Key] = set()

    def next_deadline(self) -> float:
        turn = self._round
        if turn is None or turn.answered:
            return self._next
        return turn.ends if turn.helpers else min(turn.ask_at, turn.ends)

    @property
    def stretch(self) -> int:
        return 1 + self.health

    @property
    def patience(self) -> float:
        """Seconds that a node which was asked to probe another waits for it."""
        return self._timeout * self.stretch

    def start(self, now: float) -> None:
        """There is somebody to probe: begin at a moment of this node's own."""
        self._next = now + self._interval * self._rng.random()

    def heard(self, key: Key) -> None:
        """The node has answered, or has been reached by another."""
        turn = self._round
        if turn is not None and turn.key == key and not turn.answered:
            turn.answered = True
            self.better()

    def missed_by(self, key: Key, helper: Key) -> None:
        """helper could not reach it either (and so lives itself)."""
        if self._round is not None and self._round.key == key:
            self._round.missed_by.add(helper)

    def better(self) -> None:
        self.health = max(0, self.health - 1)

    def worse(self, by: int = 1) -> None:
        self.health = min(self._settings.awareness_max_multiplier - 1, self.health + by)

    def postpone(self, seconds: float) -> None:
        """This process stood still for so long: what it missed meanwhile says nothing."""
        self.worse()
        self._next += seconds
        if self._round is not None:
            self._round.ask_at += seconds
            self._round.ends += seconds

    def tick(
        self,
        now: float,
        members: Callable[[], list[Key]],
        helpers: Callable[[], list[Key]],
    ) -> list[Step]:
        """What is to be done now; members() gives those that are not down, helpers() those of them
        that nobody suspects."""
        steps: list[Step] = []
        turn = self._round
        if turn is not None and not turn.answered:
            if now >= turn.ends:
                steps.append(Missed(turn.key, sorted(turn.missed_by)))
                # Those who were asked and said nothing either are far from us: it may be us.
                silent = len(turn.helpers) - len(turn.missed_by)
                self.worse(silent if turn.helpers else 1)
                self._round = None
            elif now >= turn.ask_at and not turn.helpers:
                others = [key for key in helpers() if key != turn.key]
                count = min(self._settings.indirect_checks, len(others))
                turn.helpers = self._rng.sample(others, count)
                turn.ask_at = turn.ends
                if turn.helpers:
                    steps.append(AskOthers(turn.key, turn.helpers))
        if now >= self._next and (self._round is None or self._round.answered):
            self._round = None
            key = self._turn(members())
            pause = self._interval * self.stretch
            self._next = now + pause
            if key is not None:
                self._round = _Round(key, now + self._timeout * self.stretch, now + pause)
                steps.append(Probe(key))
        return steps

    def suspicion(self, now: float, by: set[str], members: int) -> Suspicion:
        """A new one; members: how many others there are."""
        settings = self._settings
        shortest = settings.suspicion_mult * self._interval
        return Suspicion(
            now,
            by,
            max(0, min(settings.indirect_checks, members - 1)),
            shortest,
            shortest * settings.suspicion_max_timeout_mult,
        )

    def _turn(self, members: list[Key]) -> Key | None:
        """Round robin in an order that is drawn anew each time: each one's turn comes within twice
        the number of nodes."""
        known = set(members)
        # Who has come since the order was drawn: anywhere in it, or its turn would be far away.
        for key in sorted(known - self._seen if self._seen else ()):
            self._turns.insert(self._rng.randint(0, len(self._turns)), key)
        self._seen = known
        while self._turns:
            key = self._turns.pop()
            if key in known:
                return key
        self._turns = list(members)
        self._rng.shuffle(self._turns)
        return self._turns.pop() if self._turns else None
