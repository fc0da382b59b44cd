"""A node with kemi_dmq in the simulator: the real engine and the real bus, without Kamailio."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

from ..bus import Bus
from ..engine import Engine, resolved_event, unpack_nodes
from ..once import Answer, Verdict
from ..peer import Registry
from ..settings import Settings
from ..shared import Shared
from ..wire import SUPPORTED, SipUri, Via, parse_uri
from .sip_text import SipText, build_reply, parse, short

if TYPE_CHECKING:
    from .simulator import Simulator

#: From a SIP worker to the engine.
WAKE_UP = 0.0002


class SimulatedPythonNode:
    """A node with kemi_dmq: the real Engine and the real Bus; it is the Outside of the one, and
    the other finds in it what processes share."""

    def __init__(self, simulator: Simulator, settings: Settings, rng: random.Random) -> None:
        self.simulator = simulator
        self.settings = settings
        self.uri = settings.server_address
        self.alive = True
        self.told: list[tuple[str, str]] = []  # what callbacks were told: event or init, node
        self.counters = _Counters()
        self._rng = rng
        self._pending: list[tuple[Any, ...]] = []
        self._version = 0
        self._published: tuple[Any, ...] | None = None
        self._wake_at: float | None = None
        self._host = _Host(self)
        self.bus = Bus(settings, cast(Shared, _Shared(self)), self._host, Registry())
        self.bus.attached = True
        self.engine = self._new_engine()

    def _new_engine(self) -> Engine:
        rng = random.Random(self._rng.getrandbits(64))
        return Engine(self.settings, self, rng, self.bus.user_agent())

    def start(self) -> None:
        self.engine.start(self.simulator.now, [])
        self._plan()

    def engine_fails(self) -> None:
        """The engine ends with an error, and starts again with the list that was published."""
        self.engine = self._new_engine()
        known = list(unpack_nodes(self._published)[0])
        self.engine.start(self.simulator.now, known)
        self._plan()

    def leave(self) -> None:
        texts = self.engine.leave_texts()
        for to, text in texts + [item for item in texts if item[0].transport == "udp"]:
            self.send(to, text)
        self.alive = False

    def listed(self) -> dict[SipUri, str]:
        nodes = self.bus.node_list().nodes
        return {SipUri(n.host, n.port, n.transport): n.status.value for n in nodes}

    def receive(self, text: str, source: tuple[str, int]) -> None:
        self._host.take(parse(text), source)
        if self._host.message.code:
            self.bus.on_reply()
        else:
            self.bus.handle()

    # Inbox and snapshot

    def put(self, event: tuple[Any, ...]) -> int:
        self._pending.append(event)
        self.simulator.after(WAKE_UP, self.work_off)
        return 1

    def wait_applied(self, ticket: int, seconds: float) -> bool:
        self.work_off()
        return True

    def work_off(self) -> None:
        if not self.alive:
            return
        events, self._pending = self._pending, []
        for event in events:
            self.engine.handle(event, self.simulator.now)
        if events:
            self._plan()

    @property
    def version(self) -> int:
        return self._version

    def read(self) -> tuple[int, Any]:
        return self._version, self._published

    # The engine's Outside

    def send(self, to: SipUri, text: str) -> None:
        self.simulator.transmit(self.uri, to.key, text)

    def publish(self, value: tuple[Any, ...]) -> None:
        self._published = value
        self._version += 1

    def callback(self, event: tuple[Any, ...]) -> None:
        kind, node = event[0] if event[0] == "init" else event[1], event[-1]
        self.told.append((kind, short(parse_uri(node[0]).key) if node else ""))
        self.simulator.note(self.uri, " ".join(self.told[-1]).rstrip())

    def resolve(self, host: str, srv: str) -> None:
        def answer() -> None:
            if self.alive:
                addresses = self.simulator.names.get(host, [])
                event = resolved_event(host, list(addresses), srv, [])
                self.engine.handle(event, self.simulator.now)
                self._plan()

        self.simulator.after(0.01, answer)

    # Time, as the loop of the engine's process gives it

    def _plan(self) -> None:
        self.engine.tick(self.simulator.now)
        deadline = self.engine.next_deadline()
        if deadline is not None and deadline != self._wake_at:
            self._wake_at = deadline
            self.simulator.at(deadline, lambda: self._wake(deadline))

    def _wake(self, deadline: float) -> None:
        if self.alive and deadline == self._wake_at:
            self._wake_at = None
            self._plan()


class _Counters(Counter[str]):
    def add(self, name: str, amount: int = 1) -> None:
        self[name] += amount


class _Once:
    """OnceTable for one process that ends soon."""

    def __init__(self) -> None:
        self._answers: dict[object, Answer] = {}

    def claim(self, identity: object) -> tuple[Verdict, int, Answer | None]:
        answer = self._answers.get(identity)
        return (Verdict.ANSWERED if answer else Verdict.NEW), 0, answer

    def finish(self, entry: int, identity: object, answer: Answer) -> None:
        self._answers[identity] = answer


class _Names:
    def has(self, name: str) -> bool:
        return False


class _Shared:
    """What Bus uses of kemi_dmq.shared.Shared."""

    def __init__(self, node: SimulatedPythonNode) -> None:
        self.counters = node.counters
        self.snapshot = self.engine_inbox = node
        self.once = _Once()
        self.names = _Names()
        self.workers = None


class _Host:
    """The host of a simulated node."""

    message: SipText

    def __init__(self, node: SimulatedPythonNode) -> None:
        self._node = node
        self._source: tuple[str, int] = ("", 0)

    def take(self, message: SipText, source: tuple[str, int]) -> None:
        self.message = message
        self._source = source

    def ruri_user(self) -> str | None:
        return parse_uri(self.message.uri).user or None

    def from_uri(self) -> str | None:
        return self.message.from_uri

    def call_id(self) -> str | None:
        return self.message.header("Call-ID")

    def identity(self) -> object:
        return (self.message.header("Via"), self.call_id())

    def body(self) -> str | bytes | None:
        return self.message.body

    def request(self) -> tuple[str, str | bytes | None, str, tuple[str, int], int]:
        return (
            self.from_uri() or "",
            self.body(),
            self.content_type(),
            self.source(),
            self.max_forwards(),
        )

    def content_type(self) -> str:
        return self.message.header("Content-Type")

    def max_forwards(self) -> int:
        return int(self.message.header("Max-Forwards"))

    def source(self) -> tuple[str, int]:
        return self._source

    def header(self, name: str) -> str:
        return self.message.header(name)

    def reply(self, code: int, reason: str, body: str = "", content_type: str = "") -> bool:
        more = f"{SUPPORTED}Server: kamailio ({self.version()})\r\n"
        text = build_reply(self.message, code, reason, body, content_type, more)
        self._node.simulator.transmit(self._node.uri, self._source, text)
        return True

    def headers(self) -> str | None:
        raise NotImplementedError("simulated nodes have no workers")

    def way_back(self) -> tuple[str, str]:
        raise NotImplementedError("simulated nodes have no workers")

    def send_reply(self, way_back: tuple[str, str], to: tuple[str, int], text: str) -> bool:
        raise NotImplementedError("simulated nodes have no workers")

    def reply_status(self) -> tuple[int, str]:
        return self.message.code, self.message.reason

    def drop(self) -> None:
        pass

    def send(
        self,
        to: SipUri,
        from_uri: SipUri,
        headers: str,
        body: str | bytes,
        event_param: str,
        next_hop: str = "",
    ) -> bool:
        raise NotImplementedError("messages of peers are not simulated")

    def send_text(self, to: SipUri, text: str) -> bool:
        self._node.send(to, text)
        return True

    def replicate(self, places: list[SipUri]) -> bool:
        raise NotImplementedError("messages of peers are not simulated")

    def event(self) -> tuple[str, int, bool]:
        return "", 0, False

    def log(self, level: str, text: str) -> None:
        self._node.simulator.note(self._node.uri, f"{level}: {text}")

    def define(self, name: str) -> str | None:
        return None

    def listens_on(self, socket: Via) -> bool:
        return True

    def version(self) -> str:
        return "6.1.0"
