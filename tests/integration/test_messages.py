"""Bodies, answers, timeouts, limits, and running once only."""

from __future__ import annotations

import random
import time

import pytest

from tests.support.kamailio import (
    BOTH_ROUTINGS,
    FAILING_ENGINE,
    SCRIPT,
    Bed,
    PythonNode,
    start,
    wait_for,
)
from tests.support.relay import Relay
from tests.support.sip import SipSocket, parse_reply, reply_to, request

pytestmark = BOTH_ROUTINGS
A, B, C, RELAY = "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.8"
NOTIFY = f"sip:{A}:5060"


def list_to(to: str, sip: SipSocket, body: str) -> bytes:
    return request(to, user="notification_peer", body=body.encode(), sender=sip.name, via=sip.name)


def join(node: PythonNode, sip: SipSocket) -> str:
    """Put a socket on a node's list; its URI."""
    uri = f"sip:{sip.name}"
    reply = sip.ask(list_to(node.address, sip, f"{uri};status=active\r\n"), node.address)
    assert reply is not None and reply.code == 200
    wait_for(lambda: uri in node.active())
    return uri


def test_bytes_arrive_exactly_and_bodies_up_to_the_limit(bed: Bed) -> None:
    a, b = bed.python(A), bed.python(B, NOTIFY)
    start(a, b)
    every_byte = bytes(range(256))
    bodies = [b"", b"\0", every_byte, every_byte * 4, "grüße".encode()]
    for number, body in enumerate(bodies, 1):
        assert a.command("bcast", hex=body.hex()) == 0
        wait_for(lambda number=number: len(b.events("message")) == number)  # type: ignore[misc]
    assert [bytes.fromhex(e["body"]) for e in b.events("message")] == bodies
    assert b.events("message")[0]["content_type"] == ""
    assert b.events("message")[1]["content_type"] == "text/plain"
    large = random.Random(1).randbytes(10_000)  # a control request holds it in hex
    assert a.command("send", hex=large.hex(), to=b.uri) == 0
    wait_for(lambda: b.events("message", body=large.hex()))
    assert a.command("send", body="0123456789", times=3000, to=b.uri) == 0
    wait_for(lambda: b.events("message", size=30_000))


def test_a_body_too_large_is_refused_at_the_call(bed: Bed) -> None:
    a, b = bed.python(A), bed.python(B, NOTIFY)
    start(a, b)
    answer = a.command("bcast", body="x", times=32_700)
    assert answer["error"] == "ValueError" and "body has 32700 bytes; at most" in answer["text"]
    limit = int(answer["text"].split("at most ")[1].split()[0])
    assert a.command("bcast", body="x", times=limit) == 0
    wait_for(lambda: b.events("message", size=limit), why="the largest body arrives")
    assert a.command("bcast", body="\0", times=limit) == 0
    wait_for(lambda: b.events("message", body="00" * limit), why="and the largest binary one")


def test_answers_reach_the_response_callback_with_all_they_say(bed: Bed) -> None:
    a, b = bed.python(A, children=4), bed.python(B, NOTIFY)
    start(a, b)
    assert a.command("bcast", body="answer 488 Not_Here some text", param={"n": [1, "x"]}) == 0
    reply = wait_for(lambda: a.events("reply"))[0]
    assert (reply["code"], reply["reason"], reply["body"]) == (488, "Not_Here", "some text")
    assert (reply["content_type"], reply["node"]) == ("text/x-test", b.uri)
    assert reply["param"] == {"n": [1, "x"]} and reply["timed_out"] is False
    long = "p" * 4000  # does not fit into Kamailio's own field
    assert a.command("bcast", body="x", param=long) == 0
    wait_for(lambda: a.events("reply", param=long, code=200))


@pytest.mark.parametrize(
    ("defines", "after"),
    [({"fr_timer": 1500}, ""), ({"use_tm": 1}, 'modparam("tm", "fr_timer", 1500)')],
    ids=["alone", "tm"],
)
def test_a_message_to_a_dead_node_times_out_once(
    bed: Bed, defines: dict[str, object], after: str
) -> None:
    a = bed.python(A, defines={"ping_interval": 60, **defines}, after=after)
    b = bed.python(B, NOTIFY)
    start(a, b)
    b.kill()
    assert a.command("send", body="x", to=b.uri, param="gone") == 0
    reply = wait_for(lambda: a.events("reply"), 10)[0]
    assert reply["timed_out"] is True and reply["code"] == 408 and reply["param"] == "gone"
    assert reply["node"] == b.uri
    callbacks = [pid for pid, what in a.children().items() if "dmq_callbacks" in what]
    assert reply["pid"] == callbacks[0], "tm's timer process is not held up"
    assert len(a.events("reply")) == 1


