"""Bad input: each gets a SIP answer and a counter, and leaves the node list as it was."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.kamailio import BOTH_ROUTINGS, Bed, wait_for, whole
from tests.support.sip import SipSocket, request

A, B, C, D = "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"

pytestmark = BOTH_ROUTINGS
NOTIFY = f"sip:{A}:5060"
CHANNEL = "notification_peer"
LINE = f"sip:{D}:5060;status=active\r\n"

LISTS = [
    # what, body, code, counter
    ("garbage", b"one two three", 400, "bad_requests"),
    ("binary garbage", bytes(range(256)), 400, "bad_requests"),
    ("NUL", b"\0\0\0\0", 400, "bad_requests"),
    ("unknown status", f"sip:{D}:5060;status=sleeping\r\n".encode(), 400, "bad_requests"),
    ("no status", f"sip:{D}:5060\r\n".encode(), 400, "bad_requests"),
    ("bad port", f"sip:{D}:99999;status=active\r\n".encode(), 400, "bad_requests"),
    ("bad address", b"sip:127.0.0.300:5060;status=active\r\n", 400, "bad_requests"),
    ("another scheme", f"mysql:{D}:5060;status=active\r\n".encode(), 400, "bad_requests"),
    ("2,000 lines", b"x\r\n" * 2000, 413, "bad_requests"),
    ("2,000 good lines", b"sip:a.invalid;status=active\n" * 2000, 413, "bad_requests"),
    ("the local node as disabled", f"sip:{A}:5060;status=disabled\r\n".encode(), 200, ""),
    ("no lines", b"\r\n\r\n", 200, ""),
    ("a host that does not resolve", b"sip:nobody.invalid:5060;status=active\r\n", 200, ""),
    ("a node away", f"sip:{B}:5060;status=disabled\r\n".encode(), 200, ""),
]


def test_bad_node_lists_are_answered_and_counted_and_change_nothing(bed: Bed) -> None:
    a, b, c = bed.python(A), bed.python(B, NOTIFY), bed.c(C, NOTIFY)
    for node in (a, b, c):
        node.start()
    wait_for(whole(a, b, c), 3)
    with SipSocket(D) as sip:
        for what, body, code, counter in LISTS:
            before = a.counters()
            data = request(A, user=CHANNEL, body=body, via=sip.name, sender=f"{D}:5060")
            reply = sip.ask(data, A)
            assert reply is not None, what
            assert reply.code == code, what
            if counter:
                assert a.counters()[counter] == before[counter] + 1, what
            assert whole(a, b, c)(), what
        # The C node still works: nothing that stops it was passed on.
        assert c.bcast(b"still here") == 200
        wait_for(lambda: a.events("message") and b.events("message"))
        assert whole(a, b, c)()


def test_one_bad_line_among_good_ones_is_counted_and_the_good_ones_count(bed: Bed) -> None:
    a, c = bed.python(A), bed.c(C, NOTIFY)
    a.start()
    c.start()
    wait_for(whole(a, c), 3)
    with SipSocket(D, 5060) as sip:
        body = f"{LINE}what is this?\r\nsip:{D}:5060;status=tired\r\n".encode() + b"\xff\xfe\r\n"
        data = request(A, user=CHANNEL, body=body, via=sip.name, sender=f"{D}:5060")
        reply = sip.ask(data, A)
        assert reply is not None and reply.code == 200
        wait_for(lambda: f"sip:{D}:5060" in a.active())
        assert a.counters()["bad_lines"] == 3
        assert c.bcast(b"still here") == 200


HEADERS: list[tuple[str, dict[str, Any], int, str]] = [
    ("unknown peer", {"user": "nobody"}, 404, "not_found"),
    ("unknown peer without a body", {"user": "nobody", "body": b""}, 404, "not_found"),
    ("no user", {"user": ""}, 400, "bad_requests"),
    ("no Content-Type", {"headers": {"Content-Type": None}}, 400, "bad_requests"),
    (
        "no Content-Type on a list",
        {"user": CHANNEL, "body": LINE.encode(), "headers": {"Content-Type": None}},
        400,
        "bad_requests",
    ),
    ("From is no SIP URI", {"headers": {"From": "<tel:123>;tag=1"}}, 400, "bad_requests"),
    ("a callback that raises", {"body": b"raise"}, 500, "callback_errors"),
    ("text that is not UTF-8", {"body": b"\xff\xfe\x00"}, 200, "delivered"),
    ("Max-Forwards is no number", {"headers": {"Max-Forwards": "many"}}, 200, "delivered"),
    ("no body at all", {"body": b"", "headers": {"Content-Length": "0"}}, 200, "delivered"),
]


def test_bad_requests_are_answered_and_counted(bed: Bed) -> None:
    a, b = bed.python(A), bed.python(B, NOTIFY)
    a.start()
    b.start()
    wait_for(whole(a, b), 3)
    with SipSocket(D) as sip:
        for what, more, code, counter in HEADERS:
            before = a.counters()
            arguments: dict[str, Any] = {"body": b"x", "via": sip.name, **more}
            reply = sip.ask(request(A, **arguments), A)
            assert reply is not None, what
            assert reply.code == code, what
            assert a.counters()[counter] == before[counter] + 1, what
            assert whole(a, b)(), what
    raised = [line for line in a.log().splitlines() if "peer acme: its callback raised" in line]
    assert len(raised) == 1 and "as the message asked for" in raised[0]
    assert "sip:acme@127.0.0.1:5060" in raised[0], "the line names the sender"


@pytest.mark.parametrize("user", ["acme", CHANNEL])
def test_a_request_without_from_is_dropped_by_kamailios_core(bed: Bed, user: str) -> None:
    """It never reaches the script, so there is nothing that could answer."""
    a = bed.python(A)
    a.start()
    with SipSocket(D) as sip:
        data = request(A, user=user, body=b"x", via=sip.name, headers={"From": None})
        assert sip.ask(data, A, 0.5) is None
    assert a.counters()["received"] == 0
    assert a.active() == {a.uri}


@pytest.mark.parametrize(("user", "body"), [("acme", b"to the end"), (CHANNEL, LINE.encode())])
def test_without_content_length_a_datagram_holds_the_body_to_its_end(
    bed: Bed, user: str, body: bytes
) -> None:
    """RFC 3261, 18.3."""
    a = bed.python(A)
    a.start()
    with SipSocket(D, 5060) as sip:
        data = request(A, user=user, body=body, via=sip.name, headers={"Content-Length": None})
        reply = sip.ask(data, A)
        assert reply is not None and reply.code == 200
    if user == "acme":
        assert bytes.fromhex(a.events("message")[0]["body"]) == body
    else:
        wait_for(lambda: f"sip:{D}:5060" in a.active())


def test_a_reply_with_a_body_goes_to_a_c_node_as_202_and_a_408_as_480(bed: Bed) -> None:
    """C's broadcast reads a 200's body as a node list, and takes a 408 for the node's death."""
    a, c = bed.python(A), bed.c(C, NOTIFY)
    a.start()
    c.start()
    wait_for(whole(a, c), 3)
    for body in (b"answer 200 OK hello world", b"answer 408 Late nothing"):
        assert c.bcast(body) == 200
    wait_for(lambda: len(a.events("message")) == 2)
    with SipSocket() as sip:
        for body, code in ((b"answer 200 OK hello", 202), (b"answer 408 Late x", 480)):
            reply = sip.ask(request(A, body=body, via=sip.name), A)
            assert reply is not None and reply.code == code
            ours = request(A, body=body, via=sip.name, headers={"Supported": "x, kemi_dmq-1"})
            reply = sip.ask(ours, A)
            assert reply is not None and reply.code in (200, 408)
    assert c.bcast(b"still here") == 200
    assert whole(a, c)()
