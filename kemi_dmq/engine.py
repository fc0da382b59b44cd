"""The engine: events in, actions out.  One process runs it and owns all membership state.

Pure: the host's loop (host/process.py) gives it time, randomness and the outside world as an
Outside, the simulator another one.
"""

from __future__ import annotations

import random
from typing import Any, Protocol

from . import wire
from .membership import Action, FirstList, Membership, Notify, Publish, Resolve, Tell
from .node import Node, Status
from .settings import Settings
from .transaction import ClientTransactions
from .wire import SipUri


class Outside(Protocol):
    """What the engine needs of the world."""

    def send(self, to: SipUri, text: str) -> None:
        """Send a whole SIP request; nothing is said about whether it arrives."""

    def publish(self, value: tuple[Any, ...]) -> None:
        """Show the list to all processes (see pack_nodes)."""

    def callback(self, event: tuple[Any, ...]) -> None:
        """Hand an event to the process that runs the script's callbacks."""

    def resolve(self, host: str, srv: str) -> None:
        """Look a name up without waiting, and the SRV records of another if srv is not "": the
        outcome comes back as a ("resolved", …) event."""


def pack_nodes(nodes: list[Node], c_body: str) -> tuple[Any, ...]:
    """Nodes, and the list that C nodes are told, as values that can go through shared memory."""
    return (c_body, *(pack_node(node) for node in nodes))


def unpack_nodes(value: tuple[Any, ...] | None) -> tuple[tuple[Node, ...], str]:
    """The same again; nothing for None."""
    if value is None:
        return (), ""
    return tuple(unpack_node(item) for item in value[1:]), value[0]


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


def unpack_node(value: tuple[Any, ...]) -> Node:
    uri, host, port, transport, status, local, python, address, fails = value
    return Node(uri, host, port, transport, Status(status), local, python, address, fails)


class Engine:
    """Events are tuples of plain values, made by the functions at the end of this file."""

    def __init__(
        self, settings: Settings, outside: Outside, rng: random.Random, user_agent: str
    ) -> None:
        self._settings = settings
        self._outside = outside
        self._rng = rng
        self._user_agent = user_agent
        self._requests = ClientTransactions()
        self.membership = Membership(settings, rng)
        # Its Call-IDs begin with this; so a worker knows a reply that is the engine's.
        self.call_id_prefix = call_id_prefix(settings)
        self._boot = f"{rng.getrandbits(48):012x}"
        self._count = 0

    def start(self, now: float, known: list[Node]) -> None:
        self._carry_out(self.membership.start(now, known), now)

    def next_deadline(self) -> float | None:
        times = (self._requests.next_deadline(), self.membership.next_deadline())
        return min((time for time in times if time is not None), default=None)

    def tick(self, now: float) -> None:
        for notice in self._requests.tick(now, self._outside.send):
            self._carry_out(self.membership.on_no_answer(notice, now), now)
        self._carry_out(self.membership.tick(now), now)

    def handle(self, event: tuple[Any, ...], now: float) -> None:
        kind = event[0]
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
            actions = self.membership.on_resolved(host, addresses, now, srv, targets)
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

    def leave_texts(self) -> list[tuple[SipUri, str]]:
        """The requests that say goodbye, ready to be sent by a signal handler."""
        return [(notice.place, self._text(notice)[1]) for notice in self.membership.leave_notices()]

    def _carry_out(self, actions: list[Action], now: float) -> None:
        for action in actions:
            if isinstance(action, Notify):
                call_id, text = self._text(action)
                self._requests.start(call_id, action, text, now)
                self._outside.send(action.place, text)
            elif isinstance(action, Publish):
                self._outside.publish(pack_nodes(self.membership.nodes(), self.membership.c_body()))
            elif isinstance(action, Tell):
                self._outside.callback(("event", action.event, pack_node(action.node)))
            elif isinstance(action, FirstList):
                node = pack_node(action.node) if action.node else None
                self._outside.callback(("init", node))
            elif isinstance(action, Resolve):
                self._outside.resolve(action.host, action.srv)

    def _text(self, notice: Notify) -> tuple[str, str]:
        self._count += 1
        unique = f"{self._boot}.{self._count}"
        call_id = f"{self.call_id_prefix}{unique}"
        channel = self._settings.notification_channel
        socket = self._settings.server_socket
        text = wire.build_request(
            via=wire.Via(notice.to.transport, socket.host, socket.port),
            branch=f"z9hG4bK{unique}.{self._rng.getrandbits(32):08x}",
            call_id=call_id,
            tag=f"{self._rng.getrandbits(32):08x}",
            from_uri=self._settings.server_address.with_user(channel),
            to_uri=notice.to.with_user(channel),
            body=notice.body,
            max_forwards=notice.max_forwards,
            user_agent=self._user_agent,
        )
        return call_id, text


def call_id_prefix(settings: Settings) -> str:
    address = settings.server_address
    return f"dmq-{address.host.strip('[]')}-{address.port}-"


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


def command_event(command: str, uri: str, status: str = "") -> tuple[Any, ...]:
    """add, remove or change_status."""
    return ("command", command, uri, status)
