"""Requests, replies, messages and outcomes, through the public names, with the fake KSR."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kemi_dmq
from kemi_dmq import Message, Node, Peer, Reply, Response, ResponseCallback, Status
from kemi_dmq.bus import HEADERS, MAX_BODY, MAX_EVENT_PARAM, MAX_UDP
from kemi_dmq.engine import Bodies, pack_nodes
from kemi_dmq.shared import Inbox
from kemi_dmq.testing.fake_kamailio import ReceivedReply, Request
from kemi_dmq.wire import SUPPORTED

from .conftest import LOCAL, Bed, Handler, node

NOTIFY = "sip:notification_peer@10.0.0.1:5060"
PYTHON = {"Supported": "kemi_dmq-1"}
BAD = b"\xff".decode(errors="surrogateescape")
PYTHON_NODE = node("sip:10.0.0.2:5060")
C_NODE = node("sip:10.0.0.3:5060", python=False)


class Calls:
    """A peer that keeps what it gets."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer
        self.got: list[tuple[Message, Node | None]] = []

    def __call__(self, message: Message, sender: Node | None) -> Response | None:
        self.got.append((message, sender))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer  # type: ignore[no-any-return]


def start(bed: Bed, answer: Any = None, **given: Any) -> Calls:
    calls = Calls(answer)
    bed.start(Peer("acme", "", calls), Peer("out"), **given)
    return calls


def notification(body: bytes, sender: str = "10.0.0.2", **more: Any) -> Request:
    return Request(ruri=NOTIFY, from_uri=f"sip:notification_peer@{sender}:5060", body=body, **more)


def events(bed: Bed) -> list[tuple[Any, ...]]:
    return list(bed.runtime.shared.engine_inbox.take())


# A request for a peer


def test_a_peer_gets_the_message_and_the_node_and_200_goes_out(bed: Bed) -> None:
    calls = start(bed)
    bed.publish(PYTHON_NODE)
    request = Request(body="grüße".encode(), max_forwards="7", content_type="text/x-a")
    reply = bed.ask(request)
    assert (reply.code, reply.reason, reply.body) == (200, "OK", "")
    ((message, sender),) = calls.got
    assert message.peer_id == "acme"
    assert message.body == "grüße" and message.body_bytes == "grüße".encode()
    assert message.content_type == "text/x-a" and message.max_forwards == 7
    assert message.from_uri == "sip:acme@10.0.0.2:5060"
    assert message.source == ("10.0.0.2", 5060)
    assert sender == PYTHON_NODE
    assert bed.dmq is not None and bed.dmq.counters()["delivered"] == 1


def test_every_reply_says_that_this_node_runs_kemi_dmq(bed: Bed) -> None:
    start(bed)
    requests = [Request(), Request(ruri="sip:nobody@10.0.0.1"), notification(b"")]
    requests += [Request(ruri="sip:10.0.0.1"), notification(b"garbage")]
    assert all(bed.ask(request).headers == SUPPORTED for request in requests)


def test_the_local_node_has_its_address_before_the_engine_says_anything(bed: Bed) -> None:
    assert bed.new().nodes()[0].address == "10.0.0.1"


def test_the_address_of_a_local_node_with_a_name_is_that_of_its_socket(bed: Bed) -> None:
    dmq = bed.new(server_address="sip:a.test:5060", server_socket="udp:10.0.0.1:5060")
    assert dmq.nodes()[0].address == "10.0.0.1"
    name = Node("sip:a.test:5060", "a.test", 5060, "udp", Status.ACTIVE, local=True)
    bed.runtime.shared.snapshot.publish(pack_nodes([name, PYTHON_NODE], Bodies("", "", "", "")))
    assert [n.address for n in dmq.nodes()] == ["10.0.0.1", "10.0.0.2"]


def test_an_unknown_sender_is_none(bed: Bed) -> None:
    calls = start(bed)
    bed.publish(PYTHON_NODE)
    bed.ask(Request(from_uri="sip:acme@10.0.0.99:5060"))
    bed.ask(Request(from_uri="sip:acme@10.0.0.2:5061"))
    assert [sender for _, sender in calls.got] == [None, None]


@pytest.mark.parametrize(
    "body", [b"a\0b", b"\xff\xfe", b"\0\xff" * 500, "ü".encode(), b"x" * 40_000]
)
def test_a_body_arrives_byte_for_byte(bed: Bed, body: bytes) -> None:
    calls = start(bed)
    assert bed.ask(Request(body=body)).code == 200
    assert calls.got[0][0].body_bytes == body
    assert calls.got[0][0].body == body.decode("utf-8", "replace")


