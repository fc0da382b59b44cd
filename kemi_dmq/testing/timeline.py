"""Virtual time: what is due, in the order in which it is due, and clocks that go wrong."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

#: So many steps without progress of time (and more where there are many nodes) are an endless loop.
MAX_STEPS = 100_000
#: The wall clock at the simulator's second 0 (a day in November 2023), in seconds since 1970.
EPOCH = 1_700_000_000.0


class Timeline:
    """now: seconds since the start.  What is due at the same moment runs in the order in which it
    was planned."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._planned = 0
        self._same_moment = 0

    def at(self, time: float, do: Callable[..., None], *args: Any) -> None:
        """Call do(*args) at a time; at once if that is over, after what is due already."""
        self._planned += 1
        heapq.heappush(self._due, (max(self.now, time), self._planned, do, args))

    def after(self, seconds: float, do: Callable[..., None], *args: Any) -> None:
        self.at(self.now + seconds, do, *args)

    def run(self, seconds: float) -> None:
        """Let time go on."""
        end = self.now + seconds
        due = self._due
        while due and due[0][0] <= end:
            self._step()
        self.now = end

    def run_until(self, done: Callable[[], bool], seconds: float) -> bool:
        """Let time go on until done(), or for so many seconds; whether it was done.  done is asked
        after every step, so it should cost little."""
        end = self.now + seconds
        while not done():
            if not self._due or self._due[0][0] > end:
                self.now = end
                return False
            self._step()
        return True

    def _step(self) -> None:
        time, _, do, args = heapq.heappop(self._due)
        if time == self.now:
            self._same_moment += 1
            if self._same_moment > self._step_limit():
                raise RuntimeError(f"time does not go on: {self._same_moment} steps at {self.now}")
        else:
            self._same_moment = 0
            self.now = time
        do(*args)

    def _step_limit(self) -> int:
        return MAX_STEPS


class Clock:
    """The two clocks of a machine, which may go fast, slow or wrong.

    rate: seconds of this machine in one second.  offset: what its monotonic clock shows at the
    simulator's second 0.  wall: by how many seconds its wall clock is ahead.
    """

    def __init__(self, rate: float = 1.0, offset: float = 0.0, wall: float = 0.0) -> None:
        self.wall_ahead = wall
        self.rate = rate
        self._offset = offset
        self._base = (0.0, offset)  # the simulator's time and ours when the rate last changed

    def monotonic(self, now: float) -> float:
        base, own = self._base
        return own + (now - base) * self.rate

    def wall(self, now: float) -> float:
        return EPOCH + self.wall_ahead + self.monotonic(now) - self._offset

    def when(self, monotonic: float) -> float:
        """The simulator's time at which the monotonic clock shows this."""
        base, own = self._base
        return base + (monotonic - own) / self.rate

    def change_rate(self, rate: float, now: float) -> None:
        """From now on; what the clocks show does not jump."""
        self._base = (now, self.monotonic(now))
        self.rate = rate
