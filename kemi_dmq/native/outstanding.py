"""What belongs to a message of a C module until its answer is here, in whichever process that is.

tm keeps one word and gives it back with the answer: a ticket.  C modules of Kamailio give a
function for the answer and no parameter; then the ticket says which function and which node, and
nothing is stored.  With a parameter the ticket names a slot in shared memory, and when that was
filled, so that an answer which comes after its slot was given to another one is noticed.

Each process has slots of its own; it alone fills them, and whoever gets the answer empties them.
Functions are only ever added, under a file lock.
"""

from __future__ import annotations

import fcntl
import os
import time

from ..shared import MAX_PROCESSES, Processes, shared_map

#: Messages of one process that may wait for an answer with a parameter at a time.
SLOTS = 4096
_WORDS = 4  # ticket (0: free), function, param, node
_INDEX_BITS = 20  # of MAX_PROCESSES * SLOTS
#: A slot whose answer never came is free again; no transaction of tm lives as long.
MAX_AGE_MS = 600_000
MAX_FUNCTIONS = 4096
_PLAIN = 1 << 63
_NODE_BITS = 32


class Outstanding:
    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._words = memoryview(shared_map(MAX_PROCESSES * SLOTS * _WORDS * 8)).cast("Q")
        self._functions = memoryview(shared_map((MAX_FUNCTIONS + 1) * 8)).cast("Q")
        self._numbers: dict[int, int] = {}
        self._lock_fd = os.memfd_create("kemi_dmq_functions")
        self._cursor = 0

    def put(self, function: int, param: int, node: int) -> int:
        """A ticket for the answer; 0 if there is no room.  node: a number below 2**32."""
        if param:
            return self._fill(function, param, node)
        number = self._numbers.get(function)
        if number is None:
            number = self._number(function)
        return _PLAIN | number << _NODE_BITS | node if number else self._fill(function, 0, node)

    def take(self, ticket: int) -> tuple[int, int, int] | None:
        """(function, param, node) of a ticket; None if it is no ticket, or not any more."""
        if ticket & _PLAIN:
            number = (ticket ^ _PLAIN) >> _NODE_BITS
            if number > MAX_FUNCTIONS or not self._functions[number]:
                return None
            return self._functions[number], 0, ticket & ((1 << _NODE_BITS) - 1)
        base = (ticket & ((1 << _INDEX_BITS) - 1)) * _WORDS
        words = self._words
        if ticket == 0 or words[base] != ticket:
            return None
        found = (words[base + 1], words[base + 2], words[base + 3])
        words[base] = 0
        return found

    def _number(self, function: int) -> int:
        """Where a function stands in the table, from 1 on; 0 if that is full."""
        table = self._functions  # its first word: how many there are
        fcntl.lockf(self._lock_fd, fcntl.LOCK_EX)
        try:
            count = table[0]
            known = table[1 : count + 1].tolist()
            if function in known:
                number = known.index(function) + 1
            elif count < MAX_FUNCTIONS:
                number = count + 1
                table[number] = function
                table[0] = number
            else:
                return 0
        finally:
            fcntl.lockf(self._lock_fd, fcntl.LOCK_UN)
        self._numbers[function] = number
        return number

    def _fill(self, function: int, param: int, node: int) -> int:
        mine = self._processes.mine()
        if mine >= MAX_PROCESSES:
            return 0
        words = self._words
        now = int(time.monotonic() * 1000) + 1
        for step in range(SLOTS):
            place = (self._cursor + step) % SLOTS
            base = (mine * SLOTS + place) * _WORDS
            ticket = words[base]
            if ticket == 0 or now - (ticket >> _INDEX_BITS) > MAX_AGE_MS:
                self._cursor = place + 1
                words[base + 1], words[base + 2], words[base + 3] = function, param, node
                words[base] = ticket = now << _INDEX_BITS | (mine * SLOTS + place)
                return ticket
        return 0
