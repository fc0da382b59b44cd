"""The engine: events in, actions out.  One process runs it and owns all membership state.

Pure: the host's loop (host/process.py) gives it time, randomness and the outside world as an
Outside, the simulator another one.
"""

from __future__ import annotations

import random
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, Protocol

from . import batch, wire
from .gate import Gate
from .membership import (
    JOIN_MAX_FORWARDS,
    PROBE_PATIENCE,
    QUESTION,
    Action,
    FirstList,
    Forget,
    Membership,
    Notify,
    Publish,
    Resolve,
    Tell,
    Warn,
)
from .message import Outcome
from .node import Node, Status, place
from .outbox import FINE, Answered, Ended, Outbox, Parcel, Post
from .settings import Settings
from .transaction import ClientTransactions
from .wire import SipUri

#: Seconds until a node that somebody has named without a signature is asked again.
ASK_STRANGER = 10.0
#: So many of them are asked in that time.
STRANGERS = 256


class Bodies(NamedTuple):
    """What SIP workers answer notifications with."""

    to_c: str  # C nodes
    to_new_c: str  # C nodes that are not on the list
    to_python: str  # Python nodes: a digest and what is new
    whole: str  # Python nodes that want the list


class Outside(Protocol):
    """What the engine needs of the world."""

    def send(self, to: SipUri, text: str) -> None:
        """Send a whole SIP request; nothing is said about whether it arrives."""

    def publish(self, value: Callable[[], tuple[Any, ...]]) -> None:
        """Show the list, as value() gives it (pack_nodes), to all processes."""

    def callback(self, event: tuple[Any, ...]) -> bool:
        """Hand an event to the process that runs the script's callbacks; False: there is no room
        for it now."""

    def outcome(self, ended: Ended) -> bool:
        """Tell what became of a message; False: there is no room for it now."""

    def ended_silently(self, counts: dict[Outcome, int]) -> None:
        """Count messages of whose outcome nobody is to be told."""

    def want_answers(self, wanted: bool) -> None:
        """Whether answers to quiet parcels are to be handled at once, since others wait for them;
        else they can wait until something else happens."""

    def full(self, nodes: frozenset[tuple[str, int]]) -> None:
        """Show to all processes for which nodes the outbox takes no more."""

    def resolve(self, host: str, srv: str) -> None:
        """Look a name up without waiting, and the SRV records of another if srv is not "": the
        outcome comes back as a ("resolved", …) event."""


def pack_nodes(
    nodes: list[Node],
    bodies: Bodies,
    relays: dict[str, list[str]] | None = None,
    absent: Iterable[Node] = (),
) -> tuple[Any, ...]:
    """Nodes, what is answered, whose messages are passed on to whom, and those that have left the
    list and are not forgotten, as values that can go through shared memory."""
    gone = tuple(pack_node(node) for node in absent)
    return (tuple(bodies), relays or {}, gone, *(pack_node(node) for node in nodes))


class Published:
    """The same as a reader sees it: unpacked when it is needed."""

    def __init__(self, value: tuple[Any, ...]) -> None:
        self._value = value

    @cached_property
    def bodies(self) -> Bodies:
        return Bodies(*self._value[0])

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(unpack_node(item) for item in self._value[3:])

    @cached_property
    def absent(self) -> tuple[Node, ...]:
        return tuple(unpack_node(item) for item in self._value[2])

    @cached_property
    def relays(self) -> dict[str, list[str]]:
        relays: dict[str, list[str]] = self._value[1]
        return relays


def pack_node(node: Node) -> tuple[Any, ...]:
    return (
        node.uri,
        node.host,
        node.port,
        node.transport,
        node.status.value,
        node.local,
        node.python,
        node.address,
        node.fail_count,
    )


@lru_cache(maxsize=4096)  # most nodes are as they were when the list changed before
def unpack_node(value: tuple[Any, ...]) -> Node:
    uri, host, port, transport, status, local, python, address, fails = value
    return Node(uri, host, port, transport, Status(status), local, python, address, fails)