def test_a_body_that_kamailio_cannot_give_is_413(bed: Bed) -> None:
    calls = start(bed)
    assert bed.ask(Request(body=b"\xff" * 49_500)).code == 413
    assert calls.got == []


@pytest.mark.parametrize(
    ("request_", "code", "counter"),
    [
        (Request(ruri="sip:nobody@10.0.0.1:5060"), 404, "not_found"),
        (Request(ruri="sip:10.0.0.1:5060"), 400, "bad_requests"),
        (Request(body=b"x", content_type=None), 400, "bad_requests"),
        (Request(from_uri=""), 400, "bad_requests"),
        (Request(from_uri="tel:123"), 400, "bad_requests"),
        (Request(from_uri=f"sip:{BAD}@h"), 400, "bad_requests"),
        (Request(ruri=f"sip:ac{BAD}me@10.0.0.1:5060"), 400, "bad_requests"),
        (Request(call_id=f"x{BAD}"), 400, "bad_requests"),
        (Request(via=f"SIP/2.0/UDP 10.0.0.2;branch=z9hG4bK{BAD}"), 400, "bad_requests"),
    ],
    ids=lambda value: value.ruri + value.from_uri if isinstance(value, Request) else str(value),
)
def test_a_bad_request_is_answered_and_counted_and_runs_nothing(
    bed: Bed, request_: Request, code: int, counter: str
) -> None:
    calls = start(bed)
    assert bed.ask(request_).code == code
    assert calls.got == []
    assert bed.dmq is not None and bed.dmq.counters()[counter] == 1
    assert bed.errors() == []


def test_what_else_is_not_utf_8_does_no_harm(bed: Bed) -> None:
    calls = start(bed)
    headers = {"Supported": BAD, "User-Agent": BAD}
    assert bed.ask(Request(max_forwards=BAD, headers=headers)).code == 200
    assert calls.got[0][0].max_forwards == 0
    assert bed.ask(Request(body=b"x", content_type=BAD)).code == 400


def test_a_content_type_is_needed_only_with_a_body(bed: Bed) -> None:
    start(bed)
    assert bed.ask(Request(body=b"", content_type=None)).code == 200


@pytest.mark.parametrize("text", [None, "", "x", "-1", "99999999", "٣", " 3 "])
def test_any_max_forwards_is_read(bed: Bed, text: str | None) -> None:
    calls = start(bed)
    assert bed.ask(Request(max_forwards=text)).code == 200
    assert calls.got[0][0].max_forwards == (3 if text == " 3 " else 0)


def test_a_peer_for_sending_only_answers_202(bed: Bed) -> None:
    start(bed)
    reply = bed.ask(Request(ruri="sip:out@10.0.0.1:5060", body=b"x"))
    assert (reply.code, reply.reason) == (202, "Accepted DMQ")


def test_a_callback_that_raises_is_500_and_one_log_line_with_the_place(bed: Bed) -> None:
    start(bed, RuntimeError("two\nlines"))
    assert bed.ask(Request()).code == 500
    (line,) = bed.errors()
    assert "peer acme: its callback raised" in line and "RuntimeError: two lines (" in line
    assert "test_bus.py:" in line and line.count("\n") == 1
    assert bed.dmq is not None and bed.dmq.counters()["callback_errors"] == 1


@pytest.mark.parametrize("answer", ["OK", 200, {}, Response])
def test_a_callback_that_returns_no_response_is_500(bed: Bed, answer: Any) -> None:
    start(bed, answer)
    assert bed.ask(Request()).code == 500
    assert "must return a kemi_dmq.Response" in bed.errors()[0]


def test_handle_message_is_0_when_worked_off_and_minus_1_when_not(bed: Bed) -> None:
    start(bed)
    assert bed.dmq is not None
    results: list[int] = []
    dmq = bed.dmq
    requests = [
        Request(),
        Request(ruri="sip:nobody@h"),
        Request(ruri="sip:h"),
        notification(b"garbage"),
        notification(b""),
    ]
    for request in requests:
        bed.kamailio.receive(request, lambda msg: results.append(dmq.handle_message()))
    assert results == [0, 0, -1, -1, 0]


# Once only


def test_a_copy_is_answered_the_same_and_not_run_again(bed: Bed) -> None:
    calls = start(bed, Response(486, "Busy Here", "later", "text/x-a"))
    request = Request()
    first, copy = bed.ask(request), bed.ask(request)
    assert first == copy and first.code == 486 and first.body == "later"
    assert len(calls.got) == 1
    assert bed.dmq is not None and bed.dmq.counters()["duplicates"] == 1


