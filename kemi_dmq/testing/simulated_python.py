"""A node with kemi_dmq in the simulator: the real engine and the real bus, without Kamailio."""

from __future__ import annotations

import random
from collections.abc import Callable, Set
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from ..api import DmqApi
from ..bus import Bus
from ..callbacks import run_callback
from ..engine import Engine, Published, resolved_event
from ..message import Outcome
from ..node import Node
from ..outbox import Ended, Outbox, outcome_event
from ..peer import Peer, Registry
from ..settings import Settings
from ..shared import Shared
from ..wire import SipUri, parse_uri
from .network import Key
from .simulated_host import SimulatedCounters, SimulatedHost, SimulatedShared
from .simulated_node import SimulatedNode
from .sip_text import parse, short
from .timeline import Clock

if TYPE_CHECKING:
    from .simulator import Simulator

#: From one process to another, in seconds.
WAKE_UP = 0.0002
#: How long the DNS takes.
LOOK_UP = 0.01

Script = Callable[["SimulatedPythonNode"], Any]


@dataclass(frozen=True, slots=True)
class EventMessage:
    """What an event callback gets for msg: ruri is the node's URI (in Kamailio: ``$ru``)."""

    ruri: str


class SimulatedPythonNode(SimulatedNode):
    """A node with kemi_dmq: the real Engine and the real Bus; it is the Outside of the one, and
    the other finds in it what processes share.

    api: its dmq_api_t.  script: what the script gave back, which is the handler (for
    event_callback) and whatever a test wants to look into.
    """

    script: Any = None

    def __init__(
        self,
        simulator: Simulator,
        settings: Settings,
        clock: Clock,
        rng: random.Random,
        load: Script | None,
    ) -> None:
        super().__init__(simulator, settings, clock)
        self.rng = rng
        self.load = load
        self.counters = SimulatedCounters()
        self.outcomes: list[Ended] = []  # of messages from the outbox, as callbacks are told
        self.full_nodes: tuple[int, Any] = (0, None)
        self._pending: list[tuple[Any, ...]] = []
        self._version = 0
        self._deadline: float | None = None  # of the engine, by this node's clock
        self._wakes_at: float | None = None  # the simulator's time
        self._host = SimulatedHost(self)
        self.registry = _Registry()
        self.bus = _Bus(
            settings, cast(Shared, SimulatedShared(self)), self._host, self.registry, self.monotonic
        )
        self.api = DmqApi(self.registry)
        self.api._bind(self.bus, _refuse)
        self._load()
        self.engine = self._new_engine()

    def _load(self) -> None:
        """As DMQ(), the script and attach() do it."""
        self.registry.open_generation()
        if self.load is not None:
            self.registry.loading = True
            self.script = self.load(self)
            self.registry.loading = False
        name = self.settings.event_callback
        self._on_event = getattr(self.script, name) if name else None
        self.registry.commit()
        self.bus.attached = True
        peers = self.registry.peers()
        self._init_callbacks = any(peer.init_callback is not None for peer in peers)

    def _new_engine(self, outbox: Outbox | None = None) -> Engine:
        rng = random.Random(self.rng.getrandbits(64))
        incarnation = int(self.wall() * 1000)
        agent = self.bus.user_agent()
        return Engine(self.settings, self, rng, agent, self.bus.gate, incarnation, outbox)

    def start(self, known: Published | None = None) -> None:
        self.engine.start(self.monotonic(), known)
        self._plan()

    def engine_fails(self) -> None:
        """The engine ends with an error, and starts again with the list that was published."""
        known = Published(self.engine.published())
        self.engine = self._new_engine(self.engine.outbox)
        self.engine.start(self.monotonic(), known)
        self._plan()

    def leave(self) -> None:
        texts = self.engine.leave_texts()
        for to, text in texts + [item for item in texts if item[0].transport == "udp"]:
            self.send(to, text)
        self.stop()

    def nodes(self) -> tuple[Node, ...]:
        """What dmq.nodes() gives."""
        return self.bus.node_list().nodes

    def listed(self) -> dict[SipUri, str]:
        return {SipUri(n.host, n.port, n.transport): n.status.value for n in self.nodes()}

    def active_keys(self) -> Set[Key]:
        return self.bus.node_list().active_keys

    def receive(self, text: str, source: Key) -> None:
        message = parse(text)
        self._host.take(message, source)
        if not message.code:
            self.bus.handle()
        elif not self.bus.on_reply():
            self._host.answered()

    # Inbox and snapshot

    def want_answers(self, wanted: bool) -> None:
        pass

    def put(self, event: tuple[Any, ...], wake: bool = True) -> int:
        self._pending.append(event)
        if len(self._pending) == 1:
            self.after(WAKE_UP, self.work_off)
        return 1

    def wake(self) -> None:
        pass

    def fills_up(self) -> bool:
        return False

    def wait_applied(self, ticket: int, seconds: float) -> bool:
        if self.delay > seconds:
            return False
        self.work_off()
        return True

    def work_off(self) -> None:
        events, self._pending = self._pending, []
        for event in events:
            self.engine.handle(event, self.monotonic())
        if events:
            self._plan()

    @property
    def version(self) -> int:
        return self._version

    def read(self) -> tuple[int, Any]:
        return self._version, _Published(self.engine) if self._version else None

    # The engine's Outside, apart from send()

    def publish(self, value: Callable[[], tuple[Any, ...]]) -> None:
        self._version += 1

    def callback(self, event: tuple[Any, ...]) -> bool:
        kind = event[0]
        if kind in ("event", "init"):
            node = event[-1]
            told = (event[1] if kind == "event" else kind, _short(node[0]) if node else "")
            self.told.append(told)
            if self.simulator.records:
                self.simulator.note(self.uri, " ".join(told).rstrip())
            if not (self._on_event if kind == "event" else self._init_callbacks):
                return True
        self.run_later(event)
        return True

    def outcome(self, ended: Ended) -> bool:
        self.outcomes.append(ended)
        self.run_later(outcome_event(ended))
        return True

    def ended_silently(self, counts: dict[Outcome, int]) -> None:
        for outcome, count in counts.items():
            self.counters[f"outbox_{outcome.value}"] += count

    def full(self, nodes: frozenset[tuple[str, int]]) -> None:
        self.full_nodes = (self.full_nodes[0] + 1, tuple(nodes))

    def resolve(self, host: str, srv: str) -> None:
        def answer() -> None:
            addresses = self.simulator.names.get(host, [])
            event = resolved_event(host, list(addresses), srv, [])
            self.engine.handle(event, self.monotonic())
            self._plan()

        self.after(LOOK_UP, answer)

    # The callbacks process

    def run_later(self, event: tuple[Any, ...]) -> None:
        self.after(WAKE_UP, run_callback, self.bus, event, self._run_event)

    def _run_event(self, name: str, node: Node) -> None:
        if self._on_event is not None:
            self._on_event(EventMessage(node.uri), name)

    # Time, as the loop of the engine's process gives it

    def _plan(self) -> None:
        self.engine.tick(self.monotonic())
        self._deadline = self.engine.next_deadline()
        self._set_alarm()

    def _set_alarm(self) -> None:
        """One alarm at most is of use: when a deadline moves into the future, the old alarm finds
        out and sets the next one."""
        if self._deadline is not None:
            time = max(self.simulator.now, self.clock.when(self._deadline))
            if self._wakes_at is None or time < self._wakes_at:
                self._wakes_at = time
                self.simulator.at(time, self._alarm, time)

    def _alarm(self, time: float) -> None:
        if time == self._wakes_at:
            self._wakes_at = None
            self.take(self._wake)

    def _wake(self) -> None:
        if self._deadline is None:
            return
        if self._deadline > self.monotonic() + 1e-6:
            self._set_alarm()
        else:
            # A clock that is not the simulator's may be a rounding error short of the deadline.
            self._latest = max(self._latest, self._deadline)
            self._plan()

    def clock_changed(self) -> None:
        self._wakes_at = None
        self._set_alarm()


