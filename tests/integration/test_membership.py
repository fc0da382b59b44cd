"""Statuses, leaving, coming back and dying, on real Kamailios."""

from __future__ import annotations

import json
import threading
import time

from tests.support.kamailio import (
    BOTH_ROUTINGS,
    SCRIPT,
    Bed,
    PythonNode,
    start,
    wait_for,
    whole,
)
from tests.support.sip import SipSocket, parse_reply, request

A, B, C, D = "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"
NOTIFY = f"sip:{A}:5060"


def names(node: PythonNode, uri: str) -> list[str]:
    """The events that the script of node was told about uri."""
    return [e["name"] for e in node.events("event") if e["node"].split(";")[0] == uri]


@BOTH_ROUTINGS
def test_all_processes_of_a_kamailio_see_the_same_list(bed: Bed) -> None:
    a, b = bed.python(A, children=4), bed.python(B, NOTIFY)
    start(a, b)
    seen: dict[int, object] = {}

    def all_workers() -> bool:
        for _ in range(20):
            answer = a.command("nodes")
            seen[answer["pid"]] = answer["nodes"]
        return len(seen) >= 3

    wait_for(all_workers, 10, "several workers have answered")
    assert len({json.dumps(nodes) for nodes in seen.values()}) == 1


@BOTH_ROUTINGS
def test_a_node_that_stops_is_gone_for_all_within_a_second_and_back_within_two(bed: Bed) -> None:
    a, b = bed.python(A), bed.python(B, NOTIFY)
    c = bed.c(C, NOTIFY, ping_interval=60)
    start(a, b, c)
    # B may have heard of C a moment ago, from A.  Until C has answered, B does not know its version
    # and would leave as disabled, which sticks in C.
    time.sleep(0.5)
    assert b.stop() < 2
    stopped = time.monotonic()
    wait_for(lambda: b.uri not in a.active() | c.active(), 1, "A and C see B gone")
    wait_for(lambda: names(a, b.uri)[-1] in ("dmq:peer-down", "dmq:peer-disabled"))
    time.sleep(max(0.0, 2 - (time.monotonic() - stopped)))  # it is away for two seconds
    b.start()
    wait_for(whole(a, b, c), 2, "all list all again")
    wait_for(lambda: names(a, b.uri)[-1] == "dmq:peer-up", why="A is told that B is back")
    wait_for(lambda: a.events("init", node=b.uri), why="A may send B its state again")


@BOTH_ROUTINGS
def test_a_notification_node_that_stops_and_comes_back_is_found_by_the_others(bed: Bed) -> None:
    a, b = bed.python(A), bed.python(B, NOTIFY)
    c = bed.c(C, NOTIFY, ping_interval=60)
    start(a, b, c)
    a.stop()
    stopped = time.monotonic()
    wait_for(lambda: a.uri not in b.active() | c.active(), 1, "B and C see A gone")
    time.sleep(max(0.0, 2 - (time.monotonic() - stopped)))
    a.start()
    wait_for(whole(a, b, c), 2, "all list all again, though A knows nobody to ask")


@BOTH_ROUTINGS
def test_thirty_stops_under_traffic_are_quick_and_seen(bed: Bed) -> None:
    a, b = bed.python(A), bed.python(B, NOTIFY)
    start(a, b)
    going = True

    def traffic() -> None:
        with SipSocket() as sip:
            number = 0
            while going:
                number += 1
                body = f"{number}".encode()
                for user in ("silent", "acme"):
                    data = request(B, user=user, body=body, via=sip.name, sender=f"{A}:5060")
                    sip.send(data, B)
                data = request(
                    B,
                    method="INFO",
                    user="silent",
                    body=b'{"body": "x", "count": 5}',
                    via=sip.name,
                    sender=sip.name,
                )
                sip.send(data, B)
                time.sleep(0.002)

    thread = threading.Thread(target=traffic)
    thread.start()
    slowest = 0.0
    try:
        for _ in range(30):
            b.wait_settled()
            slowest = max(slowest, b.stop_under_load())
            wait_for(lambda: b.uri not in a.active(), 1, "A sees B gone")
            b.start()
            # Both: A's probe may be answered before B's engine runs, which then has no one to say
            # goodbye to.
            wait_for(whole(a, b), 3, "they see each other again")
    finally:
        going = False
        thread.join()
    print(f"slowest stop {slowest:.2f} s")
    assert slowest < 2


@BOTH_ROUTINGS
def test_a_killed_node_is_disabled_then_removed_and_found_again(bed: Bed) -> None:
    a, b = bed.python(A), bed.python(B, NOTIFY)
    c = bed.c(C, NOTIFY)
    start(a, b, c)
    b.kill()
    killed = time.monotonic()
    wait_for(lambda: a.nodes().get(b.uri) == "disabled", 20, "A notices by its pings")
    print(f"noticed after {time.monotonic() - killed:.1f} s")
    wait_for(lambda: b.uri not in a.nodes(), 20, "A removes it (remove_inactive)")
    wait_for(lambda: names(a, b.uri) == ["dmq:peer-up", "dmq:peer-disabled"])
    b.start()
    wait_for(lambda: a.nodes().get(b.uri) == "active", 2)
    wait_for(lambda: names(a, b.uri)[-1] == "dmq:peer-up")
    assert len(names(a, b.uri)) == 3