def test_another_branch_or_call_is_another_request(bed: Bed) -> None:
    calls = start(bed)
    request = Request()
    bed.ask(request)
    bed.ask(Request(via=request.via, call_id="another"))
    bed.ask(Request(via="SIP/2.0/UDP 10.0.0.2;branch=z9hG4bKother", call_id=request.call_id))
    assert len(calls.got) == 3


def test_a_callback_that_raised_is_not_tried_again_by_a_copy(bed: Bed) -> None:
    calls = start(bed, RuntimeError("x"))
    request = Request()
    assert [bed.ask(request).code, bed.ask(request).code] == [500, 500]
    assert len(calls.got) == len(bed.errors()) == 1


def test_a_copy_that_meets_an_unfinished_claim_gets_no_answer(bed: Bed) -> None:
    request = Request()
    inner: list[int] = []

    def acme(message: Message, sender: Node | None) -> None:
        inner.append(len(bed.asked(request)))

    bed.start(Peer("acme", "", acme))
    assert bed.ask(request).code == 200
    assert inner == [0]
    assert bed.dmq is not None and bed.dmq.counters()["copies_dropped"] == 1


def test_a_request_that_was_refused_is_refused_again(bed: Bed) -> None:
    start(bed)
    request = Request(from_uri="tel:1")
    assert [bed.ask(request).code, bed.ask(request).code] == [400, 400]


# What a C node must not be told


@pytest.mark.parametrize(
    ("answer", "python", "c"),
    [
        (Response(200, "OK", "hello"), 200, 202),
        (Response(200, "OK"), 200, 200),
        (Response(408, "Request Timeout"), 408, 480),
        (Response(404, "No", "body"), 404, 404),
    ],
)
def test_a_200_with_a_body_and_a_408_reach_python_nodes_only(
    bed: Bed, answer: Response, python: int, c: int
) -> None:
    start(bed, answer)
    to_python, to_c = bed.ask(Request(headers=PYTHON)), bed.ask(Request())
    assert (to_python.code, to_c.code) == (python, c)
    assert to_python.body == to_c.body == (answer.body or "")


def test_a_reply_that_kamailio_refuses_is_logged(bed: Bed) -> None:
    start(bed)
    bed.kamailio.refuse_replies = True
    assert bed.asked(Request()) == []
    assert "did not send the reply 200" in bed.errors()[0]


# A node list


def test_a_node_list_goes_to_the_engine_and_is_answered_with_ours(bed: Bed) -> None:
    start(bed)
    bed.publish(PYTHON_NODE, node("sip:10.0.0.9", Status.NOT_ACTIVE))
    headers = {"Supported": "kemi_dmq-1", "User-Agent": "kemi_dmq (kamailio 6.1.5)"}
    body = b"sip:10.0.0.2:5060;status=active\r\nsip:10.0.0.1:5060;status=active\r\n"
    reply = bed.ask(notification(body, headers=headers, max_forwards="2"))
    assert (reply.code, reply.content_type) == (200, "text/plain")
    assert reply.body == "sip:10.0.0.1:5060;status=active\r\nsip:10.0.0.2:5060;status=active\r\n"
    (event,) = events(bed)
    assert event == (
        "notification",
        "sip:notification_peer@10.0.0.2:5060",
        body.decode(),
        "kemi_dmq-1",
        "kemi_dmq (kamailio 6.1.5)",
        2,
    )


def test_before_the_first_publish_the_list_is_this_node_alone(bed: Bed) -> None:
    start(bed)
    assert bed.ask(notification(b"")).body == "sip:10.0.0.1:5060;status=active\r\n"
    assert bed.dmq is not None
    assert [n.local for n in bed.dmq.nodes()] == [True]


def test_a_list_to_a_c_node_stays_within_its_buffer(bed: Bed) -> None:
    start(bed)
    bed.publish(*(node(f"sip:10.0.1.{n}:5060") for n in range(1, 200)))
    to_c, to_python = (bed.ask(notification(b"", headers=h)) for h in ({}, PYTHON))
    assert len(to_c.body) <= 1000 < len(to_python.body)
    assert to_python.body.count("\n") == 200


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"hello world", 400),
        (b"sip:10.0.0.2;status=sleeping\r\n", 400),
        (b"\xff\xfe\0", 400),
        (b"sip:10.0.0.2;status=active\r\n" * 2000, 413),
        (b"\xff" * 49_500, 413),
    ],
    ids=["garbage", "unknown status", "binary", "2000 lines", "unreadable"],
)
def test_a_list_that_is_none_is_refused_and_changes_nothing(
    bed: Bed, body: bytes, code: int
) -> None:
    start(bed)
    assert bed.ask(notification(body)).code == code
    assert events(bed) == [] and bed.errors() == []
    assert bed.dmq is not None and bed.dmq.counters()["bad_requests"] == 1


