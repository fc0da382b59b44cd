"""Messages that a process sends by itself, without tm, and their answers, with the fake KSR."""

from __future__ import annotations

import enum
from dataclasses import replace
from typing import Any

import pytest

from kemi_dmq import Node, Peer, Reply, ResponseCallback
from kemi_dmq.callbacks import run_callback
from kemi_dmq.testing.fake_kamailio import ReceivedReply, SentText
from kemi_dmq.unanswered import MAX_BODY, SLOTS

from .conftest import Bed, Handler, node
from .test_posting import header

A = node("sip:10.0.0.2:5060")
B = node("sip:10.0.0.3:5060;transport=tcp")
C_NODE = node("sip:10.0.0.4:5060", python=False)
ACME = Peer("acme", "", lambda message, sender: None)
BAD = b"\xff".decode(errors="surrogateescape")

heard: list[tuple[Reply, Node | None, Any]] = []


def on_reply(reply: Reply, sender: Node | None, param: Any) -> None:
    heard.append((reply, sender, param))
    if param == "raise":
        raise RuntimeError("as asked")


class Listening(Handler):
    """A script with reply routes of its own."""

    def __init__(self) -> None:
        self.own: list[str] = []

    def ksr_reply_route(self, msg: object) -> int:
        self.own.append("reply")
        return 1


@pytest.fixture
def handler(bed: Bed) -> Listening:
    heard.clear()
    handler = Listening()
    bed.start(ACME, handler=handler, use_tm=0)
    bed.publish(A, B, C_NODE)
    return handler


def call_id(sent: SentText) -> str:
    return header(sent.text, "Call-ID")


def answer(bed: Bed, handler: Any, name: str, code: int = 200, **more: Any) -> None:
    """Kamailio has nothing more to do with it."""
    reply = ReceivedReply(code, call_id=name, **more)
    assert not bed.kamailio.receive_reply(reply, handler.ksr_reply_route)


def test_it_is_a_whole_request_with_names_of_its_own(bed: Bed, handler: Listening) -> None:
    for receiver in (A, A, B, C_NODE):
        assert bed.api.send_message(ACME, "grüße", receiver, max_forwards=3) == 0
    texts = [sent.text for sent in bed.kamailio.texts]
    assert bed.kamailio.requests == [] and len(texts) == 4
    text = texts[2]
    assert text.startswith("KDMQ sip:acme@10.0.0.3:5060;transport=tcp SIP/2.0\r\n")
    assert header(text, "Via").startswith("SIP/2.0/TCP 10.0.0.1:5060;branch=z9hG4bK")
    assert header(text, "To") == "<sip:acme@10.0.0.3:5060;transport=tcp>"
    assert header(text, "From").startswith("<sip:acme@10.0.0.1:5060>;tag=")
    assert header(text, "CSeq") == "10 KDMQ" and header(text, "Max-Forwards") == "3"
    assert header(text, "Content-Type") == "text/plain" and header(text, "Content-Length") == "7"
    assert text.endswith("\r\n\r\ngrüße")
    for name in ("Via", "Call-ID", "From"):
        assert len({header(text, name) for text in texts}) == 4
    assert (bed.kamailio.texts[2].to, bed.kamailio.texts[2].sock) == (
        "sip:10.0.0.3:5060;transport=tcp",
        "tcp:10.0.0.1:5060",
    )


@pytest.mark.parametrize("param", [None, "short", {"a": [1, 2.5, None]}, "x" * 2000, "ü|ü|ü"])
def test_a_response_callback_gets_the_answer_the_node_and_its_param_once(
    bed: Bed, handler: Listening, param: Any
) -> None:
    assert bed.api.send_message(ACME, "x", A, ResponseCallback(on_reply, param)) == 0
    (sent,) = bed.kamailio.texts
    answer(bed, handler, call_id(sent), 100, reason="Trying")
    assert heard == []
    for _ in range(3):
        answer(
            bed,
            handler,
            call_id(sent),
            486,
            reason="Busy",
            body=b"la\xffter",
            content_type="text/x-a",
        )
    ((got, sender, back),) = heard
    assert (got.code, got.reason, got.body_bytes) == (486, "Busy", b"la\xffter")
    assert (got.content_type, got.timed_out, got.outcome) == ("text/x-a", False, "answered")
    assert sender == A and back == param
    assert handler.own == [], "the script's own reply route is not bothered"
    assert bed.runtime.shared.counters.totals()["replies"] == 1
    assert bed.errors() == []


