"""Response callbacks of C modules that wait for their answer, which may reach any process.

tm gives one word back with the answer.  It names a slot here and says when that was filled: so an
answer that comes twice, or long after its slot was given to another one, is noticed.

Each process has slots of its own; it alone fills them, and whoever gets the answer empties them.
"""

from __future__ import annotations

import os
import time

from ..shared import MAX_PROCESSES, Processes, shared_map

#: Messages of one process that may wait for their answers at a time.
SLOTS = 16384
_WORDS = 4  # ticket (0: free), function, param, node
_INDEX_BITS = 22  # of MAX_PROCESSES * SLOTS
#: A slot whose answer never came is free again; no transaction of tm lives as long.
MAX_AGE_MS = 600_000


class Outstanding:
    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._words = memoryview(shared_map(MAX_PROCESSES * SLOTS * _WORDS * 8)).cast("Q")
        self._cursor = 0
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self._cursor = 0

    def put(self, function: int, param: int, node: int) -> int:
        """A ticket for the answer; 0 if all slots of this process are in use."""
        mine = self._processes.mine()
        if mine >= MAX_PROCESSES:
            return 0
        words = self._words
        now = int(time.monotonic() * 1000) + 1
        for step in range(SLOTS):
            index = mine * SLOTS + (self._cursor + step) % SLOTS
            base = index * _WORDS
            ticket = words[base]
            if ticket == 0 or now - (ticket >> _INDEX_BITS) > MAX_AGE_MS:
                self._cursor = (self._cursor + step + 1) % SLOTS
                words[base + 1], words[base + 2], words[base + 3] = function, param, node
                words[base] = ticket = now << _INDEX_BITS | index
                return ticket
        return 0

    def take(self, ticket: int) -> tuple[int, int, int] | None:
        """(function, param, node) of a ticket, once; None if it was taken before."""
        base = (ticket & ((1 << _INDEX_BITS) - 1)) * _WORDS
        words = self._words
        if ticket == 0 or base + _WORDS > len(words) or words[base] != ticket:
            return None
        found = (words[base + 1], words[base + 2], words[base + 3])
        words[base] = 0
        return found