@pytest.mark.parametrize(
    "bad", [b"garbage", b"sip:h;status=what", b"\xff", b"a\0b", b"sip:;status=active"]
)
def test_one_bad_line_does_not_harm_the_good_ones(bed: Bed, bad: bytes) -> None:
    start(bed)
    body = b"sip:10.0.0.2:5060;status=active\r\n%b\r\nsip:10.0.0.4:5060;status=timeout\r\n" % bad
    assert bed.ask(notification(body)).code == 200
    (event,) = events(bed)
    assert event[2] == (
        "sip:10.0.0.2:5060;status=active\r\nsip:10.0.0.4:5060;status=not_active\r\n"
    )
    assert bed.dmq is not None and bed.dmq.counters()["bad_lines"] == 1


def test_a_list_without_content_type_or_from_is_400(bed: Bed) -> None:
    start(bed)
    assert bed.ask(notification(b"sip:h;status=active", content_type=None)).code == 400
    request = notification(b"")
    request.from_uri = "tel:1"
    assert bed.ask(request).code == 400
    assert events(bed) == []


def test_the_local_node_named_disabled_stays_active(bed: Bed) -> None:
    start(bed)
    reply = bed.ask(notification(b"sip:10.0.0.1:5060;status=disabled\r\n"))
    assert reply.code == 200 and "sip:10.0.0.1:5060;status=active" in reply.body
    assert bed.dmq is not None and bed.dmq.nodes()[0].status is Status.ACTIVE


def test_a_full_inbox_is_503_and_told_once_for_each_event(bed: Bed) -> None:
    start(bed)
    inbox = bed.runtime.shared.engine_inbox
    while inbox.put((b"x" * (Inbox.MAX_EVENT - 100),)):
        pass
    while inbox.put((b"x" * 100,)):
        pass
    assert bed.ask(notification(b"sip:10.0.0.2;status=active\r\n" * 5)).code == 503
    assert "inbox of the engine is full" in bed.errors()[0]
    assert bed.dmq is not None and bed.dmq.counters()["inbox_full"] == 1


def test_another_notification_channel(bed: Bed) -> None:
    start(bed, notification_channel="bus")
    assert bed.ask(Request(ruri="sip:bus@10.0.0.1", body=b"")).code == 200
    assert bed.ask(Request(ruri=NOTIFY, body=b"")).code == 404


# Sending


def test_a_broadcast_goes_to_all_active_nodes_but_this_one_and_the_excluded(bed: Bed) -> None:
    start(bed)
    away = node("sip:10.0.0.5:5060", Status.NOT_ACTIVE)
    bed.publish(PYTHON_NODE, C_NODE, node("sip:10.0.0.4:5060;transport=tcp"), away)
    assert bed.api.bcast_message(Peer("acme"), "hi", except_node=C_NODE) == 0
    first, second = bed.kamailio.requests
    assert (first.ruri, second.ruri) == (
        "sip:acme@10.0.0.2:5060",
        "sip:acme@10.0.0.4:5060;transport=tcp",
    )
    assert (first.method, first.furi) == ("KDMQ", "sip:acme@10.0.0.1:5060")
    assert first.body == b"hi" and first.evroute == 0 and first.evparam == ""
    assert first.headers == f"Max-Forwards: 1\r\n{SUPPORTED}Content-Type: text/plain\r\n"
    assert (first.sock, second.sock) == ("udp:10.0.0.1:5060", "tcp:10.0.0.1:5060")
    assert bed.dmq is not None and bed.dmq.counters()["sent"] == 2


def test_a_message_goes_to_a_node_whatever_its_status(bed: Bed) -> None:
    start(bed)
    away = node("sip:10.0.0.5:5060", Status.DISABLED)
    bed.publish(away)
    assert bed.api.send_message(Peer("acme"), b"", away, max_forwards=9) == 0
    (sent,) = bed.kamailio.requests
    assert sent.ruri == "sip:acme@10.0.0.5:5060" and sent.body == b""
    assert sent.headers == f"Max-Forwards: 9\r\n{SUPPORTED}"


