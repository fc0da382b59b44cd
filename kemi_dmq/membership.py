"""Who is on the bus: the one place where node state changes.

(state, event, now) -> new state and actions.  No I/O, no clock, no randomness of its own: the
engine feeds events in and carries the actions out, the simulator does the same in virtual time.

The rules, and where they come from:

- Lists, Max-Forwards and the three statuses are the C module's (6.1 for remove_inactive and the
  fail counts).
- What a third party says adds nodes that we did not know; it never revives one that did not
  answer us, or that said it leaves: it causes a probe, and only the node's own answer or
  notification revives it.  It does not demote one either: again, a probe decides.
- One node is listed once: a name and an address (or two names) of the same IP address and port
  are the same node, under the URI with which it speaks itself.  C nodes list the name in their
  notification_address beside the node's own URI.
- A node that is away is probed every second at first, then with a growing pause of at most
  PROBE_MAX seconds, also after it has left the list; it is forgotten after FORGET seconds.  Only
  one failure per ping_interval counts for the statuses, as if there were pings alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from .node import Node, Status
from .settings import Settings
from .wire import Agent, Line, SipUri, build_body, c_share, is_address, leave_status, python_share

Key = tuple[str, int]

ASK_ALONE = 1.0  # seconds between two questions at a notification address while we are alone
ASK_AGAIN = 10.0  # the same once somebody has answered, for addresses that are not on the list
PROBE_MIN = 1.0
PROBE_MAX = 10.0
PROBE_PATIENCE = 1.0
FORGET = 600.0
#: Of a question at a notification address, and of a probe: who answers passes us on.
JOIN_MAX_FORWARDS = 2
RESOLVE_PAUSE = 10.0

UP, DOWN, DISABLED = "dmq:peer-up", "dmq:peer-down", "dmq:peer-disabled"
_EVENTS = {Status.ACTIVE: UP, Status.NOT_ACTIVE: DOWN, Status.DISABLED: DISABLED}


# Actions ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Notify:
    """Send a notification; its outcome comes back to on_answer() or on_no_answer()."""

    to: SipUri
    body: str
    max_forwards: int
    patience: float = 8.0  # seconds until it counts as not answered; sent again meanwhile
    address: str = ""  # where the host of to is, if that is a name
    judged: bool = True  # False: no conclusion is drawn when it is not answered

    @property
    def place(self) -> SipUri:
        return replace(self.to, host=self.address) if self.address else self.to


@dataclass(frozen=True, slots=True)
class Publish:
    """The list has changed: show it to all processes."""


@dataclass(frozen=True, slots=True)
class Tell:
    """Run the script's event callback: event is one of dmq:peer-up, -down, -disabled."""

    event: str
    node: Node


@dataclass(frozen=True, slots=True)
class FirstList:
    """Run the peers' init_callback: a list has arrived, or a node has come back."""

    node: Node | None


@dataclass(frozen=True, slots=True)
class Resolve:
    """Look a host name up, without waiting; the outcome comes to on_resolved()."""

    host: str
    srv: str = ""  # a name whose SRV records are asked for as well


Action = Notify | Publish | Tell | FirstList | Resolve


# State --------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Member:
    uri: SipUri
    status: Status
    address: str
    listed: bool = True  # False: it has left the list and is only probed
    agent: Agent | None = None
    next_ping: float = 0.0
    last_sent: float = float("-inf")
    waiting: bool = False  # a notification is on its way and not answered yet
    busy: bool = False  # it has answered 503, and has not answered otherwise since
    fails: int = 0
    counts_from: float = float("-inf")  # a failure before this time is not counted
    away_since: float = 0.0

    @property
    def active(self) -> bool:
        return self.status is Status.ACTIVE


@dataclass(slots=True)
class _Contact:
    """A notification address: where to ask, not a node of its own."""

    uri: SipUri
    addresses: list[SipUri] = field(default_factory=list)
    next_ask: float = 0.0
    srv: str = ""  # the name whose SRV records say where it is


