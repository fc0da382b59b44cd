from __future__ import annotations

import functools
import os
import select
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kemi_dmq.shared import (
    COUNTERS,
    MAX_PROCESSES,
    Cells,
    Counters,
    Inbox,
    Names,
    Processes,
    Snapshot,
    shared_map,
)

from .processes import Child, together


@pytest.fixture
def processes() -> Iterator[Processes]:
    processes = Processes()
    yield processes
    os.close(processes._lock_fd)


@pytest.fixture
def inbox(processes: Processes) -> Iterator[Inbox]:
    inbox = Inbox(processes)
    yield inbox
    os.close(inbox.fd)


# Processes and counters


def test_each_process_has_a_number_of_its_own_and_keeps_it(processes: Processes) -> None:
    numbers = together(lambda n: [processes.mine() for _ in range(3)], 8)
    assert all(len(set(own)) == 1 for own in numbers)
    assert sorted(own[0] for own in numbers) == list(range(8))
    assert processes.mine() == 8 and processes.known() == 9


def test_a_child_does_not_take_its_parents_number(processes: Processes) -> None:
    mine = processes.mine()
    assert Child(processes.mine).result() != mine


def test_more_processes_than_there_is_room_for_cannot_write_to_an_inbox(
    processes: Processes,
) -> None:
    processes._words[0] = MAX_PROCESSES
    assert processes.mine() == MAX_PROCESSES
    inbox = Inbox(processes)
    assert inbox.put(("event",)) == 0
    os.close(inbox.fd)


def test_counters_are_totals_over_all_processes(processes: Processes) -> None:
    counters = Counters(processes)
    counters.add("received")

    def work(number: int) -> None:
        for _ in range(500):
            counters.add("received")
            counters.add("sent", 3)

    together(work, 4)
    totals = counters.totals()
    assert (totals["received"], totals["sent"], totals["timeouts"]) == (2001, 6000, 0)
    assert set(totals) == set(COUNTERS)


# Snapshot

plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.text(max_size=20)),
    lambda inner: st.lists(inner, max_size=4).map(tuple),
    max_leaves=20,
)


@given(plain)
def test_a_snapshot_reads_back_as_it_was_published(value: object) -> None:
    snapshot = SNAPSHOT
    before = snapshot.version
    snapshot.publish(value)
    assert snapshot.read() == (before + 1, value)


SNAPSHOT = Snapshot()


def test_before_the_first_publish_there_is_nothing() -> None:
    assert Snapshot().read() == (0, None)


def test_a_value_that_is_too_large_is_refused_and_the_old_one_stays() -> None:
    snapshot = Snapshot()
    snapshot.publish("old")
    with pytest.raises(ValueError, match="larger than"):
        snapshot.publish(bytes(Snapshot.SIZE + 1))
    assert snapshot.read() == (1, "old")


def test_a_reader_never_sees_a_torn_value() -> None:
    """Each value says of itself whether it is whole, and versions only grow."""
    snapshot = Snapshot()
    snapshot.publish((0,))
    done = shared_map(4096)

    def read(reader: int) -> int:
        last = seen = 0
        while seen < 500:
            version, value = snapshot.read()
            assert version >= last, "an older list after a newer one"
            assert len(set(value)) == 1 and value[0] == version - 1, "a torn list"
            seen += version != last
            last = version
        done[reader] = 1
        return seen

    readers = [Child(lambda reader=reader: read(reader)) for reader in range(2)]  # type: ignore[misc]
    number, end = 0, time.monotonic() + 20
    while done[:2] != b"\1\1" and time.monotonic() < end:
        number += 1
        snapshot.publish((number,) * (1 + number % 700))
    assert [reader.result() for reader in readers] == [500, 500]


def test_a_writer_that_died_in_the_middle_leaves_the_published_value() -> None:
    snapshot = Snapshot()
    snapshot.publish("one")
    half = (snapshot.version + 1) % 2  # where it was writing, with the version not moved yet
    snapshot._map[4096 + half * Snapshot.SIZE : 4100 + half * Snapshot.SIZE] = b"torn"
    assert snapshot.read() == (1, "one")
    snapshot.publish("two")
    assert snapshot.read() == (2, "two")


# Inbox


