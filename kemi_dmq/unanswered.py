"""Requests that a process has sent by itself, without tm, until their answers are here.

The client's side of RFC 3261, 17.1.2, in shared memory, since the answer may come to any SIP
worker.  A request has a slot, which its Call-ID names, with a token that nobody can guess.

    free --fill()--> open --take()--> free           its answer is here
                      |  --tick()--> held --> free   none came for fr_timer

Writers: a slot that is free belongs to the process that has it in its share; one that is open to
whoever takes it, under a lock; one that is held to the engine, which also sends again what is not
answered.  No lock is held while anything is sent or told.  The token is written last and looked at
again after reading: a record that was changed meanwhile is not used.
"""

from __future__ import annotations

import marshal
import multiprocessing
import os
from collections.abc import Callable

from .shared import MAX_PROCESSES, Processes, shared_map
from .transaction import T1, T2
from .wire import SipUri

#: Requests of one process that may be unanswered at a time; more go through tm.
SLOTS = 128
#: Bytes of a slot: the request, where it goes and who is told.  Larger ones go through tm.
SIZE = 4096
#: The largest body for which a slot is worth trying.
MAX_BODY = 2600
#: The engine stops to look for unanswered requests when it has found none for so many seconds.
QUIET = 10.0
#: Seconds after which a timeout that could not be told is told again.
TELL_AGAIN = 0.1
#: Seconds between two looks at all slots, at least.
LEAST = 0.01
_HELD = 1
_LOCKS = 16
_COUNT = MAX_PROCESSES * SLOTS
#: Tokens drawn at a time: each time is a system call.
_TOKENS = 64


