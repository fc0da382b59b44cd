"""Messages for peers of C modules that the callbacks process runs, one after the other.

Large ones come by the dozen, when a node asks for all that another one has.  While SIP workers work
each off, some milliseconds, the next ones find the receive buffer full.  And htable takes them
without its locks (docs/kamailio.md), so two processes must not at the same time.

Small ones follow a large one, so that they do not overtake it: what it says may be older.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from .shared import Inbox, Processes, shared_map

#: Bytes of a SIP message that comes here: htable takes half a millisecond for it.
LARGE = 8192
#: Bytes that wait at most, for each SIP worker: some 16 messages of 60 KB.
QUEUE = 1024 * 1024
#: Seconds that a large message waits for room; nothing else runs in that SIP worker.
WAIT = 0.5
#: Seconds after the last large message in which small ones follow it.  A bound: neither may their
#: own number keep them here, nor a callback that hangs.
FOLLOW = 1.0


class CMessages:
    """Writers: SIP workers.  Reader: the callbacks process."""

    def __init__(self, processes: Processes) -> None:
        self.inbox = Inbox(processes, QUEUE)
        #: When the last large message came.  Written by all; it does not matter whose is last.
        self._large_at = memoryview(shared_map(4096)).cast("d")
        #: Of this process: how far its messages were when it last waited in vain.
        self._held_at = -1

    def takes(self, size: int) -> bool:
        """Whether a message of so many bytes is to be put() here."""
        if size >= LARGE:
            return True
        return not self.inbox.empty() and time.monotonic() < self._large_at[0] + FOLLOW

    def put(self, size: int, job: tuple[Any, ...]) -> bool:
        """Queue a job; False if there is no room for it, for a large one after WAIT.  While the
        callbacks process hangs a SIP worker waits once."""
        now = time.monotonic()
        event = (job, now)
        if size < LARGE:
            return self.inbox.put(event) > 0
        self._large_at[0] = now
        hangs = self.inbox.worked_off() == self._held_at
        if self.inbox.put_within(event, 0.0 if hangs else WAIT):
            return True
        self._held_at = self.inbox.worked_off()
        return False

    def take(self) -> Iterator[tuple[tuple[Any, ...], float]]:
        """(job, time) of what waits now, in the order in which it came.  Reader only, after
        clear_wake()."""
        return self.inbox.take_in_order(time.monotonic())
