"""Requests without tm: one slot each, sent again, and one end."""

from __future__ import annotations

import random

import pytest

from kemi_dmq import unanswered
from kemi_dmq.shared import Processes
from kemi_dmq.unanswered import QUIET, SIZE, SLOTS, TELL_AGAIN, Unanswered
from kemi_dmq.wire import SipUri

from .processes import Child, together

PROCESSES = Processes()
UDP = SipUri("10.0.0.2", 5060)
TCP = SipUri("10.0.0.2", 5060, "tcp")


class Bed:
    """A table, its clock, and what the engine's process sends and tells."""

    def __init__(self, fr_timer: float = 30.0) -> None:
        self.now = 1000.0
        self.table = Unanswered(PROCESSES, lambda: self.now, fr_timer)
        self.sent: list[tuple[float, str]] = []
        self.told: list[str] = []
        self.listens = True

    def open(self, whose: str = "a", to: SipUri = UDP, text: str = "x") -> tuple[int, int]:
        slot, token = self.table.free()
        assert token > 1 and self.table.fill(slot, token, to, text, whose)
        return slot, token

    def send(self, to: SipUri, text: str) -> None:
        self.sent.append((round(self.now - 1000.0, 3), f"{to} {text}"))

    def tell(self, whose: str) -> bool:
        if self.listens:
            self.told.append(whose)
        return self.listens

    def tick(self) -> float | None:
        return self.table.tick(self.send, self.tell)

    def run(self, seconds: float) -> None:
        """The engine's loop, for so long; it begins as watch() wakes it."""
        end = self.now + seconds
        pause = self.tick()
        while pause is not None and self.now + pause <= end:
            self.now += pause
            pause = self.tick()
        self.now = end


@pytest.fixture
def bed() -> Bed:
    return Bed()


def test_a_request_is_taken_once_by_who_knows_its_token(bed: Bed) -> None:
    slot, token = bed.open("whose")
    for wrong in ((slot, token + 1), (slot + 1, token), (slot, 0), (slot, 1), (-1, token)):
        assert bed.table.take(*wrong) is None
    assert bed.table.take(1 << 70, token) is None
    assert bed.table.take(slot, token) == "whose"
    assert bed.table.take(slot, token) is None
    bed.run(40)
    assert bed.sent == [] and bed.told == []


def test_a_process_has_so_many_slots_and_gets_them_back(bed: Bed) -> None:
    opened = [bed.open(str(n)) for n in range(SLOTS)]
    assert len({slot for slot, _ in opened}) == SLOTS and len({token for _, token in opened}) > 99
    assert bed.table.free()[1] == 0
    assert bed.table.take(*opened[77]) == "77"
    assert bed.open("again")[0] == opened[77][0]
    assert bed.table.free()[1] == 0
    assert [bed.table.take(*them) for them in opened if them != opened[77]] == [
        str(n) for n in range(SLOTS) if n != 77
    ]


def test_what_is_too_large_leaves_its_slot_free(bed: Bed) -> None:
    slot, token = bed.table.free()
    assert not bed.table.fill(slot, token, UDP, "x" * SIZE, "")
    assert bed.table.take(slot, token) is None
    for _ in range(SLOTS):
        bed.open(text="x" * (SIZE - 100))
    bed.run(0.5)
    assert len(bed.sent) == SLOTS


def test_over_udp_it_is_sent_again_at_t1_then_twice_as_late_each_time_up_to_t2(bed: Bed) -> None:
    bed.open("a|b")
    bed.run(100)
    # RFC 3261, 17.1.2.2: timer E
    times = [0.5, 1.5, 3.5, 7.5, 11.5, 15.5, 19.5, 23.5, 27.5]
    assert bed.sent == [(time, "sip:10.0.0.2:5060 x") for time in times]
    assert bed.told == ["a|b"]


def test_over_a_reliable_transport_it_is_not_sent_again(bed: Bed) -> None:
    first = bed.open("tcp", TCP)
    bed.run(29.9)
    assert bed.sent == [] and bed.told == []
    bed.run(0.2)
    assert bed.told == ["tcp"] and bed.table.take(*first) is None


@pytest.mark.parametrize("to", [UDP, TCP])
def test_fr_timer_can_be_shorter_than_t1(to: SipUri) -> None:
    bed = Bed(fr_timer=0.2)
    bed.open("short", to)
    bed.run(0.21)
    assert bed.told == ["short"] and bed.sent == []


def test_nobody_is_told_of_what_nobody_waits_for(bed: Bed) -> None:
    them = bed.open("")
    bed.run(31)
    assert len(bed.sent) == 9 and bed.told == [] and bed.table.take(*them) is None
    assert bed.table.take(*bed.open("")) == ""


def test_a_timeout_that_cannot_be_told_is_told_later_and_the_answer_is_too_late() -> None:
    bed = Bed(fr_timer=2)
    them = bed.open("late")
    bed.listens = False
    bed.run(2.5)
    assert bed.told == [] and bed.table.take(*them) is None
    assert bed.tick() == pytest.approx(TELL_AGAIN, abs=0.002)
    bed.listens = True
    bed.run(0.2)
    assert bed.told == ["late"]
    assert bed.open("next")


def test_the_engine_looks_while_there_is_something_and_a_while_longer(bed: Bed) -> None:
    assert not bed.table.watched
    slot, token = bed.open()
    assert bed.table.watch(), "it is to be woken"
    assert bed.table.watched and not bed.table.watch()
    assert bed.tick() == pytest.approx(0.5)
    bed.table.take(slot, token)
    looks = 0
    while (pause := bed.tick()) is not None:
        bed.now += pause
        looks += 1
    assert QUIET <= bed.now - 1000 <= QUIET + 1 and looks <= 2 * QUIET + 1
    assert not bed.table.watched and bed.table.watch()


