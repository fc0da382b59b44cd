"""Buses on a network that loses packets, of each generation of Kamailio and mixed, side by side."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from functools import partial

from tests.support.kamailio import wait_for

from .conftest import Clock
from .containers import AnyNode, Bus, PythonContainer
from .network import lose, spared, start_quickly
from .test_bed import VARIANTS, views, whole
from .test_partition import AWAY, Maker

#: A transaction's last copy of a message goes out some 28 s after the first.
DELIVERY = 35


def make(bus: Bus, variant: str) -> list[AnyNode]:
    maker = Maker(bus, variant)
    a = maker.python(f"{variant}-a")
    others = [maker.python(f"{variant}-{name}", a.name) for name in "bc"]
    count = len(VARIANTS[variant][1])
    return [a, *others, *(maker.c(f"{variant}-x{n}", a, n) for n in range(count))]


def losses(nodes: Sequence[AnyNode], since: float) -> list[str]:
    """What the Python nodes were told of nodes that are away."""
    return [
        f"{node.name}: {event['name']} {event['node']}"
        for node in nodes
        if isinstance(node, PythonContainer)
        for event in node.events("event")
        if event["time"] >= since and event["name"] in AWAY
    ]


def stream(nodes: Sequence[AnyNode], what: str, seconds: float) -> dict[str, set[str]]:
    """Broadcasts from one node after the other; the bodies that each of them has sent."""
    sent: dict[str, set[str]] = {node.name: set() for node in nodes}
    clock = Clock()
    for number, node in zip(itertools.count(), itertools.cycle(nodes)):
        if clock.seconds > seconds:
            return sent
        body = f"{what} {number} from {node.name}"
        assert node.bcast(body), f"{node.name} takes a message"
        sent[node.name].add(body)
        time.sleep(0.03)
    raise AssertionError


def missed(nodes: Sequence[AnyNode], sent: dict[str, set[str]]) -> dict[str, list[str]]:
    """What nodes of one bus have not got of each other's messages."""
    found = {}
    for node in nodes:
        due = set().union(*(sent[other.name] for other in nodes if other is not node))
        if lost := due - set(node.heard()):
            found[node.name] = sorted(lost)[:5]
    return found


def all_arrive(nodes: Sequence[AnyNode], sent: dict[str, set[str]]) -> bool:
    return not missed(nodes, sent)


def why_not(nodes: Sequence[AnyNode], sent: dict[str, set[str]], since: float) -> str:
    return f"all arrive: {missed(nodes, sent)}; taken for away: {losses(nodes, since)}"


def test_packet_loss(bus: Bus) -> None:
    buses = {variant: make(bus, variant) for variant in VARIANTS}
    everyone = [node for nodes in buses.values() for node in nodes]
    start_quickly(everyone)
    for nodes in buses.values():
        wait_for(partial(whole, nodes), 20, views(nodes))

    began = time.time()
    lose(everyone, 0.05)
    sent_at_5 = stream(everyone, "5 %", 60)
    assert losses(everyone, began) == [], "nobody was taken for dead at 5 %"
    for nodes in buses.values():
        assert whole(nodes), views(nodes)()

    assert spared(everyone) == []
    at_20 = time.time()
    lose(everyone, 0.2)
    sent_at_20 = stream(everyone, "20 %", 20)

    for sent in (sent_at_5, sent_at_20):
        assert min(len(bodies) for bodies in sent.values()) > 5
        for nodes in buses.values():
            wait_for(
                partial(all_arrive, nodes, sent),
                DELIVERY,
                partial(why_not, nodes, sent, at_20),
            )
    for node in everyone:
        assert node.sent_twice() == [], node.name
    count = sum(len(bodies) for sent in (sent_at_5, sent_at_20) for bodies in sent.values())
    print(f"{count} broadcasts; taken for away at 20 %: {losses(everyone, at_20)}")
