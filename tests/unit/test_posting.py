"""Ordered messages and such with a deadline, from the call to the outcome, with the fake KSR."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kemi_dmq import Message, Node, Outcome, Peer, Reply, Response, ResponseCallback, Status
from kemi_dmq.batch import Item, ItemAnswer, Piece, pack, unpack_answers
from kemi_dmq.bus import MAX_ANSWER, MAX_UDP
from kemi_dmq.callbacks import run_callback
from kemi_dmq.engine import Bodies, Engine, Published, pack_nodes
from kemi_dmq.outbox import WINDOW, Ended
from kemi_dmq.settings import check
from kemi_dmq.testing.fake_kamailio import ReceivedReply, Request
from kemi_dmq.wire import ENCODED, as_text, decode_body, encode, parse_body

from .conftest import LOCAL, Bed, Handler, node
from .processes import together

A = node("sip:10.0.0.2:5060")
B = node("sip:10.0.0.3:5060")
AWAY = node("sip:10.0.0.4:5060", Status.NOT_ACTIVE)
C_NODE = node("sip:10.0.0.5:5060", python=False)

heard: list[tuple[Reply, Node | None, Any]] = []


def on_reply(reply: Reply, sender: Node | None, param: Any) -> None:
    heard.append((reply, sender, param))


class Loop:
    """The engine and its process, without Kamailio: what it sends and tells."""

    def __init__(self, bed: Bed, *nodes: Node) -> None:
        from kemi_dmq.host.process import EngineProcess

        self.bed = bed
        heard.clear()
        runtime = bed.runtime
        bed.publish(*nodes)
        self.process = EngineProcess(runtime.bus, runtime.host, runtime.symbols, None)  # type: ignore[arg-type]
        self.engine = self.process._engine
        self.engine._nodes_changed = False
        self.engine.outbox.set_nodes(nodes, 0.0)
        self.now = runtime.bus._clock()

    def turn(self, seconds: float = 0.0) -> list[str]:
        """One turn of the loop, so much later; what it sent."""
        self.now = max(self.now, self.bed.runtime.bus._clock()) + seconds
        before = len(self.bed.kamailio.texts)
        shared = self.bed.runtime.shared
        for event in shared.engine_inbox.take():
            self.engine.handle(event, self.now)
        for event in shared.posts.take_in_order(self.now):
            self.engine.handle(event, self.now)
        self.engine.outbox.tick(self.now)
        self.engine._work_off_outbox(self.now)
        return [sent.text for sent in self.bed.kamailio.texts[before:]]

    def run_callbacks(self) -> None:
        for event in self.bed.runtime.shared.callbacks_inbox.take():
            run_callback(self.bed.runtime.bus, event, lambda name, node: None)

    def answer(self, text: str, reply: ReceivedReply) -> None:
        reply.call_id = header(text, "i" if "\r\ni:" in text else "Call-ID")
        handler = self.bed.runtime.handler
        assert not self.bed.kamailio.receive_reply(reply, handler.ksr_reply_route)


def header(text: str, name: str) -> str:
    return text.split(f"\r\n{name}:", 1)[1].split("\r\n", 1)[0].strip()


def start(bed: Bed, *nodes: Node, **given: Any) -> Loop:
    given = {"outbox": 1, "batch_bytes": 0, **given}
    bed.start(Peer("acme", ""), handler=Handler(), **given)
    return Loop(bed, *nodes)


def counted(bed: Bed, name: str) -> int:
    return bed.runtime.shared.counters.totals()[name]


ACME = Peer("acme")
HEAR = ResponseCallback(on_reply, {"p": 1})


# The call


def test_an_ordered_message_goes_out_as_a_text_and_its_answer_reaches_the_callback(
    bed: Bed,
) -> None:
    loop = start(bed, A)
    for body in ("one", "two"):
        assert bed.api.send_message(ACME, body, A, HEAR, 3, "text/x", ordered=True) == 0
    assert bed.kamailio.requests == [] and bed.kamailio.texts == [], "the worker only posts"
    (text,) = loop.turn()
    assert text.startswith("KDMQ sip:acme@10.0.0.2:5060 SIP/2.0\r\n") and text.endswith("\r\none")
    assert header(text, "Content-Type") == "text/x" and header(text, "Max-Forwards") == "3"
    assert "<sip:acme@10.0.0.1:5060>" in header(text, "From")
    assert loop.turn() == []
    loop.answer(text, ReceivedReply(486, "Busy", b"la\xffter", "text/y"))
    (second,) = loop.turn()
    assert second.endswith("two") and header(second, "Via") != header(text, "Via")
    assert heard == []
    loop.run_callbacks()
    ((reply, sender, param),) = heard
    assert (reply.code, reply.reason, reply.body_bytes) == (486, "Busy", b"la\xffter")
    assert (reply.content_type, reply.timed_out, reply.outcome) == ("text/y", False, "answered")
    assert sender == A and param == {"p": 1}
    assert counted(bed, "outbox_posted") == 2 and counted(bed, "outbox_answered") == 1
    assert counted(bed, "replies") == 1


def test_a_message_is_sent_again_with_the_same_call_id_and_branch(bed: Bed) -> None:
    loop = start(bed, A)
    bed.api.send_message(ACME, "x", A, ordered=True)
    (text,) = loop.turn()
    assert loop.turn(0.6) == [text]


def test_a_provisional_or_a_foreign_answer_changes_nothing(bed: Bed) -> None:
    loop = start(bed, A)
    bed.api.send_message(ACME, "x", A, HEAR, ordered=True)
    (text,) = loop.turn()
    loop.answer(text, ReceivedReply(100, "Trying"))
    token = header(text, "Call-ID").rpartition(".")[2]
    for other in ("0" * len(token), "x", token + "0"):
        loop.answer(text.replace(f".{token}\r\n", f".{other}\r\n"), ReceivedReply(200, "OK"))
    loop.turn()
    assert loop.engine.outbox.waiting == 1
    loop.answer(text, ReceivedReply(200, "OK"))
    loop.answer(text, ReceivedReply(200, "OK"))
    loop.turn()
    loop.run_callbacks()
    assert loop.engine.outbox.waiting == 0 and len(heard) == 1


def test_a_deadline_keeps_a_broadcast_for_nodes_that_are_away(bed: Bed) -> None:
    loop = start(bed, A, AWAY, outbox=0)
    assert bed.api.bcast_message(ACME, "now") == 0
    assert len(bed.kamailio.requests) == 1, "the plain way goes to active nodes"
    assert bed.api.bcast_message(ACME, "kept", resp_cback=HEAR, deadline=60) == 0
    assert bed.api.bcast_message(ACME, "ordered", resp_cback=HEAR, ordered=True) == 0
    sent = loop.turn()
    assert [text.split()[1] for text in sent] == ["sip:acme@10.0.0.2:5060"] * 2
    loop.engine.outbox.set_nodes([node(AWAY.uri)], loop.now)
    (text,) = loop.turn()
    assert text.startswith("KDMQ sip:acme@10.0.0.4:5060") and text.endswith("kept")


def test_each_outcome_is_told_once(bed: Bed) -> None:
    loop = start(bed, A, AWAY)
    bed.api.bcast_message(ACME, "x", resp_cback=HEAR, deadline=2.5)
    loop.turn()
    loop.turn(3)
    loop.turn(60)
    loop.run_callbacks()
    told = [(r.outcome, r.timed_out, r.code, r.reason, n) for r, n, _ in heard]
    assert told == [
        (Outcome.EXPIRED, True, 408, "Expired", AWAY),
        (Outcome.TIMED_OUT, True, 408, "Request Timeout", A),
    ] or told == [
        (Outcome.TIMED_OUT, True, 408, "Request Timeout", A),
        (Outcome.EXPIRED, True, 408, "Expired", AWAY),
    ]
    assert counted(bed, "outbox_timed_out") == counted(bed, "outbox_expired") == 1
    assert counted(bed, "timeouts") == 2


def test_without_a_callback_an_outcome_is_only_counted(bed: Bed) -> None:
    loop = start(bed, A)
    bed.api.send_message(ACME, "x", A, deadline=1)
    loop.turn()
    loop.turn(2)
    assert list(bed.runtime.shared.callbacks_inbox.take()) == []
    assert counted(bed, "outbox_timed_out") == 1


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 86_401])
def test_a_deadline_out_of_range_is_refused_at_the_call(bed: Bed, value: float) -> None:
    start(bed, A)
    with pytest.raises(ValueError, match=r"deadline is .* above 0 and at most 86400"):
        bed.api.bcast_message(ACME, "x", deadline=value)


@pytest.mark.parametrize("value", ["5", True, [1]])
def test_a_deadline_that_is_no_number_is_refused_at_the_call(bed: Bed, value: Any) -> None:
    start(bed, A)
    with pytest.raises(TypeError, match=r"deadline is .* number of seconds"):
        bed.api.bcast_message(ACME, "x", deadline=value)


def test_a_body_too_large_is_refused_at_the_call_sooner_if_it_is_encoded(bed: Bed) -> None:
    loop = start(bed, A)
    for body in (b"\0", b"x"):
        with pytest.raises(ValueError, match="at most") as error:
            bed.api.send_message(ACME, body * 32_700, A, ordered=True)
        limit = int(str(error.value).split("at most ")[1].split()[0])
        assert bed.api.send_message(ACME, body * limit, A, deadline=9) == 0
        (text,) = loop.turn()
        assert MAX_UDP - 1000 < len(text) <= MAX_UDP


# Bodies


@given(st.binary(max_size=100))
def test_any_bytes_come_back_from_the_text_in_which_they_travel(body: bytes) -> None:
    text = as_text(body)
    if text is not None:
        assert "\0" not in text and text.encode() == body
    assert "\0" not in encode(body)
    assert decode_body("a/b" + ENCODED, encode(body)) == ("a/b", body)


def test_a_peer_gets_every_byte_as_it_was_sent(bed: Bed) -> None:
    got: list[Message] = []
    bed.start(Peer("acme", "", lambda message, sender: got.append(message)))
    loop = Loop(bed, A)
    every_byte: list[bytes | str] = [bytes([n]) for n in range(256)]
    for body in [*every_byte, bytes(range(256)), "ü\0", "", b""]:
        assert bed.api.send_message(ACME, body, A, ordered=True, content_type="text/x;a=b") == 0
        (text,) = loop.turn()
        loop.answer(text, ReceivedReply())
        loop.turn()
        head, _, sent = text.partition("\r\n\r\n")
        content_type = header(head + "\r\n", "Content-Type") if sent else None
        bed.ask(Request(body=sent.encode(), content_type=content_type))
        message = got.pop()
        assert message.body_bytes == (body if isinstance(body, bytes) else body.encode())
        assert message.content_type == ("text/x;a=b" if body else "")


@pytest.mark.parametrize("body", [b"no base64!", b"eA=", b"\xff"])
def test_an_encoded_body_that_cannot_be_decoded_is_413(bed: Bed, body: bytes) -> None:
    bed.start(Peer("acme", "", lambda message, sender: None))
    assert bed.ask(Request(body=body, content_type="text/x" + ENCODED)).code == 413


def test_bytes_for_a_c_node_are_not_taken_and_the_others_get_them(bed: Bed) -> None:
    loop = start(bed, A, C_NODE)
    assert bed.api.bcast_message(ACME, "text", deadline=9) == 0
    assert len(loop.turn()) == 2
    assert bed.api.bcast_message(ACME, b"\xff", deadline=9) == -1
    assert len(loop.turn()) == 1
    assert "10.0.0.5:5060 does not run kemi_dmq: only text" in bed.errors()[0]
    assert counted(bed, "outbox_refused") == 1 and counted(bed, "outbox_posted") == 3


# Bounds


def test_when_too_much_waits_for_a_node_its_messages_are_refused_and_counted(bed: Bed) -> None:
    loop = start(bed, A, AWAY, outbox_memory=65536)
    taken = 0
    while bed.api.bcast_message(ACME, "x" * 1000, deadline=50) == 0:
        taken += 1
        loop.turn()
    assert 30 <= taken <= 33
    assert counted(bed, "outbox_refused") == 2, "the other one has not answered either"
    assert "outbox_memory" in bed.errors()[0]
    loop.turn(51)
    assert bed.api.bcast_message(ACME, "x", deadline=50) == 0


def test_when_the_engine_does_not_follow_a_message_is_refused_and_counted(bed: Bed) -> None:
    loop = start(bed, A, B)
    results: list[int] = []
    while not results or results[-1] == 0:
        results.append(bed.api.bcast_message(ACME, "x" * 1000, ordered=True))
    assert len(results) > 900
    assert counted(bed, "outbox_refused") == 2
    assert "on their way to the engine" in bed.errors()[0]
    assert bed.runtime.bus.shared.engine_inbox.put(("notification",)), "it has a way of its own"
    list(bed.runtime.shared.engine_inbox.take())
    loop.turn()
    assert bed.api.bcast_message(ACME, "x", ordered=True) == 0


def test_an_outcome_waits_while_callbacks_do_not_follow_and_leaves_room_for_others(
    bed: Bed,
) -> None:
    loop = start(bed, A)
    callback = ResponseCallback(on_reply, "p" * 3000)
    count = 60
    for _ in range(count):
        assert bed.api.send_message(ACME, "x", A, callback, deadline=1) == 0
    loop.turn()
    loop.turn(2)
    assert 0 < loop.engine.outbox.waiting < count
    assert loop.engine.next_deadline() is not None
    assert bed.runtime.shared.callbacks_inbox.put(("x" * 60_000,)), "what membership tells"
    list(bed.runtime.shared.callbacks_inbox.take())
    told = 1000
    while told:
        loop.turn(0.02)
        told = len(heard)
        loop.run_callbacks()
        told = len(heard) - told
    assert loop.engine.outbox.waiting == 0
    assert counted(bed, "outbox_timed_out") == WINDOW and counted(bed, "inbox_full") == 0
    assert counted(bed, "outbox_expired") == count - WINDOW, "never sent: they found no room"


def test_a_broadcast_to_many_nodes_is_posted_in_pieces(bed: Bed) -> None:
    nodes = [node(f"sip:10.0.{n // 250}.{n % 250 + 1}:5060") for n in range(300, 1000)]
    loop = start(bed, *nodes)
    assert bed.api.bcast_message(ACME, "x" * 30_000, deadline=9) == 0
    sent: set[str] = set()
    for _ in range(20):
        sent |= {text.split()[1] for text in loop.turn()}
    assert len(sent) == 700


def test_an_answer_too_large_for_the_callbacks_arrives_without_its_body(bed: Bed) -> None:
    loop = start(bed, A)
    for size in (MAX_ANSWER, MAX_ANSWER + 1):
        bed.api.send_message(ACME, "x", A, HEAR, deadline=9)
        (text,) = loop.turn()
        loop.answer(text, ReceivedReply(200, "OK", b"\xff" * size))
        loop.turn()
        loop.run_callbacks()
    assert [len(reply.body_bytes) for reply, _, _ in heard] == [MAX_ANSWER, 0]
    assert "left out" in bed.errors()[0]


# Processes and failures


def test_calls_of_several_processes_leave_in_the_order_in_which_they_were_made(bed: Bed) -> None:
    loop = start(bed, A)
    turn, done = os.pipe()
    os.write(done, b"0")

    def calls(number: int) -> int:
        """A number that goes round: each call begins when another process's is over."""
        rng = random.Random(number)
        for _ in range(100):
            value = int(os.read(turn, 9))
            assert bed.api.send_message(ACME, str(value), A, ordered=True) == 0
            if rng.random() < 0.1:
                os.sched_yield()
            os.write(done, str(value + 1).encode())
        return 0

    together(calls, 4)
    os.close(turn)
    os.close(done)
    bodies = []
    for _ in range(1000):
        for text in loop.turn():
            bodies.append(int(text.rpartition("\n")[2]))
            loop.answer(text, ReceivedReply())
    assert bodies == list(range(400))