def test_what_is_filled_while_the_engine_stops_to_look_is_seen(bed: Bed) -> None:
    bed.table.watch()
    bed.tick()
    bed.now += QUIET
    busy = bed.table._busy
    seen: list[list[int]] = []

    def look() -> list[int]:
        seen.append(busy())
        if len(seen) == 1:
            bed.open()  # its process saw that the engine looks
        return seen[-1]

    bed.table._busy = look  # type: ignore[method-assign]
    assert bed.tick() is not None and bed.table.watched
    assert [len(found) for found in seen] == [0, 1]


def test_a_slot_that_is_filled_anew_while_the_engine_reads_it_is_left_alone(bed: Bed) -> None:
    _, token = bed.open("first")
    bed.now += 0.5
    read = bed.table._read

    def meanwhile(slot: int) -> bytes:
        bed.table._read = read  # type: ignore[method-assign]
        assert bed.table.take(slot, token) == "first"
        bed.table._cursor = slot
        bed.open("second", text="second")
        return read(slot)[:7] + b"(\xff\xff\xff\x7f"  # half of it: no record at all

    bed.table._read = meanwhile  # type: ignore[method-assign]
    bed.tick()
    assert bed.sent == []
    bed.run(0.5)
    assert bed.sent == [(1.0, "sip:10.0.0.2:5060 second")]


@pytest.mark.parametrize("refilled", [False, True])
def test_what_is_answered_while_the_engine_looks_has_its_answer_alone(
    bed: Bed, refilled: bool
) -> None:
    _, first = bed.open("first")
    bed.now += 0.5
    busy = bed.table._busy
    second = (0, 0)

    def look() -> list[int]:
        nonlocal second
        bed.table._busy = busy  # type: ignore[method-assign]
        found = busy()
        assert bed.table.take(found[0], first) == "first"
        if refilled:
            bed.table._cursor = found[0]
            second = bed.open("second")
            assert second[0] == found[0]
        return found

    bed.table._busy = look  # type: ignore[method-assign]
    bed.tick()
    assert bed.told == [] and bed.sent == []
    if refilled:
        assert bed.table.take(*second) == "second"
    assert busy() == []


def test_of_many_processes_with_the_same_answer_one_takes_it(bed: Bed) -> None:
    opened = [bed.open(str(n)) for n in range(SLOTS)]
    taken = together(lambda n: [bed.table.take(*them) is not None for them in opened], 4)
    assert [sum(each) for each in zip(*taken, strict=True)] == [1] * SLOTS


def test_processes_have_slots_and_tokens_of_their_own(bed: Bed) -> None:
    def opens() -> list[tuple[int, int]]:
        return [bed.open(f"child {n}") for n in range(20)]

    mine = opens()
    theirs = [Child(opens).result() for _ in range(2)]
    everything = [tuple(them) for them in [*mine, *theirs[0], *theirs[1]]]
    assert len({slot for slot, _ in everything}) == len({token for _, token in everything}) == 60
    assert [bed.table.take(*them) for them in everything[20:40]] == [
        f"child {n}" for n in range(20)
    ]


def test_a_process_without_a_number_has_no_slots(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unanswered, "MAX_PROCESSES", 0)
    assert bed.table.free() == (0, 0)


class Life:
    """Whatever is sent, answered, answered again and late, also in the middle of the engine's look,
    and however the callbacks process lags."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.bed = Bed(fr_timer=5)
        self.opened: dict[str, tuple[int, int]] = {}
        self.ends: list[str] = []
        table = self.bed.table
        self._busy, self._read = table._busy, table._read
        table._busy, table._read = self.look, self.read  # type: ignore[method-assign]

    def opens(self) -> None:
        name = f"m{len(self.opened)}"
        self.bed.table._cursor = self.rng.randrange(4)  # the same slots again and again
        slot, token = self.bed.table.free()
        if token:
            assert self.bed.table.fill(slot, token, UDP, "x", name)
            self.opened[name] = (slot, token)

    def answers(self) -> None:
        if self.opened:
            self.take(self.rng.choice(list(self.opened)[-20:]))

    def take(self, name: str) -> None:
        whose = self.bed.table.take(*self.opened[name])
        assert whose in (None, name)
        self.ends.extend(filter(None, [whose]))

    def happens(self) -> None:
        """What other processes do meanwhile."""
        for _ in range(self.rng.randrange(4)):
            self.rng.choice([self.opens, self.answers])()

    def look(self) -> list[int]:
        found = self._busy()
        self.happens()
        return found

    def read(self, slot: int) -> bytes:
        record = self._read(slot)
        lock = self.bed.table._locks[slot % 16]
        if lock.acquire(block=False):  # else it is take() that reads
            lock.release()
            self.happens()
        return record

    def send(self, to: SipUri, text: str) -> None:
        self.happens()

    def tell(self, whose: str) -> bool:
        done = self.bed.tell(whose)
        self.happens()
        return done

    def live(self) -> None:
        for _ in range(self.rng.randrange(60)):
            what = self.rng.randrange(5)
            if what == 0:
                self.bed.listens = self.rng.random() < 0.7
            elif what < 3:
                self.happens()
            else:
                self.bed.table.tick(self.send, self.tell)
                self.bed.now += self.rng.choice([0.01, 0.3, 1, 3])
        self.bed.listens = True
        self.bed.table._busy, self.bed.table._read = self._busy, self._read  # type: ignore[method-assign]
        self.bed.run(40)
        for name in self.opened:
            self.take(name)


def test_each_request_has_one_end_whatever_happens_in_between() -> None:
    for seed in range(400):
        life = Life(seed)
        life.live()
        assert sorted(life.ends + life.bed.told) == sorted(life.opened), seed