def test_what_the_caller_does_wrong_raises(bed: Bed) -> None:
    a = bed.python(A)
    a.start()
    assert a.command("send", body="x", to="sip:127.0.0.9:5060")["error"] == "TypeError"
    answer = a.command("lambda")
    assert answer["error"] == "ValueError" and "top level of a module" in answer["text"]
    answer = a.command("bcast", body="x", param="p" * 5000)
    assert answer["error"] == "ValueError" and "at most 4096" in answer["text"]
    answer = a.command("register")
    assert answer["error"] == "RuntimeError" and "outside of loading" in answer["text"]


def test_init_callback_runs_once_with_the_node_whose_list_arrived(bed: Bed) -> None:
    a, b, c = bed.python(A), bed.python(B, NOTIFY), bed.python(C, NOTIFY)
    start(a, b, c)
    wait_for(lambda: a.events("init") and b.events("init"))
    assert [e["node"] for e in a.events("init")] == [b.uri]
    assert [e["node"] for e in b.events("init")] == [a.uri]


def test_except_node_gets_nothing(bed: Bed) -> None:
    a, b, c = bed.python(A), bed.python(B, NOTIFY), bed.python(C, NOTIFY)
    start(a, b, c)
    assert a.command("bcast", body="one", without=b.uri) == 0
    wait_for(lambda: c.events("message"))
    assert a.command("send", body="two", to=b.uri) == 0
    wait_for(lambda: b.events("message"))
    assert [bytes.fromhex(e["body"]) for e in b.events("message")] == [b"two"]


def test_a_peer_for_sending_only_answers_202(bed: Bed) -> None:
    a = bed.python(A)
    a.start()
    with SipSocket() as sip:
        reply = sip.ask(request(A, user="only_sent", body=b"x", via=sip.name), A)
    assert reply is not None and (reply.code, reply.reason) == (202, "Accepted DMQ")


# Once only -----------------------------------------------------------------------------------


def test_copies_run_once_whichever_worker_gets_them(bed: Bed) -> None:
    a = bed.python(A, children=4)
    a.start()
    with SipSocket() as sip:
        for number in range(20):
            body = f"answer 299 Number{number} with a body {number}".encode()
            data = request(A, body=body, via=sip.name, headers={"Supported": "kemi_dmq-1"})
            for _ in range(5):
                sip.send(data, A)
            answers = set()
            first = sip.receive()
            while first is not None:
                reply = parse_reply(first)
                answers.add((reply.code, reply.reason, reply.body))
                first = sip.receive(0.05)
            expected = (299, f"Number{number}", f"with a body {number}".encode())
            assert answers == {expected}
            late = sip.ask(data, A)
            assert late is not None and (late.code, late.reason, late.body) == expected
    assert len(a.events("message")) == 20
    assert a.counters()["delivered"] == 20


def test_a_copy_that_meets_the_first_one_running_is_not_run_and_gets_its_answer_later(
    bed: Bed,
) -> None:
    a = bed.python(A, children=4)
    a.start()
    with SipSocket() as sip:
        data = request(A, body=b"sleep 0.5", via=sip.name)
        sip.send(data, A)
        wait_for(lambda: a.events("message"), why="the first one runs")
        for _ in range(3):
            sip.send(data, A)
        wait_for(lambda: a.counters()["copies_dropped"] == 3)
        reply = sip.ask(data, A)
        assert reply is not None and reply.code == 200
    assert len(a.events("message")) == 1


def test_no_transaction_is_kept_for_a_message(bed: Bed) -> None:
    a = bed.python(A)
    a.start()
    with SipSocket() as sip:
        for _ in range(50):
            reply = sip.ask(request(A, user="silent", body=b"x", via=sip.name), A)
            assert reply is not None and reply.code == 200
    stats = a.kamcmd("tm.stats")
    assert "current: 0" in stats and "total: 0" in stats, stats


@pytest.mark.parametrize("body", [b"text", b"\xff\x00binary", b"x" * 4000])
@pytest.mark.parametrize("sl_send", [0, 1])
def test_what_can_do_without_goes_without_a_transaction_of_tm(
    bed: Bed, sl_send: int, body: bytes
) -> None:
    """Text, of any size where there is none at all; bytes that are no text need uac."""
    a = bed.python(A, defines={"sl_send": sl_send, "outbox": 0})
    b = bed.python(B, NOTIFY)
    start(a, b)
    assert a.command("bcast", hex=body.hex()) == 0
    wait_for(lambda: [e for e in b.events("message") if bytes.fromhex(e["body"]) == body])
    stats = a.kamcmd("tm.stats")
    without = body == b"text" or (sl_send == 1 and body.startswith(b"x"))
    assert ("total: 0" in stats) is without, stats