class Membership:
    def __init__(self, settings: Settings, rng: random.Random) -> None:
        self._settings = settings
        self._rng = rng
        self.local = settings.server_address
        socket = settings.server_socket
        self._local_places = {self.local.key, (socket.host, socket.port)}
        self._members: dict[Key, _Member] = {}
        self._contacts = [
            _Contact(uri, srv=srv_name(uri, settings.multi_notify))
            for uri in settings.notification_address
        ]
        self._contact_keys: set[Key] = set()
        #: host -> nodes that wait for it, and whether they spoke themselves
        self._resolving: dict[str, dict[SipUri, bool]] = {}
        self._unresolvable: dict[str, float] = {}  # host -> when to try again
        self._first_list_told = False
        self._actions: list[Action] = []
        self._changed = False
        self._known_to_c: dict[Key, None] = {}  # in the order in which they came to be known
        self._bodies: dict[bool, str] = {}  # for Python nodes?, until the list changes

    # What others read ----------------------------------------------------------------------

    def nodes(self) -> list[Node]:
        """The list, the local node first."""
        nodes = [_node(self.local, Status.ACTIVE, local=True, python=True)]
        nodes += [self._member_node(m) for m in self._members.values() if m.listed]
        return nodes

    def next_deadline(self) -> float | None:
        """When tick() is due; None if never."""
        times = [m.next_ping for m in self._members.values() if not m.waiting]
        times += [c.next_ask for c in self._contacts if self._asks(c)]
        return min(times, default=None)

    def leave_notices(self) -> Iterator[Notify]:
        """What to send when this Kamailio stops: to each node in words that it understands."""
        for member in self._members.values():
            if member.listed:
                status = leave_status(member.agent)
                body = build_body([self.local], status)
                yield Notify(member.uri, body, 1, address=member.address)

    # Events --------------------------------------------------------------------------------

    def start(self, now: float, known: Iterable[Node] = ()) -> list[Action]:
        """Begin, or go on after a failure of the engine with the nodes that were published."""
        for node in known:
            if not node.local:
                uri = SipUri(node.host, node.port, node.transport)
                agent = Agent(python=True) if node.python else None
                address = f"[{node.address}]" if ":" in node.address else node.address
                self._members[uri.key] = _Member(
                    uri, node.status, address, agent=agent, next_ping=now
                )
                self._first_list_told = True
        self._touch()
        return self.tick(now)

    def on_notification(
        self,
        sender: SipUri,
        lines: list[Line],
        agent: Agent,
        max_forwards: int,
        now: float,
    ) -> list[Action]:
        """A notification request of sender (its From URI) has arrived."""
        self._set_agent(self._members.get(sender.key), agent)
        news = self._merge(sender.key, lines, now)
        self._c_node_knows(agent, lines)
        member = self._members.get(sender.key)
        self._set_agent(member, agent)
        if news and max_forwards > 1:
            for other in self._members.values():
                if other.active:
                    self._ping(other, now, max_forwards - 1)
        self._first_list(member)
        return self.tick(now)

    def on_answer(
        self, notice: Notify, code: int, lines: list[Line], agent: Agent, now: float
    ) -> list[Action]:
        """The final answer to a notification that we sent; it may come late."""
        if code != 200:
            member = self._members.get(notice.to.key)
            if code == 503 and member is not None and member.waiting and not member.busy:
                # Too busy to answer, once: it is asked again before anything is concluded.
                member.busy, member.waiting = True, False
                member.next_ping = now + PROBE_MIN
                return self.tick(now)
            # It lives, but its DMQ does not work: sending to it is no use.
            return self.on_no_answer(notice, now)
        to = notice.to
        member = self._members.get(to.key)
        if member is not None:
            self._set_agent(member, agent)
            member.waiting = False
            self._alive(member)
            member.next_ping = now + self._interval()
        if to.key in self._contact_keys:
            for contact in self._contacts:
                if to in contact.addresses:
                    contact.next_ask = now + ASK_AGAIN
        self._merge(None, lines, now)
        self._c_node_knows(agent, lines)
        if member is None:
            member = self._members.get(to.key) or next(iter(self._members.values()), None)
        self._first_list(member)
        return self.tick(now)

    def on_no_answer(self, notice: Notify, now: float) -> list[Action]:
        """A notification that we sent was not answered in time, or not with 200."""
        member = self._members.get(notice.to.key)
        if member is not None and member.waiting and notice.judged:
            member.waiting = False
            self._failed(member, now)
        return self.tick(now)

    def on_resolved(
        self,
        host: str,
        addresses: list[str],
        now: float,
        srv: str = "",
        targets: Iterable[tuple[str, int]] = (),
    ) -> list[Action]:
        """A look-up has ended; addresses is empty if it failed.  targets: address and port of
        what the SRV records of srv name, in the order in which they are to be tried."""
        for contact in self._contacts:
            if contact.uri.host == host and contact.srv == srv:
                port, any_port = contact.uri.port, not contact.uri.port_given
                places = [place for place in targets if any_port or place[1] == port]
                places += [(address, port) for address in addresses]
                if places:
                    self._set_places(contact, places)
                    self._ask_addresses(contact)
        waiting = self._resolving.pop(host, {})
        if addresses:
            self._unresolvable.pop(host, None)
            for uri, itself in waiting.items():
                if uri.key not in self._members:
                    self._add(uri, addresses[0], now, itself)
        else:
            self._unresolvable = {h: t for h, t in self._unresolvable.items() if t > now}
            self._unresolvable[host] = now + RESOLVE_PAUSE
        return self.tick(now)

    # The operator's commands: those of the C module's RPC (its development branch).  Nobody else
    # is told, and none of them outlasts what the node itself says or answers next.

    def add(self, uri: SipUri, now: float) -> list[Action]:
        """dmq.add: list a node as active, and ping it.  Nothing happens if it is listed, also
        under another name, or if it is the local one."""
        for key, member in list(self._members.items()):
            place = (member.address, member.uri.port)
            if not member.listed and uri.key in (key, place):
                del self._members[key]  # it was only probed
        if uri.key not in self._members and uri.key != self.local.key:
            self._learn(uri, now, itself=False)
        return self.tick(now)

    def remove(self, uri: SipUri, now: float) -> list[Action]:
        """dmq.remove: take a node from the list and forget it."""
        member = self._members.pop(uri.key, None)
        if member is not None and member.listed:
            self._set_status(member, Status.DISABLED)
            self._touch()
        return self.tick(now)

    def change_status(self, uri: SipUri, status: Status, now: float) -> list[Action]:
        """dmq.change_status, of a node on the list; it is pinged at the usual time."""
        member = self._members.get(uri.key)
        if member is not None and member.listed:
            if member.active:
                member.away_since = now
            self._set_fails(member, 0)
            member.counts_from = now
            member.next_ping = now + self._interval()
            self._set_status(member, status)
        return self.tick(now)

    def tick(self, now: float) -> list[Action]:
        """Time has come for what next_deadline() said (or may have); gives what is to be done."""
        for contact in self._contacts:
            if contact.next_ask <= now and self._asks(contact):
                self._ask(contact, now)
        for key, member in list(self._members.items()):
            if not member.listed and now - member.away_since > FORGET:
                del self._members[key]
            elif member.next_ping <= now and not member.waiting:
                self._ping(member, now)
        actions, self._actions = self._actions, []
        if self._changed:
            self._changed = False
            actions.insert(0, Publish())
        return actions

    # Rules ---------------------------------------------------------------------------------

    def _merge(self, sender: Key | None, lines: list[Line], now: float) -> bool:
        """Apply a list; True if it told us something new."""
        news = False
        for line in lines:
            key = line.uri.key
            member = self._members.get(key)
            if key == self.local.key:
                continue
            if member is None:
                if line.status == "active":
                    news |= self._learn(line.uri, now, itself=key == sender)
            elif key == sender:
                if line.uri.transport != member.uri.transport:
                    member.uri = line.uri
                    self._touch()
                news |= self._said_itself(member, line.status, now)
            elif (line.status == "active") != member.active:
                if now - member.last_sent >= PROBE_MIN:
                    member.next_ping = now
        return news

    def _learn(self, uri: SipUri, now: float, itself: bool) -> bool:
        if is_address(uri.host):
            return self._add(uri, uri.host, now, itself)
        if now >= self._unresolvable.get(uri.host, now):
            if uri.host not in self._resolving and len(self._resolving) >= 1000:
                return False  # it is told again
            waiting = self._resolving.setdefault(uri.host, {})
            if not waiting:
                self._actions.append(Resolve(uri.host))
            waiting[uri] = waiting.get(uri, False) or itself
        return False

    def _add(self, uri: SipUri, address: str, now: float, itself: bool) -> bool:
        """A node that is not on the list; itself: it is the one that says so."""
        place = (address, uri.port)
        if place in self._local_places:
            return False
        for key, other in self._members.items():
            if (other.address, other.uri.port) == place:
                if not itself:
                    return False
                del self._members[key]
                if other.active:
                    self._actions.append(Tell(DOWN, self._member_node(other)))
                break
        member = _Member(uri, Status.ACTIVE, address, next_ping=now)
        self._members[uri.key] = member
        self._touch()
        self._actions.append(Tell(UP, self._member_node(member)))
        return True

    def _said_itself(self, member: _Member, status: str, now: float) -> bool:
        """A node speaks of itself: it is believed."""
        before = member.active
        if status == "active":
            self._alive(member)
            if not before:
                member.next_ping = now
        elif before:
            self._away(member, Status(status), now)
        return member.active is not before

    def _alive(self, member: _Member) -> None:
        self._set_fails(member, 0)
        member.busy = False
        if not member.active:
            member.listed = True
            self._set_status(member, Status.ACTIVE)
            if self._first_list_told:
                self._actions.append(FirstList(self._member_node(member)))

    def _away(self, member: _Member, status: Status, now: float) -> None:
        if member.active:
            member.away_since = now
        self._set_status(member, status)
        member.counts_from = now + self._settings.ping_interval
        member.next_ping = now + PROBE_MIN

    def _failed(self, member: _Member, now: float) -> None:
        """The C module's rules for a ping without answer (6.1)."""
        settings = self._settings
        if member.listed and (member.active or now >= member.counts_from):
            self._set_fails(member, member.fails + 1)
            if member.status is Status.DISABLED:
                member.listed = False
                self._touch()
            elif settings.fail_count_enabled:
                if not member.active:
                    if member.fails > settings.fail_count_threshold_disabled:
                        self._away(member, Status.DISABLED, now)
                elif member.fails > settings.fail_count_threshold_not_active:
                    self._away(member, Status.NOT_ACTIVE, now)
            elif member.uri.key in self._contact_keys or not settings.remove_inactive:
                self._away(member, Status.NOT_ACTIVE, now)
            else:
                self._away(member, Status.DISABLED, now)
        if member.active:
            member.next_ping = now + self._interval()
        else:
            pause = max(PROBE_MIN, min((now - member.away_since) / 5, PROBE_MAX))
            member.next_ping = member.last_sent + pause * self._rng.uniform(0.8, 1.0)

    def _set_status(self, member: _Member, status: Status) -> None:
        if member.status is not status:
            member.status = status
            self._touch()
            self._actions.append(Tell(_EVENTS[status], self._member_node(member)))

    def _set_fails(self, member: _Member, count: int) -> None:
        if member.fails != count:
            member.fails = count
            self._touch()

    def _set_agent(self, member: _Member | None, agent: Agent) -> None:
        if member is not None and member.agent != agent:
            member.agent = agent
            self._touch()

    def _first_list(self, member: _Member | None) -> None:
        if not self._first_list_told:
            self._first_list_told = True
            self._actions.append(FirstList(self._member_node(member) if member else None))

    # Sending -------------------------------------------------------------------------------

    def _ping(self, member: _Member, now: float, max_forwards: int = 1) -> None:
        member.waiting = True
        member.last_sent = now
        member.next_ping = now + self._interval()
        body = self._body_for(member.agent)
        if member.active:
            notice = Notify(member.uri, body, max_forwards, address=member.address)
        else:
            notice = Notify(
                member.uri, body, JOIN_MAX_FORWARDS, PROBE_PATIENCE, address=member.address
            )
        self._actions.append(notice)

    def _body_for(self, agent: Agent | None) -> str:
        python = agent is not None and agent.python
        if python not in self._bodies:
            if python:
                uris = [self.local, *(m.uri for m in self._members.values() if m.active)]
                share = python_share(uris, self._rng.getrandbits(30))
            else:
                share = self._c_share()
            self._bodies[python] = build_body(share)
        return self._bodies[python]

    def _c_share(self) -> list[SipUri]:
        """What C nodes are told of.  They keep what they were told, so the choice changes only by
        those who go: first those that some C node knows, then other C nodes, then the first by
        host and port.  (This node is not preferred: each of us would prefer another.)"""
        members = {key: member for key, member in self._members.items() if member.active}
        uris = {self.local.key: self.local, **{key: m.uri for key, m in members.items()}}
        c_nodes = {key for key, m in members.items() if m.agent is not None and not m.agent.python}
        if not c_nodes:
            self._known_to_c.clear()  # so that all of us choose the same when the first one comes
        known = [key for key in self._known_to_c if key in uris]
        others = sorted(uris.keys() - set(known), key=lambda key: (key not in c_nodes, key))
        share = c_share([uris[key] for key in (*known, *others)])
        self._known_to_c = dict.fromkeys(uri.key for uri in share)
        return share

    def c_body(self) -> str:
        """The list as it is told to C nodes."""
        return self._body_for(None)

    def _c_node_knows(self, agent: Agent, lines: list[Line]) -> None:
        if not agent.python:
            listed = (line.uri.key for line in lines if line.status == "active")
            before = len(self._known_to_c)
            self._known_to_c.update(dict.fromkeys(listed))
            if len(self._known_to_c) != before:
                self._touch()

    def _interval(self) -> float:
        # Spread: nodes that started together do not ping together.
        return self._settings.ping_interval * self._rng.uniform(0.9, 1.0)

    # Notification addresses ----------------------------------------------------------------

    def _asks(self, contact: _Contact) -> bool:
        """Whether a contact is to be asked: not while the nodes behind it are on the list and
        answer, since those are pinged."""
        if contact.uri.key in self._local_places:
            return False
        if not contact.addresses:
            return True
        members = [self._members.get(uri.key) for uri in contact.addresses]
        return any(member is None or not member.active for member in members)

    def _ask(self, contact: _Contact, now: float) -> None:
        alone = not any(member.active for member in self._members.values())
        contact.next_ask = now + (ASK_ALONE if alone else ASK_AGAIN)
        if is_address(contact.uri.host):
            self._set_places(contact, [contact.uri.key])
            self._ask_addresses(contact)
        else:
            # Looked up each time: behind a name the addresses come and go.  A look-up that hangs
            # does not hold up the next one.
            self._actions.append(Resolve(contact.uri.host, contact.srv))

    def _ask_addresses(self, contact: _Contact) -> None:
        for uri in contact.addresses:
            if uri.key not in self._members:  # else it is pinged or probed
                body = self._body_for(None)
                self._actions.append(
                    Notify(uri, body, JOIN_MAX_FORWARDS, PROBE_PATIENCE, judged=False)
                )

    def _set_places(self, contact: _Contact, places: list[Key]) -> None:
        chosen = list(dict.fromkeys(places)) if self._settings.multi_notify else places[:1]
        uris = [SipUri(host, port, contact.uri.transport) for host, port in chosen]
        contact.addresses = [uri for uri in uris if uri.key not in self._local_places]
        self._contact_keys.update(uri.key for uri in contact.addresses)

    # Small things --------------------------------------------------------------------------

    def _touch(self) -> None:
        self._changed = True
        self._bodies.clear()

    def _member_node(self, member: _Member) -> Node:
        python = member.agent is not None and member.agent.python
        node = _node(member.uri, member.status, python=python, address=member.address)
        return replace(node, fail_count=member.fails)


def srv_name(uri: SipUri, multi_notify: int) -> str:
    """The name whose SRV records say where a notification address is; "" for none.

    With multi_notify the C module asks for those of the host as it is written
    (``sip:_sip._udp.bus.example``); without, Kamailio's core does as RFC 3263, 4.2 says.
    """
    if is_address(uri.host):
        return ""
    if multi_notify:
        return uri.host
    if uri.port_given:
        return ""
    service = {"udp": "_sip._udp", "tcp": "_sip._tcp", "tls": "_sips._tcp", "sctp": "_sip._sctp"}
    return f"{service[uri.transport]}.{uri.host}"


def _node(
    uri: SipUri, status: Status, *, local: bool = False, python: bool = False, address: str = ""
) -> Node:
    address = (address or (uri.host if is_address(uri.host) else "")).strip("[]")
    return Node(str(uri), uri.host, uri.port, uri.transport, status, local, python, address)
