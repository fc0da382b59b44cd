from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kemi_dmq.nonces import BEFORE_START, WAYS, NonceTable

from .processes import together

START = 1_800_000_000_000
WINDOW = 60_000


def test_a_nonce_is_fresh_once() -> None:
    table = NonceTable(START)
    assert table.add("a", START, START, WINDOW)
    assert not table.add("a", START, START + 5, WINDOW)
    assert not table.add("a", START + 9, START + 5, WINDOW)  # whatever time it claims
    assert table.add("b", START, START, WINDOW)


def test_what_was_signed_well_before_the_start_may_have_been_seen() -> None:
    table = NonceTable(START)
    assert not table.add("a", START - BEFORE_START, START + 1, WINDOW)
    assert table.add("a", START - BEFORE_START + 1, START + 1, WINDOW)


def test_a_clock_that_was_ahead_at_the_start_shuts_nobody_out() -> None:
    table = NonceTable(START + 3_600_000)
    assert table.add("a", START, START, WINDOW)
    assert not table.add("a", START, START, WINDOW)
    assert not table.add("b", START - BEFORE_START, START, WINDOW)


def test_a_full_table_refuses_what_is_late_and_takes_no_replay() -> None:
    table = NonceTable(START, buckets=1)
    taken = [(n, START + n) for n in range(1, 3 * WAYS)]
    for nonce, signed in taken:
        assert table.add(nonce, signed, START + nonce, WINDOW)
    for nonce, signed in taken:
        assert not table.add(nonce, signed, START + 100, WINDOW)
    assert not table.add("late", START + 2 * WAYS - 1, START + 100, WINDOW)
    assert table.add("in time", START + 90, START + 100, WINDOW)


def test_what_no_longer_counts_is_forgotten_without_harm() -> None:
    table = NonceTable(START, buckets=1)
    for n in range(WAYS):
        assert table.add(f"n{n}", START + n, START, WINDOW)
    later = START + WINDOW + WAYS + 1
    assert table.add("skewed", later - WINDOW, later, WINDOW)
    for n in range(WAYS - 1):
        assert table.add(("new", n), later, later, WINDOW)
    assert table.add("another late one", later - WINDOW + 1, later, WINDOW)


events = st.lists(
    st.tuples(st.integers(0, 30), st.integers(-WINDOW, WINDOW), st.integers(0, 5000)), max_size=200
)


@given(events, st.sampled_from([1, 2, 7]))
def test_nothing_is_taken_twice(events: list[tuple[int, int, int]], buckets: int) -> None:
    """Messages with times as the window allows, in any order and any number, each offered again
    whenever another one comes."""
    table, now = NonceTable(START, buckets), START
    taken: set[tuple[int, int]] = set()
    offered: list[tuple[int, int]] = []
    for number, (nonce, skew, pause) in enumerate(events):
        now += pause
        offered.append((nonce * 1000 + number, now + skew))
        for message in offered[-20:]:
            if abs(now - message[1]) <= WINDOW and table.add(message, message[1], now, WINDOW):
                assert message not in taken
                taken.add(message)


def test_of_many_processes_one_takes_it() -> None:
    table = NonceTable(START)
    results = together(
        lambda number: [table.add(f"n{n}", START + 1, START + 1, WINDOW) for n in range(2000)], 4
    )
    assert all(sum(column) == 1 for column in zip(*results, strict=True))
