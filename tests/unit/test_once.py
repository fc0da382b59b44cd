from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kemi_dmq.once import PLAIN_OK, REMEMBER, WAYS, Answer, OnceTable, Verdict

from .processes import Child, together

MEMORY = 64 * 1024


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table(clock: Clock) -> OnceTable:
    return OnceTable(MEMORY, clock)


def test_the_first_copy_is_new_and_the_next_is_running_until_the_answer_is_there(
    table: OnceTable,
) -> None:
    verdict, entry, answer = table.claim("a")
    assert (verdict, answer) == (Verdict.NEW, None)
    assert table.claim("a")[::2] == (Verdict.RUNNING, None)
    table.finish(entry, "a", Answer(486, "Busy Here", b"x\0\xff", "text/x"))
    assert table.claim("a")[::2] == (
        Verdict.ANSWERED,
        Answer(486, "Busy Here", b"x\0\xff", "text/x"),
    )
    assert table.claim("b")[0] is Verdict.NEW


def test_a_plain_ok_takes_no_room_in_the_ring(table: OnceTable) -> None:
    for number in range(50):
        _, entry, _ = table.claim(number)
        table.finish(entry, number, Answer(200, "OK", b"", ""))
    assert table._ring_head[0] == 0
    assert table.claim(7)[2] == PLAIN_OK


@given(
    st.integers(200, 699),
    st.text(max_size=20),
    st.binary(max_size=200),
    st.text(max_size=20),
)
def test_an_answer_reads_back_as_it_was_stored(
    code: int, reason: str, body: bytes, content_type: str
) -> None:
    table = OnceTable(MEMORY, Clock())
    answer = Answer(code, reason, body, content_type)
    _, entry, _ = table.claim("a")
    table.finish(entry, "a", answer)
    assert table.claim("a")[2] == answer


def test_a_request_is_remembered_as_long_as_a_message_may_wait(
    table: OnceTable, clock: Clock
) -> None:
    _, entry, _ = table.claim("a")
    table.finish(entry, "a", PLAIN_OK)
    clock.now += REMEMBER
    assert table.claim("a")[0] is Verdict.ANSWERED
    clock.now += 1
    assert table.claim("a")[0] is Verdict.NEW
    assert table.claim("a")[0] is Verdict.RUNNING
    assert table.evicted == 0


def test_in_a_full_bucket_the_oldest_goes_first_and_is_counted(
    table: OnceTable, clock: Clock
) -> None:
    same = [n for n in range(1, 100_000) if n % table._buckets == 1][: WAYS + 1]
    for number in same[:WAYS]:
        assert table.claim(number)[0] is Verdict.NEW
        clock.now += 1
    assert table.claim(same[WAYS])[0] is Verdict.NEW
    assert table.evicted == 1
    assert [table.claim(n)[0] for n in same[1:]] == [Verdict.RUNNING] * WAYS


def test_the_answer_of_a_request_that_was_pushed_out_harms_no_other(
    table: OnceTable, clock: Clock
) -> None:
    same = [n for n in range(1, 100_000) if n % table._buckets == 1][: WAYS + 1]
    entries = []
    for number in same:
        entries.append(table.claim(number)[1])
        clock.now += 1
    table.finish(entries[0], same[0], Answer(500, "x", b"", ""))  # its entry is another's now
    assert table.claim(same[WAYS])[0] is Verdict.RUNNING


def test_a_body_that_was_overwritten_leaves_the_code(table: OnceTable) -> None:
    _, entry, _ = table.claim("a")
    table.finish(entry, "a", Answer(603, "Decline", b"first", "text/plain"))
    for number in range(100):
        _, entry, _ = table.claim(number)
        table.finish(entry, number, Answer(200, "OK", bytes(1000), "text/plain"))
    assert table.claim("a")[2] == Answer(603, "", b"", "")
    assert table.claim(99)[2] == Answer(200, "OK", bytes(1000), "text/plain")


def test_a_body_too_large_for_the_ring_leaves_code_and_reason(table: OnceTable) -> None:
    _, entry, _ = table.claim("a")
    table.finish(entry, "a", Answer(200, "OK", bytes(MEMORY), "text/plain"))
    assert table.claim("a")[2] == Answer(200, "OK", b"", "")


def test_of_processes_that_claim_the_same_request_exactly_one_is_told_that_it_is_new() -> None:
    # So large that no bucket is ever full: who is pushed out would be new again.
    table = OnceTable(64 * 1024 * 1024, Clock())
    identities = [(f"SIP/2.0/UDP 10.0.0.2;branch=z9hG4bK{n}", "call") for n in range(10_000)]

    def claims(number: int) -> list[bool]:
        return [table.claim(identity)[0] is Verdict.NEW for identity in identities]

    results = together(claims, 4)
    wins = [sum(row) for row in zip(*results, strict=True)]
    assert Counter(wins) == {1: len(identities)}


def test_a_copy_in_another_process_gets_the_stored_answer(table: OnceTable) -> None:
    _, entry, _ = table.claim("a")
    table.finish(entry, "a", Answer(486, "Busy", b"body", "text/plain"))
    assert Child(lambda: tuple(table.claim("a")[2] or ())).result() == (
        486,
        "Busy",
        b"body",
        "text/plain",
    )


def test_answers_of_several_processes_do_not_mix(table: OnceTable) -> None:
    def work(number: int) -> int:
        wrong = 0
        for step in range(200):
            identity = (number, step)
            answer = Answer(200 + number, f"r{number}", bytes([number]) * (step % 97), "t")
            _, entry, _ = table.claim(identity)
            table.finish(entry, identity, answer)
            verdict, _, stored = table.claim(identity)
            # An answer may have left the ring since; another's may never stand in its place.
            if verdict is Verdict.ANSWERED and stored not in (
                answer,
                Answer(200 + number, "", b"", ""),
            ):
                wrong += 1
        return wrong

    assert together(work, 3) == [0, 0, 0]


def test_a_process_that_dies_after_its_claim_leaves_the_request_running(table: OnceTable) -> None:
    Child(lambda: table.claim("a")[0] is Verdict.NEW).result()
    assert table.claim("a")[0] is Verdict.RUNNING
