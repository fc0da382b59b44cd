"""Membership, in transcripts that can be read: tests/simulation/golden/*.txt.

``make golden`` writes them anew after a change of the protocol; read what git diff shows.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kemi_dmq.testing.simulator import Simulator

A, B, C, D = (f"10.0.0.{n}" for n in range(1, 5))
GOLDEN = Path(__file__).parent / "golden"
WRITES = os.environ.get("KEMI_DMQ_GOLDEN") == "write"

Story = Callable[[], list[str]]
STORIES: dict[str, Story] = {}


def story(function: Story) -> Story:
    STORIES[function.__name__] = function
    return function


def bus_of(*addresses: str) -> Simulator:
    """The first one is everybody's notification address.  Every datagram takes 1 ms."""
    simulator = Simulator(1, latency=(0.001, 0.001))
    for address in addresses:
        simulator.add_node(address, addresses[:1])
    return simulator


def joined(*addresses: str) -> Simulator:
    simulator = bus_of(*addresses)
    assert simulator.run_until(simulator.whole, 5)
    simulator.run(10 - simulator.now)
    return simulator


@story
def join() -> list[str]:
    """Two nodes start, and a third one ten seconds later."""
    simulator = joined(A, B)
    simulator.add_node(C, [A])
    simulator.run(0.1)
    return simulator.lines(until=1) + simulator.lines(since=10)


@story
def leave() -> list[str]:
    """A node of three is stopped: it says so."""
    simulator = joined(A, B, C)
    simulator.leave(C)
    simulator.run(3)
    return simulator.lines(since=10)


@story
def death() -> list[str]:
    """A node of three is killed."""
    simulator = joined(A, B, C)
    simulator.kill(C)
    simulator.run_until(simulator.whole, 60)
    simulator.run(0.1)
    return simulator.lines(since=10)


@story
def come_back() -> list[str]:
    """A node that was killed is started again a minute later."""
    simulator = joined(A, B, C)
    simulator.kill(C)
    simulator.run(60)
    simulator.restart(C)
    simulator.run(1)
    return simulator.lines(datagrams=False, since=10, until=70) + simulator.lines(since=70)


@story
def partition() -> list[str]:
    """Two and two nodes cannot reach each other for 30 s; only changes, then all until they have
    found each other."""
    simulator = joined(A, B, C, D)
    simulator.partition([A, B], [C, D])
    simulator.run(30)
    simulator.heal()
    simulator.run_until(simulator.whole, 30)
    simulator.run(0.1)
    return simulator.lines(datagrams=False, since=10, until=40) + simulator.lines(since=40)


@story
def c_node() -> list[str]:
    """A node with the C module of Kamailio 6.1 joins two Python nodes; one of these leaves."""
    simulator = joined(A, B)
    simulator.add_node(C, [A], python=False)
    simulator.run(10)
    simulator.leave(B)
    simulator.run(0.1)
    return simulator.lines(since=10, until=10.5) + simulator.lines(since=20)


@pytest.mark.parametrize("name", STORIES)
def test_transcript(name: str) -> None:
    story = STORIES[name]
    title = " ".join((story.__doc__ or "").split())
    text = "\n".join([f"# {title}", *story(), ""])
    path = GOLDEN / f"{name}.txt"
    if WRITES:
        path.write_text(text)
    kept = path.read_text() if path.exists() else ""
    if text != kept:
        change = difflib.unified_diff(
            kept.splitlines(), text.splitlines(), "kept", "now", "", "", 1
        )
        pytest.fail(f"{path.name} differs ('make golden' writes it anew):\n" + "\n".join(change))


def test_there_is_no_transcript_without_a_story() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(STORIES)