@settings(max_examples=50)
@given(body=st.one_of(st.binary(max_size=300), st.text(max_size=100)))
def test_any_body_leaves_byte_for_byte(body: str | bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        bed = Bed(patch)
        try:
            start(bed)
            bed.publish(PYTHON_NODE)
            assert bed.api.bcast_message(Peer("acme"), body) == 0
            raw = body.encode() if isinstance(body, str) else body
            assert bed.kamailio.requests[0].body == raw
        finally:
            bed.close()


def test_what_was_in_uac_req_before_does_not_travel_with_our_message(bed: Bed) -> None:
    start(bed)
    bed.publish(PYTHON_NODE)
    bed.ksr.pv.sets("$uac_req(body)", "the script's own")
    bed.ksr.pv.sets("$uac_req(evparam)", "x")
    bed.ksr.pv.seti("$uac_req(evroute)", 1)
    bed.api.bcast_message(Peer("acme"), "")
    (sent,) = bed.kamailio.requests
    assert (sent.body, sent.evroute, sent.evparam) == (b"", 0, "")


def test_a_body_of_the_largest_size_leaves_and_one_more_byte_is_refused(bed: Bed) -> None:
    start(bed)
    udp = node("sip:10.0.0.2:5060")
    tcp = node("sip:10.0.0.3:5060;transport=tcp")
    tcp_c = node("sip:10.0.0.4:5060;transport=tcp", python=False)
    bed.publish(udp, tcp, tcp_c)
    for to in (udp, tcp, tcp_c):
        limit = bed.runtime.bus.max_body(to, "acme", "text/plain")
        assert bed.api.send_message(Peer("acme"), b"x" * limit, to) == 0
        assert bed.api.send_message(Peer("acme"), b"\xff" * limit, to) == 0
        with pytest.raises(ValueError, match=f"body has {limit + 1} bytes; at most {limit}"):
            bed.api.send_message(Peer("acme"), b"x" * (limit + 1), to)
    sizes = [len(sent.body) for sent in bed.kamailio.requests]
    assert sizes[0] == sizes[1] and MAX_UDP - HEADERS - 200 < sizes[0] < MAX_UDP - HEADERS
    assert sizes[2] == MAX_BODY and 15_000 < sizes[4] < 16_384 - HEADERS


def test_a_message_with_its_headers_stays_within_what_udp_carries(bed: Bed) -> None:
    host = "a" * 60 + "." + "b" * 60
    start(bed)
    far = node(f"sip:{host}:50600")
    bed.publish(far)
    peer = Peer("p" * 64)
    content_type = "application/" + "x" * 100
    limit = bed.runtime.bus.max_body(far, peer.peer_id, content_type)
    assert bed.api.send_message(peer, b"x" * limit, far, content_type=content_type) == 0
    (sent,) = bed.kamailio.requests
    # Request line, Via, To, From, CSeq, Call-ID, Content-Length and User-Agent are Kamailio's.
    own = 2 * len(sent.ruri) + len(sent.furi) + len(sent.headers) + len(sent.body)
    assert own + 400 <= MAX_UDP


def test_nothing_is_sent_when_one_of_the_nodes_could_not_take_it(bed: Bed) -> None:
    start(bed)
    bed.publish(PYTHON_NODE, node("sip:10.0.0.4:5060;transport=tcp", python=False))
    with pytest.raises(ValueError, match="over tcp"):
        bed.api.bcast_message(Peer("acme"), b"x" * 20_000)
    assert bed.kamailio.requests == []


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"body": 5}, TypeError, "body is int"),
        ({"body": None}, TypeError, "body is NoneType"),
        ({"max_forwards": -1}, ValueError, "max_forwards is -1"),
        ({"max_forwards": 256}, ValueError, "max_forwards is 256"),
        ({"max_forwards": "1"}, ValueError, "max_forwards is '1'"),
        ({"content_type": "a\r\nX: y"}, ValueError, "content_type"),
        ({"content_type": ""}, ValueError, "content_type is empty"),
        ({"content_type": None}, ValueError, "content_type is None"),
        ({"resp_cback": print}, TypeError, "must be a ResponseCallback"),
        ({"peer": "acme"}, TypeError, "peer is 'acme'"),
        ({"except_node": "sip:h"}, TypeError, "except_node is 'sip:h'"),
    ],
)
def test_what_the_caller_does_wrong_raises_before_anything_is_sent(
    bed: Bed, arguments: dict[str, Any], error: type[Exception], says: str
) -> None:
    start(bed)
    bed.publish(PYTHON_NODE)
    with pytest.raises(error, match=says):
        bed.api.bcast_message(**{"peer": Peer("acme"), "body": "x", **arguments})
    assert bed.kamailio.requests == []


def test_an_unknown_node_is_a_value_error(bed: Bed) -> None:
    start(bed)
    with pytest.raises(ValueError, match="not on the list"):
        bed.api.send_message(Peer("acme"), "x", PYTHON_NODE)
    with pytest.raises(TypeError, match="find_dmq_node_uri"):
        bed.api.send_message(Peer("acme"), "x", "sip:10.0.0.2")  # type: ignore[arg-type]


