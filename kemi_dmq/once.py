"""Which requests have run, and how they were answered: each request runs once per node.

A retransmission or a duplicate may reach another SIP worker than the first copy, also while the
first one is still running.  So the claim on a request is made in shared memory, under a lock that
is held for a few reads and writes only, before its callback runs.

Writers: all SIP workers.  The table has a fixed size: buckets of four entries of which the oldest
goes first; while there is room, a request is remembered for REMEMBER seconds.  Answers with a body
lie in a ring beside it.
"""

from __future__ import annotations

import enum
import marshal
import multiprocessing
import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

WAYS = 4
_BUCKET = 3 * WAYS  # words
_READ = struct.Struct("12Q").unpack_from
#: How long a copy can come after the first (RFC 3261, 17.2.2: timer J, 64 * T1).
KEEP_SECONDS = 32
#: A message with a deadline can come again as long as that: so what has no need to go stays.
REMEMBER = 86_400
_LOCKS = 16
_MASK = (1 << 64) - 1


class Verdict(enum.Enum):
    NEW = "new"  # claimed: run it, then call finish()
    RUNNING = "running"  # a copy; the first one has no answer yet
    ANSWERED = "answered"  # a copy; here is the answer


_NEW = Verdict.NEW


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
        self._buckets = max(1, (memory - ring) // (_BUCKET * 8))
        self._map = shared_map(self._buckets * _BUCKET * 8)
        self._words = memoryview(self._map).cast("Q")
        self._ring = shared_map(ring)
        self._ring_size = ring
        self._ring_head = memoryview(shared_map(4096)).cast("Q")
        # "fork": a semaphore in shared memory that the children inherit
        context = multiprocessing.get_context("fork")
        locks = [context.Lock() for _ in range(_LOCKS)]
        # its C functions; "with lock" runs two more Python functions
        self._locks = [(lock, lock.acquire, lock.release) for lock in locks]
        self._ring_lock = context.Lock()
        self.evicted = 0  # by this process, since it last asked

    # A bucket: its keys, metas and places, beside each other for the processor's cache.
    # meta word: seconds since start << 10 | SIP code; code 0 while the callback runs; 0: unused.
    # place word: 0, or 1 + position in the ring of (reason, body, content type).

    def claim(self, identity: object) -> tuple[Verdict, int, Answer | None]:
        """Claim a request.  Gives the verdict, the entry to finish() and the answer of a copy.

        identity: hashable; its hash is keyed (PYTHONHASHSEED) and the same in all processes,
        since they were forked from one.
        """
        key = hash(identity) & _MASK or 1
        bucket = key % self._buckets
        base = bucket * _BUCKET
        now = int(self._clock()) + 1
        words = self._words
        _, acquire, release = self._locks[bucket % _LOCKS]
        acquire()
        try:
            found = _READ(self._map, base * 8)
            metas = found[WAYS : 2 * WAYS]
            if key in found and (way := found.index(key)) < WAYS:
                if now - (metas[way] >> 10) <= REMEMBER:
                    code = metas[way] & 1023
                    if code == 0:
                        return Verdict.RUNNING, base + way, None
                    return Verdict.ANSWERED, base + way, self._answer(code, found[way + 8])
            else:
                oldest = min(metas)
                way = metas.index(oldest)
                if oldest and now - (oldest >> 10) <= KEEP_SECONDS:
                    self.evicted += 1
                words[base + way] = key
            words[base + way + WAYS] = now << 10
            words[base + way + 2 * WAYS] = 0
            return _NEW, base + way, None
        finally:
            release()

    def finish(self, entry: int, identity: object, answer: Answer) -> None:
        """Store the answer of a claimed request."""
        words = self._words
        key = hash(identity) & _MASK or 1
        place = 0 if answer is PLAIN_OK or answer == PLAIN_OK else self._store(answer)
        _, acquire, release = self._locks[entry // _BUCKET % _LOCKS]
        acquire()
        if words[entry] == key:  # else it was the oldest of a full bucket
            words[entry + 2 * WAYS] = place
            words[entry + WAYS] |= answer.code
        release()

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
