"""Whole buses in virtual time: nodes with the real engine and bus over a seeded network.

    simulator = Simulator(seed=1)
    simulator.add_node("10.0.0.1")
    simulator.add_node("10.0.0.2", notification=["10.0.0.1"])
    simulator.run(2)
    assert simulator.nodes_seen_by("10.0.0.1") == {"10.0.0.1": "active", "10.0.0.2": "active"}

The same seed and the same calls give the same transcript.  docs/testing.md shows how to test a
peer with it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Set
from typing import Any, Literal, overload

from .. import settings as settings_module
from ..engine import Bodies, Published, pack_node
from ..gossip import rumour_line
from ..wire import SipUri
from .network import MAX_DATAGRAM, Key, Link, Network, node_key, node_uri
from .simulated_c import SimulatedCNode
from .simulated_python import Script, SimulatedPythonNode
from .sip_text import short, size
from .timeline import MAX_STEPS, Clock, Timeline
from .transcript import Record, Transcript

AnyNode = SimulatedPythonNode | SimulatedCNode


class Simulator(Timeline, Network):
    """seed: of everything that is left to chance.  loss, duplication, reordering: probabilities
    for each datagram.  latency: shortest and longest time on the way, in seconds.  All four may be
    changed while it runs.  records False: no transcript, for many nodes or a long time.

    Addresses are hosts, ``host:port`` where the port is not 5060, or whole SIP URIs.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        loss: float = 0.0,
        duplication: float = 0.0,
        reordering: float = 0.0,
        latency: tuple[float, float] = (0.0002, 0.002),
        records: bool = True,
    ) -> None:
        Timeline.__init__(self)
        self._rng = random.Random(seed)
        network = random.Random(self._rng.getrandbits(64))
        Network.__init__(self, network, loss, duplication, reordering, latency)
        self.names: dict[str, list[str]] = {}  # the DNS
        self.nodes: dict[Key, AnyNode] = {}
        self.datagrams = 0  # delivered so far, copies included
        self._record = Transcript()
        self._record.on = records
        self._running: frozenset[Key] | None = None
        self._not_whole: Key = ("", 0)  # who was the last one to miss somebody
        self._equal: dict[Key, tuple[Set[Key], frozenset[Key]]] = {}

    # Nodes ---------------------------------------------------------------------------------

    @overload
    def add_node(
        self,
        address: str,
        notification: Iterable[str] = ...,
        python: Literal[True] = ...,
        version: tuple[int, int] = ...,
        *,
        script: Script | None = ...,
        clock: Clock | None = ...,
        **settings: Any,
    ) -> SimulatedPythonNode: ...
    @overload
    def add_node(
        self,
        address: str,
        notification: Iterable[str] = ...,
        python: bool = ...,
        version: tuple[int, int] = ...,
        *,
        script: Script | None = ...,
        clock: Clock | None = ...,
        **settings: Any,
    ) -> AnyNode: ...
    def add_node(
        self,
        address: str,
        notification: Iterable[str] = (),
        python: bool = True,
        version: tuple[int, int] = (6, 1),
        *,
        script: Script | None = None,
        clock: Clock | None = None,
        **settings: Any,
    ) -> AnyNode:
        """Start a node now.  python False: a node with the C module of that version.

        script(node): registers peers with node.api, as a KEMI script does; what it returns is kept
        as node.script, and takes event_callback.  It runs again when the node is restarted.
        clock: by default one that is right.  settings: those of kemi_dmq.DMQ; ping_interval is 5
        unless given.
        """
        given = {
            "server_address": node_uri(address),
            "notification_address": [node_uri(item) for item in notification],
            "ping_interval": 5,
            **settings,
        }
        checked = settings_module.check(given)
        node: AnyNode
        if python:
            rng = random.Random(self._rng.getrandbits(64))
            node = SimulatedPythonNode(self, checked, clock or Clock(), rng, script)
        else:
            node = SimulatedCNode(self, checked, clock or Clock(), version)
        self._start(node, "starts")
        return node

    def form(self, addresses: Iterable[str], **settings: Any) -> None:
        """Start Python nodes that know each other already: a bus of a thousand nodes needs minutes
        of real time to come together one by one."""
        nodes = []
        for address in addresses:
            checked = settings_module.check({"server_address": node_uri(address), **settings})
            rng = random.Random(self._rng.getrandbits(64))
            nodes.append(SimulatedPythonNode(self, checked, Clock(), rng, None))
        incarnations = {node.uri: node.engine.membership.incarnation for node in nodes}
        lines = "".join(rumour_line(uri, inc, "alive") for uri, inc in incarnations.items())
        packed = [pack_node(node.engine.membership.nodes()[0]) for node in nodes]
        others = [(*item[:5], False, *item[6:]) for item in packed]
        for number, node in enumerate(nodes):
            value = (
                Bodies("", "", "", lines),
                {},
                (),
                *others[:number],
                packed[number],
                *others[number + 1 :],
            )
            self.nodes[node.uri.key] = node
            node.start(Published(value))
        self.note(None, f"{len(nodes)} nodes know each other")
        self.running_changed()

    def restart(self, address: str) -> None:
        """Start a node again, whether it was killed, has left or still runs; it knows nothing any
        more."""
        old = self.node(address)
        old.stop()
        new: AnyNode
        if isinstance(old, SimulatedPythonNode):
            rng = random.Random(self._rng.getrandbits(64))
            new = SimulatedPythonNode(self, old.settings, old.clock, rng, old.load)
        else:
            new = SimulatedCNode(self, old.settings, old.clock, old.version)
        self._start(new, "starts again")

    def _start(self, node: AnyNode, what: str) -> None:
        self.nodes[node.uri.key] = node
        self.note(node.uri, what)
        self.running_changed()
        node.start()

    def node(self, address: str) -> AnyNode:
        return self.nodes[node_key(address)]

    def python_node(self, address: str) -> SimulatedPythonNode:
        """The same; TypeError if it has the C module."""
        node = self.node(address)
        if not isinstance(node, SimulatedPythonNode):
            raise TypeError(f"{address} is a node with the C module")
        return node

    def kill(self, address: str) -> None:
        """The node is gone from one moment to the next."""
        node = self.node(address)
        node.stop()
        self.note(node.uri, "is killed")

    def leave(self, address: str) -> None:
        """The node is stopped and says goodbye; one that is paused, when it goes on."""
        node = self.node(address)
        self.note(node.uri, "leaves")
        if node.paused:
            node.take(node.leave)
        else:
            node.leave()

    def pause(self, address: str, seconds: float | None = None) -> None:
        """All processes of the node stand still, for so many seconds or until resume().  What
        arrives waits in the socket's buffer, timers fire late."""
        node = self.node(address)
        node.pause()
        self.note(node.uri, "stands still")
        if seconds is not None:
            self.after(seconds, self._resume, node)

    def resume(self, address: str) -> None:
        self._resume(self.node(address))

    def _resume(self, node: AnyNode) -> None:
        if node.alive and node.paused:
            self.note(node.uri, "goes on")
            node.resume()

    def slow(self, address: str, delay: float) -> None:
        """From now on each datagram and each timer takes the node so many seconds; 0: no time."""
        node = self.node(address)
        node.delay = delay
        self.note(
            node.uri, f"is slow: {delay:g} s for each datagram and timer" if delay else "is fast"
        )

    def skew(self, address: str, rate: float = 1.0, wall: float = 0.0) -> None:
        """From now on the node's clocks run at this rate, and its wall clock is so many seconds
        ahead.  They stay so when the node is restarted."""
        node = self.node(address)
        node.clock.change_rate(rate, self.now)
        node.clock.wall_ahead = wall
        self.note(node.uri, f"has a clock of rate {rate:g}, {wall:+g} s ahead")
        node.clock_changed()

    # What they know ------------------------------------------------------------------------

    def nodes_seen_by(self, address: str) -> dict[str, str]:
        """Its list: host -> status, itself included (host:port where the port is not 5060)."""
        return {short(uri.key): status for uri, status in self.node(address).listed().items()}

    def running(self) -> frozenset[Key]:
        """The nodes that are alive, those that stand still included."""
        if self._running is None:
            self._running = frozenset(key for key, node in self.nodes.items() if node.alive)
        return self._running

    def running_changed(self) -> None:
        self._running = None

    def whole(self) -> bool:
        """Whether each node that runs lists exactly those that run as active."""
        running = self.running()
        if self._not_whole in running and not self._lists(self._not_whole, running):
            return False  # as a rule the one that was not when this was asked last
        for key in running:
            if not self._lists(key, running):
                self._not_whole = key
                return False
        return True

    def _lists(self, key: Key, running: frozenset[Key]) -> bool:
        active = self.nodes[key].active_keys()
        equal = self._equal.get(key)
        if equal is None or equal[0] is not active or equal[1] is not running:
            if active != running:
                return False
            self._equal[key] = (active, running)  # compared once, while neither changes
        return True

    def stuck(self) -> dict[str, str]:
        """C nodes that stopped working, and why."""
        c_nodes = [node for node in self.nodes.values() if isinstance(node, SimulatedCNode)]
        return {short(node.uri.key): node.stuck for node in c_nodes if node.stuck}

    def errors(self) -> list[str]:
        """What nodes logged as err or crit: callbacks that raised, for example."""
        return [
            f"{short(node.uri.key)}: {text}" for node in self.nodes.values() for text in node.errors
        ]

    # Network -------------------------------------------------------------------------------

    def link(
        self,
        sender: str | None,
        receiver: str | None,
        *,
        loss: float | None = None,
        duplication: float | None = None,
        reordering: float | None = None,
        latency: tuple[float, float] | None = None,
    ) -> None:
        """Make one direction between two nodes different; what is not given is as everywhere.
        None for a node: all; what is said of a pair goes before."""
        link = Link(loss, duplication, reordering, latency)
        self.set_link(sender, receiver, link)
        self.note(None, f"from {sender or 'all'} to {receiver or 'all'}: {link}")

    def partition(self, *groups: Iterable[str]) -> None:
        """Cut the network: between two groups nothing passes; who is in none sees all.  A new cut
        of this kind replaces the one before."""
        listed = [list(group) for group in groups]
        self.cut(listed)
        self.note(None, "cut: " + " | ".join(", ".join(group) for group in listed))

    def partition_one_way(self, senders: Iterable[str], receivers: Iterable[str]) -> None:
        """Nothing passes from senders to receivers; all does the other way."""
        senders, receivers = list(senders), list(receivers)
        self.cut_one_way(senders, receivers)
        self.note(None, f"cut one way: {', '.join(senders)} -> {', '.join(receivers)}")

    def heal(self) -> None:
        """All cuts end."""
        self.end_cuts()
        self.note(None, "the cut is over")

    def calm(self) -> None:
        """All faults end: cuts, links of their own, loss, duplication, reordering, pauses and slow
        nodes.  Who is dead stays dead, and clocks stay wrong."""
        self.end_cuts()
        self.end_links()
        self.loss = self.duplication = self.reordering = 0.0
        self.note(None, "all faults are over")
        for node in self.nodes.values():
            node.delay = 0.0
            self._resume(node)

    def transmit(self, sender: SipUri, to: Key, text: str) -> None:
        """Carry a datagram, or lose it."""
        if to not in self.nodes and self.names.get(to[0]):
            to = (self.names[to[0]][0], to[1])
        reliable = sender.transport != "udp"
        times = self.arrivals(sender.key, to, self.now, reliable)
        if not reliable and size(text) > MAX_DATAGRAM:
            times = []
        if self._record.on:
            fate = ("lost", "", "twice")[len(times)]
            self._record.datagram(self.now, sender.key, to, text, fate)
        for time in times:
            self.at(time, self._deliver, sender.key, to, text)

    def _deliver(self, sender: Key, to: Key, text: str) -> None:
        node = self.nodes.get(to)
        if node is not None and node.alive:
            self.datagrams += 1
            node.deliver(text, sender)

    # Transcript ----------------------------------------------------------------------------

    @property
    def records(self) -> bool:
        """Whether what happens is written down; may be changed at any time."""
        return self._record.on

    @records.setter
    def records(self, value: bool) -> None:
        self._record.on = value

    def sent(self, since: float = 0.0) -> Iterator[Record]:
        """The records of the datagrams that were sent."""
        return (r for r in self._record.records if r.to is not None and r.time >= since)

    def forget_before(self, time: float) -> None:
        """Drop what was recorded before, which saves memory."""
        self._record.records = [r for r in self._record.records if r.time >= time]

    def note(self, node: SipUri | None, what: str) -> None:
        """A line for the transcript."""
        self._record.note(self.now, node.key if node is not None else None, what)

    @property
    def transcript(self) -> list[str]:
        """What happened: time, node, and what it did or was told; a line for each."""
        return self._record.lines()

    def lines(
        self, *, datagrams: bool = True, since: float = 0.0, until: float = math.inf
    ) -> list[str]:
        """The transcript from a time to before another one, also without datagrams: only what
        changed."""
        return self._record.lines(datagrams, since, until)

    def _step_limit(self) -> int:
        return MAX_STEPS + 1000 * len(self.nodes)
