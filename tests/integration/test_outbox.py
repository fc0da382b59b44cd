"""Ordered messages and such with a deadline, between real Kamailios."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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

A, B, C, RELAY = "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.50"
NOTIFY = f"sip:{A}:5060"


def bodies(node: PythonNode) -> list[str]:
    """What its peer got, in the order in which the callback ran."""
    return [bytes.fromhex(event["body"]).decode() for event in node.events("message")]


def assert_in_order_and_once(node: PythonNode, count: int) -> None:
    """Of do_post's messages: each sending process's numbers are all there, in order, once."""
    by_process: dict[str, list[int]] = {}
    for body in bodies(node):
        pid, number = body.split()
        by_process.setdefault(pid, []).append(int(number))
    assert sum(len(numbers) for numbers in by_process.values()) == count
    for numbers in by_process.values():
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


@contextmanager
def posting(node: PythonNode, calls: int, count: int, **args: Any) -> Iterator[list[int]]:
    """Several clients make the node's processes send; what the calls gave.  A request of a client
    may get lost on a machine under load: outbox_posted says how many were sent."""
    results: list[int] = []

    def run() -> None:
        for _ in range(calls):
            with contextlib.suppress(TimeoutError):
                results.extend(node.command("post", count=count, **{"ordered": True, **args}))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield results
    finally:
        for thread in threads:
            thread.join()


# Order ------------------------------------------------------------------------------------------


@BOTH_ROUTINGS
@pytest.mark.parametrize("num_workers", [0, 3])
def test_order_holds_from_several_processes_to_several_processes(
    bed: Bed, num_workers: int
) -> None:
    a = bed.python(A, children=4)
    b = bed.python(B, NOTIFY, children=4, defines={"num_workers": num_workers})
    start(a, b)
    with posting(a, 10, 20, told=True) as results:
        pass
    count = a.counters()["outbox_posted"]
    assert set(results) == {0} and count >= 700
    wait_for(lambda: len(b.events("message")) == count, 20)
    assert_in_order_and_once(b, count)
    assert len({event["pid"] for event in b.events("message")}) > 1
    wait_for(lambda: len(a.events("reply", outcome="answered", code=200)) == count)
    assert a.counters()["outbox_answered"] == count


def test_a_call_that_begins_when_another_is_over_comes_after_it_whichever_process_makes_it(
    bed: Bed,
) -> None:
    a, b = bed.python(A, children=4), bed.python(B, NOTIFY, children=4)
    start(a, b)
    pids = set()
    for number in range(200):
        assert a.command("bcast", body=str(number), ordered=True) == 0
        if number % 10 == 0:
            pids.add(a.command("nodes")["pid"])
    wait_for(lambda: len(b.events("message")) == 200)
    assert bodies(b) == [str(number) for number in range(200)]
    assert len(pids) > 1


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("batch_bytes", [0, 1300])
def test_over_a_network_that_loses_repeats_and_overtakes_still_in_order_and_once(
    bed: Bed, num_workers: int, batch_bytes: int
) -> None:
    a = bed.python(A, children=4, defines={"batch_bytes": batch_bytes})
    defines = {"server_address": f"sip:{RELAY}:5060", "server_socket": f"udp:{B}:5060"}
    b = bed.python(B, NOTIFY, children=4, defines={**defines, "num_workers": num_workers})
    with Relay(RELAY, (A, B), seed=1) as relay:
        a.start()
        b.start()
        wait_for(lambda: f"sip:{RELAY}:5060" in a.active(), 3)
        relay.loss, relay.copies, relay.delay = 0.1, 0.2, 0.03
        with posting(a, 1, 15, told=True):
            pass
        # Without an order they overtake each other: all 32 are on their way at once.
        for number in range(60):
            assert a.command("bcast", body=f"{number}", deadline=30) == 0
        wait_for(lambda: a.counters()["outbox_answered"] == a.counters()["outbox_posted"], 60)
        faults = (relay.lost, relay.copied, relay.overtaken)
        # In batches there are few datagrams.
        assert min(faults) > 5 if batch_bytes == 0 else sum(faults) > 2, faults
    free = [body for body in bodies(b) if " " not in body]
    ordered = [body for body in bodies(b) if " " in body]
    assert sorted(free, key=int) == [f"{number}" for number in range(60)]
    assert len(ordered) == a.counters()["outbox_posted"] - 60 >= 45
    by_process: dict[str, list[int]] = {}
    for body in ordered:
        pid, count = body.split()
        by_process.setdefault(pid, []).append(int(count))
    assert all(numbers == sorted(set(numbers)) for numbers in by_process.values())
    if batch_bytes == 0:
        assert b.counters()["duplicates"] + b.counters()["copies_dropped"] > 5
    assert (b.counters()["batched"] > 10) is (batch_bytes > 0)


@BOTH_ROUTINGS
@pytest.mark.parametrize(
    "keys", [{}, {"keys": "k1:0123456789abcdefghijkl", "unsigned_networks": C}]
)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_broadcasts_that_wait_travel_together_and_reach_each_node_once(
    bed: Bed, num_workers: int, keys: dict[str, str]
) -> None:
    """Also a C node, one by one, and each with its own outcome."""
    more = {"num_workers": num_workers, **keys}
    a = bed.python(A, children=4, defines=keys)
    b = bed.python(B, NOTIFY, children=2, defines=more)
    c = bed.c(C, NOTIFY)
    start(a, b, c)
    with posting(a, 5, 30, told=True, ordered=False) as results:
        pass
    count = len(results)
    assert set(results) == {0} and count >= 500
    wait_for(lambda: a.counters()["outbox_answered"] == 2 * count, 20, a.counters)
    assert sorted(bodies(b)) == sorted(set(bodies(b))) and len(bodies(b)) == count
    assert len(c.got()) >= count and set(c.got()) == set(bodies(b))
    wait_for(lambda: len(a.events("reply", outcome="answered")) == 2 * count)
    assert len(a.events("reply", code=200, node=b.uri)) == count
    counters = b.counters()
    assert counters["batched"] > count // 4, counters
    assert counters["received"] - counters["notifications"] < count
    assert a.counters()["sent"] == 0, "no transaction of tm's"


@pytest.mark.parametrize("callback", ["no peer", "no callback"])
def test_a_peer_that_is_a_route_of_kamailio_cfg_gets_each_message_as_a_request(
    bed: Bed, callback: str
) -> None:
    a = bed.python(A, children=4)
    peer = '"acme", "tests", on_acme'
    other = '"other", "", on_acme' if callback == "no peer" else '"acme", "", None'
    script = SCRIPT.read_text().replace(peer, other)
    b = bed.python(B, NOTIFY, native=True, script=script, before='loadmodule "xlog.so"')
    b.peer_is_a_route("acme", 'xlog("L_NOTICE", "ALARM $rb\\n");')
    start(a, b)
    with posting(a, 5, 30, told=True, ordered=False) as results:
        pass
    count = a.counters()["outbox_posted"]
    assert set(results) == {0} and count >= 500
    wait_for(lambda: len(a.events("reply", outcome="answered", reason="Heard")) == count, 20)
    heard = re.findall(r"ALARM (\d+ \d+)$", b.log(), re.MULTILINE)
    assert len(set(heard)) == count, "a copy that comes late is one more for a route"
    assert b.counters()["batched"] > 0, "until it has said that it wants them alone"


def test_a_slow_peer_gets_one_after_the_other(bed: Bed) -> None:
    a = bed.python(A)
    b = bed.python(B, NOTIFY, children=4, defines={"num_workers": 4})
    start(a, b)
    for body in ("sleep 1.2", "one", "sleep 0.3", "two"):
        assert a.command("send", body=body, to=b.uri, ordered=True) == 0
    wait_for(lambda: len(b.events("message")) == 4)
    assert bodies(b) == ["sleep 1.2", "one", "sleep 0.3", "two"]
    times = [event["time"] for event in b.events("message")]
    assert times[1] - times[0] >= 1.2 and times[3] - times[2] >= 0.3


def test_bytes_arrive_exactly_and_answers_come_back_whole(bed: Bed) -> None:
    a, b = bed.python(A), bed.python(B, NOTIFY)
    start(a, b)
    sent = [bytes(range(256)), b"\0", b"", "grüße".encode(), b"\xff\r\n\r\n\x00", b" \r\n "]
    for body in sent:
        assert a.command("bcast", hex=body.hex(), ordered=True, content_type="text/x;y=z") == 0
    wait_for(lambda: len(b.events("message")) == len(sent))
    assert [bytes.fromhex(event["body"]) for event in b.events("message")] == sent
    assert {event["content_type"] for event in b.events("message", size=256)} == {"text/x;y=z"}
    assert a.command("bcast", body="answer 488 Not_Here text", ordered=True, param=[1]) == 0
    (reply,) = wait_for(lambda: a.events("reply"))
    assert (reply["code"], reply["reason"], reply["body"]) == (488, "Not_Here", "text")
    assert (reply["content_type"], reply["node"], reply["param"]) == ("text/x-test", b.uri, [1])
    callbacks = [pid for pid, what in a.children().items() if "dmq_callbacks" in what]
    assert reply["pid"] == callbacks[0]


def test_over_tcp_also_when_the_connection_has_gone_meanwhile(bed: Bed) -> None:
    nodes: list[PythonNode] = []
    for address in (A, B):
        listen = f"listen=tcp:{address}:5060\nlisten=udp:{address}:5060"
        defines: dict[str, object] = {"server_address": f"sip:{address}:5060;transport=tcp"}
        notification = f"{NOTIFY};transport=tcp" if nodes else ""
        node = bed.python(address, notification, listen=listen, defines=defines)
        node.uri = f"sip:{address}:5060;transport=tcp"
        nodes.append(node)
    a, b = nodes
    start(a, b)
    for number in range(100):
        assert a.command("bcast", body=str(number), ordered=True, param=1) == 0
    large = bytes(range(256)) * 32
    assert a.command("bcast", hex=large.hex(), ordered=True, param=1) == 0
    wait_for(lambda: len(a.events("reply", outcome="answered", code=200)) == 101)
    assert [e["body"] for e in b.events("message")][:100] == [
        str(n).encode().hex() for n in range(100)
    ]
    assert b.events("message")[100]["body"] == large.hex()
    b.kill()
    assert a.command("send", body="while away", to=b.uri, ordered=True, deadline=60, param=2) == 0
    b.start()
    wait_for(lambda: a.events("reply", outcome="answered", param=2), 12)
    assert b.events("message")[-1]["body"] == b"while away".hex()


def test_c_nodes_get_text_one_after_the_other(bed: Bed) -> None:
    a, c = bed.python(A), bed.c(C, NOTIFY)
    start(a, c)
    for number in range(20):
        assert a.command("send", body=f"n{number}", to=c.uri, ordered=True, param="c") == 0
    wait_for(lambda: len(a.events("reply", outcome="answered", code=200)) == 20)
    assert c.got() == [f"n{number}" for number in range(20)]
    assert a.command("send", hex="00", to=c.uri, ordered=True) == -1
    assert "does not run kemi_dmq" in a.log()


# Nodes that are away ----------------------------------------------------------------------------


@BOTH_ROUTINGS
def test_a_node_that_was_stopped_gets_what_was_sent_meanwhile_in_order(bed: Bed) -> None:
    a, b = bed.python(A), bed.python(B, NOTIFY)
    start(a, b)
    b.stop()
    wait_for(lambda: b.uri not in a.active(), 1)
    assert a.command("bcast", body="lost") == 0
    for number in range(50):
        assert a.command("bcast", body=str(number), ordered=True, deadline=60, param=number) == 0
    time.sleep(0.3)
    assert a.events("reply") == []
    b.start()
    wait_for(lambda: len(a.events("reply", outcome="answered", node=b.uri)) == 50)
    assert bodies(b) == [str(number) for number in range(50)]
    assert [event["param"] for event in a.events("reply")] == list(range(50))


def test_a_message_to_a_node_that_has_just_died_arrives_when_it_is_back(bed: Bed) -> None:
    a, b = bed.python(A), bed.python(B, NOTIFY)
    start(a, b)
    b.kill()
    assert a.command("send", body="x", to=b.uri, deadline=60, param="p") == 0
    time.sleep(1)
    assert b.uri in a.active(), "nobody has noticed yet"
    b.start()
    wait_for(lambda: a.events("reply", outcome="answered", param="p"), 6)
    assert bodies(b) == ["x"]


def test_a_failure_is_reported_at_the_deadline_once(bed: Bed) -> None:
    a, b, c = bed.python(A), bed.python(B, NOTIFY), bed.python(C, NOTIFY)
    start(a, b, c)
    b.stop()
    wait_for(lambda: b.uri not in a.active(), 1)
    c.kill()
    before = time.time()
    assert a.command("bcast", body="x", deadline=2, param="p") == 0
    wait_for(lambda: len(a.events("reply")) == 2)
    told = {event["node"]: event for event in a.events("reply")}
    assert told[b.uri]["outcome"] == "expired" and told[b.uri]["reason"] == "Expired"
    assert told[c.uri]["outcome"] == "timed_out" and told[c.uri]["reason"] == "Request Timeout"
    for event in told.values():
        assert event["timed_out"] is True and event["code"] == 408
        assert 2 <= event["time"] - before < 2.5
    b.start()
    wait_for(lambda: b.uri in a.active(), 3)
    time.sleep(0.5)
    assert bodies(b) == [] and len(a.events("reply")) == 2


def test_too_much_is_refused_at_the_call_and_counted_and_the_rest_is_delivered(bed: Bed) -> None:
    a = bed.python(A, defines={"outbox_memory": 65536})
    b = bed.python(B, NOTIFY)
    start(a, b)
    b.stop()
    wait_for(lambda: b.uri not in a.active(), 1)
    results = []
    for number in range(100):
        results.append(a.command("bcast", body=f"{number}", ordered=True, deadline=60))
    taken = results.count(0)
    assert 50 <= taken < 90 and results == [0] * taken + [-1] * (100 - taken)
    assert a.counters()["outbox_refused"] == 100 - taken
    assert 1 <= a.log().count("outbox_memory") <= 2 * 2, "a line a second and process"
    b.start()
    wait_for(lambda: len(b.events("message")) == taken)
    assert bodies(b) == [str(number) for number in range(taken)]
    wait_for(lambda: a.command("bcast", body="again", ordered=True) == 0)


def test_who_sends_more_than_is_delivered_hears_so_and_slows_nothing_else_down(bed: Bed) -> None:
    a = bed.python(A, children=4, defines={"outbox_memory": 1024 * 1024})
    b, c = bed.python(B, NOTIFY, children=4), bed.python(C, NOTIFY)
    start(a, b, c)
    stopping = threading.Event()

    def run() -> None:
        while not stopping.is_set():
            with contextlib.suppress(TimeoutError):  # under such a load datagrams get lost
                a.command("post", _wait=1, count=100, ordered=True, deadline=15)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: a.counters()["outbox_refused"] > 100, 20)
        before = len(b.events("message"))
        c.stop()
        wait_for(lambda: c.uri not in a.active(), 5, "node lists get through")
        wait_for(lambda: len(b.events("message")) > before + 500, 10, "it goes on")
    finally:
        stopping.set()
        for thread in threads:
            thread.join()

    def all_told() -> bool:
        counters = a.counters()
        told = sum(counters[f"outbox_{o}"] for o in ("answered", "timed_out", "expired"))
        return counters["outbox_posted"] == told

    wait_for(all_told, 40)
    assert a.counters()["inbox_full"] == 0
    by_process: dict[str, list[int]] = {}
    for body in bodies(b):
        pid, number = body.split()
        by_process.setdefault(pid, []).append(int(number))
    assert all(numbers == sorted(set(numbers)) for numbers in by_process.values())


# Reload, failure, stop --------------------------------------------------------------------------


@BOTH_ROUTINGS
def test_reloads_of_both_sides_lose_nothing_and_keep_the_order(bed: Bed) -> None:
    a = bed.python(A, children=4)
    b = bed.python(B, NOTIFY, children=4, defines={"num_workers": 2})
    start(a, b)
    with posting(a, 20, 5, deadline=60, told=True) as results:
        for version in (2, 3):
            for node in (a, b):
                text = SCRIPT.read_text().replace("VERSION = 1 ", f"VERSION = {version} ")
                # Numbers go on: each load makes a new script, and a process that is late may load
                # this one twice.
                text = text.replace("count(1)", 'count(__import__("time").time_ns())')
                node.script.write_text(text)
                node.kamcmd("app_python.reload")
                time.sleep(0.1)
    count = a.counters()["outbox_posted"]
    assert set(results) == {0} and count >= 300
    wait_for(lambda: len(a.events("reply")) == count, 20)
    assert {event["outcome"] for event in a.events("reply")} == {"answered"}
    by_process: dict[str, list[int]] = {}
    for body in bodies(b):
        pid, number = body.split()
        by_process.setdefault(pid, []).append(int(number))
    assert sum(len(numbers) for numbers in by_process.values()) == count
    assert all(numbers == sorted(set(numbers)) for numbers in by_process.values())


@pytest.mark.allows("the engine failed")
def test_what_waits_outlives_an_engine_that_fails(bed: Bed) -> None:
    script = SCRIPT.read_text().replace("VERSION = 1 ", f"{FAILING_ENGINE}VERSION = 1 ")
    a, b = bed.python(A, script=script), bed.python(B, NOTIFY)
    start(a, b)
    b.stop()
    wait_for(lambda: b.uri not in a.active(), 1)
    for number in range(10):
        assert a.command("bcast", body=str(number), ordered=True, deadline=60, param="p") == 0
    assert a.command("bcast", body="nobody.invalid", ordered=True, deadline=60) == 0
    wait_for(lambda: a.counters()["engine_failures"] == 1)
    assert a.command("bcast", body="10", ordered=True, deadline=60, param="p") == 0
    b.start()
    wait_for(lambda: len(a.events("reply", outcome="answered")) == 11)
    assert bodies(b) == [str(number) for number in range(11)]


def test_a_stop_says_how_many_messages_it_loses(bed: Bed) -> None:
    a, b = bed.python(A), bed.python(B, NOTIFY)
    start(a, b)
    b.stop()
    wait_for(lambda: b.uri not in a.active(), 1)
    for _ in range(7):
        assert a.command("bcast", body="x", deadline=60) == 0
    a.wait_settled()
    assert a.stop() < 2
    assert re.findall(r"kemi_dmq: (\d+) messages that waited are lost", a.log()) == ["7"]
    assert "messages that waited" not in b.log()


def test_a_stop_under_load_is_quick(bed: Bed) -> None:
    a, b = bed.python(A, children=4), bed.python(B, NOTIFY)
    start(a, b)
    a.wait_settled()
    stopping = threading.Event()

    def load() -> None:
        while not stopping.is_set():
            try:
                a.command("post", _wait=0.2, count=50, ordered=True)
            except TimeoutError:
                return

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(b.events("message")) > 200)
    try:
        assert a.stop_under_load() < 3
    finally:
        stopping.set()
        for thread in threads:
            thread.join()
    wait_for(lambda: a.uri not in b.active(), 1)