def test_without_remove_inactive_a_dead_node_stays_listed_as_not_active(bed: Bed) -> None:
    a = bed.python(A, defines={"remove_inactive": 0})
    b = bed.python(B, NOTIFY)
    start(a, b)
    b.kill()
    wait_for(lambda: a.nodes().get(b.uri) == "not_active", 20)
    wait_for(lambda: names(a, b.uri) == ["dmq:peer-up", "dmq:peer-down"])


def test_fail_counts_take_a_dead_node_through_the_statuses_one_by_one(bed: Bed) -> None:
    a = bed.python(A, defines={"fail_count_enabled": 1, "fail_count_threshold_not_active": 1})
    b = bed.python(B, NOTIFY)
    start(a, b)
    b.kill()
    seen: list[str | None] = []

    def gone() -> bool:
        status = a.nodes().get(b.uri)
        if not seen or seen[-1] != status:
            seen.append(status)
        return status is None

    wait_for(gone, 60, "B has left the list")
    assert seen == ["active", "not_active", "disabled", None]
    wait_for(lambda: names(a, b.uri) == ["dmq:peer-up", "dmq:peer-down", "dmq:peer-disabled"])


def test_a_third_party_does_not_revive_a_dead_node(bed: Bed) -> None:
    a, b = bed.python(A), bed.python(B, NOTIFY)
    start(a, b)
    b.kill()
    wait_for(lambda: b.uri not in a.active(), 20)
    with SipSocket(D, 5060) as d:
        body = f"sip:{D}:5060;status=active\r\nsip:{B}:5060;status=active\r\n".encode()
        for _ in range(3):
            data = request(A, user="notification_peer", body=body, sender=f"{D}:5060", via=d.name)
            reply = d.ask(data, A)
            assert reply is not None and reply.code == 200
            assert b.uri not in a.active()


def test_news_is_passed_on_with_one_hop_less(bed: Bed) -> None:
    """A node that A did not know is told to B with Max-Forwards 1, of 2."""
    a = bed.python(A, defines={"ping_interval": 60})
    a.start()
    with SipSocket(B, 5060) as b:

        def tell(lines: str, max_forwards: str) -> None:
            data = request(
                A,
                user="notification_peer",
                body=lines.encode(),
                sender=f"{B}:5060",
                via=b.name,
                headers={"Max-Forwards": max_forwards},
            )
            b.send(data, A)

        def requests(seconds: float) -> list[bytes]:
            """The KDMQ requests that A sends B meanwhile; B answers them."""
            found = []
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0:
                data = b.receive(left)
                if data is not None and data.startswith(b"KDMQ"):
                    found.append(data)
                    head = data.split(b"\r\n\r\n")[0].split(b"\r\n")
                    kept = [h for h in head if h.split(b":")[0] in KEPT]
                    answer = b"\r\n".join([b"SIP/2.0 200 OK", *kept, b"Content-Length: 0"])
                    b.send(answer + b"\r\n\r\n", A)
            return found

        # As a C node does, which lists A: else A would introduce itself.
        known = f"sip:{B}:5060;status=active\r\nsip:{A}:5060;status=active\r\n"
        tell(known, "1")
        first = requests(0.5)
        assert [forwards(data) for data in first] == [1], b"\n".join(first).decode()
        tell(f"{known}sip:{C}:5060;status=active\r\n", "1")
        assert requests(0.5) == [], "Max-Forwards 1 ends here"
        tell(f"{known}sip:{D}:5060;status=active\r\n", "3")
        passed = requests(0.5)
        assert [forwards(data) for data in passed] == [2]
        assert f"sip:{D}:5060;status=active" in passed[0].decode()


KEPT = (b"Via", b"From", b"To", b"Call-ID", b"CSeq")


def forwards(data: bytes) -> int:
    reply = parse_reply(data.replace(data.split(b"\r\n")[0], b"SIP/2.0 200 OK", 1))
    return int(reply.headers["max-forwards"])


def test_a_slow_event_callback_loses_no_event_of_a_thousand_nodes(bed: Bed) -> None:
    """They come, and 8 s later they are down, while the first callback waits for something."""
    hold = bed.directory / "hold"
    hold.touch()
    wait = f"        while os.path.exists({str(hold)!r}):\n            time.sleep(0.05)\n"
    a = bed.python(
        A, script=SCRIPT.read_text().replace('        note("event"', f'{wait}        note("event"')
    )
    a.start()
    with SipSocket("127.0.0.9", 5060) as sip:
        for block in range(1, 3):
            hosts = [f"127.{block}.{number // 250}.{number % 250 + 1}" for number in range(500)]
            body = "".join(f"sip:{host}:5060;status=active\r\n" for host in hosts)
            data = request(A, user="notification_peer", body=body.encode(), sender="127.0.0.9:5060")
            assert sip.ask(data, A) is not None
    time.sleep(20)  # a reply that names a thousand nodes is too long to be asked for
    hold.unlink()
    for name in ("dmq:peer-up", "dmq:peer-disabled"):
        wait_for(lambda: len(a.events("event", name=name)) >= 1000, 40)  # noqa: B023