def test_a_reply_with_headers_that_are_not_utf_8_reaches_its_callback(
    bed: Bed, handler: Listening
) -> None:
    bed.api.send_message(ACME, "x", A, ResponseCallback(on_reply))
    (sent,) = bed.kamailio.texts
    answer(bed, handler, call_id(sent), reason=f"O{BAD}K", body=b"x", content_type=BAD)
    assert [(r.code, r.reason, r.content_type) for r, _, _ in heard] == [(200, "", "")]


def test_a_response_callback_that_raises_is_one_log_line(bed: Bed, handler: Listening) -> None:
    bed.api.send_message(ACME, "x", A, ResponseCallback(on_reply, "raise"))
    answer(bed, handler, call_id(bed.kamailio.texts[0]))
    (line,) = bed.errors()
    assert "response callback" in line and "as asked" in line and A.uri in line
    assert bed.runtime.shared.counters.totals()["user_errors"] == 1


def test_it_may_send_in_its_callback(
    bed: Bed, handler: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_reply_too(reply: Reply, sender: Node | None, param: Any) -> None:
        assert bed.api.send_message(ACME, "second", B) == 0

    monkeypatch.setattr(f"{__name__}.on_reply", on_reply_too)
    on_reply_too.__qualname__ = "on_reply"
    bed.api.send_message(ACME, "first", A, ResponseCallback(on_reply_too))
    answer(bed, handler, call_id(bed.kamailio.texts[0]))
    assert [sent.text[-6:] for sent in bed.kamailio.texts] == ["\nfirst", "second"]


@pytest.mark.parametrize("name", ["", ".", "..", "w", "x.y.z", "1.1", "-1.1.5", "f" * 99 + ".1.5"])
def test_answers_to_what_nobody_asked_are_dropped(bed: Bed, handler: Listening, name: str) -> None:
    bed.api.send_message(ACME, "x", A, ResponseCallback(on_reply))
    prefix, _, unique = call_id(bed.kamailio.texts[0]).partition("w")
    slot, count, token = unique.split(".")
    for wrong in (name, f"{slot}.{count}.{int(token, 16) + 1:x}", f"ff{slot}.{count}.{token}"):
        answer(bed, handler, f"{prefix}w{wrong}")
    assert heard == [] and bed.errors() == []
    answer(bed, handler, f"{prefix}w{unique}")
    assert len(heard) == 1


def test_what_no_slot_can_hold_goes_through_tm(bed: Bed, handler: Listening) -> None:
    callback = ResponseCallback(on_reply, "p" * 3000)
    for body in (b"\xff", "a\0b", "x" * (MAX_BODY + 1)):
        assert bed.api.send_message(ACME, body, A) == 0
    assert bed.api.send_message(ACME, "x" * MAX_BODY, A, callback) == 0
    assert bed.kamailio.texts == [] and len(bed.kamailio.requests) == 4
    assert bed.api.send_message(ACME, "x" * MAX_BODY, A) == 0
    assert len(bed.kamailio.texts) == 1
    for _ in range(SLOTS + 5):
        assert bed.api.send_message(ACME, "x", A) == 0
    assert len(bed.kamailio.texts) == SLOTS and len(bed.kamailio.requests) == 4 + 6
    answer(bed, handler, call_id(bed.kamailio.texts[7]))
    bed.api.send_message(ACME, "x", A)
    assert len(bed.kamailio.texts) == SLOTS + 1


class Text(str, enum.Enum):  # noqa: UP042 - whose format() is not its value
    UP = "up"
    TYPE = "text/x"
    PEER = "acme"


class Raw(bytes):
    def __str__(self) -> str:
        return "other"


class Hops(enum.IntEnum):
    ONE = 1


@pytest.mark.parametrize("more", [{"use_tm": 0}, {"sl_send": 1}, {"use_tm": 1}, {"outbox": 1}])
def test_values_of_derived_types_travel_as_what_they_are(bed: Bed, more: dict[str, int]) -> None:
    bed.start(Peer(Text.PEER, "", lambda message, sender: None), **{"use_tm": 0, **more})
    bed.publish(A)
    for body in (Text.UP, Raw(b"up")):
        for hops in (True, Hops.ONE, 1):
            assert (
                bed.api.bcast_message(
                    Peer(Text.PEER), body, max_forwards=hops, content_type=Text.TYPE
                )
                == 0
            )
    if "outbox" in more:
        posts = list(bed.runtime.shared.posts.take())
        assert {post[2:7] for post in posts} == {("acme", "up", False, "text/x", 1)}
        return
    sent = [(r.ruri, r.headers, r.body.decode()) for r in bed.kamailio.requests]
    for text in bed.kamailio.texts:
        head, _, body_text = text.text.partition("\r\n\r\n")
        assert header(text.text, "Content-Length") == "2"
        sent.append((text.text.split()[1], head, body_text))
    assert len(sent) == 6
    for ruri, headers, body_text in sent:
        assert (ruri, body_text) == ("sip:acme@10.0.0.2:5060", "up")
        assert "Max-Forwards: 1\r\n" in headers and "Content-Type: text/x\r\n" in headers


def test_a_timeout_told_while_kamailio_sends_is_its_outcome(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    bed.start(ACME, use_tm=0, fr_timer=100)
    bed.publish(B)
    shared, bus, host = bed.runtime.shared, bed.runtime.bus, bed.runtime.host

    def blocks(to: object, text: str) -> bool:
        now = shared.unanswered._clock()
        shared.unanswered._clock = lambda: now + 0.2
        shared.unanswered.tick(lambda to, text: None, bus.timed_out)
        return False

    with monkeypatch.context() as patch:
        patch.setattr(host, "send_text", blocks)
        assert bed.api.send_message(ACME, "x", B, ResponseCallback(on_reply)) == 0
    assert [event[0] for event in shared.callbacks_inbox.take()] == ["timeout"]


def test_what_kamailio_does_not_take_is_minus_1_and_no_slot_stays_in_use(
    bed: Bed, handler: Listening
) -> None:
    bed.kamailio.refuse_requests = True
    for _ in range(SLOTS + 1):
        assert bed.api.send_message(ACME, "x", A, ResponseCallback(on_reply)) == -1
    bed.kamailio.refuse_requests = False
    assert bed.runtime.shared.unanswered._busy() == [] and bed.kamailio.requests == []


def test_no_answer_is_told_by_the_callbacks_process(bed: Bed) -> None:
    heard.clear()
    bed.start(ACME, handler=Listening(), use_tm=0, fr_timer=100)
    bed.publish(A)
    bed.api.send_message(ACME, "x", A, ResponseCallback(on_reply, {"a": 1}))
    bed.api.send_message(ACME, "x", A)
    shared, bus = bed.runtime.shared, bed.runtime.bus
    assert shared.unanswered.watched
    now = shared.unanswered._clock()
    shared.unanswered._clock = lambda: now + 0.2
    shared.unanswered.tick(bed.runtime.host.send_text, bus.timed_out)
    assert heard == [] and len(bed.kamailio.texts) == 2
    for event in shared.callbacks_inbox.take():
        run_callback(bus, event, lambda name, node: None)
    ((got, sender, back),) = heard
    assert (got.code, got.timed_out, got.outcome) == (408, True, "timed_out")
    assert sender == A and back == {"a": 1}
    assert shared.counters.totals()["timeouts"] == 1


def test_a_full_callbacks_inbox_is_told_and_nothing_is_lost(
    bed: Bed, handler: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus, inbox = bed.runtime.bus, bed.runtime.shared.callbacks_inbox
    with monkeypatch.context() as patch:
        patch.setattr(inbox, "put", lambda event: 0)
        assert not bus.timed_out("a|b|c")
    assert len(bed.errors()) == 1 and bed.runtime.shared.counters.totals()["timeouts"] == 0
    assert bus.timed_out("a|b|c")


def test_with_sl_send_only_what_wants_an_answer_is_watched(bed: Bed) -> None:
    bed.start(ACME, use_tm=0, sl_send=1)
    bed.publish(A)
    bed.api.send_message(ACME, "x", A)
    assert bed.runtime.shared.unanswered._busy() == []
    bed.api.send_message(ACME, "x", A, ResponseCallback(on_reply))
    assert len(bed.runtime.shared.unanswered._busy()) == 1 and len(bed.kamailio.texts) == 2


def test_a_node_of_the_list_before_lends_its_address_to_no_later_message(
    bed: Bed, handler: Listening
) -> None:
    uri = "sip:node.example:5060"
    before, after = (replace(node(uri), address=a) for a in ("10.0.0.2", "10.0.0.9"))
    bed.publish(before)
    nodes = bed.runtime.bus.node_list().active
    bed.publish(after)
    assert bed.runtime.bus.send("acme", "x", nodes, None, 1, "text/plain") == 0
    assert bed.api.bcast_message(ACME, "x") == bed.api.bcast_message(ACME, "x") == 0
    places = [sent.to for sent in bed.kamailio.texts]
    assert places == ["sip:10.0.0.2:5060", "sip:10.0.0.9:5060", "sip:10.0.0.9:5060"]
