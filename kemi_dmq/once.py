"""Which requests have run, and how they were answered: each request runs once per node.

A retransmission or a duplicate may reach another SIP worker than the first copy, also while the
first one is still running.  So the claim on a request is made in shared memory, under a lock that
is held for a few reads and writes only, before its callback runs.

Writers: all SIP workers.  The table has a fixed size: buckets of four entries of which the oldest
goes first.  Answers with a body lie in a ring beside it.
"""

from __future__ import annotations

import enum
import marshal
import multiprocessing
import zlib
from collections.abc import Callable
from typing import NamedTuple

WAYS = 4
#: How long a copy can come after the first (RFC 3261, 17.2.2: timer J, 64 * T1).
KEEP_SECONDS = 32
_LOCKS = 16
_MASK = (1 << 64) - 1


class Verdict(enum.Enum):
    NEW = "new"  # claimed: run it, then call finish()
    RUNNING = "running"  # a copy; the first one has no answer yet
    ANSWERED = "answered"  # a copy; here is the answer


class Answer(NamedTuple):
    code: int
    reason: str
    body: bytes
    content_type: str


PLAIN_OK = Answer(200, "OK", b"", "")


class OnceTable:
    def __init__(self, memory: int, clock: Callable[[], float]) -> None:
        from .shared import shared_map

        self._clock = clock
        ring = memory // 4
        self._buckets = max(1, (memory - ring) // (WAYS * 24))
        self._keys = memoryview(shared_map(self._buckets * WAYS * 8)).cast("Q")
        self._metas = memoryview(shared_map(self._buckets * WAYS * 8)).cast("Q")
        self._places = memoryview(shared_map(self._buckets * WAYS * 8)).cast("Q")
        self._ring = shared_map(ring)
        self._ring_size = ring
        self._ring_head = memoryview(shared_map(4096)).cast("Q")
        # "fork": a semaphore in shared memory that the children inherit
        context = multiprocessing.get_context("fork")
        self._locks = [context.Lock() for _ in range(_LOCKS)]
        self._ring_lock = context.Lock()
        self.evicted = 0  # by this process, since it last asked

    # meta word: seconds since start << 10 | SIP code; code 0 while the callback runs.
    # place word: 0, or 1 + position in the ring of (reason, body, content type).

    def claim(self, identity: object) -> tuple[Verdict, int, Answer | None]:
        """Claim a request.  Gives the verdict, the entry to finish() and the answer of a copy.

        identity: hashable; its hash is keyed (PYTHONHASHSEED) and the same in all processes,
        since they were forked from one.
        """
        key = hash(identity) & _MASK or 1
        bucket = key % self._buckets
        base = bucket * WAYS
        now = int(self._clock()) + 1
        with self._locks[bucket % _LOCKS]:
            keys = self._keys[base : base + WAYS].tolist()
            if key in keys:
                entry = base + keys.index(key)
                meta, place = self._metas[entry], self._places[entry]
                if now - (meta >> 10) <= KEEP_SECONDS:
                    code = meta & 1023
                    if code == 0:
                        return Verdict.RUNNING, entry, None
                    return Verdict.ANSWERED, entry, self._answer(code, place)
            elif 0 in keys:
                entry = base + keys.index(0)
            else:
                metas = self._metas[base : base + WAYS].tolist()
                oldest = min(metas)
                entry = base + metas.index(oldest)
                if now - (oldest >> 10) <= KEEP_SECONDS:
                    self.evicted += 1
            self._keys[entry] = key
            self._metas[entry] = now << 10
            self._places[entry] = 0
            return Verdict.NEW, entry, None

    def finish(self, entry: int, identity: object, answer: Answer) -> None:
        """Store the answer of a claimed request."""
        place = 0
        if answer is not PLAIN_OK and answer != PLAIN_OK:
            place = self._store(answer)
        key = hash(identity) & _MASK or 1
        with self._locks[entry // WAYS % _LOCKS]:
            if self._keys[entry] == key:  # else it was the oldest of a full bucket
                self._places[entry] = place
                self._metas[entry] |= answer.code

    def _store(self, answer: Answer) -> int:
        data = marshal.dumps((answer.reason, answer.body, answer.content_type))
        need = len(data) + 8
        if need > self._ring_size // 4:
            data = marshal.dumps((answer.reason, b"", ""))
            need = len(data) + 8
        with self._ring_lock:
            head = self._ring_head[0]
            offset = head % self._ring_size
            if offset + need > self._ring_size:
                head, offset = head + self._ring_size - offset, 0
            # the head moves first: a reader of what is overwritten sees that it is gone
            self._ring_head[0] = head + need
            self._ring[offset : offset + need] = (
                len(data).to_bytes(4, "little") + zlib.crc32(data).to_bytes(4, "little") + data
            )
        return head + 1

    def _answer(self, code: int, place: int) -> Answer:
        if place == 0:
            return PLAIN_OK if code == 200 else Answer(code, "", b"", "")
        position = place - 1
        if self._ring_head[0] - position <= self._ring_size:
            offset = position % self._ring_size
            length = int.from_bytes(self._ring[offset : offset + 4], "little")
            crc = int.from_bytes(self._ring[offset + 4 : offset + 8], "little")
            data = self._ring[offset + 8 : offset + 8 + length]
            if zlib.crc32(data) == crc:
                reason, body, content_type = marshal.loads(data)
                return Answer(code, reason, body, content_type)
        return Answer(code, "", b"", "")  # the body has gone from the ring; the code has not
