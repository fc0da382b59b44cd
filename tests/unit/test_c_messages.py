"""Which messages for C modules wait for the callbacks process, and in which order it gets them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from kemi_dmq import c_messages
from kemi_dmq.c_messages import LARGE, QUEUE, CMessages
from kemi_dmq.shared import Inbox, Processes

from .conftest import Bed
from .processes import Child


@pytest.fixture
def queue() -> Iterator[CMessages]:
    processes = Processes()
    queue = CMessages(processes)
    yield queue
    for fd in (processes._lock_fd, queue.inbox.fd):
        os.close(fd)


def jobs(queue: CMessages) -> list[object]:
    return [job for (job,), _ in queue.take()]


def test_small_ones_wait_only_behind_a_large_one(queue: CMessages) -> None:
    assert not queue.takes(LARGE - 1) and queue.takes(LARGE)
    assert queue.put(LARGE, ("large",)) and queue.takes(1)
    assert queue.put(1, ("small",)) and queue.takes(1)
    assert jobs(queue) == ["large", "small"] and not queue.takes(1)


def test_small_ones_do_not_follow_each_other_for_ever(
    queue: CMessages, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.put(LARGE, ("large",))
    queue.put(1, ("small",))
    monkeypatch.setattr(c_messages, "FOLLOW", 0.0)
    assert not queue.takes(1) and queue.takes(LARGE)


def test_they_run_in_the_order_in_which_they_came_whoever_received_them(queue: CMessages) -> None:
    queue.put(LARGE, (0,))
    for number in range(1, 13):
        if number % 3:
            Child(lambda number=number: queue.put(1, (number,))).result()  # type: ignore[misc]
        else:
            queue.put(LARGE, (number,))
    assert jobs(queue) == [*range(13)]


def test_a_sip_worker_waits_once_for_a_callbacks_process_that_hangs(
    queue: CMessages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(c_messages, "WAIT", 0.002)
    waited = []
    put_within = queue.inbox.put_within

    def put(event: tuple[object, ...], seconds: float) -> int:
        waited.append(seconds > 0)
        return put_within(event, seconds)

    monkeypatch.setattr(queue.inbox, "put_within", put)
    large = ("x" * (QUEUE // 3),)
    assert [queue.put(LARGE, large) for _ in range(5)] == [True, True, False, False, False]
    assert waited == [True, True, True, False, False]
    assert len(jobs(queue)) == 2
    assert queue.put(LARGE, large) and waited[-1]


def test_what_the_script_waits_for_goes_before_the_rest_of_them(bed: Bed, queue: CMessages) -> None:
    from kemi_dmq.host.process import _serve

    processes = Processes()
    first = Inbox(processes)
    seen: list[object] = []

    def run(event: tuple[tuple[object, ...], float]) -> None:
        seen.append(event[0][0])
        if len(seen) == 2:
            first.put(("callback",))

    class Symbols:
        def release(self) -> bool:
            return True

    for number in range(4):
        queue.put(LARGE, (number,))
    _serve(
        [(first, first.take, lambda event: seen.append(event[0])), (queue.inbox, queue.take, run)],
        Symbols(),  # type: ignore[arg-type]
        lambda: len(seen) == 5,
        lambda value: None,
    )
    assert seen == [0, 1, "callback", 2, 3]
    for fd in (first.fd, processes._lock_fd):
        os.close(fd)
