"""The queues between SIP workers and the processes that run peers, with num_workers above 0.

A message goes to a worker that has nothing to do, or else to the one with the shortest queue; but
as long as a message of the same node that the same SIP worker has received before it is not worked
off, it goes where that one went.  So one node's messages keep the order in which one SIP worker
received them.
"""

from __future__ import annotations

import random
from collections.abc import Hashable
from typing import Any

from .shared import Inbox, Processes, shared_map

#: Bytes that wait at most, for each SIP worker and queue: some thousand messages of 200 bytes.
#: Pages that nobody touches cost nothing.
QUEUE = 1024 * 1024


class WorkerQueues:
    """Writers: all processes, each into rings of its own.  Readers: worker n its inbox n."""

    def __init__(self, processes: Processes, count: int) -> None:
        self._processes = processes
        self.inboxes = [Inbox(processes, QUEUE) for _ in range(count)]
        #: For each worker 1 while it waits for work; only a hint, so several may write it.
        self.idle = memoryview(shared_map(4096)).cast("Q")
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
        return min(self._order, key=lambda number: self.inboxes[number].backlog())

    def _forget(self) -> None:
        """Forget the senders whose messages are worked off: what waits is bounded, so are they."""
        self._last = {
            sender: last
            for sender, last in self._last.items()
            if not self.inboxes[last[0]].applied(last[1])
        }

    def wake(self) -> None:
        for inbox in self.inboxes:
            inbox.wake()
