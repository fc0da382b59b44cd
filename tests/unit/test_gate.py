"""The gate and the bus behind it, without Kamailio."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest

from kemi_dmq.gate import NAMED, with_named
from kemi_dmq.message import Message, Response
from kemi_dmq.node import Node, Status
from kemi_dmq.peer import Peer
from kemi_dmq.testing.fake_kamailio import ReceivedReply, Request
from kemi_dmq.trust import HEADER, Key, Keyring, Parts

from .conftest import Bed, Handler, node

SECRET = "a-secret-of-the-bus"
KEYS = {"keys": f"k1:{SECRET}"}
RING = Keyring([Key("k1", SECRET.encode())])
OTHER = node("sip:10.0.0.2:5060")
C_NODE = node("sip:10.0.0.9:5060", python=False)
CHANNEL = "sip:notification_peer@10.0.0.1:5060"
_numbers = itertools.count(1)


class Acme:
    def __init__(self) -> None:
        self.got: list[str] = []
        self.peer = Peer("acme", "", self.on_message)

    def on_message(self, message: Message, sender: Node | None) -> Response:
        self.got.append(message.body)
        return Response(202, "Fine", "answer")


@pytest.fixture
def acme() -> Acme:
    return Acme()


def signed(body: str = "x", *, ring: Keyring = RING, ago: float = 0.0, **more: Any) -> Request:
    nonce = more.pop("nonce", f"n.{next(_numbers)}")
    given = {"ruri": "sip:acme@10.0.0.1:5060", "from_uri": "sip:acme@10.0.0.2:5060", **more}
    user = given["ruri"].partition(":")[2].partition("@")[0]
    kind = "text/plain" if body else ""
    parts = Parts("KDMQ", given["ruri"], given["from_uri"], user, kind, body.encode())
    line = ring.sign(parts, int((time.time() - ago) * 1000), nonce)
    # The engine's Call-IDs end with the nonce.
    given.setdefault("call_id", f"dmq-{line.partition('nonce=')[2].partition(';')[0]}")
    return Request(body=body.encode(), headers={HEADER: line.partition(":")[2].strip()}, **given)


def listing(*lines: str, **more: Any) -> Request:
    body = "".join(f"{line}\r\n" for line in lines)
    more = {"ruri": CHANNEL, "from_uri": "sip:notification_peer@10.0.0.2:5060", **more}
    return signed(body, **more)


def events(bed: Bed) -> list[tuple[Any, ...]]:
    return list(bed.runtime.shared.engine_inbox.take())


# Allowed networks


def test_a_stranger_gets_403_before_anything_else_and_one_line_is_logged(
    bed: Bed, acme: Acme
) -> None:
    bed.start(acme.peer)
    for ruri in ("sip:acme@10.0.0.1:5060", CHANNEL, "sip:10.0.0.1:5060", "sip:no@10.0.0.1"):
        for source in ("192.0.2.1", "2001:db8::1", "", "::ffff:8.8.8.8"):
            reply = bed.ask(Request(ruri=ruri, source=(source, 5060)))
            assert (reply.code, reply.reason) == (403, "Network Not Allowed")
    assert acme.got == [] and events(bed) == []
    assert bed.runtime.shared.counters.totals()["not_allowed"] == 16
    (line,) = bed.errors()
    assert "DMQ_ALLOWED_NETWORKS" in line and "192.0.2.1" in line


def test_ipv4_in_ipv6_is_ipv4(bed: Bed, acme: Acme) -> None:
    bed.start(acme.peer, allowed_networks="10.0.0.2")
    assert bed.ask(Request(source=("::ffff:10.0.0.2", 5060))).code == 202
    assert bed.ask(Request(source=("::ffff:10.0.0.3", 5060))).code == 403


def test_a_list_of_ones_own_is_all_that_is_allowed(bed: Bed, acme: Acme) -> None:
    bed.start(acme.peer, allowed_networks="192.0.2.0/24, 2001:db8::/32")
    for source, code in (
        ("192.0.2.9", 202),
        ("2001:db8:0:0:0:0:0:5", 202),
        ("127.0.0.1", 403),
        ("10.0.0.2", 403),
    ):
        assert bed.ask(Request(body=b"x", source=(source, 5060))).code == code


def test_what_the_settings_name_is_allowed_by_default(bed: Bed, acme: Acme) -> None:
    bed.start(acme.peer, notification_address="sip:192.0.2.5, sip:[2001:db8::5], sip:bus.example")
    assert bed.ask(Request(source=("192.0.2.5", 5060))).code == 202
    assert bed.ask(Request(source=("2001:db8:0:0:0:0:0:5", 5060))).code == 202
    late = Request(source=("192.0.2.6", 5060))
    assert bed.ask(late).code == 403
    # The engine has looked bus.example up, and all processes learn of it.
    bed.runtime.shared.named.publish(("192.0.2.6",))
    assert bed.ask(Request(source=("192.0.2.6", 5060))).code == 202
    assert bed.ask(Request(source=("192.0.2.7", 5060))).code == 403


def test_addresses_that_a_name_had_stay_within_a_bound() -> None:
    named: tuple[str, ...] = ()
    for number in range(NAMED + 10):
        named = with_named(named, [f"10.0.{number // 256}.{number % 256}", "::ffff:1.2.3.4", "x"])
    assert len(named) == NAMED and named[-1] == "10.0.1.9" and "10.0.0.0" not in named


def test_sources_are_remembered_within_a_bound(bed: Bed, acme: Acme) -> None:
    bed.start(acme.peer)
    for number in range(5000):
        bed.ask(Request(source=(f"2001:db8::{number:x}", 5060)))
    assert len(bed.runtime.bus.gate.sources) <= 4096


# Keys


def test_a_signed_message_reaches_its_peer(bed: Bed, acme: Acme) -> None:
    bed.start(acme.peer, **KEYS)
    assert bed.ask(signed("hello")).code == 202
    assert bed.ask(signed("")).code == 202
    assert acme.got == ["hello", ""]


def test_what_is_not_rightly_signed_gets_403_whatever_it_asks_for(bed: Bed, acme: Acme) -> None:
    bed.start(acme.peer, **KEYS)
    wrong = Keyring([Key("k1", b"another")])
    stranger = Keyring([Key("k3", SECRET.encode())])
    requests = [
        Request(body=b"x"),
        Request(ruri=CHANNEL, body=b"sip:10.0.0.3:5060;status=active\r\n"),
        Request(ruri="sip:nobody@10.0.0.1:5060"),
        Request(ruri="sip:10.0.0.1:5060"),
        signed(ring=wrong),
        signed(ring=stranger),
        signed(ago=61),
        signed(ago=-61),
        signed(ruri="sip:acme@10.0.0.7:5060"),
        signed(ruri="sip:acme@10.0.0.1:5061"),
    ]
    for request in requests:
        reply = bed.ask(request)
        assert (reply.code, reply.reason, reply.body) == (403, "Not Signed", "")
    assert acme.got == [] and events(bed) == []
    assert bed.runtime.shared.counters.totals()["not_signed"] == len(requests)
    assert len(bed.errors()) == 1 and SECRET not in bed.errors()[0]


def test_it_is_enough_that_kamailio_takes_the_uri_for_its_own(bed: Bed, acme: Acme) -> None:
    bed.start(acme.peer, **KEYS)
    assert bed.ask(signed(ruri="sip:acme@192.168.0.1:5070")).code == 202


def test_a_copy_gets_the_answer_and_a_replay_does_not(bed: Bed, acme: Acme) -> None:
    bed.start(acme.peer, **KEYS)
    first = signed("once")
    assert [bed.ask(first).body for _ in range(2)] == ["answer", "answer"]
    first.call_id += "x"
    assert [bed.ask(first).code for _ in range(2)] == [403, 403]
    first.call_id = first.call_id[:-1]
    first.source = ("10.0.0.66", 5060)
    assert bed.ask(first).code == 403
    assert acme.got == ["once"]
    assert bed.runtime.shared.counters.totals()["replays"] == 2


def test_a_list_is_taken_once_and_its_answer_is_signed(bed: Bed) -> None:
    bed.start(**KEYS)
    bed.publish(OTHER)
    request = listing("sip:10.0.0.2:5060;status=not_active")
    for _ in range(2):
        reply = bed.ask(request)
        assert reply.code == 200 and "sip:10.0.0.2:5060" in reply.body
        auth = reply.headers.partition(f"{HEADER}: ")[2].strip()
        nonce = request.headers[HEADER].partition("nonce=")[2].partition(";")[0]
        assert RING.verify_reply(auth, 200, "text/plain", reply.body.encode(), nonce)
    assert len(events(bed)) == 1
    # Elsewhere a copy is acknowledged (it may be the sender's own, overtaken by a faster copy),
    # and told nothing.
    request.source = ("10.0.0.66", 5060)
    request.via += "x"
    reply = bed.ask(request)
    auth = reply.headers.partition(f"{HEADER}: ")[2].strip()
    assert (reply.code, reply.body) == (200, "") and events(bed) == []
    assert RING.verify_reply(auth, 200, "", b"", nonce)
    request.call_id += "x"
    reply = bed.ask(request)
    assert (reply.code, reply.body) == (403, "") and events(bed) == []


def test_who_repeats_a_list_before_it_is_here_cannot_make_it_count_as_a_replay(bed: Bed) -> None:
    bed.start(**KEYS)
    bed.publish(OTHER)
    request = listing("sip:10.0.0.2:5060;status=active")
    call_id, via, source = request.call_id, request.via, request.source
    request.source = ("10.0.0.66", 5060)
    request.call_id += "x"
    assert bed.ask(request).code == 403  # and has used nothing up
    request.call_id, request.via = call_id, via + "x"
    assert bed.ask(request).code == 200
    request.via, request.source = via, source
    assert bed.ask(request).code == 200
    assert len(events(bed)) == 1


def test_what_a_list_lacks_is_said_again(bed: Bed) -> None:
    bed.start(**KEYS)
    request = listing("garbage")
    assert [bed.ask(request).reason for _ in range(2)] == ["Bad Node List"] * 2


def test_without_keys_nothing_is_signed(bed: Bed) -> None:
    bed.start()
    bed.publish(OTHER)
    assert bed.runtime.shared.nonces is None
    bed.api.bcast_message(Peer("acme"), "x")
    reply = bed.ask(Request(ruri=CHANNEL, body=b"sip:10.0.0.2:5060;status=active\r\n"))
    assert HEADER not in bed.kamailio.requests[0].headers and HEADER not in reply.headers


@pytest.mark.parametrize("sl_send", [0, 1])
@pytest.mark.parametrize("body", ["", "text", b"\xff\0"])
def test_what_is_sent_another_node_verifies(bed: Bed, sl_send: int, body: str | bytes) -> None:
    bed.start(sl_send=sl_send, **KEYS)
    bed.publish(OTHER, node("sip:10.0.0.3:5060"))
    assert bed.api.bcast_message(Peer("acme"), body) == 0
    raw = body.encode() if isinstance(body, str) else body
    seen = set()
    sent = [(r.ruri, r.headers) for r in bed.kamailio.requests]
    sent += [(t.text.split()[1], t.text) for t in bed.kamailio.texts]
    for ruri, headers in sent:
        header = headers.partition(f"{HEADER}: ")[2].partition("\r\n")[0]
        kind = "text/plain" if body else ""
        parts = Parts("KDMQ", ruri, "sip:acme@10.0.0.1:5060", "acme", kind, raw)
        found = RING.verify(header, lambda: parts)  # noqa: B023
        assert found is not None
        seen.add(found.nonce)
    assert len(seen) == 2


# Who need not sign


UNSIGNED = {**KEYS, "unsigned_networks": "10.0.0.9, 10.0.1.0/24"}


def test_who_need_not_sign_speaks_for_nobody_who_must(bed: Bed, acme: Acme) -> None:
    bed.start(acme.peer, **UNSIGNED)
    place = ("10.0.0.9", 5060)
    assert bed.ask(Request(from_uri="sip:acme@10.0.0.9:5060", source=place)).code == 202
    for from_uri in ("sip:acme@10.0.0.2:5060", "sip:acme@c.example:5060", "x"):
        assert bed.ask(Request(from_uri=from_uri, source=place)).code == 403
    assert bed.ask(Request(from_uri="sip:acme@10.0.0.9:5060")).code == 403
    wrong = signed(ring=Keyring([Key("k1", b"wrong")]), source=place)
    wrong.from_uri = "sip:acme@10.0.0.9:5060"
    assert bed.ask(wrong).code == 403  # who signs must do it rightly


def test_whom_an_unsigned_list_names_is_asked_first(bed: Bed) -> None:
    bed.start(**UNSIGNED)
    bed.publish(OTHER, C_NODE)
    lines = [
        "sip:10.0.0.9:5060;status=active",
        "sip:10.0.0.2:5060;status=not_active",
        "sip:10.0.1.7:5060;status=active",
        "sip:10.0.0.66:5060;status=active",
        "sip:10.0.0.67:5060;status=disabled",
        "sip:bus.example:5060;status=active",
        "sip:10.0.0.1:5060;status=active",
    ]
    request = Request(
        ruri=CHANNEL,
        from_uri="sip:notification_peer@10.0.0.9:5060",
        body="".join(f"{line}\r\n" for line in lines).encode(),
        source=("10.0.0.9", 5060),
    )
    reply = bed.ask(request)
    assert reply.code == 200 and HEADER not in reply.headers
    *asks, notification = events(bed)
    assert asks == [("ask", "sip:10.0.0.66:5060"), ("ask", "sip:bus.example:5060")]
    taken = notification[2].replace("\r\n", " ").split()
    assert taken == [*lines[:3], lines[6]]


# Answers to the engine


class Listening(Handler):
    def ksr_reply_route(self, msg: object) -> int:
        return 1


def answer(bed: Bed, handler: Any, source: str, stamped: str, **more: Any) -> None:
    reply = ReceivedReply(
        body=b"sip:10.0.0.66:5060;status=active\r\n",
        call_id=f"dmq-10.0.0.1-5060-{stamped}",
        source=(source, 5060),
        **more,
    )
    assert not bed.kamailio.receive_reply(reply, handler.ksr_reply_route)


def test_an_answer_counts_only_from_where_it_was_asked(bed: Bed) -> None:
    handler = Listening()
    bed.start(handler=handler)
    stamped = bed.runtime.bus.gate.stamp("abc.1", "10.0.0.2")
    answer(bed, handler, "10.0.0.3", stamped)
    answer(bed, handler, "10.0.0.2", stamped[:-1])
    answer(bed, handler, "10.0.0.2", "abc.1")
    answer(bed, handler, "10.0.0.2", "")
    answer(bed, handler, "10.0.0.2", "\u00e4.\u00e4")
    assert events(bed) == []
    assert bed.runtime.shared.counters.totals()["answers_refused"] == 5
    assert len(bed.errors()) == 1
    answer(bed, handler, "10.0.0.2", stamped)
    answer(bed, handler, "::ffff:10.0.0.2", stamped)
    assert len(events(bed)) == 2


def test_with_keys_an_answer_is_signed_for_its_request(bed: Bed) -> None:
    handler = Listening()
    bed.start(handler=handler, **UNSIGNED)
    gate = bed.runtime.bus.gate
    one, other = gate.stamp("abc.1", "10.0.0.2"), gate.stamp("abc.2", "10.0.0.2")
    body = b"sip:10.0.0.66:5060;status=active\r\n"

    def auth(nonce: str, code: int = 200, body: bytes = body) -> dict[str, Any]:
        line = RING.sign_reply(code, "text/plain", body, 1, nonce)
        return {"headers": {HEADER: line.partition(":")[2].strip()}}

    answer(bed, handler, "10.0.0.2", one)
    answer(bed, handler, "10.0.0.2", one, **auth(other))
    answer(bed, handler, "10.0.0.2", one, **auth(one, body=b"another"))
    answer(bed, handler, "10.0.0.2", one, **auth(one, code=503))
    answer(bed, handler, "10.0.0.2", one, code=503)  # nobody may play dead for another
    assert events(bed) == []
    answer(bed, handler, "10.0.0.2", one, **auth(one))
    (event,) = events(bed)
    assert event[3] == body.decode()
    # A C node may answer unsigned: whom it names is asked.
    answer(bed, handler, "10.0.0.9", gate.stamp("abc.3", "10.0.0.9"))
    ask, event = events(bed)
    assert ask == ("ask", "sip:10.0.0.66:5060") and event[3] == ""


def test_the_list_is_the_engines_alone(bed: Bed) -> None:
    """A node that is away stays known to unsigned lists: they cause a probe, as ever."""
    bed.start(**UNSIGNED)
    away = node("sip:10.0.0.2:5060", Status.NOT_ACTIVE)
    bed.publish(away)
    request = Request(
        ruri=CHANNEL,
        from_uri="sip:notification_peer@10.0.0.9:5060",
        body=b"sip:10.0.0.2:5060;status=active\r\n",
        source=("10.0.0.9", 5060),
    )
    bed.ask(request)
    (event,) = events(bed)
    assert event[2] == "sip:10.0.0.2:5060;status=active\r\n"


def test_a_copy_of_an_answered_message_is_no_new_message_under_another_call_id(
    bed: Bed, acme: Acme
) -> None:
    """The outbox signs each copy anew: what was a retransmission must not run later."""
    bed.start(acme.peer, **KEYS)
    first = signed("once", call_id="dmq-10.0.0.2-5060-ob.1", nonce="ob.1")
    copy = signed("once", via=first.via, call_id=first.call_id, nonce="ob.1", ago=-0.5)
    assert copy.headers != first.headers
    assert bed.ask(first).code == bed.ask(copy).code == 202
    assert acme.got == ["once"]
    replay = Request(
        body=copy.body, headers=copy.headers, call_id="made-up", source=("10.0.0.66", 5060)
    )
    assert bed.ask(replay).code == 403
    assert acme.got == ["once"]


def test_a_recorded_message_does_not_take_the_place_of_the_next_one(bed: Bed, acme: Acme) -> None:
    """Branch and Call-ID of the outbox's messages are numbered, so an outsider knows the next."""
    bed.start(acme.peer, **KEYS)
    recorded = signed("one", call_id="dmq-10.0.0.2-5060-ob.1")
    assert bed.ask(recorded).code == 202
    following = signed("two", call_id="dmq-10.0.0.2-5060-ob.2")
    forged = Request(
        body=recorded.body,
        headers=recorded.headers,
        via=following.via,
        call_id=following.call_id,
        source=following.source,
    )
    assert bed.ask(forged).code == 403
    assert bed.ask(following).code == 202
    assert acme.got == ["one", "two"]
