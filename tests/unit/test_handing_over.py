"""handle_message with num_workers above 0: what the SIP worker does, and what the worker does."""

from __future__ import annotations

import pytest

from kemi_dmq.bus import Bus
from kemi_dmq.message import Message, Response
from kemi_dmq.peer import Peer
from kemi_dmq.testing.fake_kamailio import Request, SentText

from .conftest import Bed, node

OTHER = "sip:10.0.0.2:5060"
PYTHON = {"Supported": "kemi_dmq-1"}


@pytest.fixture
def handed(bed: Bed) -> list[object]:
    """A bed with two workers and peer acme; what acme was called with."""
    seen: list[object] = []

    def on_acme(message: Message, sender: object) -> Response | None:
        seen.append((message.body_bytes, message.source, message.content_type, sender))
        if message.body == "raise":
            raise RuntimeError
        code, _, body = message.body.partition(" ")
        return Response(int(code), "Said", body) if code.isdigit() else None

    bed.kamailio.defines["DMQ_WORKERS_TIMER"] = '"name=dmq_workers;interval=100000u;mode=2"'
    bed.start(Peer("acme", "", on_acme), num_workers=2)
    bed.publish(node(OTHER))
    return seen


def work(bed: Bed) -> list[SentText]:
    """What the workers do now; the texts that they sent."""
    before = len(bed.kamailio.texts)
    bed.kamailio.current = None  # they know no request
    bus: Bus = bed.runtime.bus
    assert bus.shared.workers is not None
    for inbox in bus.shared.workers.inboxes:
        for job in inbox.take():
            bus.run_job(job)
    return bed.kamailio.texts[before:]


def test_a_worker_gets_what_the_sip_worker_received(bed: Bed, handed: list[object]) -> None:
    for body in (b"", b"text", b"\0\xff", "ü".encode()):
        request = Request(body=body, source=("10.0.0.2", 5060))
        assert bed.asked(request) == [] and handed == []
        (sent,) = work(bed)
        (got,) = handed
        handed.clear()
        assert isinstance(got, tuple) and got[:2] == (body, ("10.0.0.2", 5060))
        assert got[3].uri == OTHER
        assert (sent.to, sent.sock) == ("sip:10.0.0.2:5060;transport=udp", "udp:10.0.0.1:5060")
        assert sent.text.startswith(f"SIP/2.0 200 OK\r\nVia: {request.via}\r\n")
        assert f"Call-ID: {request.call_id}\r\n" in sent.text


def test_a_copy_is_dropped_until_the_worker_has_answered(bed: Bed, handed: list[object]) -> None:
    request = Request(body=b"299 body", headers=PYTHON)
    assert [bed.asked(request) for _ in range(3)] == [[], [], []]
    (sent,) = work(bed)
    assert sent.text.startswith("SIP/2.0 299 Said\r\n") and sent.text.endswith("\r\n\r\nbody")
    reply = bed.ask(request)
    assert (reply.code, reply.reason, reply.body) == (299, "Said", "body")
    assert len(handed) == 1


def test_codes_that_a_c_node_takes_for_something_else(bed: Bed, handed: list[object]) -> None:
    for body, headers, code in (
        (b"200 body", {}, 202),
        (b"200 body", PYTHON, 200),
        (b"408 x", {}, 480),
        (b"408 x", PYTHON, 408),
        (b"raise", {}, 500),
    ):
        assert bed.asked(Request(body=body, headers=headers)) == []
        (sent,) = work(bed)
        assert sent.text.startswith(f"SIP/2.0 {code} "), body


def test_what_needs_no_peer_is_answered_at_once(bed: Bed, handed: list[object]) -> None:
    assert bed.ask(Request(ruri="sip:nobody@10.0.0.1")).code == 404
    assert bed.ask(Request(body=b"x", content_type=None)).code == 400
    line = b"sip:10.0.0.2:5060;status=active\r\n"
    assert bed.ask(Request(ruri="sip:notification_peer@10.0.0.1", body=line)).code == 200
    for odd in (b"\xff".decode(errors="surrogateescape"), "\0"):
        assert bed.ask(Request(headers={"Subject": odd})).reason == "Bad Encoding"
    assert work(bed) == [] and handed == []


def test_a_full_queue_says_503_also_to_copies(bed: Bed, handed: list[object]) -> None:
    body = b"x" * 32_000
    requests = [Request(body=body) for _ in range(50)]
    replies = [bed.asked(request) for request in requests]
    refused = [n for n, reply in enumerate(replies) if reply]
    assert refused[0] > 25 and refused == list(range(refused[0], 50))
    assert {r.code for reply in replies for r in reply} == {503}
    assert bed.ask(requests[-1]).code == 503
    assert len(work(bed)) == refused[0] == len(handed)
    assert bed.dmq is not None
    counters = bed.dmq.counters()
    assert (counters["queued"], counters["queue_full"]) == (refused[0], 50 - refused[0])
    assert any("503" in line for line in bed.errors())


def test_a_peer_that_a_reload_took_away_is_not_found(bed: Bed, handed: list[object]) -> None:
    assert bed.asked(Request(body=b"x")) == []
    bed.start(num_workers=2)
    bed.runtime.handler = None
    bed.runtime._take(object())
    (sent,) = work(bed)
    assert sent.text.startswith("SIP/2.0 404 User Not Found\r\n")


def test_a_worker_cannot_have_more_processes_than_there_are(bed: Bed) -> None:
    bed.kamailio.defines["DMQ_WORKERS_TIMER"] = '"name=dmq_workers;interval=100000u;mode=2"'
    with pytest.raises(SystemExit):
        bed.new(num_workers=3)
    (line,) = bed.kamailio.lines("crit")
    assert "num_workers is 3; it must be at most 2" in line
