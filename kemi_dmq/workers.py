"""The queues between SIP workers and the processes that run peers, with num_workers above 0.

A message goes to a worker that has nothing to do, or else to the one with the shortest queue; but
as long as a message of the same node that the same SIP worker has received before it is not worked
off, it goes where that one went.  So one node's messages keep the order in which one SIP worker
received them.  A message that is being worked off counts the more the longer it takes: a worker
that hangs gets nothing new while others are merely busy.
"""

from __future__ import annotations

import random
import time
from collections.abc import Hashable
from typing import Any

from .shared import Inbox, Processes, shared_map

#: Bytes that wait at most, for each SIP worker and queue: some thousand messages of 200 bytes.
#: Pages that nobody touches cost nothing.
QUEUE = 1024 * 1024
#: So many bytes in a queue count like one millisecond of the message that is worked off there.
BYTES_A_MS = 1000


class WorkerQueues:
    """Writers: all processes, each into rings of its own.  Readers: worker n its inbox n."""

    def __init__(self, processes: Processes, count: int) -> None:
        self._processes = processes
        self.inboxes = [Inbox(processes, QUEUE) for _ in range(count)]
        #: For each worker 1 while it waits for work; only a hint, so several may write it.
        self.idle = memoryview(shared_map(4096)).cast("Q")
        #: For each worker when it began what it works off now, in milliseconds; 0: nothing.
        self._began = memoryview(shared_map(4096)).cast("Q")
        # Of this process: where each node's last message went, and its ticket there.
        self._last: dict[Hashable, tuple[int, int]] = {}
        #: The workers in the order in which this process asks them.  Always the same: a worker
        #: that has just worked is quicker than one that has slept.
        self._order: list[int] = []

    def put(self, sender: Hashable, job: tuple[Any, ...]) -> bool:
        """Queue a job after those of the same sender; False if there is no room."""
        last = self._last.get(sender)
        if last is None or self.inboxes[last[0]].applied(last[1]):
            number = self._choose()
        else:
            number = last[0]
        self.idle[number] = 0  # before: the worker may be done at once, and wait again
        ticket = self.inboxes[number].put(job)
        if ticket == 0:
            return False
        if last is None and len(self._last) >= 1024:
            self._forget()
        self._last[sender] = (number, ticket)
        return True

    def _choose(self) -> int:
        """A worker that waits for work, the same one if it does; else that with the shortest
        queue."""
        if not self._order:
            # Each SIP worker has an order of its own, so that two of them seldom choose the same
            # worker at the same moment.
            count = len(self.inboxes)
            self._order = random.Random(self._processes.mine()).sample(range(count), count)
        for number in self._order:
            if self.idle[number]:
                return number
        now = _now()

        def load(number: int) -> int:
            began = self._began[number]
            running = max(0, now - began) if began else 0
            return self.inboxes[number].backlog() + running * BYTES_A_MS

        return min(self._order, key=load)

    def _forget(self) -> None:
        """Forget the senders whose messages are worked off: what waits is bounded, so are they."""
        self._last = {
            sender: last
            for sender, last in self._last.items()
            if not self.inboxes[last[0]].applied(last[1])
        }

    def waits(self, number: int, value: bool) -> None:
        """A worker begins to wait for work, or ends to."""
        self._began[number] = 0
        self.idle[number] = value and self.inboxes[number].empty()

    def begins(self, number: int) -> None:
        """A worker begins to work a message off."""
        self._began[number] = _now()

    def wake(self) -> None:
        for inbox in self.inboxes:
            inbox.wake()


def _now() -> int:
    return time.monotonic_ns() // 1_000_000