def test_what_kamailio_does_not_take_is_minus_1_and_the_others_still_get_it(bed: Bed) -> None:
    start(bed)
    bed.publish(PYTHON_NODE, C_NODE)
    bed.kamailio.refuse_requests = True
    assert bed.api.bcast_message(Peer("acme"), "x") == -1
    (line,) = bed.errors()  # of many in one second the first
    assert PYTHON_NODE.uri in line
    assert bed.dmq is not None and bed.dmq.counters()["send_failures"] == 2


def test_without_other_nodes_a_broadcast_is_0(bed: Bed) -> None:
    start(bed)
    assert bed.api.bcast_message(Peer("acme"), "x") == 0
    assert bed.kamailio.requests == []


def test_sl_send_sends_without_a_transaction_unless_an_answer_is_wanted(bed: Bed) -> None:
    start(bed, sl_send=1)
    bed.publish(PYTHON_NODE)
    callback = ResponseCallback(on_reply)
    assert bed.api.bcast_message(Peer("acme"), "grüße") == 0
    assert bed.api.bcast_message(Peer("acme"), b"\xff") == 0  # sendx takes text only
    assert bed.api.bcast_message(Peer("acme"), "x", resp_cback=callback) == 0
    assert [sent.body for sent in bed.kamailio.requests] == [b"\xff", b"x"]
    (text,) = bed.kamailio.texts
    assert text.to == "sip:10.0.0.2:5060" and text.sock == "udp:10.0.0.1:5060"
    assert text.text.startswith("KDMQ sip:acme@10.0.0.2:5060 SIP/2.0\r\n")
    assert text.text.endswith("Content-Length: 7\r\n\r\ngrüße")


# Outcomes

heard: list[tuple[Reply, Node | None, Any]] = []


def on_reply(reply: Reply, sender: Node | None, param: Any) -> None:
    heard.append((reply, sender, param))
    if param == "raise":
        raise RuntimeError("as asked")


@pytest.fixture(autouse=True)
def nothing_heard() -> None:
    heard.clear()


class Listening(Handler):
    """A handler with an event callback of its own."""

    def __init__(self) -> None:
        self.own: list[str] = []

    def ksr_uac_event(self, msg: Any, event: str) -> int:
        self.own.append(event)
        return 1

    def ksr_reply_route(self, msg: Any) -> int:
        self.own.append("reply")
        return 1


def send_with(bed: Bed, param: Any) -> Listening:
    handler = Listening()
    bed.start(Peer("acme", "", Calls()), handler=handler)
    bed.publish(PYTHON_NODE)
    callback = ResponseCallback(on_reply, param)
    assert bed.api.bcast_message(Peer("acme"), "x", resp_cback=callback) == 0
    return handler


@pytest.mark.parametrize("param", [None, "short", {"a": [1, 2.5, None]}, "x" * 3000, "ü|ü|ü"])
def test_a_response_callback_gets_the_answer_the_node_and_its_param(bed: Bed, param: Any) -> None:
    handler = send_with(bed, param)
    sent = bed.kamailio.requests[0]
    assert sent.evroute == 1 and len(sent.evparam) <= MAX_EVENT_PARAM
    reply = ReceivedReply(486, "Busy", b"la\xffter", "text/x-a")
    bed.kamailio.answer(sent, reply, handler.ksr_uac_event)
    ((got, sender, back),) = heard
    assert (got.code, got.reason, got.body_bytes) == (486, "Busy", b"la\xffter")
    assert (got.content_type, got.timed_out) == ("text/x-a", False)
    assert sender == PYTHON_NODE and back == param
    assert handler.own == [], "the script's own event callback is not bothered"


def test_a_reply_with_headers_that_are_not_utf_8_reaches_its_callback(bed: Bed) -> None:
    handler = send_with(bed, "p")
    reply = ReceivedReply(200, f"O{BAD}K", b"x", BAD)
    bed.kamailio.answer(bed.kamailio.requests[0], reply, handler.ksr_uac_event)
    assert [(r.code, r.reason, r.content_type) for r, _, _ in heard] == [(200, "", "")]


def test_a_timeout_is_only_posted_and_runs_in_the_callbacks_process(bed: Bed) -> None:
    handler = send_with(bed, {"a": 1})
    bed.kamailio.time_out(bed.kamailio.requests[0], handler.ksr_uac_event)
    assert heard == []
    from kemi_dmq.callbacks import run_callback

    for event in bed.runtime.shared.callbacks_inbox.take():
        run_callback(bed.runtime.bus, event, lambda name, node: None)
    ((got, sender, back),) = heard
    assert (got.code, got.timed_out, got.body) == (408, True, "")
    assert sender == PYTHON_NODE and back == {"a": 1}


