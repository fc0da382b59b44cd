"""How often KSR is called for one message: each call costs some 0.5 µs and more.  Who changes a
number here has measured what it costs (make bench SECTIONS="receive send traffic")."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from kemi_dmq import Message, Node, Peer, Reply, ResponseCallback
from kemi_dmq.batch import Item, Piece, pack
from kemi_dmq.testing.fake_kamailio import ReceivedReply, Request

from .conftest import Bed, Handler, node
from .test_posting import Loop, header

A = node("sip:10.0.0.2:5060")
B = node("sip:10.0.0.3:5060")


def on_message(message: Message, sender: Node | None) -> None:
    pass


def on_reply(reply: Reply, sender: Node | None, param: object) -> None:
    pass


ACME = Peer("acme", "", on_message)
ONE_REQUEST = {
    "kx.get_srcip": 1,  # the allowed networks
    "kx.get_ruser": 1,  # the peer
    "hdr.get": 3,  # Via (once only), Max-Forwards, Content-Type
    "kx.get_callid": 1,  # once only
    "kx.get_furi": 1,
    "kx.get_body": 1,
    "kx.get_srcport": 1,
    "hdr.append_to_reply": 1,
    "sl.send_reply": 1,
}


def calls(bed: Bed, run: Callable[[], object]) -> dict[str, int]:
    """What run() calls, the second time: the first one may fill caches."""
    run()
    bed.kamailio.calls = Counter()
    run()
    return dict(bed.kamailio.calls)


def start(bed: Bed, **given: object) -> None:
    bed.start(ACME, **given)
    bed.publish(A, B)


def test_a_message_is_received(bed: Bed) -> None:
    start(bed)
    number = iter(range(9))

    def receive() -> None:
        assert bed.ask(Request(body=b"x", call_id=f"{next(number)}")).code == 200

    assert calls(bed, receive) == ONE_REQUEST


def test_a_batch_is_received_as_one_message(bed: Bed) -> None:
    start(bed)
    number = iter(range(9))
    body = pack([Piece(Item("acme", 1, "text/plain", "x"))] * 5).encode()

    def receive() -> None:
        request = Request(
            ruri="sip:kdmq@10.0.0.1:5060",
            body=body,
            content_type="text/kdmq",
            call_id=f"{next(number)}",
        )
        assert bed.ask(request).code == 200

    assert calls(bed, receive) == ONE_REQUEST
    assert bed.runtime.shared.counters.totals()["delivered"] == 10


@pytest.mark.parametrize("told", [False, True])
def test_a_message_is_sent_and_answered(bed: Bed, told: bool) -> None:
    handler = Handler()
    bed.start(ACME, handler=handler, use_tm=0)
    bed.publish(A, B)
    callback = ResponseCallback(on_reply, "x") if told else None

    def send() -> None:
        assert bed.api.send_message(ACME, "x", A, callback) == 0

    assert calls(bed, send) == {"corex.sendx": 1}

    def answered() -> None:
        call_id = header(bed.kamailio.texts.pop().text, "Call-ID")
        reply = ReceivedReply(200, "OK", call_id=call_id)
        bed.kamailio.receive_reply(reply, handler.ksr_reply_route)  # type: ignore[attr-defined]

    expected = {"kx.get_callid": 1, "pv.get": 1, "fakeksr.set_drop": 1}  # the code
    if told:
        expected |= {"pv.get": 2, "kx.get_body": 1}  # the reason
    assert calls(bed, answered) == expected


@pytest.mark.parametrize("told", [False, True])
def test_a_message_is_sent_through_tm(bed: Bed, told: bool) -> None:
    start(bed)
    callback = ResponseCallback(on_reply, "x") if told else None

    def send() -> None:
        assert bed.api.send_message(ACME, "x", A, callback) == 0

    expected = {
        "pv.unset": 2,  # what is not ours before it, and what is ours after it
        "pv.sets": 6,  # method, ruri, furi, hdrs, sock, body
        "uac.uac_req_send": 1,
    }
    if told:
        expected |= {"pv.sets": 7, "pv.seti": 1}  # evparam; evroute
    assert calls(bed, send) == expected


def test_a_message_is_sent_without_a_transaction(bed: Bed) -> None:
    start(bed, sl_send=1)
    assert calls(bed, lambda: bed.api.send_message(ACME, "x", A)) == {"corex.sendx": 1}


def test_a_broadcast_is_posted_and_leaves_with_one_call_for_each_request(bed: Bed) -> None:
    bed.start(ACME, outbox=1)
    loop = Loop(bed, A, B)
    assert calls(bed, lambda: bed.api.bcast_message(ACME, "x")) == {}
    loop.turn()

    def broadcast() -> None:
        for _ in range(5):
            assert bed.api.bcast_message(ACME, "x") == 0
        assert len(loop.turn()) == 2

    assert calls(bed, broadcast) == {"corex.sendx": 2}


def test_the_answer_to_what_the_engine_sent(bed: Bed) -> None:
    bed.start(ACME, outbox=1)
    loop = Loop(bed, A)

    def answered() -> None:
        bed.api.bcast_message(ACME, "x")
        (text,) = loop.turn()
        loop.answer(text, ReceivedReply(200, "OK"))

    assert calls(bed, answered) == {
        "corex.sendx": 1,
        "kx.get_callid": 1,
        "pv.get": 1,  # the code
        "fakeksr.set_drop": 1,
    }
