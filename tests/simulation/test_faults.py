"""What the simulator can do to nodes and to the network between them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kemi_dmq.testing.network import Link, Network
from kemi_dmq.testing.simulated_node import RECEIVE_BUFFER
from kemi_dmq.testing.simulator import Simulator
from kemi_dmq.testing.sip_text import build_c_request
from kemi_dmq.testing.timeline import EPOCH, MAX_STEPS, Clock, Timeline
from kemi_dmq.testing.transcript import summary
from kemi_dmq.wire import Via, parse_uri

from .test_bus import A, B, C, build, whole_after

ROOT = Path(__file__).parents[2]


def network(seed: int = 1, **more: Any) -> Network:
    return Simulator(seed, **more)


def delays(net: Network, count: int = 2000, apart: float = 0.0) -> list[float]:
    """How long datagrams from A to B take; inf: lost."""
    found = []
    for number in range(count):
        now = number * apart
        arrivals = net.arrivals((A, 5060), (B, 5060), now, reliable=False)
        found.append(min(arrivals, default=float("inf")) - now)
    return found


# Network


def test_datagrams_of_a_link_do_not_overtake_each_other() -> None:
    times = delays(network(latency=(0.001, 0.5)), apart=0.001)
    arrivals = [number * 0.001 + time for number, time in enumerate(times)]
    assert arrivals == sorted(arrivals)
    assert min(times) >= 0.001 and max(times) <= 0.5 + 1e-9


def test_reordering_lets_others_overtake() -> None:
    times = delays(network(latency=(0.01, 0.01), reordering=0.2), apart=0.001)
    late = sum(time > 0.0101 for time in times)
    assert 300 < late < 500
    assert max(times) <= 0.05 + 1e-9


def test_loss_may_differ_for_each_direction_of_a_link() -> None:
    net = network()
    net.set_link(A, B, Link(loss=0.5))
    assert 900 < sum(time == float("inf") for time in delays(net)) < 1100
    for _ in range(200):
        assert net.arrivals((B, 5060), (A, 5060), 0.0, reliable=False)
    net.set_link(A, B)
    assert float("inf") not in delays(net)


def test_what_is_said_of_a_pair_goes_before_what_is_said_of_one_side() -> None:
    net = network(latency=(0.001, 0.001))
    net.set_link(None, B, Link(loss=1.0))
    net.set_link(A, None, Link(loss=0.0, latency=(0.002, 0.002)))
    net.set_link(A, B, Link(duplication=1.0))
    assert net.arrivals((A, 5060), (B, 5060), 0.0, reliable=False) == [0.002, 0.002]
    assert net.arrivals((C, 5060), (B, 5060), 0.0, reliable=False) == []


def test_over_tcp_only_a_cut_loses_anything() -> None:
    net = network(loss=1.0, duplication=1.0, reordering=1.0)
    assert len(net.arrivals((A, 5060), (B, 5060), 0.0, reliable=True)) == 1
    net.cut([[A], [B]])
    assert net.arrivals((A, 5060), (B, 5060), 0.0, reliable=True) == []


def test_a_cut_in_one_direction_lets_the_other_one_pass() -> None:
    simulator = build(1, (A, B))
    simulator.partition_one_way([A], [B])
    simulator.run(60)
    passed = [line for line in simulator.transcript if "lost" not in line]
    assert not any("10.0.0.1         -> 10.0.0.2" in line for line in passed)
    assert any("10.0.0.2         -> 10.0.0.1" in line for line in passed)
    simulator.heal()
    whole_after(simulator, 15)


def test_nodes_that_share_a_host_may_be_on_different_sides_of_a_cut() -> None:
    simulator = build(1, ("10.0.0.1:5070", "10.0.0.1:5080"))
    whole_after(simulator, 2)
    simulator.partition(["10.0.0.1:5070"], ["10.0.0.1:5080"])
    simulator.run(60)
    assert simulator.nodes_seen_by("10.0.0.1:5070")["10.0.0.1:5070"] == "active"
    assert simulator.nodes_seen_by("10.0.0.1:5070").get("10.0.0.1:5080") != "active"


def test_what_is_larger_than_a_datagram_is_lost() -> None:
    simulator = build(1, (A, B))
    via = Via("udp", B, 5060)
    uri = parse_uri(f"sip:acme@{A}")
    for size in (65_000, 66_000):
        text = build_c_request(via, "1", uri, uri, "x" * size, 1, "ua")
        simulator.transmit(parse_uri(f"sip:{B}"), (A, 5060), text)
    lost = ["(lost)" in line for line in simulator.transcript if "acme mf 1" in line]
    assert lost == [False, True]


# Nodes


def ask(simulator: Simulator, address: str, times: int) -> None:
    """Requests of A to a peer that nobody has."""
    uri = parse_uri(f"sip:nobody@{address}")
    for number in range(times):
        text = build_c_request(Via("udp", A, 5060), f"{number}", uri, uri, "", 1, "ua")
        simulator.transmit(parse_uri(f"sip:{A}"), (address, 5060), text)


def test_a_paused_node_says_nothing_and_works_everything_off_when_it_goes_on() -> None:
    simulator = build(1, (A, B, C))
    whole_after(simulator, 2)
    simulator.run(10)
    simulator.pause(B, 2.0)
    ask(simulator, B, 3)
    simulator.run(1.9)
    said = f"{B}         ->"
    assert not any(said in line for line in simulator.lines(since=10))
    simulator.run(0.2)
    lines = simulator.lines(since=11.9)
    assert sum(said in line and "404 nobody" in line for line in lines) == 3
    assert "goes on" in next(line for line in lines if line.split()[1] == B)


def test_a_paused_node_drops_what_its_buffer_does_not_hold() -> None:
    simulator = build(1, (A, B))
    whole_after(simulator, 2)
    simulator.run(3)  # they have told each other all
    simulator.pause(B)
    ask(simulator, B, RECEIVE_BUFFER + 10)
    simulator.run(0.1)
    assert 10 <= sum("its buffer is full" in line for line in simulator.transcript) < 20
    simulator.resume(B)
    simulator.run(0.1)
    assert simulator.python_node(B).counters["received"] >= RECEIVE_BUFFER


def test_a_paused_node_that_is_killed_or_stopped() -> None:
    simulator = build(1, (A, B, C))
    whole_after(simulator, 2)
    simulator.pause(B, 2.0)
    simulator.leave(B)
    assert simulator.node(B).alive, "a signal waits, too"
    simulator.pause(C, 2.0)
    simulator.kill(C)
    simulator.run(2.1)
    assert not simulator.node(B).alive
    assert simulator.nodes_seen_by(A)[B] == "not_active"
    simulator.restart(C)
    whole_after(simulator, 5)


def test_a_slow_node_takes_its_time_for_each_datagram() -> None:
    simulator = build(1, (A, B), latency=(0.001, 0.001))
    whole_after(simulator, 2)
    simulator.run(3)  # they have told each other all
    simulator.slow(B, 0.1)
    sent = simulator.now
    ask(simulator, B, 5)
    simulator.run(0.6)
    answers = [line for line in simulator.transcript if "404 nobody" in line]
    times = [round(float(line.split()[0]) - sent, 4) for line in answers]
    assert times == [0.101, 0.201, 0.301, 0.401, 0.501]


def test_a_node_with_a_slow_clock_probes_later() -> None:
    def probes(rate: float) -> int:
        simulator = Simulator(1)
        simulator.add_node(A)
        simulator.add_node(B, [A], clock=Clock(rate, offset=1e6))
        simulator.run(500)
        return sum("10.0.0.2         -> 10.0.0.1  KDMQ" in line for line in simulator.transcript)

    normal, slow = probes(1.0), probes(0.5)
    assert 0.4 < slow / normal < 0.6


def test_clocks() -> None:
    clock = Clock(rate=2.0, offset=100.0, wall=-5.0)
    assert clock.monotonic(10.0) == 120.0
    assert clock.wall(10.0) == EPOCH - 5.0 + 20.0
    assert clock.when(120.0) == 10.0
    clock.change_rate(0.5, 10.0)
    assert clock.monotonic(10.0) == 120.0 and clock.monotonic(12.0) == 121.0
    assert clock.when(121.0) == 12.0


def test_a_clock_that_goes_wrong_later_does_not_jump() -> None:
    simulator = build(1, (A, B))
    whole_after(simulator, 2)
    node = simulator.node(B)
    before = node.monotonic(), node.wall()
    simulator.skew(B, rate=1.5, wall=-3600.0)
    assert node.monotonic() == before[0]
    assert node.wall() == pytest.approx(before[1] - 3600.0)
    simulator.run(10)
    assert node.monotonic() == pytest.approx(before[0] + 15)
    simulator.restart(B)
    assert simulator.node(B).wall() == pytest.approx(before[1] - 3600.0 + 15)
    simulator.run(30)
    assert simulator.whole()


def test_all_faults_end_at_once() -> None:
    simulator = build(1, (A, B, C), loss=0.3, duplication=0.3, reordering=0.3)
    simulator.partition([A], [B])
    simulator.partition_one_way([B], [C])
    simulator.link(A, C, loss=1.0)
    simulator.pause(A)
    simulator.slow(B, 1.0)
    simulator.run(30)
    simulator.calm()
    whole_after(simulator, 30)
    before = len(simulator.transcript)
    simulator.run(10)
    assert not any("lost" in line or "twice" in line for line in simulator.transcript[before:])


# Time


def test_what_is_due_at_the_same_moment_runs_in_order() -> None:
    timeline = Timeline()
    done: list[int] = []
    for number in range(5):
        timeline.after(1.0, done.append, number)
    timeline.at(-1.0, done.append, 99)
    timeline.run(1.0)
    assert done == [99, 0, 1, 2, 3, 4] and timeline.now == 1.0


def test_time_that_does_not_go_on_is_noticed() -> None:
    timeline = Timeline()

    def again() -> None:
        timeline.after(0.0, again)

    again()
    with pytest.raises(RuntimeError, match="time does not go on"):
        timeline.run(1.0)
    assert timeline._same_moment > MAX_STEPS


def test_many_nodes_leave_few_alarms_behind() -> None:
    simulator = build(1, [f"10.0.1.{n}" for n in range(1, 31)])
    simulator.run(100)
    assert len(simulator._due) < 10 * 30


# Transcripts


def test_without_records_there_is_no_transcript_and_all_else_is_the_same() -> None:
    def told(records: bool) -> list[tuple[str, str]]:
        simulator = Simulator(3, loss=0.2, records=records)
        simulator.add_node(A)
        simulator.add_node(B, [A])
        simulator.run(30)
        simulator.kill(A)
        simulator.run(30)
        assert bool(simulator.transcript) is records
        return simulator.node(B).told

    assert told(True) == told(False) != []


PROGRAM = """
import hashlib
from kemi_dmq.testing.schedule import random_scenario
for seed in (3, 38):
    lines = random_scenario(seed).run().transcript
    print(len(lines), hashlib.sha256("\\n".join(lines).encode()).hexdigest())
