from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from kemi_dmq.batch import FINE, ItemAnswer, pack_answers
from kemi_dmq.message import Outcome
from kemi_dmq.node import Node, Status
from kemi_dmq.outbox import (
    OVERHEAD,
    SETTLE,
    T1,
    T2,
    WINDOW,
    Answered,
    Outbox,
    Parcel,
    Post,
    outcome_event,
)

from .conftest import node

A = node("sip:10.0.0.2:5060")
B = node("sip:10.0.0.3:5060;transport=tcp")
C = node("sip:10.0.0.4:5060", python=False)
AWAY = node("sip:10.0.0.2:5060", Status.NOT_ACTIVE)
MEMORY = 64 * 1024
OK = Answered(200, "OK", "", "")


def key(of: Node) -> tuple[str, int]:
    return (of.host, of.port)


def is_empty(outbox: Outbox) -> bool:
    """Whether nothing is left of what was posted."""
    return outbox._on_their_way == {} and all(
        place.held == 0
        and set(place.lanes) <= {"", " "}
        and not any(lane.waiting or lane.open for lane in place.lanes.values())
        for place in outbox._places.values()
    )


class Driven:
    """An outbox whose sends and outcomes are kept."""

    def __init__(self, *nodes: Node, memory: int = MEMORY, room: int = 0) -> None:
        self.room = room
        self.outbox = Outbox(memory, "boot", lambda node: self.room, lambda: "t")
        self.now = 100.0
        self.outbox.set_nodes(nodes, self.now)
        self.sent: list[tuple[float, Parcel]] = []
        self.told: list[tuple[float, str, Outcome]] = []  # time, body, outcome

    def post(
        self,
        body: str = "x",
        *to: Node,
        ordered: bool = True,
        deadline: float = 32.0,
        encoded: bool = False,
        peer: str = "acme",
        flush: bool = True,
    ) -> None:
        uris = tuple(n.uri for n in to or (A,))
        expires = self.now + deadline
        post = Post(peer, body, encoded, "text/x", 1, ordered, expires, "cb|1", uris)
        self.outbox.post(post)
        if flush:
            self.work_off()

    def tick(self) -> None:
        self.outbox.tick(self.now)
        self.work_off()

    def work_off(self) -> None:
        outbox = self.outbox
        outbox.flush(self.now)
        while outbox.to_send:
            self.sent.append((self.now, outbox.to_send.popleft()))
        while outbox.ended:
            ended = outbox.ended.popleft()
            outbox.release(ended.letter)
            self.told.append((self.now, ended.letter.post.body, ended.outcome))

    def answer(self, parcel: Parcel, answer: Answered = OK) -> None:
        self.outbox.answered(parcel.number, parcel.token, answer)
        self.work_off()

    def set_nodes(self, *nodes: Node) -> None:
        self.outbox.set_nodes(nodes, self.now)
        self.work_off()

    def run(self, seconds: float) -> None:
        """Serve all deadlines for so long."""
        end = self.now + seconds
        while (deadline := self.outbox.next_deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            self.tick()
        self.now = end

    @property
    def bodies(self) -> list[str]:
        return ["+".join(letter.post.body for letter in p.letters) for _, p in self.sent]

    def outcomes(self) -> list[tuple[str, Outcome]]:
        return [(body, outcome) for _, body, outcome in self.told]


# Order ------------------------------------------------------------------------------------------


def test_the_next_ordered_message_leaves_when_the_one_before_is_answered() -> None:
    driven = Driven(A)
    for body in "abc":
        driven.post(body)
    assert driven.bodies == ["a"]
    driven.answer(driven.sent[-1][1])
    assert driven.bodies == ["a", "b"]
    driven.answer(driven.sent[-1][1], Answered(500, "No", "", ""))  # an answer, too
    driven.answer(driven.sent[-1][1])
    assert driven.outcomes() == [(body, Outcome.ANSWERED) for body in "abc"]
    assert driven.outbox.next_deadline() is None and driven.outbox.waiting == 0


def test_other_nodes_other_peers_and_messages_without_order_do_not_wait() -> None:
    driven = Driven(A, B)
    driven.post("a")
    driven.post("node", B)
    driven.post("peer", peer="other")
    driven.post("free", ordered=False)
    assert driven.bodies == ["a", "node", "peer", "free"]


def test_messages_without_order_are_sent_side_by_side_within_a_window() -> None:
    driven = Driven(A)
    for number in range(WINDOW + 10):
        driven.post(str(number), ordered=False)
    assert len(driven.sent) == WINDOW
    driven.answer(driven.sent[3][1])
    assert len(driven.sent) == WINDOW + 1


# Time -------------------------------------------------------------------------------------------


def test_without_an_answer_it_is_sent_again_and_times_out_at_the_deadline() -> None:
    driven = Driven(A)
    driven.post(deadline=10)
    driven.run(60)
    assert [round(when - 100, 1) for when, _ in driven.sent] == [0, 0.5, 1.5, 3.5, 7.5]
    assert len({letter.number for _, letter in driven.sent}) == 1
    assert driven.told == [(110.0, "x", Outcome.TIMED_OUT)]


def test_over_tcp_it_is_sent_again_with_long_pauses_only() -> None:
    driven = Driven(B)
    driven.post("x", B, deadline=10)
    driven.run(60)
    assert [round(when - 100, 1) for when, _ in driven.sent] == [0, T2, 2 * T2]


def test_after_a_timeout_the_next_one_waits_until_no_copy_can_be_on_its_way() -> None:
    driven = Driven(A)
    driven.post("a", deadline=3)
    driven.post("b", deadline=30)
    driven.run(3)
    last = driven.sent[-1][0]
    assert driven.outcomes() == [("a", Outcome.TIMED_OUT)]
    driven.run(SETTLE)
    assert driven.sent[-1][1].letters[0].post.body == "b"
    assert (
        min(when for when, letter in driven.sent if letter.letters[0].post.body == "b")
        == last + SETTLE
    )


def test_a_late_answer_lets_the_next_one_leave_and_changes_no_outcome() -> None:
    driven = Driven(A)
    driven.post("a", deadline=3)
    driven.post("b", deadline=30)
    driven.run(3)
    driven.answer(driven.sent[0][1])
    assert driven.bodies[-1] == "b"
    assert driven.outcomes() == [("a", Outcome.TIMED_OUT)]


def test_without_an_order_a_timeout_makes_room_at_once() -> None:
    driven = Driven(A)
    for number in range(WINDOW + 1):
        driven.post(str(number), ordered=False, deadline=3 if number < WINDOW else 30)
    driven.run(3)
    assert driven.bodies[-1] == str(WINDOW)


# Nodes that are away ----------------------------------------------------------------------------


def test_what_is_for_a_node_that_is_away_leaves_when_it_is_back_in_order() -> None:
    driven = Driven(AWAY, B)
    for body in "abc":
        driven.post(body, A, B, deadline=100)
    driven.run(50)
    assert {letter.letters[0].uri for _, letter in driven.sent} == {B.uri}
    driven.sent.clear()
    driven.set_nodes(A, B)
    for body in "abc":
        assert driven.bodies == [body] and driven.sent[0][1].letters[0].uri == A.uri
        driven.answer(driven.sent.pop()[1])


def test_a_message_expires_if_the_node_is_not_back_and_was_never_sent() -> None:
    driven = Driven()
    driven.post("a", deadline=5)
    driven.post("b", deadline=1)
    driven.run(10)
    driven.set_nodes(A)
    driven.run(10)
    assert driven.told == [(101.0, "b", Outcome.EXPIRED), (105.0, "a", Outcome.EXPIRED)]
    assert driven.sent == [] and driven.outbox.held(key(A)) == 0


def test_a_message_on_its_way_to_a_node_that_goes_pauses_and_is_sent_at_its_return() -> None:
    driven = Driven(A)
    driven.post(deadline=100)
    driven.run(0.2)
    driven.set_nodes(AWAY)
    driven.run(30)
    assert len(driven.sent) == 1
    driven.set_nodes(A)
    assert len(driven.sent) == 2 and driven.sent[1][1] is driven.sent[0][1]
    driven.run(T1)
    assert len(driven.sent) == 3, "and again, as at first"
    driven.answer(driven.sent[0][1])
    assert driven.outcomes() == [("x", Outcome.ANSWERED)]


def test_what_was_sent_once_times_out_even_if_the_node_is_away_since() -> None:
    driven = Driven(A)
    driven.post(deadline=10)
    driven.set_nodes()
    driven.run(10)
    assert driven.outcomes() == [("x", Outcome.TIMED_OUT)]


def test_an_encoded_body_is_for_python_nodes_only() -> None:
    driven = Driven(C)
    driven.post("eA==", C, encoded=True, deadline=5)
    driven.run(5)
    assert driven.sent == [] and driven.outcomes() == [("eA==", Outcome.EXPIRED)]


def test_a_node_that_changed_its_address_or_kind_is_sent_to_as_it_is_now() -> None:
    driven = Driven(node(C.uri, python=False))
    driven.post("eA==", C, encoded=True)
    driven.set_nodes(node(C.uri))
    assert driven.bodies == ["eA=="]
    assert driven.outbox.node_of(driven.sent[0][1]) == node(C.uri)


# Together ---------------------------------------------------------------------------------------


def test_what_waits_together_travels_together_and_an_idle_bus_sends_at_once() -> None:
    driven = Driven(A, C, room=1000)
    driven.post("a", A, C, ordered=False)
    for body in "bcd":
        driven.post(body, A, C, ordered=False, flush=False)
    driven.work_off()
    assert driven.bodies == ["a", "a", "b+c+d", "b", "c", "d"], "a C node gets single ones"
    driven.answer(driven.sent[2][1])
    assert driven.outcomes() == [(body, Outcome.ANSWERED) for body in "bcd"]


def test_ordered_messages_that_wait_for_an_answer_travel_together_then() -> None:
    driven = Driven(A, room=1000)
    for body in "abc":
        driven.post(body)
    assert driven.bodies == ["a"]
    driven.answer(driven.sent[0][1])
    assert driven.bodies == ["a", "b+c"]


def test_a_batch_has_no_more_than_there_is_room_for() -> None:
    driven = Driven(A, room=250)
    for size in (100, 100, 100, 400, 100):
        driven.post("x" * size, ordered=False, flush=False)
    driven.work_off()
    assert [len(body) for body in driven.bodies] == [201, 100, 400, 100]


def test_each_message_of_a_batch_has_its_own_outcome() -> None:
    driven = Driven(A, room=1000)
    for body, deadline in (("a", 1.0), ("b", 9.0), ("c", 9.0), ("d", 9.0)):
        driven.post(body, ordered=False, deadline=deadline, flush=False)
    driven.work_off()
    driven.run(2)
    assert driven.bodies[0] == "a+b+c+d" and driven.outcomes() == [("a", Outcome.TIMED_OUT)]
    text = pack_answers(
        [FINE, FINE, ItemAnswer(486, "Busy", "x", "a/b"), ItemAnswer(421, "", "", "")]
    )
    driven.outbox.answered(driven.sent[0][1].number, "t", Answered(202, "Mixed", text, "text/kdmq"))
    ended = list(driven.outbox.ended)
    assert [e.answer for e in ended] == [
        Answered(200, "OK", "", ""),
        Answered(486, "Busy", "x", "a/b"),
    ]
    driven.work_off()
    assert driven.bodies[-1] == "d", "which its receiver wants alone"
    driven.run(10)
    assert driven.outcomes()[-1] == ("d", Outcome.TIMED_OUT)


def post_together(driven: Driven, *peers: str) -> None:
    for peer in peers:
        driven.post(peer, ordered=False, flush=False, peer=peer)
    driven.work_off()


def want_alone(driven: Driven, parcel: Parcel) -> None:
    """The answer of a node where a route is a peer."""
    alone, letters = ItemAnswer(421, "", "", ""), parcel.letters
    text = pack_answers([alone if x.post.peer_id == "route" else FINE for x in letters])
    driven.answer(parcel, Answered(202, "Mixed", text, "text/kdmq"))


def test_a_peer_that_wants_its_messages_alone_gets_single_ones_until_it_is_another_node() -> None:
    driven = Driven(A, room=1000)
    post_together(driven, "acme", "route", "acme")
    want_alone(driven, driven.sent[0][1])
    assert driven.bodies == ["acme+route+acme", "route"]
    post_together(driven, "acme", "route", "acme", "route")
    assert sorted(driven.bodies[2:]) == ["acme+acme", "route", "route"], "others travel as before"
    driven.set_nodes()
    driven.set_nodes(A)
    post_together(driven, "acme", "route")
    assert driven.bodies[-1] == "acme+route"


def test_a_peer_that_wanted_its_messages_alone_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a while: the script there may have been loaded anew, with a callback."""
    monkeypatch.setattr("kemi_dmq.outbox.ALONE", 3)
    driven = Driven(A, room=1000)
    post_together(driven, "route", "route")
    want_alone(driven, driven.sent[0][1])
    post_together(driven, "route", "route")
    assert driven.bodies == ["route+route"] + 4 * ["route"]
    post_together(driven, "route", "route")
    assert driven.bodies[5:] == ["route+route"]
    want_alone(driven, driven.sent[-1][1])
    assert driven.bodies[6:] == ["route"] * 2


def test_ordered_messages_of_a_peer_that_wants_them_alone_stay_in_order() -> None:
    driven = Driven(A, room=1000)
    for body in "abcde":
        driven.post(body, peer="route")
    driven.answer(driven.sent[0][1])
    assert driven.bodies == ["a", "b+c+d+e"]
    want_alone(driven, driven.sent[1][1])
    for number in range(2, 6):
        driven.answer(driven.sent[number][1])
    assert driven.bodies[2:] == ["b", "c", "d", "e"]
    driven.post("f", peer="route")
    driven.post("g", peer="route")
    driven.post("h", peer="route")
    driven.answer(driven.sent[6][1])
    assert driven.bodies[6:] == ["f", "g"]


def test_who_refuses_a_batch_gets_single_ones_until_it_is_another_node() -> None:
    driven = Driven(A, room=1000)
    for body in "ab":
        driven.post(body, ordered=False, flush=False)
    driven.work_off()
    driven.answer(driven.sent[0][1], Answered(404, "User Not Found", "", ""))
    assert driven.bodies == ["a+b", "a", "b"] and driven.told == []
    for body in "cd":
        driven.post(body, ordered=False, flush=False)
    driven.work_off()
    assert driven.bodies[3:] == ["c", "d"]
    driven.set_nodes()
    driven.set_nodes(A)
    for body in "ef":
        driven.post(body, ordered=False, flush=False)
    driven.work_off()
    assert driven.bodies[-1] == "e+f"


@pytest.mark.parametrize(("code", "body"), [(202, ""), (202, "nonsense"), (503, "")])
def test_an_answer_that_says_nothing_of_the_messages_is_an_error_of_each(
    code: int, body: str
) -> None:
    driven = Driven(A, room=1000)
    for _ in "ab":
        driven.post("x", ordered=False, flush=False)
    driven.work_off()
    driven.outbox.answered(driven.sent[0][1].number, "t", Answered(code, "What", body, ""))
    codes = [ended.answer.code for ended in driven.outbox.ended if ended.answer]
    assert codes == [code if code == 503 else 500] * 2


# Bounds -----------------------------------------------------------------------------------------


def test_a_node_for_which_too_much_waits_is_full_until_some_has_gone() -> None:
    driven = Driven(B)
    size = OVERHEAD + len("cb|1") + 100
    count = -(-MEMORY // size)
    for number in range(count):
        assert driven.outbox.full == frozenset(), number
        driven.post("x" * 100, A, B)
    assert driven.outbox.full == {key(A), key(B)}
    for _ in range(count):
        driven.answer(driven.sent[-1][1])
    assert driven.outbox.full == {key(A)}
    driven.run(40)
    assert driven.outbox.full == frozenset() and driven.outbox.waiting == 0


def test_an_outcome_takes_room_until_it_is_told() -> None:
    driven = Driven(A)
    post = Post("acme", "x", False, "", 1, True, 200.0, "cb|1", (A.uri,))
    driven.outbox.post(post)
    driven.outbox.flush(100.0)
    parcel = driven.outbox.to_send.popleft()
    before = driven.outbox.held(key(A))
    driven.outbox.answered(parcel.number, parcel.token, Answered(200, "OK", "y" * 500, "text/x"))
    assert driven.outbox.held(key(A)) == before + 500 and driven.outbox.waiting == 1
    driven.work_off()
    assert driven.outbox.held(key(A)) == 0 and driven.outbox.waiting == 0


def test_timers_of_messages_that_are_over_do_not_pile_up() -> None:
    driven = Driven(A)
    for number in range(5000):
        driven.post(str(number), ordered=number % 2 == 0, deadline=80_000)
        driven.answer(driven.sent[-1][1])
        driven.outbox.next_deadline()
    assert len(driven.outbox._due) <= 1001
    assert is_empty(driven.outbox)


def test_a_node_that_comes_and_goes_leaves_no_timers_of_what_it_cannot_get() -> None:
    driven = Driven(C)
    driven.post("eA==", C, encoded=True, ordered=False, deadline=80_000)
    for _ in range(2000):
        for nodes in ((), (C,)):
            driven.outbox.set_nodes(nodes, driven.now)
            driven.work_off()
    assert driven.sent == [] and driven.outbox.waiting == 1
    assert len(driven.outbox._due) == 1


def test_an_outcome_says_what_the_callback_is_to_be_told() -> None:
    driven = Driven()
    driven.post(deadline=1)
    driven.outbox.tick(102.0)
    (ended,) = driven.outbox.ended
    whose = f"{A.uri}|cb|1"
    assert outcome_event(ended) == ("outcome", whose, "expired", 408, "Expired", "", "")
    late = ended._replace(outcome=Outcome.TIMED_OUT)
    assert outcome_event(late) == ("outcome", whose, "timed_out", 408, "Request Timeout", "", "")


def test_what_nobody_asked_about_is_counted() -> None:
    driven = Driven(A)
    for number, body in enumerate("ab"):
        post = Post("acme", body, False, "text/x", 1, False, 100.5 + 9 * number, "", (A.uri,))
        driven.outbox.post(post)
    driven.work_off()
    driven.run(1)
    driven.answer(driven.sent[1][1])
    assert driven.told == [] and driven.outbox.waiting == 0 and driven.outbox.held(key(A)) == 0
    assert driven.outbox.silent == {Outcome.TIMED_OUT: 1, Outcome.ANSWERED: 1}


# All of it at once ------------------------------------------------------------------------------


class Interleavings(RuleBasedStateMachine):
    """Posts, answers, losses, copies, nodes that go and come, in any order.  The network keeps a
    datagram for less than SETTLE; receivers run each message once, C nodes each copy."""

    nodes = (A, B, C)

    @initialize(seed=st.integers(0, 2**32), room=st.sampled_from([0, 50, 2000]))
    def start(self, seed: int, room: int) -> None:
        self.rng = random.Random(seed)
        self.now = 1000.0
        self.outbox = Outbox(MEMORY, "boot", lambda node: room, lambda: "t")
        self.up = {key(n) for n in self.nodes}
        self.posts = 0
        self.expected: dict[tuple[str, str], tuple[bool, float]] = {}
        self.requests: list[tuple[float, Parcel]] = []  # on their way
        self.answers: list[tuple[float, int]] = []
        self.ran: dict[str, list[tuple[str, str, int]]] = {n.uri: [] for n in self.nodes}
        self.answered: dict[int, Answered] = {}  # by the number of the parcel
        self.told: dict[tuple[str, str], list[Outcome]] = {}
        self.show_nodes()

    def show_nodes(self) -> None:
        self.outbox.set_nodes([n for n in self.nodes if key(n) in self.up], self.now)

    @rule(
        to=st.sets(st.sampled_from(range(3)), min_size=1),
        ordered=st.booleans(),
        peer=st.sampled_from(["acme", "other"]),
        deadline=st.sampled_from([0.3, 2.0, 10.0, 32.0, 300.0]),
    )
    def post(self, to: set[int], ordered: bool, peer: str, deadline: float) -> None:
        if any(key(self.nodes[index]) in self.outbox.full for index in to):
            return
        self.posts += 1
        self.now += 1e-6
        uris = tuple(self.nodes[index].uri for index in sorted(to))
        body = f"{self.posts}"
        for uri in uris:
            self.expected[uri, body] = (ordered, self.now + deadline)
        post = Post(peer, body, False, "", 1, ordered, self.now + deadline, "c|1", uris)
        self.outbox.post(post)

    @rule(deadlines=st.lists(st.sampled_from([0.3, 2.0, 300.0]), min_size=2, max_size=4))
    def post_several(self, deadlines: list[float]) -> None:
        for deadline in deadlines:
            self.post({0}, True, "acme", deadline)

    @rule(seconds=st.sampled_from([0.01, 0.2, 0.6, 2.0, 6.0, 40.0]))
    def time_goes_on(self, seconds: float) -> None:
        self.now += seconds
        self.requests = [item for item in self.requests if self.now - item[0] < SETTLE]
        self.answers = [item for item in self.answers if self.now - item[0] < SETTLE]

    @rule(index=st.sampled_from(range(3)))
    def goes_or_comes(self, index: int) -> None:
        self.up ^= {key(self.nodes[index])}
        self.show_nodes()

    @precondition(lambda self: self.requests)
    @rule(copy=st.booleans())
    def a_request_arrives(self, copy: bool) -> None:
        index = self.rng.randrange(len(self.requests))
        _, parcel = self.requests[index] if copy else self.requests.pop(index)
        uri = parcel.letters[0].uri
        if parcel.number not in self.answered or uri == C.uri:
            self.answered[parcel.number] = self.run(parcel, uri)
        self.answers.append((self.now, parcel.number))

    def run(self, parcel: Parcel, uri: str) -> Answered:
        """What the receiver answers; it takes batches or not, of all messages or some."""
        letters = list(parcel.letters)
        if len(letters) == 1:
            answer = OK
        elif uri == B.uri and self.rng.random() < 0.3:
            return Answered(404, "User Not Found", "", "")
        elif not letters[0].post.ordered and self.rng.random() < 0.3:
            alone = self.rng.sample(letters, self.rng.randint(1, len(letters)))
            text = pack_answers(
                ItemAnswer(421, "Alone", "", "") if letter in alone else FINE for letter in letters
            )
            letters = [letter for letter in letters if letter not in alone]
            answer = Answered(202, "Mixed", text, "text/kdmq")
        else:
            answer = OK
        self.ran[uri] += [(x.post.peer_id, x.post.body, x.number) for x in letters]
        return answer

    @precondition(lambda self: self.answers)
    @rule(copy=st.booleans())
    def an_answer_arrives(self, copy: bool) -> None:
        index = self.rng.randrange(len(self.answers))
        _, number = self.answers[index] if copy else self.answers.pop(index)
        self.outbox.answered(number, "t", self.answered[number])

    @precondition(lambda self: self.requests or self.answers)
    @rule()
    def one_is_lost(self) -> None:
        where: list[Any] = self.requests or self.answers
        where.pop(self.rng.randrange(len(where)))

    @invariant()
    def all_holds(self) -> None:
        if hasattr(self, "outbox"):
            self.sends_and_outcomes()
            self.exactly_one_outcome_at_the_deadline_at_the_latest()
            self.in_order_and_once()

    def sends_and_outcomes(self) -> None:
        outbox = self.outbox
        outbox.tick(self.now)
        while outbox.to_send:
            parcel = outbox.to_send.popleft()
            assert parcel.lane.place.key in self.up
            assert any(self.now < letter.post.expires for letter in parcel.live())
            assert len({letter.uri for letter in parcel.letters}) == 1
            assert len(parcel.letters) == 1 or parcel.lane.place.key != key(C)
            self.requests.append((self.now, parcel))
        while outbox.ended:
            letter, outcome, _ = outbox.ended.popleft()
            outbox.release(letter)
            self.told.setdefault((letter.uri, letter.post.body), []).append(outcome)
            if outcome is Outcome.EXPIRED:
                assert not any(number == letter.number for _, _, number in self.ran[letter.uri])
            if outcome is Outcome.ANSWERED:
                assert any(number == letter.number for _, _, number in self.ran[letter.uri])
        assert outbox.waiting == len(self.expected) - len(self.told)
        for who in self.nodes:
            assert outbox.held(key(who)) <= MEMORY + 4 * (OVERHEAD + 10)  # post_several()

    def exactly_one_outcome_at_the_deadline_at_the_latest(self) -> None:
        for which, (_, expires) in self.expected.items():
            outcomes = self.told.get(which, [])
            assert len(outcomes) <= 1
            assert outcomes or self.now < expires

    def in_order_and_once(self) -> None:
        for uri in (A.uri, B.uri):
            for peer in ("acme", "other"):
                bodies = [int(body) for p, body, _ in self.ran[uri] if p == peer]
                assert len(bodies) == len(set(bodies))
                ordered = [b for b in bodies if self.expected[uri, str(b)][0]]
                assert ordered == sorted(ordered)

    def teardown(self) -> None:
        if not hasattr(self, "outbox"):
            return
        self.now += 400 + SETTLE
        self.sends_and_outcomes()
        self.exactly_one_outcome_at_the_deadline_at_the_latest()
        self.now += SETTLE
        self.sends_and_outcomes()
        assert self.outbox.next_deadline() is None
        assert is_empty(self.outbox)


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=200, stateful_step_count=60)


@pytest.mark.parametrize("number", [0, 1, 10**9])
def test_an_answer_to_no_message_is_nothing(number: int) -> None:
    driven = Driven(A)
    driven.answer(Parcel(number, "t", [], None, 0, False))  # type: ignore[arg-type]
    assert driven.told == []
