"""Whole buses in virtual time, with the real engine and the real bus."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kemi_dmq.testing.simulated_c import SimulatedCNode
from kemi_dmq.testing.simulated_python import SimulatedPythonNode
from kemi_dmq.testing.simulator import Simulator
from kemi_dmq.testing.sip_text import parse
from kemi_dmq.wire import parse_uri

A, B, C, D = (f"10.0.0.{n}" for n in range(1, 5))
PEERS = (A, B, C, D)


def build(seed: int, addresses: Iterable[str], **more: Any) -> Simulator:
    """Python nodes that all have the first one as notification address."""
    simulator = Simulator(seed, **more)
    first, *others = addresses
    simulator.add_node(first)
    for address in others:
        simulator.add_node(address, [first])
    return simulator


def whole_after(simulator: Simulator, seconds: float) -> float:
    """How long it takes until all nodes list each other."""
    before = simulator.now
    assert simulator.run_until(simulator.whole, seconds), "\n".join(simulator.transcript[-60:])
    return simulator.now - before


def python_node(simulator: Simulator, address: str) -> SimulatedPythonNode:
    return simulator.python_node(address)


# Joining


@pytest.mark.parametrize("order", list(itertools.permutations(PEERS[:3])), ids="-".join)
def test_nodes_find_each_other_in_any_order_of_start(order: tuple[str, ...]) -> None:
    simulator = Simulator(1)
    for address in order:
        simulator.add_node(address, [A])
        simulator.run(3)
    assert whole_after(simulator, 2) < 2
    assert simulator.nodes_seen_by(C) == {A: "active", B: "active", C: "active"}


def test_thirty_nodes_that_start_at_once_are_whole_within_a_second() -> None:
    simulator = build(3, [f"10.0.1.{n}" for n in range(1, 31)])
    assert whole_after(simulator, 1) < 1


def test_a_late_notification_node_is_found_within_two_seconds() -> None:
    simulator = Simulator(1)
    simulator.add_node(B, [A])
    simulator.add_node(C, [A])
    simulator.run(60)
    simulator.add_node(A)
    assert whole_after(simulator, 2) < 2


def test_a_notification_address_may_be_a_name_that_comes_later() -> None:
    simulator = Simulator(1)
    simulator.add_node(A)
    simulator.add_node(B, ["bus.example"])
    simulator.run(5)
    assert not simulator.whole()
    simulator.names["bus.example"] = [A]
    assert whole_after(simulator, 2) < 2


def test_init_runs_once_with_the_first_list_and_again_for_who_comes_back() -> None:
    simulator = build(1, (A, B))
    simulator.run(20)
    node = python_node(simulator, B)
    assert node.told == [("dmq:peer-up", A), ("init", A)]
    simulator.kill(A)
    simulator.run(30)
    simulator.restart(A)
    simulator.run(10)
    assert node.told[2:] == [("dmq:peer-down", A), ("dmq:peer-up", A), ("init", A)]


# Leaving, dying, coming back


@pytest.mark.parametrize("leaver", [A, B])
def test_a_leave_is_known_everywhere_at_once(leaver: str) -> None:
    simulator = build(1, PEERS[:3])
    simulator.run(2)
    simulator.leave(leaver)
    simulator.run(0.1)
    for address in {A, B, C} - {leaver}:
        assert simulator.nodes_seen_by(address)[leaver] == "not_active"


def test_a_node_that_left_and_is_back_is_known_at_once() -> None:
    simulator = build(1, PEERS[:3])
    whole_after(simulator, 2)
    simulator.leave(B)
    simulator.run(1)
    simulator.restart(B)
    assert whole_after(simulator, 1) < 1


def test_a_death_is_seen_within_a_ping_and_its_patience() -> None:
    simulator = build(1, PEERS[:3])
    whole_after(simulator, 2)
    simulator.run(20)
    simulator.kill(C)
    assert whole_after(simulator, 14) < 5 + 8 + 0.1


def test_a_lost_datagram_demotes_nobody() -> None:
    simulator = build(1, PEERS[:3])
    whole_after(simulator, 2)
    simulator.loss = 0.05
    for _ in range(200):
        simulator.run(1)
        assert simulator.whole()
    assert any("(lost)" in line for line in simulator.transcript)


def test_an_engine_that_fails_starts_again_with_its_nodes() -> None:
    simulator = build(1, PEERS[:3])
    whole_after(simulator, 2)
    simulator.run(10)
    node = python_node(simulator, B)
    told = list(node.told)
    node.engine_fails()
    assert simulator.whole()
    simulator.run(30)
    assert simulator.whole() and node.told == told


# Cuts


@pytest.mark.parametrize("seconds", [20, 90, 300])
def test_a_cut_heals_within_some_seconds_whatever_its_length(seconds: float) -> None:
    simulator = build(1, PEERS)
    whole_after(simulator, 2)
    simulator.partition([A, B], [C, D])
    simulator.run(seconds)
    assert {h for h, s in simulator.nodes_seen_by(A).items() if s == "active"} == {A, B}
    assert {h for h, s in simulator.nodes_seen_by(D).items() if s == "active"} == {C, D}
    simulator.heal()
    assert whole_after(simulator, 12) < 12


def test_a_cut_heals_also_where_each_side_has_its_own_notification_node() -> None:
    simulator = Simulator(2)
    simulator.add_node(A)
    simulator.add_node(C, [A])
    simulator.add_node(B, [A])
    simulator.add_node(D, [C])
    whole_after(simulator, 2)
    simulator.partition([A, B], [C, D])
    simulator.run(200)
    simulator.heal()
    assert whole_after(simulator, 12) < 12


# C nodes


@pytest.mark.parametrize("version", [(5, 6), (5, 8), (6, 0), (6, 1)])
def test_python_and_c_nodes_live_on_one_bus_and_stop_none(version: tuple[int, int]) -> None:
    simulator = Simulator(1)
    simulator.add_node(A)
    simulator.add_node(B, [A], python=False, version=version)
    simulator.add_node(C, [A])
    simulator.add_node(D, [B], python=False, version=version)
    whole_after(simulator, 12)
    simulator.run(60)
    assert simulator.whole()
    simulator.leave(C)
    simulator.run(5)
    assert simulator.nodes_seen_by(B)[C] != "active"
    simulator.restart(C)
    whole_after(simulator, 1)
    simulator.run(60)
    assert simulator.whole() and simulator.stuck() == {}


def test_a_c_node_on_a_bus_of_forty_keeps_working() -> None:
    simulator = build(1, [f"10.0.1.{n}" for n in range(1, 41)])
    whole_after(simulator, 1)
    simulator.add_node("10.0.1.41", ["10.0.1.1"], python=False, version=(5, 6))
    simulator.run(7)
    assert simulator.stuck() == {}
    for n in range(1, 41):
        assert simulator.nodes_seen_by(f"10.0.1.{n}")["10.0.1.41"] == "active"


@pytest.mark.parametrize("spacing", [0.0, 0.02, 1.0])
@pytest.mark.parametrize("contact", ["a Python node", "a C node"])
@pytest.mark.parametrize(("when", "c_nodes"), [("first", 1), ("first", 3), ("last", 3)])
def test_forty_python_nodes_in_any_order_stop_no_c_node(
    when: str, c_nodes: int, contact: str, spacing: float
) -> None:
    """Each one could be the one too many for a C node, which stops working then."""
    hosts = [f"10.0.1.{n}" for n in range(1, 41)]
    random.Random(c_nodes).shuffle(hosts)
    cs = [f"10.0.2.{n}" for n in range(1, c_nodes + 1)]
    first = cs[0] if contact == "a C node" else hosts[0]
    simulator = Simulator(3, records=False)
    for host in [*cs, *hosts] if when == "first" else [*hosts, *cs]:
        contacts = [] if host == first and host in hosts else [first]
        if host in hosts:
            simulator.add_node(host, contacts)
        else:
            simulator.add_node(host, contacts, python=False, version=(5, 6))
        simulator.run(spacing)
    simulator.run(15)
    assert simulator.stuck() == {}
    everyone = {*hosts, *cs}
    for host in hosts:
        seen = simulator.nodes_seen_by(host)
        assert {h for h, status in seen.items() if status == "active"} == everyone
    for host in cs:
        seen = simulator.nodes_seen_by(host)
        assert len([h for h in seen if h in hosts]) >= 19, "as many as it has room for"
    # A C node that starts again knows none of them; nodes go and come.
    simulator.restart(cs[0])
    for number, host in enumerate(hosts[1:8]):
        simulator.leave(host)
        simulator.add_node(f"10.0.1.{50 - number}", [first])
        simulator.run(1)
    simulator.run(40)
    assert simulator.stuck() == {}


@pytest.mark.parametrize("pythons", [1, 3])
@pytest.mark.parametrize("away", [None, 0.5, 30.0], ids=str)
def test_a_c_node_that_comes_or_is_back_has_somebody_to_ask_for_state(
    away: float | None, pythons: int
) -> None:
    """It asks once, at the first notification that reaches it."""
    for seed in range(5):
        simulator = Simulator(seed, records=False, latency=(0.0002, 0.003))
        hosts = [f"10.0.1.{n}" for n in range(1, pythons + 1)]
        for host in hosts:
            # If it comes later it knows the first of them, else all of them know it.
            first = "10.0.2.1" if away is not None else hosts[0]
            simulator.add_node(host, [first])
        simulator.run(3)
        contacts = [] if away is not None else [hosts[0]]
        simulator.add_node("10.0.2.1", contacts, python=False)
        simulator.run(10)
        if away is not None:
            simulator.kill("10.0.2.1")
            simulator.run(away)
            simulator.restart("10.0.2.1")
            simulator.run(15)
        node = simulator.node("10.0.2.1")
        assert isinstance(node, SimulatedCNode)
        assert node.asked_for_state and node.asked_for_state >= 1, seed


def test_forty_c_nodes_alone_stop_as_they_do_in_reality() -> None:
    simulator = Simulator(1)
    simulator.add_node("10.0.1.1", python=False)
    for n in range(2, 41):
        simulator.add_node(f"10.0.1.{n}", ["10.0.1.1"], python=False)
    simulator.run(5)
    assert simulator.stuck() and "bytes" in next(iter(simulator.stuck().values()))


def test_the_c_model_stops_at_a_bad_line_up_to_5_8_only() -> None:
    for version, stops in (((5, 6), True), ((6, 0), False)):
        simulator = Simulator(1)
        node = simulator.add_node(A, python=False, version=version)
        assert isinstance(node, SimulatedCNode)
        text = (
            f"KDMQ sip:notification_peer@{A}:5060 SIP/2.0\r\nFrom: <sip:n@{B}>\r\n"
            "Max-Forwards: 1\r\nContent-Length: 7\r\n\r\ngarbage"
        )
        simulator.transmit(parse_uri(f"sip:{B}"), node.uri.key, text)
        simulator.run(1)
        assert bool(simulator.stuck()) is stops


# Any seed


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    python=st.lists(st.booleans(), min_size=2, max_size=5),
    loss=st.sampled_from([0.0, 0.1, 0.4]),
    duplication=st.sampled_from([0.0, 0.3]),
)
def test_when_the_loss_ends_all_nodes_list_each_other(
    seed: int, python: list[bool], loss: float, duplication: float
) -> None:
    simulator = Simulator(seed, loss=loss, duplication=duplication, latency=(0.0001, 0.3))
    for number, is_python in enumerate(python):
        simulator.add_node(PEERS_OF_FIVE[number], PEERS_OF_FIVE[:1], is_python, (5, 6))
        simulator.run(0.5)
    simulator.run(60)
    simulator.loss = 0.0
    # A C node that has disabled another one hears of it at its own next ping, and an unanswered
    # request holds it up for 30 s.
    whole_after(simulator, 30 if all(python) else 90)
    assert simulator.stuck() == {}


PEERS_OF_FIVE = tuple(f"10.0.0.{n}" for n in range(1, 6))


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["kill", "leave", "restart", "cut", "heal", "fail"]),
            st.integers(0, 3),
            st.sampled_from([0.05, 1.0, 7.0, 40.0]),
        ),
        max_size=8,
    ),
)
def test_whatever_happened_the_nodes_that_run_find_each_other(
    seed: int, steps: list[tuple[str, int, float]]
) -> None:
    simulator = Simulator(seed, loss=0.05, duplication=0.05)
    for address in PEERS:
        simulator.add_node(address, [A, B])
    for what, number, seconds in steps:
        node = python_node(simulator, PEERS[number])
        if what == "cut":
            simulator.partition(PEERS[: number + 1], PEERS[number + 1 :])
        elif what == "heal":
            simulator.heal()
        elif what == "restart":
            simulator.restart(PEERS[number])
        elif node.alive:
            if what == "fail":
                node.engine_fails()
            else:
                getattr(simulator, what)(PEERS[number])
        simulator.run(seconds)
        for other in PEERS:
            assert simulator.nodes_seen_by(other)[other] == "active"
    simulator.loss = 0.0
    simulator.heal()
    for address in (A, B):
        if not simulator.node(address).alive:
            simulator.restart(address)
    whole_after(simulator, 40)
    simulator.run(30)
    assert simulator.whole(), "it stays whole"


def test_the_same_seed_gives_the_same_transcript() -> None:
    def transcript(seed: int) -> list[str]:
        simulator = build(seed, PEERS, loss=0.2, duplication=0.1)
        simulator.run(30)
        return simulator.transcript

    assert transcript(1) == transcript(1) != transcript(2)


def test_an_idle_bus_sends_a_probe_for_each_node_and_interval_only() -> None:
    simulator = build(1, PEERS)
    simulator.run(10)
    before = len(simulator.transcript)
    simulator.run(100)
    requests = [line for line in simulator.transcript[before:] if "KDMQ" in line]
    assert 0.9 <= len(requests) / (len(PEERS) * 100 / 0.9) <= 1.05


def test_sip_texts_with_a_wrong_length_are_refused() -> None:
    with pytest.raises(ValueError, match="Content-Length"):
        parse("SIP/2.0 200 OK\r\nContent-Length: 5\r\n\r\nfour")
