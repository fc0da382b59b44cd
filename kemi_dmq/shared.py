"""Memory that all processes of one Kamailio share.  Made once, before the fork.

Every structure here says who writes it and who reads it.  Only the once-only table (once.py) and
that of unanswered requests (unanswered.py) take locks, since only there do several processes write
the same word.  A reader never trusts what it reads without a check: records carry a checksum, so a
torn one is noticed.
"""

from __future__ import annotations

import fcntl
import heapq
import marshal
import mmap
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

#: Processes that can use the bus: SIP workers, timers, TCP, ctl.  Kamailio has some twenty.
MAX_PROCESSES = 256

_COUNTERS = (
    "received",  # KDMQ requests that reached handle_message or process_message
    "queued",  # of these: handed to a worker (num_workers above 0), or to the callbacks process
    "queue_full",  # these queues had no room: 503, or run at once where it is a C module's
    "batched",  # messages that came several in one request
    "delivered",  # messages for which a peer's callback ran and answered
    "notifications",  # of these: for the notification peer
    "duplicates",  # copies answered again from memory
    "copies_dropped",  # copies that came while the first one was still running
    "once_evicted",  # answered requests forgotten before 32 s were over: once_memory is small
    "not_found",  # 404: no such peer
    "bad_requests",  # 400 and 413: headers or bodies that are not what SIP or DMQ asks for
    "bad_lines",  # lines of a node list that are no node
    "callback_errors",  # 500: a peer's callback raised, or returned what is no response
    "sent",  # messages given to Kamailio for sending
    "relayed",  # messages of C nodes that were passed on to nodes of which those cannot know
    "send_failures",  # messages that Kamailio or a full queue did not take
    "replies",  # responses that reached a response callback
    "timeouts",  # the same for timeouts
    "inbox_full",  # events that found the inbox of the engine or of the callbacks process full
    "engine_failures",  # times the engine had to start again
    "user_errors",  # init, event and response callbacks that raised
    "not_allowed",  # 403: from none of allowed_networks
    "not_signed",  # 403: with keys, no signature, or one that is wrong, late or for another node
    "early",  # 503: signed before this node started; it is to come again, signed anew
    "replays",  # 403: signed, but seen before, or too late to be sure
    "answers_refused",  # answers to the engine from where it did not ask, or not rightly signed
    "native_errors",  # calls from C modules that failed inside kemi_dmq
    "outbox_posted",  # messages that the outbox took, for each node
    "outbox_answered",  # of these: answered
    "outbox_timed_out",  # of these: sent, and not answered by the deadline
    "outbox_expired",  # of these: not sent by the deadline, since the node was away
    "outbox_refused",  # not taken (-1): too much waits for the node, or for the engine
)
COUNTERS = {name: index for index, name in enumerate(_COUNTERS)}


def shared_map(size: int) -> mmap.mmap:
    """Anonymous shared memory; pages that nobody touches cost nothing."""
    flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    return mmap.mmap(-1, size, flags)


class Processes:
    """A small number for each process, given when it first asks; those beyond MAX_PROCESSES
    share that last one, and cannot write to an inbox.

    Writer: the process that asks, under a file lock that the kernel gives back if it dies.
    """

    def __init__(self) -> None:
        self._words = memoryview(shared_map(4096)).cast("Q")
        self._lock_fd = os.memfd_create("kemi_dmq")
        self._mine: int | None = None
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self._mine = None

    def mine(self) -> int:
        if self._mine is None:
            fcntl.lockf(self._lock_fd, fcntl.LOCK_EX)
            try:
                number = self._words[0]
                self._words[0] = min(number + 1, MAX_PROCESSES)
                self._mine = number
            finally:
                fcntl.lockf(self._lock_fd, fcntl.LOCK_UN)
        return self._mine

    def known(self) -> int:
        """How many numbers are given."""
        return self._words[0]