def _refuse(text: str) -> None:
    raise ValueError(text)


class _Registry(Registry):
    loading = False

    def register(self, peer: Peer) -> Peer:
        if not self.loading:
            raise RuntimeError(
                f"peer {peer.peer_id!r} is registered outside of loading; register it in the "
                "script given to add_node()"
            )
        return super().register(peer)


class _Published(Published):
    """What the engine has published, made when it is read: a thousand nodes publish a thousand
    nodes each, and most of that nobody reads."""

    def __init__(self, engine: Engine) -> None:
        self._membership = engine.membership

    @property
    def bodies(self) -> Any:
        return self

    @cached_property
    def to_c(self) -> str:
        return self._membership.c_answer_body()

    @cached_property
    def to_new_c(self) -> str:
        return self._membership.c_answer_body(is_new=True)

    @cached_property
    def to_python(self) -> str:
        return self._membership.answer_body()

    @cached_property
    def whole(self) -> str:
        return self._membership.list_body()

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(self._membership.nodes())

    @cached_property
    def absent(self) -> tuple[Node, ...]:
        return tuple(self._membership.absent())

    @cached_property
    def relays(self) -> dict[str, list[str]]:
        return self._membership.relays()


class _Bus(Bus):
    published = staticmethod(lambda value: value)  # type: ignore[assignment]

    def log_some(self, text: str) -> None:
        """All of them: the same errors in the same order, however fast the simulation runs."""
        self.host.log("err", text)


def _short(uri: str) -> str:
    return short(parse_uri(uri).key)