def test_events_of_one_process_come_out_in_order(inbox: Inbox) -> None:
    events = [("event", n, "x" * n) for n in range(50)]
    assert all(inbox.put(event) for event in events)
    assert list(inbox.take()) == events
    assert list(inbox.take()) == []


def test_a_put_wakes_the_reader_and_clear_wake_stills_it(inbox: Inbox) -> None:
    assert select.select([inbox.fd], [], [], 0)[0] == []
    inbox.put(("a",))
    assert select.select([inbox.fd], [], [], 0)[0] == [inbox.fd]
    inbox.clear_wake()
    inbox.clear_wake()
    assert select.select([inbox.fd], [], [], 0)[0] == []


def test_a_full_ring_refuses_and_takes_again_when_it_was_read(inbox: Inbox) -> None:
    event = ("x", b"y" * 30_000)
    accepted = 0
    while inbox.put(event):
        accepted += 1
    assert accepted == 4
    assert inbox.put(("small",)), "what fits is still taken"
    assert list(inbox.take()) == [event] * 4 + [("small",)]
    assert inbox.put(event)
    assert list(inbox.take()) == [event]


def test_an_event_larger_than_half_the_ring_is_refused(inbox: Inbox) -> None:
    assert inbox.put((b"x" * Inbox.MAX_EVENT,)) == 0
    assert inbox.put((b"x" * (Inbox.MAX_EVENT - 50),))