class Counters:
    """Totals over all processes.  Writer: each process its own row.  Readers: anyone."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._width = 64
        self._words = memoryview(shared_map((MAX_PROCESSES + 1) * self._width * 8)).cast("Q")
        self._row: memoryview[int] | None = None
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self._row = None

    def add(self, name: str, amount: int = 1) -> None:
        row = self._row
        if row is None:
            start = self._processes.mine() * self._width
            row = self._row = self._words[start : start + self._width]
        row[COUNTERS[name]] += amount

    def totals(self) -> dict[str, int]:
        words = self._words.tolist()
        return {name: sum(words[index :: self._width]) for name, index in COUNTERS.items()}


class Snapshot:
    """The last published value, for readers in every process.

    Writer: the engine alone.  Two buffers: the one that readers are told of is never written, a
    reader that was overtaken twice sees that the version moved and reads again.
    """

    SIZE = 4 * 1024 * 1024

    def __init__(self) -> None:
        self._map = shared_map(4096 + 2 * self.SIZE)
        self._words = memoryview(self._map).cast("Q")[:8]  # version, then (length, crc) twice

    @property
    def version(self) -> int:
        return self._words[0]

    def publish(self, value: Any) -> None:
        data = marshal.dumps(value)
        if len(data) > self.SIZE:
            raise ValueError(f"a snapshot of {len(data)} bytes is larger than {self.SIZE}")
        version = self._words[0] + 1
        half = version % 2
        start = 4096 + half * self.SIZE
        self._map[start : start + len(data)] = data
        self._words[1 + 2 * half] = len(data)
        self._words[2 + 2 * half] = zlib.crc32(data)
        self._words[0] = version

    def read(self) -> tuple[int, Any]:
        """(version, value); version 0 and None before the first publish."""
        while True:
            version = self._words[0]
            if version == 0:
                return 0, None
            half = version % 2
            length, crc = self._words[1 + 2 * half], self._words[2 + 2 * half]
            start = 4096 + half * self.SIZE
            data = self._map[start : start + min(length, self.SIZE)]
            if self._words[0] == version and zlib.crc32(data) == crc:
                return version, marshal.loads(data)


#: Before a record in a ring: its length and CRC.  Or, as where it has no room, that the next one is
#: at the ring's beginning.
_HEAD = struct.Struct("<II")
_SKIP = 0xFFFFFFFF


class Inbox:
    """A queue into one process, written by all others.

    Each writer has a ring of its own (it alone moves the ring's head), the one reader moves the
    tails, so nobody locks and a writer that dies in the middle harms nobody.  An eventfd wakes
    the reader.  A full ring refuses: put() says False at once.
    """

    RING = 128 * 1024
    #: The largest event: a notification body of 32 KB is well within it.
    MAX_EVENT = RING // 2 - 16

    def __init__(self, processes: Processes, ring: int = RING) -> None:
        self._processes = processes
        self._ring = ring
        self._max_event = ring // 2 - 16
        self._rings = shared_map(MAX_PROCESSES * ring)
        words = memoryview(shared_map(2 * MAX_PROCESSES * 8)).cast("Q")
        self._heads, self._tails = words[:MAX_PROCESSES], words[MAX_PROCESSES:]
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def wake(self) -> None:
        os.eventfd_write(self.fd, 1)

    def put(self, event: tuple[Any, ...], wake: bool = True) -> int:
        """Queue an event; its ticket (for applied()), or 0 if there is no room for it.  Without
        wake it waits until the reader wakes for something else."""
        return self._put(marshal.dumps(event), wake)

    def _put(self, data: bytes, wake: bool = True) -> int:
        need = len(data) + 8
        if need > self._max_event:
            return 0
        mine = self._processes.mine()
        if mine >= MAX_PROCESSES:
            return 0
        head, tail = self._heads[mine], self._tails[mine]
        offset = head % self._ring
        skip = self._ring - offset if offset + need > self._ring else 0
        if head + skip + need - tail > self._ring:
            self.wake()  # most of it may be what woke nobody
            return 0
        base = mine * self._ring
        if skip:
            if skip >= 8:
                _HEAD.pack_into(self._rings, base + offset, _SKIP, 0)
            head, offset = head + skip, 0
        start = base + offset
        self._rings[start : start + need] = _HEAD.pack(len(data), zlib.crc32(data)) + data
        self._heads[mine] = head + need
        if wake:
            self.wake()
        return head + need

    def put_within(self, event: tuple[Any, ...], seconds: float) -> int:
        """put(), which waits for room if there is none now."""
        data = marshal.dumps(event)
        ticket = self._put(data)
        if len(data) + 8 > self._max_event or self._processes.mine() >= MAX_PROCESSES:
            return ticket
        end = time.monotonic() + seconds
        while not ticket and time.monotonic() < end:
            time.sleep(0.001)
            ticket = self._put(data)
        return ticket

    def mine(self) -> int:
        """Bytes of this process's own events that wait."""
        mine = self._processes.mine()
        return self._heads[mine] - self._tails[mine] if mine < MAX_PROCESSES else 0

    def fills_up(self) -> bool:
        """Whether this process's own events take more than a quarter of their room."""
        return self.mine() > self._ring // 4

    def backlog(self) -> int:
        """Bytes that wait or are worked off now, of all writers."""
        known = self._processes.known()
        return sum(self._heads[:known].tolist()) - sum(self._tails[:known].tolist())

    def empty(self) -> bool:
        """Whether nothing waits or is worked off now."""
        known = self._processes.known()
        return self._heads[:known] == self._tails[:known]

    def worked_off(self) -> int:
        """The ticket of this process's event that was worked off last; 0: none."""
        mine = self._processes.mine()
        return self._tails[mine] if mine < MAX_PROCESSES else 0

    def applied(self, ticket: int) -> bool:
        """Whether this process's event with that ticket has been worked off."""
        return self._tails[self._processes.mine()] >= ticket

    def wait_applied(self, ticket: int, seconds: float) -> bool:
        """Wait until applied(); the reader needs some 0.2 ms when it is idle."""
        end = time.monotonic() + seconds
        while not self.applied(ticket):
            if time.monotonic() > end:
                return False
            time.sleep(0.0001)
        return True

    def take(self) -> Iterator[tuple[Any, ...]]:
        """The events that wait now.  Reader only.  Each one's ticket counts as applied when the
        next one is asked for, that is, when the reader is done with it."""
        known = self._processes.known()
        tails, heads = self._tails[:known].tolist(), self._heads[:known].tolist()
        for ring, (tail, head) in enumerate(zip(tails, heads, strict=True)):
            while tail < head:
                data, after = self._read(ring, tail)
                if data is None:
                    break
                try:
                    yield marshal.loads(data)
                finally:
                    tail = self._tails[ring] = after

    def take_in_order(self, until: float) -> Iterator[tuple[Any, ...]]:
        """Events that bear the time.monotonic() of their put() as their second value, in the
        order of these times, whichever processes put them.  Reader only.

        until: the time, after clear_wake(), before this begins.  An event from later is left: an
        earlier one of another process may not be seen yet.  One from before is seen, unless its
        put() was not over yet when the later one's began.
        """
        known = self._processes.known()
        tails, heads = self._tails[:known].tolist(), self._heads[:known].tolist()
        first: list[tuple[float, int, tuple[Any, ...], int]] = []
        for ring, (tail, head) in enumerate(zip(tails, heads, strict=True)):
            if tail < head:
                self._next(ring, tail, first)
        while first and first[0][0] <= until:
            _, ring, event, tail = heapq.heappop(first)
            try:
                yield event
            finally:
                self._tails[ring] = tail
            if tail < heads[ring]:
                self._next(ring, tail, first)

    def _next(
        self, ring: int, tail: int, first: list[tuple[float, int, tuple[Any, ...], int]]
    ) -> None:
        """Put a ring's first event, and where the next one begins, into a heap."""
        data, tail = self._read(ring, tail)
        if data is not None:
            event = marshal.loads(data)
            heapq.heappush(first, (event[1], ring, event, tail))

    def _read(self, ring: int, tail: int) -> tuple[bytes | None, int]:
        """The record at a ring's tail, and the next one's place; None if it is not wholly visible
        yet on this processor (its wake-up comes)."""
        offset = tail % self._ring
        start = ring * self._ring + offset
        room = self._ring - offset
        length, crc = _HEAD.unpack_from(self._rings, start) if room >= 8 else (_SKIP, 0)
        if length == _SKIP:
            tail += room
            start = ring * self._ring
            length, crc = _HEAD.unpack_from(self._rings, start)
        data = self._rings[start + 8 : start + 8 + length]
        return (data if zlib.crc32(data) == crc else None), tail + length + 8

    def clear_wake(self) -> None:
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            pass


class Cells:
    """Room for a value that must wait for an answer and is too large for Kamailio's own field.

    Writer: the process that fills a cell, chosen under a file lock; whoever gets the answer reads
    it and marks it free.  A cell whose answer never came is free again after MAX_AGE.
    """

    COUNT = 4096
    SIZE = 6144
    MAX_AGE = 120.0

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._map = shared_map(self.COUNT * self.SIZE)
        # for each cell: when it was filled (0: free), in ms, and its length; then the next to try
        self._words = memoryview(shared_map((self.COUNT + 1) * 16)).cast("Q")
        self._lock_fd = os.memfd_create("kemi_dmq_cells")

    def put(self, data: bytes) -> int | None:
        """The number of a cell that now holds data, or None if all are in use."""
        if len(data) > self.SIZE:
            return None
        cell = self._choose()
        if cell is not None:
            self._map[cell * self.SIZE : cell * self.SIZE + len(data)] = data
            self._words[2 * cell + 1] = len(data)
        return cell

    def _choose(self) -> int | None:
        now = int(self._clock() * 1000) + 1
        words, cursor = self._words, 2 * self.COUNT
        fcntl.lockf(self._lock_fd, fcntl.LOCK_EX)
        try:
            for step in range(self.COUNT):
                cell = (words[cursor] + step) % self.COUNT
                filled = words[2 * cell]
                if filled == 0 or now - filled > self.MAX_AGE * 1000:
                    words[2 * cell] = now
                    words[cursor] = cell + 1
                    return cell
        finally:
            fcntl.lockf(self._lock_fd, fcntl.LOCK_UN)
        return None

    def take(self, cell: int) -> bytes:
        length = self._words[2 * cell + 1]
        data = self._map[cell * self.SIZE : cell * self.SIZE + length]
        self._words[2 * cell] = 0
        return data


class Names:
    """Names of peers that are only sent to (KSR.dmq.bcast_message on a channel without a peer):
    every process answers them with 202, as the C module does.

    Writers: any process, under a file lock; names are only ever added.  Readers: any.
    """

    SIZE = 64 * 1024

    def __init__(self) -> None:
        self._map = shared_map(self.SIZE)
        self._length = memoryview(shared_map(4096)).cast("Q")
        self._lock_fd = os.memfd_create("kemi_dmq_names")
        self._read = 0
        self._names: frozenset[str] = frozenset()

    def has(self, name: str) -> bool:
        if self._read != self._length[0]:
            length = self._length[0]
            self._names = frozenset(self._map[:length].decode().split("\n"))
            self._read = length
        return name in self._names

    def add(self, name: str) -> bool:
        """False when there is no room for one more."""
        if self.has(name):
            return True
        fcntl.lockf(self._lock_fd, fcntl.LOCK_EX)
        try:
            length = self._length[0]
            data = name.encode() + b"\n"
            if length + len(data) > self.SIZE:
                return False
            self._map[length : length + len(data)] = data
            self._length[0] = length + len(data)
            return True
        finally:
            fcntl.lockf(self._lock_fd, fcntl.LOCK_UN)


class Words:
    """A few single numbers, each with one writer."""

    NAMES = (
        "engine_moved_ms",
        "script_version",
        "reload_told",
        "engine_pid",
        "answers_wanted",
        "large_told",
        "not_allowed_told",  # when there was last a log line of it, in s
        "not_signed_told",
        "answers_refused_told",
    )

    def __init__(self) -> None:
        self._words = memoryview(shared_map(4096)).cast("Q")

    def get(self, name: str) -> int:
        return self._words[self.NAMES.index(name)]

    def set(self, name: str, value: int) -> None:
        self._words[self.NAMES.index(name)] = value


#: Bytes of messages on their way to the outbox, for each process: some 2,000 of 200 bytes.
POSTS = 1024 * 1024


class Shared:
    """All of it, made in Kamailio's first process while it loads the script."""

    def __init__(
        self,
        once_memory: int,
        clock: Callable[[], float] = time.monotonic,
        num_workers: int = 0,
        signs: bool = False,
        fr_timer: float = 30.0,
        c_modules: bool = False,
    ) -> None:
        from .c_messages import CMessages
        from .nonces import NonceTable
        from .once import OnceTable
        from .unanswered import Unanswered
        from .workers import WorkerQueues

        self.processes = Processes()
        self.counters = Counters(self.processes)
        self.snapshot = Snapshot()
        self.engine_inbox = Inbox(self.processes)
        #: Messages for the outbox have an inbox of their own: they cannot crowd out node lists.
        self.posts = Inbox(self.processes, POSTS)
        #: The nodes for which the outbox takes no more, as (host, port).  Writer: the engine.
        self.full_nodes = Snapshot()
        self.callbacks_inbox = Inbox(self.processes)
        self.c_messages = CMessages(self.processes) if c_modules else None
        self.workers = WorkerQueues(self.processes, num_workers) if num_workers else None
        #: Requests that were sent without tm.
        self.unanswered = Unanswered(self.processes, clock, fr_timer)
        self.cells = Cells(clock)
        self.names = Names()
        self.words = Words()
        self.once = OnceTable(once_memory, clock)
        #: What the engine has found names in the settings to stand for (gate.py).
        self.named = Snapshot()
        #: Known to this Kamailio's processes alone.
        self.secret = os.urandom(32)
        self.wall: Callable[[], float] = time.time
        self.token: Callable[[], str] = lambda: os.urandom(12).hex()
        self.nonces = NonceTable(int(self.wall() * 1000)) if signs else None