class Engine:
    """Events are tuples of plain values, made by the functions at the end of this file."""

    def __init__(
        self,
        settings: Settings,
        outside: Outside,
        rng: random.Random,
        user_agent: str,
        gate: Gate,
        incarnation: int = 1,
        outbox: Outbox | None = None,
    ) -> None:
        """outbox: that of the engine before, which failed."""
        self._settings = settings
        self._outside = outside
        self._rng = rng
        self._user_agent = user_agent
        self._requests = ClientTransactions()
        self.membership = Membership(settings, rng, incarnation, gate.admits)
        # Its Call-IDs begin with this; so a worker knows a reply that is the engine's.
        self.call_id_prefix = call_id_prefix(settings)
        self._gate = gate
        self._strangers: dict[SipUri, float] = {}  # who was named unsigned -> when to ask again
        self._resolving: list[SipUri] = []  # those of them whose name is being looked up
        self._boot = f"{rng.getrandbits(40):010x}"
        self._count = 0
        if outbox is None:
            outbox = Outbox(settings.outbox_memory, self._boot, self._room, self._token)
        else:
            outbox.room, outbox.token = self._room, self._token
        self.outbox = outbox
        self._signs = bool(settings.keys)
        self._tokens: list[str] = []
        self._from_uris: dict[str, SipUri] = {}  # by peer
        self._envelopes: dict[str, _Envelope] = {}  # by the node's URI
        self._packed: tuple[list[batch.Piece], str] = ([], "")  # the last batch's
        self._parcel_prefix = parcel_prefix(settings)
        self._answers_wanted: bool | None = None  # as it was told last
        self._nodes_changed = True  # since the outbox was told of them
        self._full: frozenset[tuple[str, int]] | None = None  # as it was shown last
        self._tell_again: float | None = None  # when there may be room for outcomes again
        self._untold: deque[tuple[Any, ...]] = deque()  # events that found no room
        self._told_at = 0.0
        # Membership looks at all its nodes for it, so it is not asked for each message.
        self._membership_due: float | None = 0.0

    def start(self, now: float, known: Published | None = None) -> None:
        """Begin, or go on with what an engine that has failed had published."""
        nodes: tuple[Node, ...] = ()
        lines: list[wire.Line] = []
        if known is not None:
            nodes = known.nodes
            lines, _ = wire.parse_body(known.bodies.whole)
        self._carry_out(self.membership.start(now, nodes, lines), now)

    def next_deadline(self) -> float | None:
        times = (
            self._requests.next_deadline(),
            self._membership_due,
            self.outbox.next_deadline(),
            self._tell_again,
            self._told_at + TELL_AGAIN if self._untold else None,
        )
        return min((time for time in times if time is not None), default=None)

    def tick(self, now: float) -> None:
        if self._untold:
            self._told_at = now
            self._tell()
        for notice in self._requests.tick(now, self._outside.send):
            self._carry_out(self.membership.on_no_answer(notice, now), now)
        if self._membership_due is not None and self._membership_due <= now:
            self._carry_out(self.membership.tick(now), now)
        if self.outbox.waiting:
            self._show_nodes(now)
        self.outbox.tick(now)
        self._work_off_outbox(now)

    def send_out(self, now: float) -> None:
        """Send at once what the outbox has been given."""
        self.outbox.flush(now)
        self._work_off_outbox(now)

    def handle(self, event: tuple[Any, ...], now: float) -> None:
        kind = event[0]
        if kind == "post":
            self._show_nodes(now)
            self.outbox.post(Post(*event[2:]))
            return
        if kind == "fine":
            number, _, token = event[1].partition(".")
            try:
                self.outbox.answered(int(number, 16), token, FINE)
            except ValueError:
                pass  # somebody's answer to what nobody asked
            return
        if kind == "reply":
            _, call_id, *answer = event
            match = _PARCEL_ID.fullmatch(call_id, len(self._parcel_prefix))
            if match:
                self.outbox.answered(int(match[1], 16), match[2], Answered(*answer))
            return
        if kind == "notification":
            _, sender, body, supported, product, max_forwards = event
            lines, _ = wire.parse_body(body)
            agent = wire.parse_agent(supported, product)
            actions = self.membership.on_notification(
                wire.parse_uri(sender), lines, agent, max_forwards, now
            )
        elif kind == "answer":
            _, call_id, code, body, supported, product = event
            notice = self._requests.answered(call_id)
            if notice is None:
                return
            try:
                lines, _ = wire.parse_body(body)
            except wire.WireError:
                lines = []
            agent = wire.parse_agent(supported, product)
            actions = self.membership.on_answer(notice, code, lines, agent, now)
        elif kind == "resolved":
            _, host, addresses, srv, targets = event
            self._ask_resolved(host, addresses, now)
            actions = self.membership.on_resolved(host, addresses, now, srv, targets)
        elif kind == "ask":
            self._ask(wire.parse_uri(event[1]), now)
            actions = []
        elif kind == "command":
            _, command, text, status = event
            uri = wire.parse_uri(text)
            if command == "add":
                actions = self.membership.add(uri, now)
            elif command == "remove":
                actions = self.membership.remove(uri, now)
            else:
                actions = self.membership.change_status(uri, Status(status), now)
        else:
            raise ValueError(f"unknown event {kind!r}")
        self._carry_out(actions, now)

    def published(self) -> tuple[Any, ...]:
        """The list now."""
        known = self.membership
        bodies = Bodies(
            known.c_answer_body(),
            known.c_answer_body(is_new=True),
            known.answer_body(),
            known.list_body(),
        )
        return pack_nodes(known.nodes(), bodies, known.relays(), known.absent())

    def _ask(self, uri: SipUri, now: float) -> None:
        """Ask a node itself, which somebody has named without a signature: its own answer, which
        is signed, brings it on the list.  It is told of nobody but us."""
        if now < self._strangers.get(uri, now):
            return
        self._strangers = {u: t for u, t in self._strangers.items() if t > now}
        if len(self._strangers) >= STRANGERS:
            return
        self._strangers[uri] = now + ASK_STRANGER
        if wire.is_address(uri.host):
            self._ask_at(uri, uri.host, now)
        else:
            self._resolving.append(uri)
            self._outside.resolve(uri.host, "")

    def _ask_resolved(self, host: str, addresses: list[str], now: float) -> None:
        for uri in [uri for uri in self._resolving if uri.host == host]:
            self._resolving.remove(uri)
            if addresses:
                self._ask_at(uri, addresses[0], now)

    def _ask_at(self, uri: SipUri, address: str, now: float) -> None:
        to = SipUri(address, uri.port, uri.transport)
        notice = Notify(to, QUESTION, JOIN_MAX_FORWARDS, PROBE_PATIENCE)
        self._carry_out([notice], now)

    def leave_texts(self) -> list[tuple[SipUri, str]]:
        """The requests that say goodbye, ready to be sent by a signal handler."""
        return [(notice.place, self._text(notice)[1]) for notice in self.membership.leave_notices()]

    def _carry_out(self, actions: list[Action], now: float) -> None:
        self._membership_due = self.membership.next_deadline()
        for action in actions:
            if isinstance(action, Notify):
                call_id, text = self._text(action)
                self._requests.start(call_id, action, text, now)
                self._outside.send(action.place, text)
            elif isinstance(action, Publish):
                self._outside.publish(self.published)
                self._nodes_changed = True
            elif isinstance(action, Tell):
                self._tell("event", action.event, pack_node(action.node))
            elif isinstance(action, FirstList):
                self._tell("init", pack_node(action.node))
            elif isinstance(action, Resolve):
                self._outside.resolve(action.host, action.srv)
            elif isinstance(action, Warn):
                self._tell("warn", action.text)
            elif isinstance(action, Forget):
                self._requests.forget(action.node)

    def _tell(self, *event: Any) -> None:
        """Tell the callbacks process; events that find no room wait, in their order."""
        if event:
            self._untold.append(event)
        while self._untold and self._outside.callback(self._untold[0]):
            self._untold.popleft()

    def _show_nodes(self, now: float) -> None:
        """Tell the outbox of the nodes, when it has something for one."""
        if self._nodes_changed:
            self._nodes_changed = False
            self._envelopes.clear()
            self.outbox.set_nodes(self.membership.nodes(), now)

    def _work_off_outbox(self, now: float) -> None:
        outbox = self.outbox
        while outbox.to_send:
            parcel = outbox.to_send.popleft()
            node = outbox.node_of(parcel)
            if node is not None:
                envelope = self._envelope(node)
                self._outside.send(envelope.place, self._request(parcel, envelope))
        if outbox.wants_answers is not self._answers_wanted:
            self._answers_wanted = outbox.wants_answers
            self._outside.want_answers(self._answers_wanted)
        if outbox.silent:
            self._outside.ended_silently(dict(outbox.silent))
            outbox.silent.clear()
        self._tell_again = None
        while outbox.ended:
            if not self._outside.outcome(outbox.ended[0]):
                self._tell_again = now + TELL_AGAIN
                break
            outbox.release(outbox.ended.popleft().letter)
        if outbox.full != self._full:
            self._full = outbox.full
            self._outside.full(self._full)

    def _request(self, parcel: Parcel, envelope: _Envelope) -> str:
        """The request for what travels together; each time with the same Call-ID and branch."""
        pieces = [letter.piece for letter in parcel.letters]
        number = f"{parcel.number:x}"
        kind = _QUIET if parcel.quiet else _PARCEL
        call_id = f"{self._parcel_prefix}{kind}{number}.{parcel.token}"
        branch = f"z9hG4bK{parcel.token}.{number}"
        # One for all copies: each is signed anew, and none may run beside another.
        nonce = f"{_PARCEL}{self.outbox.boot}.{number}" if self._signs else ""
        if len(pieces) > 1:
            if pieces != self._packed[0]:
                self._packed = (pieces, batch.pack(pieces))  # other nodes get the same
            body, item, form = self._packed[1], batch.EMPTY, envelope.batches
        else:
            item = pieces[0].item
            body = item.body
            form = envelope.singles.get(pieces[0].head) or self._single(envelope, pieces[0].head)
        signature = ""
        if self._signs:
            to, sender = envelope.node.with_user(item.peer_id), self._from(item.peer_id)
            signature = self._gate.sign(to, sender, item.content_type, body, nonce)
        return form.request(branch, call_id, number, body, signature)

    def _single(self, envelope: _Envelope, head: tuple[str, int, str]) -> wire.Form:
        """For messages that travel alone."""
        peer_id, max_forwards, content_type = head
        node = envelope.node
        if len(envelope.singles) > 1000:
            envelope.singles.clear()
        form = envelope.singles[head] = wire.Form(
            self._via(node.transport),
            self._from(peer_id),
            node.with_user(peer_id),
            max_forwards,
            content_type,
            self._user_agent,
        )
        return form

    def _from(self, peer_id: str) -> SipUri:
        uri = self._from_uris.get(peer_id)
        if uri is None:
            if len(self._from_uris) > 4096:
                self._from_uris.clear()
            uri = self._from_uris[peer_id] = self._settings.server_address.with_user(peer_id)
        return uri

    def _via(self, transport: str) -> wire.Via:
        socket = self._settings.server_socket
        return wire.Via(transport, socket.host, socket.port)

    def _envelope(self, node: Node) -> _Envelope:
        envelope = self._envelopes.get(node.uri)
        if envelope is None:
            uri = SipUri(node.host, node.port, node.transport)
            to, sender = uri.with_user(batch.PEER), self._from(batch.PEER)
            form = wire.Form(
                self._via(node.transport),
                sender,
                to,
                1,
                batch.CONTENT_TYPE,
                "",
                compact=True,
                signed=self._signs,
            )
            limit = self._settings.batch_bytes
            if limit and node.transport != "udp":
                limit = BATCH_OVER_TCP
            number = f"{LARGEST:x}"
            bare = form.request(
                f"z9hG4bK{'0' * TOKEN}.{number}",
                f"{self._parcel_prefix}{_QUIET}{number}.{'0' * TOKEN}",
                number,
                "-",
                self._gate.sign(to, sender, batch.CONTENT_TYPE, "-", f"{self._boot}.{number}-"),
            )
            # The length of the body has up to five digits.
            room = max(0, limit - len(bare.encode()) - 4)
            envelope = self._envelopes[node.uri] = _Envelope(place(node), uri, form, {}, room)
        return envelope

    def _token(self) -> str:
        if not self._tokens:
            bits = f"{self._rng.getrandbits(4 * TOKEN * TOKENS):0{TOKEN * TOKENS}x}"
            self._tokens = [bits[at : at + TOKEN] for at in range(0, len(bits), TOKEN)]
        return self._tokens.pop()

    def _room(self, node: Node) -> int:
        """Bytes that the messages of a batch for a node may have."""
        room = self._envelope(node).room
        if self.outbox.count >= LARGEST:  # the number stands there three times, signed four
            room -= 4 * (len(f"{self.outbox.count + 1:x}") - len(f"{LARGEST:x}"))
        return max(0, room)

    def _text(self, notice: Notify) -> tuple[str, str]:
        self._count += 1
        unique = f"{self._boot}.{self._count}"
        stamped = self._gate.stamp(unique, notice.place.host)
        call_id = f"{self.call_id_prefix}{stamped}"
        channel = self._settings.notification_channel
        text = self._gate.build_request(
            via=self._via(notice.to.transport),
            branch=f"z9hG4bK{unique}.{self._rng.getrandbits(32):08x}",
            call_id=call_id,
            tag=f"{self._rng.getrandbits(32):08x}",
            from_uri=self._from(channel),
            to_uri=notice.to.with_user(channel),
            body=notice.body,
            max_forwards=notice.max_forwards,
            user_agent=self._user_agent,
            nonce=stamped,
        )
        return call_id, text


