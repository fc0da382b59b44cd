"""Whole buses in virtual time: nodes with the real engine and bus over a seeded network.

    simulator = Simulator(seed=1)
    simulator.add_node("10.0.0.1")
    simulator.add_node("10.0.0.2", notification=["10.0.0.1"])
    simulator.run(2)
    assert simulator.nodes_seen_by("10.0.0.1") == {"10.0.0.1": "active", "10.0.0.2": "active"}

The same seed and the same calls give the same transcript.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from typing import Any

from .. import settings as settings_module
from ..wire import SipUri, parse_body, parse_uri
from .simulated_c import SimulatedCNode
from .simulated_python import SimulatedPythonNode
from .sip_text import parse, short

Key = tuple[str, int]

#: So many steps without progress of time are an endless loop.
MAX_STEPS = 100_000


class Simulator:
    """loss and duplication are probabilities for each datagram, latency the shortest and longest
    time on the way, in seconds; all three may be changed while it runs."""

    def __init__(
        self,
        seed: int = 0,
        *,
        loss: float = 0.0,
        duplication: float = 0.0,
        latency: tuple[float, float] = (0.0002, 0.002),
    ) -> None:
        self.now = 0.0
        self.loss = loss
        self.duplication = duplication
        self.latency = latency
        self.names: dict[str, list[str]] = {}  # the DNS
        self.nodes: dict[Key, SimulatedPythonNode | SimulatedCNode] = {}
        self._records: list[tuple[float, str, str, str, str]] = []
        self._rng = random.Random(seed)
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._groups: dict[str, int] = {}  # host -> side of a cut

    # Nodes ---------------------------------------------------------------------------------

    def add_node(
        self,
        address: str,
        notification: Iterable[str] = (),
        python: bool = True,
        version: tuple[int, int] = (6, 1),
        **settings: Any,
    ) -> SimulatedPythonNode | SimulatedCNode:
        """Start a node now.  address and notification: hosts, or whole SIP URIs.  python False: a
        node with the C module of that version.  settings: those of kemi_dmq.DMQ."""
        given = {
            "server_address": _uri(address),
            "notification_address": [_uri(item) for item in notification],
            "ping_interval": 5,
            **settings,
        }
        checked = settings_module.check(given)
        key = checked.server_address.key
        node: SimulatedPythonNode | SimulatedCNode
        if python:
            node = SimulatedPythonNode(self, checked, random.Random(self._rng.getrandbits(64)))
        else:
            node = SimulatedCNode(self, checked, version)
        self.nodes[key] = node
        self.note(node.uri, "starts")
        node.start()
        return node

    def node(self, address: str) -> SimulatedPythonNode | SimulatedCNode:
        return self.nodes[parse_uri(_uri(address)).key]

    def nodes_seen_by(self, address: str) -> dict[str, str]:
        """Its list: host -> status, itself included (host:port where the port is not 5060)."""
        return {short(uri.key): status for uri, status in self.node(address).listed().items()}

    def whole(self) -> bool:
        """Whether each node that runs lists exactly those that run as active."""
        running = {key for key, node in self.nodes.items() if node.alive}
        return all(
            {uri.key for uri, status in self.nodes[key].listed().items() if status == "active"}
            == running
            for key in running
        )

    def stuck(self) -> dict[str, str]:
        """C nodes that stopped working, and why."""
        c_nodes = [node for node in self.nodes.values() if isinstance(node, SimulatedCNode)]
        return {short(node.uri.key): node.stuck for node in c_nodes if node.stuck}

    def kill(self, address: str) -> None:
        """The node is gone from one moment to the next."""
        node = self.node(address)
        node.alive = False
        self.note(node.uri, "is killed")

    def leave(self, address: str) -> None:
        """The node is stopped and says goodbye."""
        node = self.node(address)
        self.note(node.uri, "leaves")
        node.leave()

    def restart(self, address: str) -> None:
        """Start a node again that was killed or has left; it knows nothing any more."""
        old = self.node(address)
        old.alive = False
        new: SimulatedPythonNode | SimulatedCNode
        if isinstance(old, SimulatedPythonNode):
            new = SimulatedPythonNode(self, old.settings, random.Random(self._rng.getrandbits(64)))
        else:
            new = SimulatedCNode(self, old.settings, old.version)
        self.nodes[old.uri.key] = new
        self.note(new.uri, "starts again")
        new.start()

    # Network -------------------------------------------------------------------------------

    def partition(self, *groups: Iterable[str]) -> None:
        """Cut the network: between two groups nothing passes; who is in none sees all."""
        self._groups = {
            parse_uri(_uri(address)).host: number
            for number, group in enumerate(groups)
            for address in group
        }
        self.note(None, "cut: " + " | ".join(", ".join(group) for group in groups))

    def heal(self) -> None:
        self._groups = {}
        self.note(None, "the cut is over")

    def transmit(self, sender: SipUri, to: Key, text: str) -> None:
        """Carry a datagram, or lose it."""
        line = f"-> {short(to)}  "
        group, other = self._groups.get(sender.host), self._groups.get(to[0])
        cut = group is not None and other is not None and group != other
        if cut or self._rng.random() < self.loss:
            self.note(sender, line, text, "  (lost)")
            return
        copies = 2 if self._rng.random() < self.duplication else 1
        self.note(sender, line, text, "  (twice)" if copies == 2 else "")
        for _ in range(copies):
            self.after(self._rng.uniform(*self.latency), lambda: self._deliver(sender, to, text))

    def _deliver(self, sender: SipUri, to: Key, text: str) -> None:
        node = self.nodes.get(to)
        if node is not None and node.alive:
            node.receive(text, sender.key)

    # Time ----------------------------------------------------------------------------------

    def at(self, time: float, do: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._due, (max(self.now, time), self._count, do))

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        self.at(self.now + seconds, do)

    def run(self, seconds: float) -> None:
        self.run_until(lambda: False, seconds)

    def run_until(self, done: Callable[[], bool], seconds: float) -> bool:
        """Run until done(), or for so many seconds; whether it was done."""
        end = self.now + seconds
        steps, moment = 0, self.now
        while not done():
            if not self._due or self._due[0][0] > end:
                self.now = end
                return False
            self.now, _, do = heapq.heappop(self._due)
            steps = steps + 1 if self.now == moment else 0
            moment = self.now
            if steps > MAX_STEPS:
                raise RuntimeError("time does not go on:\n" + "\n".join(self.transcript[-20:]))
            do()
        return True

    # Transcript ----------------------------------------------------------------------------

    def note(self, node: SipUri | None, what: str, message: str = "", more: str = "") -> None:
        who = short(node.key) if node is not None else "network"
        self._records.append((self.now, who, what, message, more))

    @property
    def transcript(self) -> list[str]:
        """What happened: time, node, and what it did or was told; a line for each."""
        return [
            f"{time:10.4f}  {who:15}  {what}{_summary(message) if message else ''}{more}"
            for time, who, what, message, more in self._records
        ]


def _uri(address: str) -> str:
    return address if address.startswith(("sip:", "sips:")) else f"sip:{address}:5060"


def _summary(text: str) -> str:
    """A notification or its answer in one line of the transcript."""
    message = parse(text)
    lines, bad = parse_body(message.body)
    listed = [
        short(line.uri.key) + ("" if line.status == "active" else f" {line.status}")
        for line in lines
    ]
    listed += ["?"] * bad
    first = str(message.code) if message.code else f"KDMQ mf {message.header('Max-Forwards')}"
    return f"{first} [{', '.join(listed)}]"