@given(st.lists(st.integers(0, Inbox.MAX_EVENT - 50), min_size=1, max_size=30), st.integers(1, 4))
def test_nothing_is_lost_or_changed_across_the_end_of_the_ring(
    sizes: list[int], every: int
) -> None:
    inbox = INBOX
    list(inbox.take())
    waiting: list[tuple[int, bytes]] = []
    for number, size in enumerate(sizes):
        event = (number, os.urandom(16) * (size // 16))
        if inbox.put(event):
            waiting.append(event)
        else:
            assert sum(len(body) for _, body in waiting) + size > Inbox.RING // 4
        if number % every == 0:
            assert list(inbox.take()) == waiting
            waiting = []
    assert list(inbox.take()) == waiting


@given(st.integers(0, 30))
def test_an_event_fits_at_every_distance_from_the_end_of_the_ring(left: int) -> None:
    inbox = INBOX
    list(inbox.take())
    mine = inbox._processes.mine()
    position = (inbox._heads[mine] // Inbox.RING + 2) * Inbox.RING - left
    inbox._heads[mine] = inbox._tails[mine] = position
    assert inbox.put(("one", "x" * 40)) and inbox.put(("two",))
    assert list(inbox.take()) == [("one", "x" * 40), ("two",)]


INBOX = Inbox(Processes())


def test_an_events_ticket_is_applied_when_the_reader_is_done_with_it(inbox: Inbox) -> None:
    first, second = inbox.put(("a",)), inbox.put(("b",))
    events = inbox.take()
    assert not inbox.applied(first)
    next(events)
    assert not inbox.applied(first)
    next(events)
    assert inbox.applied(first) and not inbox.applied(second)
    assert list(events) == []
    assert inbox.wait_applied(second, 0.0)


def test_waiting_for_a_reader_that_does_not_come_ends(inbox: Inbox) -> None:
    assert not inbox.wait_applied(inbox.put(("a",)), 0.001)


def test_an_event_waits_for_room_as_long_as_it_may(inbox: Inbox) -> None:
    large = ("x" * (Inbox.MAX_EVENT - 50),)
    assert inbox.put(large) and inbox.put(large) and not inbox.empty()
    assert inbox.put_within(large, 0.01) == 0
    reader = threading.Timer(0.05, lambda: list(inbox.take()))
    reader.start()
    assert inbox.put_within(large, 10)
    reader.join()
    assert list(inbox.take()) == [large] and inbox.empty()


def test_what_never_has_room_does_not_wait(inbox: Inbox) -> None:
    begin = time.monotonic()
    assert inbox.put_within(("x" * Inbox.MAX_EVENT,), 600) == 0
    assert time.monotonic() < begin + 60


def test_an_event_on_which_the_reader_fails_is_not_read_again(inbox: Inbox) -> None:
    inbox.put(("bad",))
    inbox.put(("good",))
    with pytest.raises(RuntimeError):
        for event in inbox.take():
            raise RuntimeError(event)
    assert list(inbox.take()) == [("good",)]


def test_several_processes_write_and_one_reads_without_loss(inbox: Inbox) -> None:
    count, writers = 3000, 3

    def write(number: int) -> int:
        refused = 0
        for step in range(count):
            event = (number, step, "x" * (step * 7 % 500))
            while not inbox.put(event):
                refused += 1
                os.sched_yield()
        return refused

    children = [Child(functools.partial(write, number)) for number in range(writers)]
    seen: dict[int, list[int]] = {number: [] for number in range(writers)}
    while any(len(steps) < count for steps in seen.values()):
        assert select.select([inbox.fd], [], [], 10)[0], "no wake-up"
        inbox.clear_wake()
        for number, step, text in inbox.take():
            assert len(text) == step * 7 % 500
            seen[number].append(step)
    assert all(steps == list(range(count)) for steps in seen.values())
    for child in children:
        child.result()


# Cells and names


def test_a_cell_holds_its_value_until_it_is_taken() -> None:
    now = [0.0]
    cells = Cells(lambda: now[0])
    numbers = [cells.put(b"%d" % n) for n in range(Cells.COUNT)]
    assert len(set(numbers)) == Cells.COUNT and None not in numbers
    assert cells.put(b"one more") is None
    taken = numbers[5]
    assert taken is not None and cells.take(taken) == b"5"
    assert cells.put(b"another") == taken
    now[0] += Cells.MAX_AGE + 1
    assert cells.put(b"old ones are free again") is not None
    assert cells.put(bytes(Cells.SIZE + 1)) is None
    os.close(cells._lock_fd)


def test_processes_do_not_share_a_cell_and_take_each_others() -> None:
    cells = Cells(lambda: 1.0)
    number = cells.put(b"param")
    assert number is not None
    assert Child(lambda: cells.take(number)).result() == b"param"
    chosen = together(lambda n: [cells.put(b"%d" % n) for _ in range(50)], 3)
    flat = [cell for cells in chosen for cell in cells]
    assert len(set(flat)) == len(flat) == 150
    os.close(cells._lock_fd)


def test_a_name_added_in_one_process_is_known_in_all() -> None:
    names = Names()
    assert not names.has("blocklist") and not names.has("")
    assert Child(lambda: names.add("blocklist")).result()
    assert names.has("blocklist") and not names.has("block")
    together(lambda n: [names.add(f"{n}-{i}") for i in range(50)], 3)
    assert all(names.has(f"{n}-{i}") for n in range(3) for i in range(50))
    os.close(names._lock_fd)


def test_names_end_where_the_room_ends() -> None:
    names = Names()
    added = 0
    while names.add(f"{added:060}"):
        added += 1
    assert added == Names.SIZE // 61
    assert names.has(f"{added - 1:060}") and not names.has(f"{added:060}")
    os.close(names._lock_fd)


def test_events_of_several_processes_are_taken_in_the_order_of_their_times(inbox: Inbox) -> None:
    def put(number: int) -> list[int]:
        return [inbox.put(("x", float(3 * n + number))) for n in range(30)]

    for tickets in together(put, 3):
        assert 0 not in tickets
    taken: list[float] = []
    while len(taken) < 50:  # some at a time, as the engine does
        for event in inbox.take_in_order(1000.0):
            taken.append(event[1])
            if len(taken) % 7 == 0:
                break
    taken += [event[1] for event in inbox.take_in_order(70.0)]
    assert taken == [float(n) for n in range(71)], "what is later stays"
    taken += [event[1] for event in inbox.take_in_order(1000.0)]
    assert taken == [float(n) for n in range(90)] and inbox.backlog() == 0


def test_events_are_taken_in_order_across_the_end_of_a_ring(processes: Processes) -> None:
    inbox = Inbox(processes, 4096)
    for n in range(1000):
        assert inbox.put(("x", float(n), "y" * (n % 90)))
        if n % 9 == 8:
            (first, *others) = inbox.take_in_order(1e9)
            assert [event[1] for event in (first, *others)] == [float(n - 8 + i) for i in range(9)]
    os.close(inbox.fd)