def test_what_waits_outlives_an_engine_that_fails(bed: Bed) -> None:
    loop = start(bed, A)
    for body in ("one", "two"):
        bed.api.send_message(ACME, body, A, HEAR, ordered=True)
    (text,) = loop.turn()
    agent = loop.engine._user_agent
    settings = check({"server_address": LOCAL})
    rng = random.Random(9)
    gate = bed.runtime.bus.gate
    loop.engine = Engine(settings, loop.process, rng, agent, gate, outbox=loop.engine.outbox)
    loop.engine._nodes_changed = False
    assert loop.turn(0.6) == [text], "the same Call-ID and branch"
    loop.answer(text, ReceivedReply(200, "OK"))
    (second,) = loop.turn()
    assert second.endswith("two")


def test_an_outcome_that_could_not_be_told_is_told_by_the_next_engine(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = start(bed, A)
    bed.api.send_message(ACME, "x", A, HEAR, deadline=1)
    loop.turn()

    def fails(ended: Ended) -> bool:
        raise RuntimeError("as asked")

    with monkeypatch.context() as patch:
        patch.setattr(loop.process, "outcome", fails)
        with pytest.raises(RuntimeError):
            loop.turn(2)
    loop.turn()
    loop.run_callbacks()
    assert [reply.outcome for reply, _, _ in heard] == ["timed_out"]


def test_the_stop_says_how_many_messages_are_lost(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = start(bed, A)
    for _ in range(3):
        bed.api.send_message(ACME, "x", A, ordered=True)
    (text,) = loop.turn()
    loop.answer(text, ReceivedReply())
    loop.turn()
    monkeypatch.setattr("os._exit", lambda code: None)
    monkeypatch.setattr("signal.signal", lambda *args: None)
    monkeypatch.setattr("signal.alarm", lambda seconds: None)
    loop.process._leave(15, None)
    assert bed.errors() == ["kemi_dmq: 2 messages that waited are lost: Kamailio stops\n"]


def test_node_lists_are_no_outbox_replies(bed: Bed) -> None:
    loop = start(bed, A)
    nodes = pack_nodes([A], Bodies("", "", "", ""))
    loop.engine.start(loop.now, Published(nodes))
    loop.engine.tick(loop.now + 0.5)
    loop.engine.tick(loop.now + 1)
    text = next(sent.text for sent in bed.kamailio.texts)
    loop.answer(text, ReceivedReply(200, "OK", b"sip:10.0.0.2:5060;status=active\r\n"))
    (event,) = bed.runtime.shared.engine_inbox.take()
    assert event[0] == "answer" and parse_body(event[3])[0]


# Broadcasts through the outbox, and batches


def test_a_broadcast_is_handed_to_the_engine_and_costs_no_call_for_each_node(bed: Bed) -> None:
    loop = start(bed, A, B, AWAY, C_NODE)
    assert bed.api.bcast_message(ACME, "x", resp_cback=HEAR) == 0
    assert bed.kamailio.requests == [] and counted(bed, "outbox_posted") == 3
    texts = loop.turn()
    assert len(texts) == 3 and counted(bed, "sent") == 0
    for text in texts:
        loop.answer(text, ReceivedReply())
    loop.turn()
    loop.run_callbacks()
    assert [reply.code for reply, _, _ in heard] == [200] * 3


def test_a_broadcast_of_bytes_reaches_c_nodes_as_they_are(bed: Bed) -> None:
    loop = start(bed, A, C_NODE)
    assert bed.api.bcast_message(ACME, b"\0\xff") == 0
    assert loop.turn() == [] and len(bed.kamailio.requests) == 2


def test_a_broadcast_of_bytes_to_python_nodes_goes_through_the_outbox(bed: Bed) -> None:
    loop = start(bed, A, B)
    assert bed.api.bcast_message(ACME, b"\0\xff") == 0
    assert len(loop.turn()) == 2 and bed.kamailio.requests == []


def test_without_the_outbox_the_caller_sends(bed: Bed) -> None:
    loop = start(bed, A, B, outbox=0)
    assert bed.api.bcast_message(ACME, "x") == 0
    assert loop.turn() == [] and len(bed.kamailio.requests) == 2


def test_messages_that_wait_together_travel_in_one_datagram(bed: Bed) -> None:
    loop = start(bed, A, batch_bytes=1300)
    for number in range(12):
        assert bed.api.bcast_message(ACME, f"{number:0200}", resp_cback=HEAR) == 0
    texts = loop.turn()
    assert all(len(text.encode()) <= 1300 for text in texts)
    assert [text.count("200\n") + text.count(" 200 ") for text in texts] == [5, 5, 2]
    for text in texts:
        loop.answer(text, ReceivedReply())
    loop.turn()
    loop.run_callbacks()
    assert len(heard) == 12 and counted(bed, "outbox_answered") == 12


RAN = ((b"a", 1), (b"say", 7), (b"fail", 1), (b"\0\xff", 1))


def test_a_batch_is_taken_apart_and_each_message_answered(bed: Bed) -> None:
    got: list[tuple[str, str | bytes, int]] = []

    def callback(message: Message, sender: Node | None) -> Response | None:
        got.append((message.peer_id, message.body_bytes, message.max_forwards))
        if message.body == "fail":
            raise RuntimeError("on purpose")
        return Response(299, "Fine", "said") if message.body == "say" else None

    bed.start(Peer("acme", "", callback), Peer("sends"), handler=Handler())
    bed.publish(A)
    items = [
        Item("acme", 1, "text/plain", "a"),
        Item("acme", 7, "text/plain", "say"),
        Item("acme", 1, "text/plain", "fail"),
        Item("nobody", 1, "text/plain", "x"),
        Item("sends", 1, "text/plain", "x"),
        Item("acme", 1, "a/b;kemi_dmq=base64", "AP8="),
        Item("acme", 1, "a/b;kemi_dmq=base64", "no"),
    ]
    request = Request(
        ruri="sip:kdmq@10.0.0.1:5060",
        body=pack(map(Piece, items)).encode(),
        content_type="text/kdmq",
    )
    reply = bed.ask(request)
    assert (reply.code, reply.content_type) == (202, "text/kdmq")
    codes = [answer.code for answer in unpack_answers(reply.body, len(items))]
    assert codes == [200, 299, 500, 421, 421, 200, 413]
    assert unpack_answers(reply.body, 7)[1] == ItemAnswer(299, "Fine", "said", "text/plain")
    assert got == [("acme", body, hops) for body, hops in RAN]
    assert counted(bed, "batched") == 7 and counted(bed, "received") == 1
    again = bed.ask(request)
    assert (again.code, again.body) == (reply.code, reply.body) and len(got) == 4
    fine = Request(
        ruri="sip:kdmq@10.0.0.1:5060",
        body=pack(map(Piece, items[:1] * 2)).encode(),
        content_type="text/kdmq",
        call_id="other",
    )
    assert (bed.ask(fine).code, len(got)) == (200, 6)
    bad = Request(
        ruri="sip:kdmq@10.0.0.1:5060", body=b"x", content_type="text/kdmq", call_id="third"
    )
    assert bed.ask(bad).code == 400


def test_an_answer_that_nobody_waits_for_does_not_wake_the_engine(bed: Bed) -> None:
    loop = start(bed, A)
    inbox = bed.runtime.shared.engine_inbox

    def woken() -> bool:
        try:
            return os.eventfd_read(inbox.fd) > 0
        except BlockingIOError:
            return False

    def answered(code: int = 200, **more: Any) -> bool:
        assert bed.api.bcast_message(ACME, "x", **more) == 0
        (text,) = loop.turn()
        woken()
        loop.answer(text, ReceivedReply(code, "Whatever"))
        return woken()

    assert not answered()
    loop.turn()
    assert counted(bed, "outbox_answered") == 1, "it was there all the same"
    assert answered(404) and answered(resp_cback=HEAR) and answered(ordered=True)
    loop.turn()
    for _ in range(WINDOW + 1):
        assert bed.api.bcast_message(ACME, "x") == 0
    texts = loop.turn()
    assert len(texts) == WINDOW
    woken()
    loop.answer(texts[0], ReceivedReply())
    assert woken(), "the next one waits for it"
    assert len(loop.turn()) == 1


def test_made_up_answers_neither_fill_the_engines_inbox_nor_let_it_sleep(bed: Bed) -> None:
    bed.start(ACME)
    runtime = bed.runtime
    inbox, prefix = runtime.shared.engine_inbox, runtime.bus._parcel_prefix
    woken = os.eventfd_read
    for _ in range(10):
        reply = ReceivedReply(200, "OK", call_id=f"{prefix}q{'1' * 5000}")
        bed.kamailio.receive_reply(reply, runtime.handler.ksr_reply_route)
    kinds = [event[0] for event in inbox.take()]
    assert set(kinds) == {"reply"} and woken(inbox.fd) == 10
    number = 0
    while not inbox.fills_up():
        with pytest.raises(BlockingIOError):
            woken(inbox.fd)
        reply = ReceivedReply(200, "OK", call_id=f"{prefix}q{number:x}.0123456789")
        bed.kamailio.receive_reply(reply, runtime.handler.ksr_reply_route)
        number += 1
    assert woken(inbox.fd) == 1 and number > 100


def test_an_engine_that_wants_answers_just_now_is_woken(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    bed.start(ACME)
    runtime = bed.runtime
    shared = runtime.shared
    put = shared.engine_inbox.put

    def put_slowly(event: Any, wake: bool = True) -> int:
        ticket = put(event, wake)
        shared.words.set("answers_wanted", 1)  # and has looked before this one was there
        return ticket

    monkeypatch.setattr(shared.engine_inbox, "put", put_slowly)
    reply = ReceivedReply(200, "OK", call_id=f"{runtime.bus._parcel_prefix}q1.0123456789")
    bed.kamailio.receive_reply(reply, runtime.handler.ksr_reply_route)
    assert os.eventfd_read(shared.engine_inbox.fd) == 1


def test_a_full_inbox_wakes_its_reader(bed: Bed) -> None:
    bed.start(ACME)
    inbox = bed.runtime.shared.engine_inbox
    while inbox.put(("x" * 1000,), wake=False):
        pass
    assert os.eventfd_read(inbox.fd) == 1