def test_a_response_callback_that_raises_is_one_log_line(bed: Bed) -> None:
    handler = send_with(bed, "raise")
    bed.kamailio.answer(bed.kamailio.requests[0], ReceivedReply(), handler.ksr_uac_event)
    (line,) = bed.errors()
    assert "response callback" in line and "as asked" in line and PYTHON_NODE.uri in line
    assert bed.dmq is not None and bed.dmq.counters()["user_errors"] == 1


def test_outcomes_of_a_scripts_own_requests_reach_its_own_callback(bed: Bed) -> None:
    handler = send_with(bed, None)
    pv = bed.ksr.pv
    for name, value in (("method", "OPTIONS"), ("ruri", "sip:h"), ("evparam", "mine")):
        pv.sets(f"$uac_req({name})", value)
    pv.seti("$uac_req(evroute)", 1)
    bed.ksr.uac.uac_req_send()
    bed.kamailio.answer(bed.kamailio.requests[-1], ReceivedReply(), handler.ksr_uac_event)
    assert handler.own == ["uac:reply"] and heard == []


def test_a_callback_that_another_process_could_not_find_is_refused_at_the_call(bed: Bed) -> None:
    start(bed)
    bed.publish(PYTHON_NODE)
    functions: tuple[Any, ...] = (lambda *a: None, Listening().ksr_uac_event)
    for function in functions:
        with pytest.raises(ValueError, match="top level of a module"):
            bed.api.bcast_message(Peer("acme"), "x", resp_cback=ResponseCallback(function))
    with pytest.raises(TypeError, match="param"):
        bed.api.bcast_message(Peer("acme"), "x", resp_cback=ResponseCallback(on_reply, b"x"))
    assert bed.kamailio.requests == []


def test_when_no_room_is_left_for_params_the_message_is_not_accepted(bed: Bed) -> None:
    start(bed)
    bed.publish(PYTHON_NODE)
    callback = ResponseCallback(on_reply, "x" * 500)
    results = [bed.api.bcast_message(Peer("acme"), "x", resp_cback=callback) for _ in range(4097)]
    assert results == [0] * 4096 + [-1]


def test_a_param_whose_message_was_refused_frees_its_room(bed: Bed) -> None:
    start(bed)
    bed.publish(PYTHON_NODE)
    bed.kamailio.refuse_requests = True
    callback = ResponseCallback(on_reply, "x" * 500)
    for _ in range(100):
        bed.api.bcast_message(Peer("acme"), "x", resp_cback=callback)
    bed.kamailio.refuse_requests = False
    assert bed.api.bcast_message(Peer("acme"), "x", resp_cback=callback) == 0


# Replies for the engine


def test_replies_to_the_engine_are_dropped_and_go_into_its_inbox(bed: Bed) -> None:
    handler = Listening()
    bed.start(handler=handler)
    call_id = "dmq-10.0.0.1-5060-" + bed.runtime.bus.gate.stamp("abc.1", "10.0.0.2")
    headers = {"Supported": "kemi_dmq-1", "Server": "kamailio (6.1.5)"}
    reply = ReceivedReply(200, "OK", b"sip:h\xff", headers=headers, call_id=call_id)
    assert not bed.kamailio.receive_reply(reply, handler.ksr_reply_route)
    assert events(bed) == [
        ("answer", call_id, 200, "sip:h\ufffd", "kemi_dmq-1", "kamailio (6.1.5)")
    ]
    reply = ReceivedReply(100, "Trying", call_id=call_id)
    assert not bed.kamailio.receive_reply(reply, handler.ksr_reply_route)
    assert events(bed) == [] and handler.own == []


@pytest.mark.parametrize("call_id", ["", "x", "dmq-10.0.0.1-50600-1", BAD])
def test_replies_of_others_go_on_to_the_script(bed: Bed, call_id: str) -> None:
    handler = Listening()
    bed.start(handler=handler)
    assert bed.kamailio.receive_reply(ReceivedReply(call_id=call_id), handler.ksr_reply_route)
    assert handler.own == ["reply"] and events(bed) == []


# Start and reload


def test_settings_come_from_defines(bed: Bed) -> None:
    bed.kamailio.defines = {
        "DMQ_SERVER_ADDRESS": f'"{LOCAL}"',
        "DMQ_NOTIFICATION_ADDRESS": '"sip:10.0.0.2, sip:10.0.0.3"',
        "DMQ_PING_INTERVAL": "30",
    }
    dmq = kemi_dmq.DMQ.from_defs(ping_interval=20)
    assert dmq.settings.ping_interval == 20 and len(dmq.settings.notification_address) == 2
    assert bed.api.get_dmq_server_socket() == "udp:10.0.0.1:5060"


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ({"server_address": None}, "server_address is not set"),
        ({"server_address": "x"}, "server_address is 'x'"),
        ({"server_address": "sip:10.9.9.9"}, "server_address is 'sip:10.9.9.9'"),
        ({"server_socket": "udp:10.9.9.9:5060"}, "server_socket is 'udp:10.9.9.9:5060'"),
    ],
)
def test_a_wrong_setting_stops_kamailio_at_start_with_one_line(
    bed: Bed, given_: dict[str, Any], says: str
) -> None:
    with pytest.raises(SystemExit):
        bed.new(**given_)
    (line,) = bed.kamailio.log
    assert line.level == "crit" and says in line.text and line.text.count("\n") == 1