def test_a_message_that_is_lost_comes_again_and_its_answer_counts_once(bed: Bed) -> None:
    a = bed.python(A, children=4, defines={"fr_timer": 8000})
    a.start()
    with SipSocket("127.0.0.9", 5060) as sip:
        fake = join(a, sip)
        a.command("send", body="first", to=fake, param="first")
        a.command("send", body="second", to=fake, param="second")
        copies: dict[bytes, list[bytes]] = {b"first": [], b"second": []}
        times = []
        end = time.monotonic() + 10
        while len(copies[b"second"]) < 3 and time.monotonic() < end:
            data = sip.receive(0.1) or b""
            body = data.partition(b"\r\n\r\n")[2]
            if body in copies:
                copies[body].append(data)
                if body == b"first" and len(copies[body]) == 2:
                    for _ in range(5):  # to whichever workers read them
                        sip.send(reply_to(data, 299, "Late"), A)
                elif body == b"second":
                    times.append(time.monotonic())
            elif data.startswith(b"KDMQ"):
                sip.send(reply_to(data, 200, "OK"), A)
        assert [len(found) for found in copies.values()] == [2, 3], "an answered one stays away"
        assert all(len(set(found)) == 1 for found in copies.values()), "copies are the same"
        # RFC 3261, 17.1.2.2: after T1, and after twice as long.
        first, second = times[1] - times[0], times[2] - times[1]
        assert 0.4 < first < second < 2 and second > 0.9
        timeout = wait_for(lambda: a.events("reply", param="second"), 15)[0]
        assert timeout["code"] == 408 and timeout["timed_out"] is True
        sip.send(reply_to(copies[b"second"][0], 200, "OK"), A)  # too late
        sip.ask(request(A, user="acme", body=b"x", via=sip.name), A)  # read after it
    (answered,) = a.events("reply", param="first")
    assert (answered["code"], answered["reason"]) == (299, "Late")
    assert len(a.events("reply")) == 2
    counters = a.counters()
    assert (counters["replies"], counters["timeouts"]) == (1, 1)


@pytest.mark.parametrize("keys", [{}, {"keys": "k1:0123456789abcdefghijkl"}], ids=["", "keys"])
def test_over_a_network_that_loses_and_repeats_each_runs_once_and_has_one_answer(
    bed: Bed, keys: dict[str, object]
) -> None:
    a = bed.python(A, children=4, defines={"outbox": 0, **keys})
    there = {"server_address": f"sip:{RELAY}:5060", "server_socket": f"udp:{B}:5060", **keys}
    b = bed.python(B, NOTIFY, children=4, defines=there)
    with Relay(RELAY, (A, B), seed=3) as relay:
        a.start()
        b.start()
        wait_for(lambda: f"sip:{RELAY}:5060" in a.active(), 3)
        relay.loss, relay.copies, relay.delay = 0.2, 0.2, 0.02
        for number in range(100):
            assert a.command("bcast", body=f"{number}", param=number) == 0
        wait_for(lambda: len(a.events("reply")) == 100, 40)
        assert min(relay.lost, relay.copied, relay.overtaken) > 10
    replies = a.events("reply")
    assert sorted(reply["param"] for reply in replies) == list(range(100))
    assert {reply["code"] for reply in replies} == {200}
    got = [int(bytes.fromhex(event["body"])) for event in b.events("message")]
    assert sorted(got) == list(range(100))
    assert b.counters()["duplicates"] + b.counters()["copies_dropped"] > 10
    assert a.counters()["replies"] == 100 and a.counters()["timeouts"] == 0


@pytest.mark.allows("the engine failed")
def test_what_is_unanswered_outlives_a_reload_and_an_engine_that_fails(bed: Bed) -> None:
    script = SCRIPT.read_text().replace("VERSION = 1 ", f"{FAILING_ENGINE}VERSION = 1 ")
    a = bed.python(A, script=script, defines={"fr_timer": 8000})
    a.start()
    with SipSocket("127.0.0.9", 5060) as sip:
        fake = join(a, sip)
        a.command("send", body="late", to=fake, param="late")
        a.kamcmd("app_python.reload")
        sip.send(list_to(A, sip, "sip:nobody.invalid:5060;status=active\r\n"), A)
        wait_for(lambda: a.counters()["engine_failures"] == 1)
        silent_until = time.monotonic() + 0.3
        while not a.events("reply"):
            data = sip.receive(0.1) or b""
            if data.startswith(b"KDMQ") and time.monotonic() > silent_until:
                sip.send(reply_to(data, 200, "OK"), A)
    (reply,) = a.events("reply")
    assert (reply["code"], reply["param"], reply["timed_out"]) == (200, "late", False)
