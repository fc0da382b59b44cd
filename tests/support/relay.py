"""A bad network between two addresses: loses, repeats and overtakes datagrams."""

from __future__ import annotations

import heapq
import itertools
import random
import select
import socket
import threading
import time


class Relay:
    """At an address of its own: carries what comes from the one of two addresses to the other.

    A node whose server_address is the relay's is reached through it only.  Context manager.
    """

    def __init__(
        self,
        address: str,
        ends: tuple[str, str],
        *,
        seed: int,
        loss: float = 0.0,
        copies: float = 0.0,
        delay: float = 0.0,
    ) -> None:
        self._ends = {ends[0]: ends[1], ends[1]: ends[0]}
        self._rng = random.Random(seed)
        self.loss, self.copies, self.delay = loss, copies, delay
        self.lost = self.copied = self.overtaken = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, 5060))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        due: list[tuple[float, int, bytes, str]] = []
        numbers = itertools.count()
        newest = 0
        while not self._stop.is_set():
            pause = min(0.05, max(0.0, due[0][0] - time.monotonic())) if due else 0.05
            if select.select([self._socket], [], [], pause)[0]:
                data, (source, _) = self._socket.recvfrom(65535)
                if self._rng.random() < self.loss:
                    self.lost += 1
                else:
                    copies = 2 if self._rng.random() < self.copies else 1
                    self.copied += copies - 1
                    for _ in range(copies):
                        when = time.monotonic() + self._rng.uniform(0, self.delay)
                        heapq.heappush(due, (when, next(numbers), data, self._ends[source]))
            while due and due[0][0] <= time.monotonic():
                _, number, data, to = heapq.heappop(due)
                self.overtaken += number < newest
                newest = max(newest, number)
                self._socket.sendto(data, (to, 5060))
