"""A simulated node's Kamailio: what the real Bus needs of its host and of shared memory."""

from __future__ import annotations

import random
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

from ..nonces import BEFORE_START, is_early
from ..once import REMEMBER, Answer, Verdict
from ..transaction import T1, T2
from ..trust import Parts
from ..wire import METHOD, SUPPORTED, SipUri, Via, parse_uri
from .network import Key
from .sip_text import SipText, build_reply, build_request

if TYPE_CHECKING:
    from .simulated_python import SimulatedPythonNode

#: tm's fr_timer: so many seconds a request waits for its answer.
ANSWER_TIME = 30.0
_VERSION = "6.1.0"


class SimulatedHost:
    """The host of the real Bus; it handles one message at a time."""

    message: SipText

    def __init__(self, node: SimulatedPythonNode) -> None:
        self._node = node
        self._source: Key = ("", 0)
        self._event: tuple[str, int, bool] = ("", 0, False)
        self._open: dict[str, str] = {}  # Call-IDs of our requests -> event_param
        self._count = 0
        self._boot = f"{node.rng.getrandbits(48):012x}"

    def take(self, message: SipText, source: Key) -> None:
        self.message = message
        self._source = source

    # The request or reply being handled

    def ruri_user(self) -> str | None:
        return parse_uri(self.message.uri).user or None

    def from_uri(self) -> str | None:
        return self.message.from_uri

    def call_id(self) -> str | None:
        return self.message.header("Call-ID")

    def identity(self) -> object:
        return (self.message.header("Via"), self.call_id())

    def body(self) -> str | bytes | None:
        body = self.message.body
        if not body.isascii():
            raw = body.encode(errors="surrogateescape")
            try:
                raw.decode()
            except UnicodeDecodeError:
                return raw
        return body

    def source_ip(self) -> str | None:
        return self._source[0]

    def is_myself(self, uri: str) -> bool:
        return False

    def signed_parts(self) -> Parts | None:
        message = self.message
        body = message.body.encode(errors="surrogateescape")
        user = self.ruri_user() or ""
        return Parts(METHOD, message.uri, message.from_uri, user, self.content_type(), body)

    def request(self, source_ip: str) -> tuple[str, str | bytes | None, str, tuple[str, int], int]:
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

    def headers(self) -> str | None:
        raise NotImplementedError("simulated nodes have no workers")

    def size(self) -> int:
        raise NotImplementedError("simulated nodes have no C modules")

    def whole(self) -> bytes | None:
        raise NotImplementedError("simulated nodes have no C modules")

    def way_back(self) -> tuple[str, str]:
        raise NotImplementedError("simulated nodes have no workers")

    def reply(
        self, code: int, reason: str, body: str = "", content_type: str = "", headers: str = ""
    ) -> bool:
        more = f"{SUPPORTED}{headers}Server: kamailio ({_VERSION})\r\n"
        text = build_reply(self.message, code, reason, body, content_type, more)
        self._node.send(SipUri(*self._source), text)
        return True

    def send_reply(self, way_back: tuple[str, str], to: tuple[str, int], text: str) -> bool:
        raise NotImplementedError("simulated nodes have no workers")

    def reply_code(self) -> int:
        return self.message.code

    def reply_reason(self) -> str:
        return self.message.reason

    def drop(self) -> None:
        pass

    # Sending

    def send(
        self,
        to: SipUri,
        from_uri: SipUri,
        headers: str,
        body: str | bytes,
        event_param: str,
        next_hop: str = "",
    ) -> bool:
        """As tm does it: sent again until the answer is here, or ANSWER_TIME is over."""
        self._count += 1
        call_id = f"{self._boot}-{self._count}@{self._node.uri.host.strip('[]')}"
        body = body if isinstance(body, str) else body.decode(errors="surrogateescape")
        socket = self._node.settings.server_socket
        text = build_request(socket, call_id, from_uri, to, headers, body)
        place = parse_uri(next_hop) if next_hop else to
        self._open[call_id] = event_param
        patience = T1 if to.transport == "udp" else ANSWER_TIME
        self._send_again(call_id, place, text, patience, self._node.monotonic() + ANSWER_TIME)
        return True

    def _send_again(self, call_id: str, place: SipUri, text: str, pause: float, end: float) -> None:
        if call_id not in self._open:
            return
        left = end - self._node.monotonic()
        if left <= 1e-6:
            self._ended(call_id, 408, timed_out=True)
            return
        self._node.send(place, text)
        self._node.after(
            min(pause, left), self._send_again, call_id, place, text, min(2 * pause, T2), end
        )

    def answered(self) -> None:
        """The reply being handled, which is not the engine's, is for us or for nobody."""
        if self.message.code >= 200:
            self._ended(self.call_id() or "", self.message.code, timed_out=False)

    def _ended(self, call_id: str, code: int, timed_out: bool) -> None:
        event_param = self._open.pop(call_id, "")
        if event_param:
            self._event = (event_param, code, timed_out)
            self._node.bus.on_outcome()

    def send_text(self, to: SipUri, text: str) -> bool:
        self._node.send(to, text)
        return True

    def replicate(self, places: list[SipUri]) -> bool:
        raise NotImplementedError("t_replicate is not simulated")

    def event(self) -> tuple[str, int, bool]:
        return self._event

    # Kamailio

    def log(self, level: str, text: str) -> None:
        self._node.log(level, text)

    def define(self, name: str) -> str | None:
        return None

    def listens_on(self, socket: Via) -> bool:
        return True

    def version(self) -> str:
        return _VERSION