"""


def test_transcripts_do_not_depend_on_the_hash_seed() -> None:
    outputs = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for hash_seed in ("0", "1", "4711")
    }
    assert len(outputs) == 1 and len(outputs.pop().splitlines()) == 2


def message(first: str, content_type: str, body: str, to: str = "notification_peer") -> str:
    return (
        f"{first}\r\nTo: <sip:{to}@{A}:5060>\r\nMax-Forwards: 1\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    )


KDMQ = f"KDMQ sip:notification_peer@{A}:5060 SIP/2.0"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            message(
                KDMQ, "text/plain", f"sip:{A}:5060;status=active\r\nsip:{B}:5070;status=timeout\r\n"
            ),
            f"KDMQ mf 1 [{A}, {B}:5070 timeout]",
        ),
        (
            message(
                KDMQ,
                "application/kemi-dmq-membership",
                "digest=0011223344;n=3\r\n"
                f"sip:{A}:5060;transport=tls;status=suspect;inc={int(EPOCH) * 1000 + 17}\r\n"
                f"sip:{B}:5060;status=active;inc=4;by={A}\r\n",
            ),
            f"KDMQ mf 1 membership [digest=0011223344;n=3, {A} suspect inc=17, {B} inc=4 by={A}]",
        ),
        (
            message("SIP/2.0 200 OK", "application/kemi-dmq-membership", "x" * 60),
            f"200 membership [{'x' * 37}...]",
        ),
        (
            message(KDMQ, "text/plain", "garbage\r\nsip:[x]:1;status=active"),
            "KDMQ mf 1 [garbage, ?]",
        ),
        (
            message(f"KDMQ sip:acme@{A}:5060 SIP/2.0", "text/plain", "hello\r\n"),
            "KDMQ acme mf 1 'hello'",
        ),
        (message("SIP/2.0 404 User Not Found", "", "", "acme"), "404 acme"),
        (message("SIP/2.0 403 Forbidden", "", ""), "403 []"),
    ],
)
def test_a_message_in_one_line(text: str, line: str) -> None:
    assert summary(text) == line


@pytest.mark.parametrize("years", [-20, 20])
def test_a_node_whose_clock_was_wrong_by_years_at_its_start_is_on_the_bus(years: int) -> None:
    """A machine without a battery starts in 1970."""
    simulator = Simulator(1, records=False)
    for host in ("10.0.0.1", "10.0.0.2", "10.0.0.3"):
        simulator.add_node(host, ["10.0.0.1"])
    assert simulator.run_until(simulator.whole, 10)
    simulator.kill("10.0.0.3")
    simulator.run(20)
    simulator.skew("10.0.0.3", wall=years * 366 * 86_400)
    simulator.restart("10.0.0.3")
    assert simulator.run_until(simulator.whole, 60)


def test_init_runs_for_a_node_that_has_lost_its_state_before_it_was_missed() -> None:
    """A supervisor starts a crashed node again within a second."""
    simulator = Simulator(1, records=False)
    for host in ("10.0.0.1", "10.0.0.2", "10.0.0.3"):
        simulator.add_node(host, ["10.0.0.1"])
    assert simulator.run_until(simulator.whole, 10)
    simulator.run(2)
    other = simulator.python_node("10.0.0.2")
    already = len(other.told)
    simulator.kill("10.0.0.3")
    simulator.run(1)
    simulator.restart("10.0.0.3")
    simulator.run(30)
    assert ("init", "10.0.0.3") in other.told[already:]