def call_id_prefix(settings: Settings) -> str:
    address = settings.server_address
    return f"dmq-{address.host.strip('[]')}-{address.port}-"


#: Bytes of a batch where no datagram limits it: what KEMI's functions take, with room for headers.
BATCH_OVER_TCP = 30_000
#: So many tokens of parcels are drawn at a time: each time is a system call.
TOKENS = 64
#: What an envelope's room is reckoned for; later numbers take more.
LARGEST = 0xFFFFFFF
#: Hexadecimal digits of a parcel's token.  Receivers know a request again for as long as a day, and
#: after a start of Kamailio the numbers begin anew: the tokens tell them apart.
TOKEN = 10


class _Envelope(NamedTuple):
    """What is the same in all requests to a node."""

    place: SipUri  # where they are sent
    node: SipUri
    batches: wire.Form
    singles: dict[tuple[str, int, str], wire.Form]
    room: int  # for the messages of a batch


def parcel_prefix(settings: Settings) -> str:
    """Of the Call-IDs of parcels: short, since a batch has little room."""
    address = settings.server_address
    return f"dmq-{zlib.crc32(f'{address.host}:{address.port}'.encode()):08x}"


#: Follows in the Call-ID of a parcel, of one whose answer nobody waits for, and of what a worker
#: has sent by itself (unanswered.py).
_PARCEL, _QUIET, WORKERS = "o", "q", "w"
_PARCEL_ID = re.compile(rf"[{_PARCEL}{_QUIET}]([0-9a-f]{{1,16}})\.([0-9a-f]{{{TOKEN}}})")
_LONGEST = 16 + 1 + TOKEN  # of the rest
#: Seconds after which outcomes that found no room are told again.
TELL_AGAIN = 0.02


def quiet_parcel(call_id: str, prefix: str) -> str:
    """Which parcel an answer is for, if nobody waits for it; else ""."""
    at = len(prefix) + 1
    if call_id.startswith(_QUIET, at - 1) and len(call_id) - at <= _LONGEST:
        return call_id[at:]
    return ""


# Events, as they travel through the inbox ------------------------------------------------------


def notification_event(
    sender: str, body: str, supported: str, product: str, max_forwards: int
) -> tuple[Any, ...]:
    return ("notification", sender, body, supported, product, max_forwards)


def answer_event(
    call_id: str, code: int, body: str, supported: str, product: str
) -> tuple[Any, ...]:
    return ("answer", call_id, code, body, supported, product)


def resolved_event(
    host: str, addresses: list[str], srv: str, targets: list[tuple[str, int]]
) -> tuple[Any, ...]:
    return ("resolved", host, addresses, srv, targets)


def ask_event(uri: str) -> tuple[Any, ...]:
    """A node that somebody has named who did not sign: it is asked itself."""
    return ("ask", uri)


def command_event(command: str, uri: str, status: str = "") -> tuple[Any, ...]:
    """add, remove or change_status."""
    return ("command", command, uri, status)