class SimulatedShared:
    """What Bus uses of kemi_dmq.shared.Shared."""

    def __init__(self, node: SimulatedPythonNode) -> None:
        self.counters = node.counters
        self.snapshot = self.engine_inbox = self.posts = node
        self.full_nodes = _FullNodes(node)
        self.callbacks_inbox = _CallbacksInbox(node)
        self.once = _Once(node)
        self.cells = _Cells()
        self.unanswered = _Unanswered()
        self.names = _Names()
        self.words = _Words()
        self.named = _Named()
        self.nonces = _Nonces(int(node.wall() * 1000))
        rng = random.Random(f"secrets of {node.uri}")
        self.secret = rng.randbytes(32)
        self.token = lambda: rng.randbytes(12).hex()
        self.wall = node.wall
        self.processes = _Processes()
        self.workers = None


class _FullNodes:
    def __init__(self, node: SimulatedPythonNode) -> None:
        self._node = node

    @property
    def version(self) -> int:
        return self._node.full_nodes[0]

    def read(self) -> tuple[int, Any]:
        return self._node.full_nodes


class _Nonces:
    """NonceTable without a bound."""

    def __init__(self, now: int) -> None:
        self._since = now - BEFORE_START
        self._seen: set[object] = set()

    def is_early(self, signed: int, now: int) -> bool:
        return is_early(signed, self._since, now)

    def add(self, nonce: object, signed: int, now: int, window: int) -> bool:
        new = nonce not in self._seen
        self._seen.add(nonce)
        return new


class _Named:
    version = 0


class SimulatedCounters(Counter[str]):
    def add(self, name: str, amount: int = 1) -> None:
        self[name] += amount


class _CallbacksInbox:
    def __init__(self, node: SimulatedPythonNode) -> None:
        self._node = node

    def put(self, event: tuple[Any, ...]) -> int:
        self._node.run_later(event)
        return 1


class _Once:
    """OnceTable for one process and without an end to its memory."""

    evicted = 0

    def __init__(self, node: SimulatedPythonNode) -> None:
        self._node = node
        self._answers: dict[object, Answer] = {}
        self._kept: deque[tuple[float, object]] = deque()

    def claim(self, identity: object) -> tuple[Verdict, int, Answer | None]:
        now = self._node.monotonic()
        while self._kept and self._kept[0][0] < now - REMEMBER:
            del self._answers[self._kept.popleft()[1]]
        answer = self._answers.get(identity)
        return (Verdict.ANSWERED if answer else Verdict.NEW), 0, answer

    def finish(self, entry: int, identity: object, answer: Answer) -> None:
        self._answers[identity] = answer
        self._kept.append((self._node.monotonic(), identity))


class _Cells:
    def __init__(self) -> None:
        self._data: dict[int, bytes] = {}
        self._count = 0

    def put(self, data: bytes) -> int | None:
        self._count += 1
        self._data[self._count] = data
        return self._count

    def take(self, cell: int) -> bytes:
        return self._data.pop(cell, b"")


class _Unanswered:
    """A simulated node's messages go through tm."""

    def free(self) -> tuple[int, int]:
        return 0, 0


class _Names(set[str]):
    has = set.__contains__


class _Words(dict[str, int]):
    def get(self, name: str, default: int = 0) -> int:  # type: ignore[override]
        return super().get(name, default)

    set = dict.__setitem__


class _Processes:
    def mine(self) -> int:
        return 0
