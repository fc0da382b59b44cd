"""Which signed messages have been seen: a message runs once, whatever a replay changes around it.

Writers: all SIP workers, under locks that are held for a few reads and writes.  The table has a
fixed size: buckets of seven nonces.  A full one forgets the oldest, and then refuses whatever was
signed before that: when more comes than it can remember, late messages are refused, and no replay
is taken.
"""

from __future__ import annotations

import multiprocessing
import struct

WAYS = 7
#: A bucket, 16 words: the time up to which it refuses all, WAYS keys, WAYS times; one is unused.
_WORDS = 16
_READ = struct.Struct("15Q").unpack_from
_LOCKS = 16
_MASK = (1 << 64) - 1
#: 8 MB: 458,752 nonces.  Pages that nobody touches cost nothing.
BUCKETS = 65536
#: Milliseconds.  What was signed longer than this before the start is refused, since it may have
#: been seen before a restart.  Not 0: clocks differ a little, and messages may be on their way.
BEFORE_START = 2000


class NonceTable:
    """Times are Unix times in milliseconds."""

    def __init__(self, now: int, buckets: int = BUCKETS) -> None:
        from .shared import shared_map

        self._buckets = buckets
        self._map = shared_map(buckets * _WORDS * 8)
        self._words = memoryview(self._map).cast("Q")
        context = multiprocessing.get_context("fork")
        locks = [context.Lock() for _ in range(_LOCKS)]
        # its C functions; "with lock" runs two more Python functions
        self._locks = [(lock, lock.acquire, lock.release) for lock in locks]
        self._since = now - BEFORE_START

    def add(self, nonce: object, signed: int, now: int, window: int) -> bool:
        """Remember the nonce of a message; False if it is here already, or so old that it may
        have been.  signed: when; a message counts until window milliseconds after that.

        nonce: hashable; its hash is keyed and the same in all processes (see once.py).
        """
        if self.is_early(signed, now):
            return False
        key = hash(nonce) & _MASK or 1
        bucket = key % self._buckets
        base = bucket * _WORDS
        words = self._words
        _, acquire, release = self._locks[bucket % _LOCKS]
        acquire()
        try:
            found = _READ(self._map, base * 8)
            floor, keys, times = found[0], found[1 : 1 + WAYS], found[1 + WAYS :]
            if signed <= floor or key in keys:
                return False
            oldest = min(times)
            way = times.index(oldest)
            if oldest + window >= now:
                # It could still come again and is forgotten: so is all that was signed before.
                words[base] = max(floor, oldest)
            words[base + 1 + way] = key
            words[base + 1 + WAYS + way] = signed
        finally:
            release()
        return True

    def is_early(self, signed: int, now: int) -> bool:
        """Whether a message may have been seen before the start."""
        return is_early(signed, self._since, now)


def is_early(signed: int, since: int, now: int) -> bool:
    """Of a table that begins at since."""
    # The second: the clock was ahead at the start and was put right since.
    return signed <= min(since, now - BEFORE_START)
