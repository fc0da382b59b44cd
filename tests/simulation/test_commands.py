"""The operator's commands on whole buses, in virtual time."""

from __future__ import annotations

import pytest

from kemi_dmq.engine import command_event

from .test_bus import A, B, C, D, build, python_node, whole_after


def test_an_added_node_joins_two_buses_that_know_nothing_of_each_other() -> None:
    simulator = build(1, (A, B))
    simulator.add_node(C)
    simulator.add_node(D, [C])
    simulator.run(5)
    assert not simulator.whole()
    python_node(simulator, B).put(command_event("add", f"sip:{D}:5060"))
    whole_after(simulator, 10)


@pytest.mark.parametrize("command", ["remove", "disabled", "not_active"])
def test_what_a_command_did_to_a_living_node_ends_within_a_ping_interval(command: str) -> None:
    simulator = build(1, (A, B, C))
    whole_after(simulator, 2)
    simulator.run(20)
    arguments = ("remove",) if command == "remove" else ("change_status", command)
    event = command_event(arguments[0], f"sip:{C}:5060", *arguments[1:])
    python_node(simulator, A).put(event)
    simulator.run(0.01)
    assert simulator.nodes_seen_by(A).get(C) == (None if command == "remove" else command)
    assert simulator.nodes_seen_by(B)[C] == "active", "nobody else is told"
    interval = python_node(simulator, A).settings.ping_interval
    whole_after(simulator, interval + 0.1)
    told = [event for event, node in python_node(simulator, A).told if node == C]
    down = "dmq:peer-down" if command == "not_active" else "dmq:peer-disabled"
    assert [event for event in told if event != "init"] == ["dmq:peer-up", down, "dmq:peer-up"]
    simulator.run(60)
    assert simulator.whole()


def test_a_dead_node_that_is_removed_stays_away() -> None:
    simulator = build(1, (A, B, C))
    whole_after(simulator, 2)
    simulator.leave(C)
    simulator.run(0.1)
    for address in (A, B):
        python_node(simulator, address).put(command_event("remove", f"sip:{C}:5060"))
    simulator.run(0.1)
    for _ in range(300):
        simulator.run(1)
        assert C not in {**simulator.nodes_seen_by(A), **simulator.nodes_seen_by(B)}
    simulator.restart(C)
    whole_after(simulator, 2)