class Unanswered:
    def __init__(self, processes: Processes, clock: Callable[[], float], fr_timer: float) -> None:
        """fr_timer: seconds that an answer is waited for, as of tm."""
        self._processes = processes
        self._clock = clock
        self._patience = int(fr_timer * 1000)
        #: Seconds after which what was sent just now may be due.
        self.soon = min(T1, fr_timer)
        self._map = shared_map(_COUNT * SIZE)
        words = memoryview(shared_map(4 * _COUNT * 8 + 8)).cast("Q")
        #: 0: free.  Of a slot that is not: when it was sent, when something is due, and twice its
        #: length, plus 1 if somebody is told.
        self._tokens = words[:_COUNT]
        self._sent = words[_COUNT : 2 * _COUNT]
        self._due = words[2 * _COUNT : 3 * _COUNT]
        self._lengths = words[3 * _COUNT : 4 * _COUNT]
        #: 1: the engine looks.
        self._watched = words[4 * _COUNT :]
        context = multiprocessing.get_context("fork")
        self._locks = [context.Lock() for _ in range(_LOCKS)]
        self._mine = -1  # the process's number, for which the next two are
        self._cursor = 0
        self._drawn: list[int] = []
        # In the engine's process:
        self._empty_since: float | None = None
        self._can_tell = True

    # The process that sends ------------------------------------------------------------------

    def free(self) -> tuple[int, int]:
        """A free slot of this process, and a token for it; the token is 0 if all are in use."""
        mine = self._processes.mine()
        if mine != self._mine:
            self._mine, self._drawn = mine, []
        if mine >= MAX_PROCESSES:
            return 0, 0
        tokens, base = self._tokens, mine * SLOTS
        for step in range(self._cursor, self._cursor + SLOTS):
            slot = base + step % SLOTS
            if not tokens[slot]:
                self._cursor = (step + 1) % SLOTS
                if not self._drawn:
                    raw = os.urandom(5 * _TOKENS)
                    self._drawn = [
                        int.from_bytes(raw[at : at + 5], "big") + 2 for at in range(0, len(raw), 5)
                    ]
                return slot, self._drawn.pop()
        return 0, 0

    def fill(self, slot: int, token: int, to: SipUri, text: str, whose: str) -> bool:
        """Open a free slot, before its request is sent to a place; False if it is too large.
        whose: what take() gives for the answer."""
        data = marshal.dumps((whose, to.host, to.port, to.transport, text))
        if len(data) > SIZE:
            return False
        start = slot * SIZE
        self._map[start : start + len(data)] = data
        now = int(self._clock() * 1000)
        self._lengths[slot] = 2 * len(data) + bool(whose)
        self._sent[slot] = now
        self._due[slot] = now + (int(self.soon * 1000) if to.transport == "udp" else self._patience)
        self._tokens[slot] = token
        return True

    def watch(self) -> bool:
        """Whether the engine is to be woken, since it does not look for what is unanswered."""
        if self._watched[0]:
            return False
        self._watched[0] = 1
        return True

    # The process that gets the answer --------------------------------------------------------

    def take(self, slot: int, token: int) -> str | None:
        """Close a slot: whose request it was, to one process only; None if it is not open, or
        open for another one."""
        if not 0 <= slot < _COUNT or token <= _HELD or self._tokens[slot] != token:
            return None
        with self._locks[slot % _LOCKS]:
            if self._tokens[slot] != token:
                return None
            data = self._read(slot) if self._lengths[slot] & 1 else None
            self._tokens[slot] = 0
        return _unpack(data)[0] if data else ""

    def _read(self, slot: int) -> bytes:
        start = slot * SIZE
        return self._map[start : start + self._lengths[slot] // 2]

    # The engine ------------------------------------------------------------------------------

    @property
    def watched(self) -> bool:
        return bool(self._watched[0])

    def tick(
        self, send: Callable[[SipUri, str], object], tell: Callable[[str], bool]
    ) -> float | None:
        """Send again what is due, and tell whose request was not answered in time: tell() gives
        False if that is not possible now.  Gives the seconds until the next tick(); None when
        there is nothing to look after, until watch() was asked."""
        now = int(self._clock() * 1000)
        next_due = None
        self._can_tell = True
        for slot in self._busy():
            if self._due[slot] <= now:
                self._work_off(slot, now, send, tell)
            if self._tokens[slot] and (next_due is None or self._due[slot] < next_due):
                next_due = self._due[slot]
        if next_due is not None:
            self._empty_since = None
            return max(LEAST, (next_due - now) / 1000)
        if self._empty_since is None:
            self._empty_since = now / 1000
        elif now / 1000 - self._empty_since >= QUIET:
            self._empty_since = None
            self._watched[0] = 0
            if not self._busy():  # filled before its process could see that
                return None
            self._watched[0] = 1
        return self.soon

    def _busy(self) -> list[int]:
        tokens = self._tokens[: self._processes.known() * SLOTS]
        raw = tokens.tobytes()
        if raw.count(0) == len(raw):
            return []
        return [slot for slot, token in enumerate(tokens.tolist()) if token]

    def _work_off(
        self,
        slot: int,
        now: int,
        send: Callable[[SipUri, str], object],
        tell: Callable[[str], bool],
    ) -> None:
        token, sent = self._tokens[slot], self._sent[slot]
        if not token:
            return  # answered since this tick began
        if token > _HELD and now - sent < self._patience:
            data = self._read(slot)
            if self._tokens[slot] == token:  # else it is not that request, or half of two
                _, host, port, transport, text = _unpack(data)
                pause = min(now - sent + int(T1 * 1000), int(T2 * 1000))
                self._due[slot] = min(now + pause, sent + self._patience)
                send(SipUri(host, port, transport), text)
            return
        with self._locks[slot % _LOCKS]:
            if self._tokens[slot] != token:
                return
            self._tokens[slot] = _HELD
        whose, *_ = _unpack(self._read(slot))
        if whose and self._can_tell:
            self._can_tell = tell(whose)
        if not whose or self._can_tell:
            self._tokens[slot] = 0
        else:
            self._due[slot] = now + int(TELL_AGAIN * 1000)


def _unpack(data: bytes) -> tuple[str, str, int, str, str]:
    """What fill() has packed."""
    found: tuple[str, str, int, str, str] = marshal.loads(data)
    return found