def test_an_advertised_address_needs_a_socket_that_kamailio_listens_on(bed: Bed) -> None:
    bed.start(server_address="sip:192.0.2.1:5060", server_socket="udp:192.168.0.1:5070")
    bed.publish(PYTHON_NODE)
    bed.api.bcast_message(Peer("acme"), "x")
    (sent,) = bed.kamailio.requests
    assert (sent.furi, sent.sock) == ("sip:acme@192.0.2.1:5060", "udp:192.168.0.1:5070")


def reload(bed: Bed, calls: Calls, handler: Any, name: str = "acme", **given: Any) -> Any:
    """The script runs again; what its mod_init() returns."""
    dmq = bed.new(**given)
    bed.register(Peer(name, "", calls))
    return dmq.attach(handler)


def test_a_new_script_counts_when_its_child_init_has_run(bed: Bed) -> None:
    old, new = start(bed), Calls()
    handler = Handler()
    reload(bed, new, handler)
    bed.ask(Request())
    assert (len(old.got), len(new.got)) == (1, 0)
    assert vars(handler)["child_init"](1) == 0
    bed.ask(Request())
    assert (len(old.got), len(new.got)) == (1, 1)


def test_a_script_that_fails_before_attach_changes_nothing(bed: Bed) -> None:
    old = start(bed)
    bed.new()
    bed.register(Peer("other", "", Calls()))
    assert bed.ask(Request()).code == 200 and len(old.got) == 1
    assert bed.ask(Request(ruri="sip:other@10.0.0.1")).code == 404


def test_wrong_settings_at_a_reload_are_one_line_and_the_old_script_goes_on(bed: Bed) -> None:
    handler = Handler()
    old = Calls()
    bed.start(Peer("acme", "", old), handler=handler)
    assert reload(bed, Calls(), Handler(), ping_interval=1) is handler
    assert vars(handler)["child_init"](1) == 0
    bed.ask(Request())
    assert len(old.got) == 1
    (line,) = bed.errors()
    assert "ping_interval" in line and "the one before it goes on" in line


def test_changed_settings_at_a_reload_are_told_and_count_later(bed: Bed) -> None:
    start(bed)
    handler = Handler()
    assert reload(bed, Calls(), handler, ping_interval=77) is handler
    (line,) = bed.errors()
    assert "changed settings (ping_interval)" in line
    assert bed.dmq is not None and bed.dmq.settings.ping_interval == 60


def test_the_handler_and_the_formatter_get_spare_references(bed: Bed) -> None:
    handler = Handler()
    bed.start(handler=handler)
    assert handler in bed.kept and len(bed.kept) == 2


def test_a_handlers_own_child_init_runs_with_its_rank(bed: Bed) -> None:
    class Own(Handler):
        ranks: list[int] = []

        def child_init(self, rank: int) -> int:
            self.ranks.append(rank)
            return 0

    handler = Own()
    bed.start(handler=handler)
    assert handler.child_init(3) == 0 and handler.ranks == [3]


def test_a_handler_with_slots_is_refused_with_the_reason(bed: Bed) -> None:
    class Slotted:
        __slots__ = ()

    with pytest.raises(TypeError, match="__slots__"):
        bed.start(handler=Slotted())


def test_sending_before_there_is_a_bus_raises(bed: Bed) -> None:
    with pytest.raises(RuntimeError, match="there is no bus yet"):
        bed.api.bcast_message(Peer("acme"), "x")


def test_no_log_line_holds_what_kamailio_cannot_take(bed: Bed) -> None:
    start(bed, RuntimeError("nul \0, surrogate \udcff, ü"))
    assert bed.ask(Request()).code == 500
    assert "nul ?" in bed.errors()[0] and bed.errors()[0].isascii()


def test_a_binary_body_leaves_nothing_behind(bed: Bed) -> None:
    start(bed)
    bed.publish(PYTHON_NODE)
    bed.api.bcast_message(Peer("acme"), b"\0\xff")
    assert bed.kamailio.requests[0].body == b"\0\xff"
    assert bed.kamailio.variables["kemi_dmq_body"] == b""
