"""Ordered messages and such with a deadline over a bad network, with the real engine and bus."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kemi_dmq.message import Message, Outcome, Reply, ResponseCallback
from kemi_dmq.node import Node
from kemi_dmq.peer import Peer
from kemi_dmq.testing.simulated_python import SimulatedPythonNode
from kemi_dmq.testing.simulator import Simulator

A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"


def told(reply: Reply, node: Node | None, param: object) -> None:
    """Simulated nodes keep the outcomes of which somebody is told."""


TOLD = ResponseCallback(told)


class Run:
    """Three nodes; A sends, B and C keep what their peer acme got."""

    def __init__(self, seed: int, loss: float, duplication: float) -> None:
        self.simulator = Simulator(seed, latency=(0.001, 0.2))
        self.nodes: dict[str, SimulatedPythonNode] = {}
        self.got: dict[str, list[str]] = {B: [], C: []}
        for address in (A, B, C):
            self.add(address)
        assert self.simulator.run_until(self.simulator.whole, 30)
        self.simulator.loss, self.simulator.duplication = loss, duplication
        self.count = 0
        self.sent: dict[str, tuple[bool, float, float]] = {}  # body: ordered, deadline, when

    def add(self, address: str) -> None:
        node = self.simulator.add_node(address, [A, B])
        assert isinstance(node, SimulatedPythonNode)
        self.listen(address, node)

    def listen(self, address: str, node: SimulatedPythonNode) -> None:
        self.nodes[address] = node

        def on_acme(message: Message, sender: Node | None) -> None:
            self.got[address].append(message.body)

        node.bus.registry.register_permanent(Peer("acme", "", on_acme))

    def send(self, ordered: bool, deadline: float) -> None:
        bus = self.nodes[A].bus
        nodes = tuple(n for n in bus.node_list().nodes if n.host in self.got)
        self.count += 1
        for node in nodes:
            self.sent[f"{self.count} {node.host}"] = (ordered, deadline, self.simulator.now)
            body = f"{self.count} {node.host}"
            kind = "text/plain"
            assert bus.send("acme", body, (node,), TOLD, 1, kind, ordered, deadline) == 0

    def check(self) -> None:
        """Once all deadlines are over."""
        outcomes: dict[str, list[Outcome]] = {}
        for letter, outcome, _ in self.nodes[A].outcomes:
            outcomes.setdefault(letter.post.body, []).append(outcome)
        assert outcomes.keys() == self.sent.keys()
        assert all(len(found) == 1 for found in outcomes.values())
        for address, got in self.got.items():
            assert max(Counter(got).values(), default=1) == 1
            ordered = [int(body.split()[0]) for body in got if self.sent[body][0]]
            assert ordered == sorted(ordered), address
            for body, (outcome,) in outcomes.items():
                if body.endswith(f" {address}"):
                    assert (outcome is Outcome.ANSWERED) <= (body in got)
                    assert (outcome is Outcome.EXPIRED) <= (body not in got)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["send", "send", "send", "cut", "heal", "wait", "fail"]),
        st.booleans(),
        st.sampled_from([0.5, 3.0, 20.0, 200.0]),
    ),
    max_size=40,
)


@pytest.mark.timeout(400)  # 120 s is what it takes on a slow machine
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.1, 0.3]), STEPS)
@settings(max_examples=150)
def test_each_message_has_one_outcome_and_order_holds(
    seed: int, loss: float, steps: list[tuple[str, bool, float]]
) -> None:
    run = Run(seed, loss, loss)
    simulator = run.simulator
    for what, flag, seconds in steps:
        if what == "send":
            run.send(flag, seconds)
        elif what == "cut":
            simulator.partition([A], [B, C] if flag else [B])
        elif what == "heal":
            simulator.heal()
        elif what == "fail":
            run.nodes[A].engine_fails()
        else:
            simulator.run(seconds)
    simulator.run(250)
    run.check()


def test_after_a_cut_all_arrive_in_order_and_once() -> None:
    run = Run(7, 0.2, 0.2)
    simulator = run.simulator
    for number in range(300):
        if number == 50:
            simulator.partition([A], [B, C])
        if number == 250:
            simulator.heal()
        run.send(True, 600.0)
        simulator.run(0.2)
    simulator.run(590)
    run.check()
    outcomes = Counter(outcome for _, outcome, _ in run.nodes[A].outcomes)
    assert outcomes == {Outcome.ANSWERED: len(run.sent)}
    for address, got in run.got.items():
        assert got == [body for body in run.sent if body.endswith(f" {address}")]


def test_a_message_is_kept_for_a_node_that_has_been_away_for_a_minute() -> None:
    """It has left the list by then, but it is known, probed, and will be back."""
    got: list[str] = []
    simulator = Simulator(1, records=False)

    def script(node: SimulatedPythonNode) -> Peer:
        def on_acme(message: Message, sender: Node | None) -> None:
            got.append(f"{node.uri.host} {message.body}")

        return node.api.register_dmq_peer(Peer("acme", "", on_acme))

    for address in (A, B, C):
        simulator.add_node(address, [A], script=script)
    assert simulator.run_until(simulator.whole, 10)
    sender = simulator.python_node(A)
    away = sender.api.find_dmq_node_uri(f"sip:{C}:5060")
    assert away is not None
    simulator.kill(C)
    simulator.run(60)
    assert sender.api.send_message(sender.script, "sent", away, deadline=300) == 0
    assert sender.api.bcast_message(sender.script, "broadcast", deadline=300) == 0
    simulator.restart(C)
    simulator.run(30)
    assert sorted(got) == [f"{B} broadcast", f"{C} broadcast", f"{C} sent"]
