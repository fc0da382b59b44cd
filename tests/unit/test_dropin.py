"""KSR.dmq.* after install(), as a script calls it."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from kemi_dmq import Message, Node, Peer, Response, Status
from kemi_dmq.dropin import DropIn
from kemi_dmq.testing.fake_kamailio import Request

from .conftest import Bed, node
from .test_fake_ksr import real_signatures

OTHER = node("sip:10.0.0.2:5060")
AWAY = node("sip:10.0.0.3:5060", Status.NOT_ACTIVE)


class Calls:
    def __init__(self) -> None:
        self.got: list[tuple[Message, Node | None]] = []

    def __call__(self, message: Message, sender: Node | None) -> Response | None:
        self.got.append((message, sender))
        if message.body == "raise":
            raise RuntimeError("as asked")
        return None


@pytest.fixture
def calls(bed: Bed) -> Calls:
    calls = Calls()
    bed.start(Peer("acme", "", calls), Peer("out")).install()
    bed.publish(OTHER, AWAY)
    return calls


def test_it_has_all_functions_of_dmq_so_with_their_parameters() -> None:
    real = {
        name.partition(".")[2]: kinds
        for name, (kinds, _) in real_signatures().items()
        if name.startswith("dmq.")
    }
    ours = {
        name: [str(p.annotation) for n, p in inspect.signature(function).parameters.items()][1:]
        for name, function in inspect.getmembers(DropIn, inspect.isfunction)
        if not name.startswith("_")
    }
    newer = {"process_custom_message": ["str"] * 4, "handle_custom_message": ["str"] * 4}
    assert ours == real | newer


@pytest.mark.parametrize(
    ("name", "arguments", "result"),
    [
        ("handle_message", (), 0),
        ("process_message", (), 0),
        ("handle_message_rc", (7,), 7),
        ("process_message_rc", (-3,), -3),
    ],
)
def test_a_request_is_worked_off_and_answered(
    bed: Bed, calls: Calls, name: str, arguments: tuple[int, ...], result: int
) -> None:
    results: list[int] = []
    (reply,) = bed.kamailio.receive(
        Request(body=b"x"), lambda msg: results.append(getattr(bed.ksr.dmq, name)(*arguments))
    )
    assert (results, reply.code) == ([result], 200)
    assert calls.got[0][0].body == "x"


def test_a_broadcast_is_1_and_goes_to_the_active_nodes(bed: Bed, calls: Calls) -> None:
    assert bed.ksr.dmq.bcast_message("acme", "x", "text/x-a") == 1
    (sent,) = bed.kamailio.requests
    assert sent.ruri == "sip:acme@10.0.0.2:5060" and sent.body == b"x"
    assert "Content-Type: text/x-a\r\n" in sent.headers
    bed.publish()
    assert bed.ksr.dmq.bcast_message("acme", "x", "text/x-a") == 1


def test_a_message_to_a_node_of_any_status_is_1(bed: Bed, calls: Calls) -> None:
    assert bed.ksr.dmq.send_message("acme", AWAY.uri, "x", "text/plain") == 1
    assert bed.kamailio.requests[0].ruri == "sip:acme@10.0.0.3:5060"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("send_message", ("acme", "sip:10.9.9.9:5060", "x", "text/plain")),
        ("send_message", ("acme", "no uri", "x", "text/plain")),
        ("send_message", ("a b", "sip:10.0.0.2:5060", "x", "text/plain")),
        ("send_message", ("acme", "sip:10.0.0.2:5060", "x" * 40_000, "text/plain")),
        ("bcast_message", ("", "x", "text/plain")),
        ("bcast_message", ("acme", "x", "a\r\nb")),
        ("process_custom_message", ("nobody", "sip:10.0.0.2:5060", "x", "text/plain")),
        ("process_custom_message", ("acme", "no uri", "x", "text/plain")),
    ],
    ids=repr,
)
def test_what_is_wrong_is_minus_1_and_one_log_line(
    bed: Bed, calls: Calls, name: str, arguments: tuple[str, ...]
) -> None:
    assert getattr(bed.ksr.dmq, name)(*arguments) == -1
    (line,) = bed.errors()
    assert f"KSR.dmq.{name}: " in line
    assert bed.kamailio.requests == [] and calls.got == []


def test_a_channel_without_a_peer_that_was_sent_to_answers_202(bed: Bed, calls: Calls) -> None:
    request = Request(ruri="sip:unheard@10.0.0.1:5060", body=b"x")
    assert bed.ask(request).code == 404
    assert bed.ksr.dmq.bcast_message("unheard", "x", "text/plain") == 1
    assert bed.ask(request).code == 202


def test_a_request_is_from_a_node_by_its_source_address(bed: Bed, calls: Calls) -> None:
    results: list[int] = []
    bed.publish(OTHER, AWAY, node("sip:[2001:db8::1]:5060"))
    for source in ("10.0.0.2", "10.0.0.3", "[2001:db8::1]", "10.0.0.1", "10.0.0.9"):
        bed.kamailio.receive(
            Request(source=(source, 40_000)),
            lambda msg: results.append(bed.ksr.dmq.is_from_node()),
        )
    assert results == [1, 1, 1, -1, -1]


def test_replication_goes_to_all_active_nodes_unless_it_came_from_one(
    bed: Bed, calls: Calls
) -> None:
    bed.publish(OTHER, AWAY, node("sip:10.0.0.4:5060"))
    results: list[int] = []

    def replicate(source: str, *arguments: int) -> list[str]:
        bed.kamailio.replicated.clear()
        name = "t_replicate_mode" if arguments else "t_replicate"
        bed.kamailio.receive(
            Request(ruri="sip:alice@h", method="REGISTER", source=(source, 5060)),
            lambda msg: results.append(getattr(bed.ksr.dmq, name)(*arguments)),
        )
        assert all(sent.sock == "udp:10.0.0.1:5060" for sent in bed.kamailio.replicated)
        return [sent.uri for sent in bed.kamailio.replicated]

    both = ["sip:10.0.0.2:5060", "sip:10.0.0.4:5060"]
    assert replicate("10.0.0.9") == both
    assert replicate("10.0.0.2") == []
    assert replicate("10.0.0.2", 0) == []
    assert replicate("10.0.0.2", 1) == both
    assert results == [0, -1, -1, 0]


def test_replication_goes_to_addresses_and_passes_over_what_cannot_be_sent_to(
    bed: Bed, calls: Calls
) -> None:
    name = Node(
        "sip:c.test:5060", "c.test", 5060, "udp", Status.ACTIVE, address="2001:db8::7"
    )  # fmt: skip
    bed.publish(node("sip:10.0.0.3:5060;transport=tls"), name, OTHER)
    results: list[int] = []
    bed.kamailio.receive(
        Request(ruri="sip:alice@h", method="REGISTER", source=("10.0.0.9", 5060)),
        lambda msg: results.append(bed.ksr.dmq.t_replicate()),
    )
    sent = [(copy.uri, copy.sock) for copy in bed.kamailio.replicated]
    socket = "udp:10.0.0.1:5060"
    assert sent == [("sip:[2001:db8::7]:5060", socket), ("sip:10.0.0.2:5060", socket)]
    assert results == [-1]


@pytest.mark.parametrize("name", ["process_custom_message", "handle_custom_message"])
def test_a_custom_message_reaches_the_peer_as_if_the_node_had_sent_it(
    bed: Bed, calls: Calls, name: str
) -> None:
    call: Any = getattr(bed.ksr.dmq, name)
    assert call("acme", "sip:acme@10.0.0.2:5060", "hi", "text/x-a") == 1
    ((message, sender),) = calls.got
    assert (message.body, message.content_type, sender) == ("hi", "text/x-a", OTHER)
    assert call("acme", "sip:acme@10.0.0.2:5060", "raise", "text/plain") == -1
    assert call("out", "sip:acme@10.0.0.2:5060", "x", "text/plain") == 1
    assert bed.kamailio.replies == []


@pytest.mark.parametrize(("body", "requests"), [("text", 0), ("nul\0", 1), (b"\xff", 1)])
def test_a_broadcast_of_what_is_no_text_goes_as_it_is(
    bed: Bed, body: str | bytes, requests: int
) -> None:
    bed.start(Peer("acme"), outbox=1).install()
    bed.publish(OTHER)
    assert bed.ksr.dmq.bcast_message("acme", body, "a/b") == 1
    assert len(bed.kamailio.requests) == requests
    counted = bed.runtime.shared.counters.totals()
    assert (counted["sent"], counted["outbox_posted"]) == (requests, 1 - requests)


def test_a_broadcast_of_what_is_no_body_is_false_and_logged(bed: Bed) -> None:
    bed.start(Peer("acme"), outbox=1).install()
    bed.publish(OTHER)
    assert bed.ksr.dmq.bcast_message("acme", None, "a/b") == -1
    assert "body is NoneType" in bed.errors()[0]
