"""Tickets of C modules' response callbacks."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from multiprocessing.queues import SimpleQueue

import pytest

from kemi_dmq.native import outstanding
from kemi_dmq.native.outstanding import Outstanding
from kemi_dmq.shared import Processes


@pytest.fixture
def table() -> Iterator[Outstanding]:
    processes = Processes()
    table = Outstanding(processes)
    yield table
    os.close(table._lock_fd)
    os.close(processes._lock_fd)


def test_a_ticket_gives_function_param_and_node(table: Outstanding) -> None:
    ticket = table.put(0x7F00_1234_5678, 0x5555, 17)
    assert 0 < ticket < 1 << 64
    assert table.take(ticket) == (0x7F00_1234_5678, 0x5555, 17)


def test_with_a_param_it_is_taken_once_even_when_its_slot_is_in_use_again(
    table: Outstanding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outstanding, "SLOTS", 1)
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    first = table.put(1, 2, 3)
    assert table.put(1, 2, 4) == 0, "all slots are in use"
    assert table.take(first) == (1, 2, 3)
    assert table.take(first) is None
    now += 0.001
    second = table.put(5, 6, 7)
    assert table.take(first) is None
    assert table.take(second) == (5, 6, 7)


def test_a_slot_whose_answer_never_came_is_free_after_ten_minutes(
    table: Outstanding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outstanding, "SLOTS", 1)
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    lost = table.put(1, 2, 3)
    now += 601
    again = table.put(4, 5, 6)
    assert table.take(lost) is None
    assert table.take(again) == (4, 5, 6)


def test_without_a_param_there_is_no_limit(table: Outstanding) -> None:
    tickets = [table.put(0x7F00_0000 + n % 3, 0, n) for n in range(3 * outstanding.SLOTS)]
    assert all(tickets) and len(set(tickets)) == len(tickets)
    for n, ticket in enumerate(tickets):
        assert table.take(ticket) == (0x7F00_0000 + n % 3, 0, n)


def test_more_functions_than_the_table_holds_take_slots(
    table: Outstanding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outstanding, "MAX_FUNCTIONS", 2)
    tickets = [table.put(function, 0, 9) for function in (11, 12, 13)]
    assert [table.take(ticket) for ticket in tickets] == [(11, 0, 9), (12, 0, 9), (13, 0, 9)]
    assert table.take(tickets[2]) is None, "a slot is taken once"


@pytest.mark.parametrize("ticket", [0, 1, 12345 << 20, 1 << 63, (1 << 63) + (9 << 32)])
def test_what_is_no_ticket_gives_nothing(table: Outstanding, ticket: int) -> None:
    assert table.take(ticket) is None


def test_another_process_takes_what_this_one_put_and_the_other_way(table: Outstanding) -> None:
    context = multiprocessing.get_context("fork")
    there: SimpleQueue[int] = context.SimpleQueue()
    back: SimpleQueue[object] = context.SimpleQueue()

    def other() -> None:
        back.put(table.take(there.get()))
        back.put(table.take(there.get()))
        back.put(table.put(70, 0, 71))
        back.put(table.put(80, 81, 82))

    process = context.Process(target=other)
    process.start()
    there.put(table.put(50, 51, 52))
    there.put(table.put(60, 0, 61))
    assert back.get() == (50, 51, 52)
    assert back.get() == (60, 0, 61)
    tickets = [back.get(), back.get()]
    process.join(5)
    process.close()
    for queue in (there, back):
        queue.close()
    assert [table.take(t) for t in tickets if isinstance(t, int)] == [(70, 0, 71), (80, 81, 82)]
