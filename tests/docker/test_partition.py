"""A bus that is cut for 90 s and heals by itself, on each generation of Kamailio and mixed.

The scenarios of one variant run side by side, on one Docker network: nodes of different buses do
not know of each other.

A C node removes whom it cannot reach after some 35 s and then pings its notification node alone.
It takes the others back because Python nodes go on to ping it, with a list: their ping is a
notification.  Two C nodes of different sides find each other through these lists, too.  Without a
Python node they would stay apart where each side has its notification node; no bus here is so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import pytest

from tests.support.kamailio import wait_for

from .conftest import Clock
from .containers import AnyNode, Bus, CContainer, PythonContainer
from .network import cut, heal, spared, start_quickly
from .test_bed import VARIANTS, views, whole

#: How long the network is cut.  A C node has given up who is away after some 35 s.
CUT = 90.0
#: Small: some sixty containers may run at once.
SMALL = {"KAMAILIO_CHILDREN": "2", "KAMAILIO_SHM_MB": "32"}
AWAY = ("dmq:peer-down", "dmq:peer-disabled")


@dataclass
class Scenario:
    """A bus, and its two sides while it is cut."""

    name: str
    sides: tuple[list[AnyNode], list[AnyNode]]

    @property
    def nodes(self) -> list[AnyNode]:
        return self.sides[0] + self.sides[1]

    @property
    def pythons(self) -> list[PythonContainer]:
        return [node for node in self.nodes if isinstance(node, PythonContainer)]

    def side_of(self, node: AnyNode) -> list[AnyNode]:
        return self.sides[0] if node in self.sides[0] else self.sides[1]

    def other_side(self, node: AnyNode) -> list[AnyNode]:
        return self.sides[1] if node in self.sides[0] else self.sides[0]

    def whole(self) -> bool:
        return whole(self.nodes)

    def python_nodes_whole(self) -> bool:
        return whole(self.nodes, self.pythons)

    def apart(self) -> bool:
        """Whether each node lists exactly its own side as active."""
        return all(whole(side) for side in self.sides)

    def python_nodes_apart(self) -> bool:
        return all(
            whole(side, [node for node in side if node in self.pythons]) for side in self.sides
        )

    def views(self) -> str:
        return f"{self.name}: {views(self.nodes)()}"


class Maker:
    """Makes the nodes of one scenario after the other."""

    def __init__(self, bus: Bus, variant: str) -> None:
        self._bus = bus
        self._suites, self._c_suites = VARIANTS[variant]
        self._made = 0

    def python(self, name: str, notification: str = "") -> PythonContainer:
        """notification: names of nodes."""
        suite = self._suites[self._made % len(self._suites)]
        self._made += 1
        addresses = ",".join(f"sip:{other}:5060" for other in notification.split())
        return self._bus.python(name, suite, DMQ_NOTIFICATION_ADDRESS=addresses, **SMALL)

    def c(self, name: str, notification: AnyNode, number: int = 0) -> CContainer:
        suite = self._c_suites[number % len(self._c_suites)]
        return self._bus.c(name, suite, DMQ_NOTIFICATION_ADDRESS=notification.uri, **SMALL)


def scenarios(bus: Bus, variant: str) -> list[Scenario]:
    make = Maker(bus, variant)
    found = []

    a = make.python("one-a")
    b, c = make.python("one-b", "one-a"), make.python("one-c", "one-a")
    found.append(Scenario("one node", ([b], [a, c, make.c("one-x", a)])))

    a = make.python("notified-a")
    b, c = make.python("notified-b", "notified-a"), make.python("notified-c", "notified-a")
    x = make.c("notified-x", a, 1)
    found.append(Scenario("the notification node", ([a], [b, c, x])))

    a = make.python("half-a")
    b, c, d = (make.python(f"half-{name}", "half-a") for name in "bcd")
    x, y = make.c("half-x", a), make.c("half-y", a, 1)
    found.append(Scenario("half, one notification node", ([a, b, x], [c, d, y])))

    # As at two sites: each has its notification node, and these two know of each other.
    a, c = make.python("both-a", "both-c"), make.python("both-c", "both-a")
    b, d = make.python("both-b", "both-a"), make.python("both-d", "both-c")
    x, y = make.c("both-x", a), make.c("both-y", c, 1)
    found.append(Scenario("half, a notification node on each side", ([a, b, x], [c, d, y])))
    return found


def told(node: PythonContainer, of: AnyNode, since: float) -> list[str]:
    """The events about another node."""
    return [e["name"] for e in node.events("event", node=of.uri) if e["time"] >= since]


def all_arrive(nodes: Sequence[AnyNode], bodies: dict[str, str]) -> bool:
    """Whether each node has got what the others have broadcast; bodies: by the sender's name."""
    return all(
        set(node.heard()) >= {body for name, body in bodies.items() if name != node.name}
        for node in nodes
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_bus_that_was_cut_for_90_seconds_heals_by_itself(
    bus: Bus, variant: str, measured: Callable[[str, float], None]
) -> None:
    everything = scenarios(bus, variant)
    start_quickly(bus.nodes)
    for scenario in everything:
        # A C node asks a notification address that did not answer at its next ping again.
        wait_for(scenario.whole, 20, scenario.views)

    before = time.time()
    for scenario in everything:
        cut(*scenario.sides)
    clock = Clock()
    for scenario in everything:
        # Python nodes know of each other in some 5 s; a C node is pinged every 5 s, for 8 s.
        wait_for(scenario.python_nodes_apart, 30, scenario.views)
    measured("cut for 90 s, until the other side is away | Python nodes", clock.seconds)
    time.sleep(CUT - clock.seconds)
    for scenario in everything:
        assert scenario.apart(), scenario.views()  # by now C nodes as well
        assert spared(scenario.nodes) == []

    healed = {}
    for scenario in everything:
        heal(scenario.nodes)
        healed[scenario.name] = Clock()
    waiting = [(scenario, who) for scenario in everything for who in ("Python", "all")]

    def all_whole() -> bool:
        for scenario, who in list(waiting):
            if scenario.python_nodes_whole() if who == "Python" else scenario.whole():
                waiting.remove((scenario, who))
                seconds = healed[scenario.name].seconds
                measured(f"heal after 90 s, {scenario.name} | {who} nodes", seconds)
        return not waiting

    wait_for(all_whole, 15, lambda: "\n".join(scenario.views() for scenario, _ in waiting))

    time.sleep(5)  # they stay so
    for scenario in everything:
        assert scenario.whole(), scenario.views()
        for node in scenario.pythons:
            for other in scenario.other_side(node):
                events = told(node, other, before)
                assert len(events) == 2, f"{node.name} of {other.name}: {events}"
                assert events[0] in AWAY and events[1] == "dmq:peer-up"
                # Its state may be old: peers can send theirs again.
                back = [e for e in node.events("init", node=other.uri) if e["time"] >= before]
                assert len(back) == 1, f"{node.name} of {other.name}: {back}"
            for other in scenario.side_of(node):
                assert told(node, other, before) == [], f"{node.name} of {other.name}"

        bodies = {node.name: f"from {node.name}" for node in scenario.pythons}
        assert all(node.bcast(bodies[node.name]) for node in scenario.pythons)

        wait_for(partial(all_arrive, scenario.nodes, bodies), 5, f"{scenario.name}: they arrive")
