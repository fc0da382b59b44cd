"""Buses with keys, in virtual time."""

from __future__ import annotations

from typing import Any

import pytest

from kemi_dmq.peer import Peer
from kemi_dmq.testing.simulated_python import SimulatedPythonNode
from kemi_dmq.testing.simulator import Simulator

A, B, C, D = (f"10.0.0.{n}" for n in range(1, 5))
KEYS: dict[str, Any] = {"keys": "k1:a-secret-of-the-bus"}


def active(simulator: Simulator, address: str) -> set[str]:
    seen = simulator.nodes_seen_by(address)
    return {node for node, status in seen.items() if status == "active"}


@pytest.mark.parametrize("seed", range(5))
def test_a_bus_with_a_key_is_whole_and_heals_on_a_bad_network(seed: int) -> None:
    simulator = Simulator(seed, loss=0.1, duplication=0.1)
    for address in (A, B, C, D):
        simulator.add_node(address, [A], **KEYS)
    assert simulator.run_until(simulator.whole, 10)
    simulator.run(60)
    assert simulator.run_until(simulator.whole, 20)
    for address in (A, B, C, D):
        node = simulator.node(address)
        assert isinstance(node, SimulatedPythonNode)
        assert node.counters["not_signed"] == node.counters["replays"] == 0


def test_who_has_another_key_or_none_stays_outside() -> None:
    simulator = Simulator(1)
    for address in (A, B):
        simulator.add_node(address, [A], **KEYS)
    simulator.add_node(C, [A], keys="k1:another-secret-here")
    simulator.add_node(D, [A])
    simulator.run(30)
    assert active(simulator, A) == active(simulator, B) == {A, B}
    assert active(simulator, C) == {C}


def test_clocks_may_differ_by_less_than_the_window() -> None:
    simulator = Simulator(1)
    simulator.add_node(A, **KEYS)
    for address, ahead in ((B, 50.0), (C, -50.0), (D, 200.0)):
        node = simulator.add_node(address, [A], **KEYS)
        assert isinstance(node, SimulatedPythonNode)
        simulator.skew(address, wall=ahead)
    # What C signs seems to be older than the others' start for 50 s: it may be a replay.
    simulator.run(70)
    assert active(simulator, A) == {A, B, C}  # D's messages come from the future


def test_two_nodes_that_know_a_c_node_alone_find_each_other_and_nobody_else() -> None:
    simulator = Simulator(1)
    more: dict[str, Any] = {**KEYS, "unsigned_networks": C}
    simulator.add_node(C, python=False)
    simulator.add_node(D, [C])  # has no key; the C node believes it
    simulator.add_node(A, [C], **more)
    simulator.add_node(B, [C], **more)
    simulator.run(30)
    assert active(simulator, C) == {A, B, C, D}
    assert active(simulator, A) == active(simulator, B) == {A, B, C}


def test_a_node_outside_of_the_allowed_networks_is_not_taken_up_from_others_lists() -> None:
    """A C node believes anybody and tells of him; our messages would go to him."""
    simulator = Simulator(1)
    outsider = "192.0.2.66"
    simulator.add_node(C, python=False)
    simulator.add_node(A, [C])  # by default: private addresses
    simulator.run(5)
    simulator.add_node(outsider, [C], allowed_networks="0.0.0.0/0")
    simulator.run(30)
    assert outsider in active(simulator, C)
    assert active(simulator, A) == {A, C}


def test_a_kept_message_reaches_a_node_that_starts_again_though_clocks_differ_a_little() -> None:
    """For some seconds it refuses what was signed before its start: no answer of the peer."""
    got: list[str] = []
    simulator = Simulator(1, records=False)

    def script(node: SimulatedPythonNode) -> Peer:
        return node.api.register_dmq_peer(Peer("acme", "", lambda m, n: got.append(m.body)))

    for address in (A, B):
        simulator.add_node(address, [A], script=script, remove_inactive=0, **KEYS)
    simulator.skew(B, wall=5.0)
    assert simulator.run_until(simulator.whole, 10)
    sender = simulator.python_node(A)
    simulator.kill(B)
    simulator.run(30)
    away = sender.api.find_dmq_node_uri(f"sip:{B}:5060")
    assert away is not None
    assert sender.api.send_message(sender.script, "kept", away, deadline=300) == 0
    simulator.restart(B)
    simulator.run(60)
    assert got == ["kept"], sender.outcomes
