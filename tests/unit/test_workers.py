"""Which worker gets a message."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kemi_dmq.shared import Processes
from kemi_dmq.workers import QUEUE, WorkerQueues


class Queues(WorkerQueues):
    def __init__(self, count: int) -> None:
        self.processes = Processes()
        super().__init__(self.processes, count)

    def taken(self, number: int) -> list[Any]:
        """What a worker works off now, all of it."""
        return [job[0] for job in self.inboxes[number].take()]

    def close(self) -> None:
        for fd in (self.processes._lock_fd, *(inbox.fd for inbox in self.inboxes)):
            os.close(fd)


@pytest.fixture
def three() -> Iterator[Queues]:
    queues = Queues(3)
    yield queues
    queues.close()


def test_work_goes_to_those_who_wait_for_it_and_then_to_the_shortest_queue(three: Queues) -> None:
    three.idle[0] = three.idle[2] = 1
    for number, sender in enumerate("abc"):
        assert three.put(sender, (number,))
    # c found nobody waiting: the shortest queue is the one without work
    assert three.taken(1) == [2]
    assert sorted(three.taken(0) + three.taken(2)) == [0, 1]
    assert three.idle[0] == three.idle[2] == 0


def test_a_worker_that_hangs_gets_nothing_new_while_others_are_only_busy(
    three: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000]
    monkeypatch.setattr("kemi_dmq.workers._now", lambda: clock[0])
    running = []
    for number in range(3):
        three.inboxes[number].put(("x" * 1000 * (number == 1),))  # worker 1 has the longest
        running.append(three.inboxes[number].take())
        next(running[-1])
        three.begins(number)
    clock[0] += 500
    for number in (1, 2):
        three.begins(number)  # their next ones; worker 0 is still at its first
    for number in range(20):
        assert three.put(f"sender {number}", (number,))
    assert three.taken(0) == [""], "what it is at"
    list(running[1])
    three.waits(1, True)
    assert three.idle[1] == (three.inboxes[1].backlog() == 0)


def test_one_worker_gets_all_work_as_long_as_it_is_done_with_it(three: Queues) -> None:
    three.idle[0] = three.idle[1] = three.idle[2] = 1
    seen = set()
    for number in range(6):
        three.put(number, (number,))
        (busy,) = (n for n in range(3) if three.inboxes[n].backlog())
        assert three.taken(busy) == [number]
        three.idle[busy] = 1
        seen.add(busy)
    assert len(seen) == 1


def test_a_senders_messages_follow_each_other_until_they_are_worked_off(three: Queues) -> None:
    def put(number: int) -> int:
        """Where it went."""
        before = [inbox.backlog() for inbox in three.inboxes]
        assert three.put("a", (number,))
        (to,) = (n for n in range(3) if three.inboxes[n].backlog() > before[n])
        return to

    first = put(1)
    for n in range(3):
        three.idle[n] = n != first
    assert put(2) == first
    assert three.taken(first) == [1, 2]
    second = put(3)
    assert second != first, "now another may run it"
    # A message that is being worked off is not worked off.
    jobs = three.inboxes[second].take()
    assert next(jobs) == (3,)
    three.idle[first] = 1
    assert put(4) == second
    assert list(jobs) == [] and three.taken(second) == [4]


def test_a_full_queue_refuses_and_takes_again_when_there_is_room(three: Queues) -> None:
    job = (b"x" * 30_000,)
    count = 0
    while three.put("a", job):
        count += 1
    assert count == QUEUE // 30_013 or count == QUEUE // 30_013 - 1
    assert three.put("b", job), "other queues have room"
    assert max(len(three.taken(n)) for n in range(3)) == count
    assert three.put("a", job)


def test_senders_are_forgotten_once_their_messages_are_worked_off(three: Queues) -> None:
    for number in range(5000):
        assert three.put(number, (number,))
        if number % 3 == 0:
            for worker in range(3):
                three.taken(worker)
    assert len(three._last) <= 1025


@given(st.lists(st.one_of(st.sampled_from("abcd"), st.integers(0, 2)), max_size=60))
def test_no_message_overtakes_another_of_its_sender(steps: list[str | int]) -> None:
    """Letters: a message of that sender; numbers: that worker works off one message."""
    three = Queues(3)
    try:
        running: dict[int, Any] = {}
        done: list[tuple[str, int]] = []
        for number, step in enumerate(steps):
            if isinstance(step, str):
                assert three.put(step, (step, number))
                continue
            job = None
            if step in running:
                job = next(running[step], None)
            if job is None:  # its last one is worked off; a new look at the queue
                running[step] = three.inboxes[step].take()
                job = next(running[step], None)
            if job is None:
                three.idle[step] = 1
            else:
                done.append(job)
        for jobs in running.values():
            done.extend(jobs)
        for worker in range(3):
            done.extend(three.inboxes[worker].take())
        for sender in "abcd":
            mine = [number for name, number in done if name == sender]
            assert mine == sorted(mine)
        assert len(done) == sum(isinstance(step, str) for step in steps)
    finally:
        three.close()
