"""Who is on the bus: the one place where node state changes.

(state, event, now) -> new state and actions.  No I/O, no clock, no randomness of its own: the
engine feeds events in and carries the actions out, the simulator does the same in virtual time.

The rules, and where they come from:

- With C nodes we speak as they do: lists, Max-Forwards, pings and the three statuses are the C
  module's (6.1 for remove_inactive and the fail counts).  But a C node that lists more than its
  buffer holds stops working, so it is told of nobody new before it has said whom it lists, and
  each Python node tells of itself only, if there is room (c_room.py).
- Python nodes tell each other what has changed (gossip.py) and watch each other by probes
  (swim.py).  A node's incarnation, which only the node itself raises, orders what is said of it.
- What a third party says adds nodes that we did not know; it never revives one that did not
  answer us, or that said it leaves, unless it bears a newer incarnation: it causes a probe, and
  only the node's own answer or notification revives it.  It does not demote one either: a probe,
  or the time that a suspicion has, decides.
- One node is listed once: a name and an address (or two names) of the same IP address and port
  are the same node, under the URI with which it speaks itself.  C nodes list the name in their
  notification_address beside the node's own URI.
- A node that is away is probed every second at first, then with a growing pause of at most
  PROBE_MAX seconds, also after it has left the list; it is forgotten when for reconnect_timeout
  nobody has said that it is there.  Only one failure per ping_interval counts for the statuses, as
  if there were pings alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from . import gossip
from .c_room import CShare, c_share
from .gossip import Head, Rumours, fingerprint, mark, parse_head, rumour_line, rumour_of
from .node import Node, Status
from .settings import Settings
from .swim import TRANSITIONS, AskOthers, Cause, Detector, Missed, Probe, State, Suspicion
from .wire import LIST_BYTES, Agent, Line, SipUri, build_body, is_address, leave_status

Key = tuple[str, int]

ASK_ALONE = 1.0  # seconds between two questions at a notification address while we are alone
ASK_AGAIN = 10.0  # the same once somebody has answered, for addresses that are not on the list
PROBE_MIN = 1.0
PROBE_MAX = 10.0
PROBE_PATIENCE = 1.0
#: Of so many nodes that know of one that is away each one probes it; of more, fewer do.
PROBERS = 8
#: Of a question at a notification address, and of a probe: who answers passes us on.
JOIN_MAX_FORWARDS = 2
#: To whom we do not know: a notification without a list, which C nodes and Python nodes answer with
#: theirs.  Our own name could be the one too many for a C node.
QUESTION = ""
#: A suspect is told by some so many of those who heard of it, so that it can refute.
FEW = 8
RESOLVE_PAUSE = 10.0
#: A node that a C node does not list tells it of itself when no Python node has come for QUIET, so
#: that all of them know each other and agree who there is room for, or SETTLED at the latest; who
#: knows no other Python node, within JITTER after that.  Not again before INTRODUCE_AGAIN.
SETTLED = 3.0
JITTER = 0.5
INTRODUCE_AGAIN = 5.0
#: News go out at once, but not more often than this.
GOSSIP_PAUSE = 0.02
#: Who names an incarnation so far ahead of ours (milliseconds: ten years) does not say the truth:
#: the node itself would have to go beyond it, and could never be less again.
TOO_FAR = 10 * 366 * 86_400_000
#: A node that refutes something raises its incarnation by little, one that starts again by the time
#: since its last start (milliseconds).
RESTARTS = 900
#: So many marks of those who suspect a node are kept and told.
MARKS = 8
#: Lists that differ are compared when nothing has changed for so long, and then not at once again.
QUIET = 0.4
SYNC_MIN = 1.0
SYNC_MAX = 60.0

UP, DOWN, DISABLED = "dmq:peer-up", "dmq:peer-down", "dmq:peer-disabled"
_EVENTS = {Status.ACTIVE: UP, Status.NOT_ACTIVE: DOWN, Status.DISABLED: DISABLED}
_NEVER = float("inf")
_LAST = ("\U0010ffff", 0)  # after all others
_CAUSES = {"suspect": Cause.SUSPECTED, "down": Cause.CALLED_DOWN, "left": Cause.LEAVES}


# Actions ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Notify:
    """Send a notification; its outcome comes back to on_answer() or on_no_answer()."""

    to: SipUri
    body: str
    max_forwards: int
    patience: float = 8.0  # seconds until it counts as not answered; sent again meanwhile
    address: str = ""  # where the host of to is, if that is a name
    again: float = 0.5  # seconds until it is first sent again (RFC 3261: T1)
    asked_by: Key | None = None  # who asked us for this probe

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
    """Run the peers' init_callback: the first node is here, or one has come back."""

    node: Node


@dataclass(frozen=True, slots=True)
class Resolve:
    """Look a host name up, without waiting; the outcome comes to on_resolved()."""

    host: str
    srv: str = ""  # a name whose SRV records are asked for as well


@dataclass(frozen=True, slots=True)
class Warn:
    """Something that the operator has to know: one line in the log."""

    text: str


@dataclass(frozen=True, slots=True)
class Forget:
    """Let no answer to what a node was asked before count, nor that none came."""

    node: Key


Action = Notify | Publish | Tell | FirstList | Resolve | Warn | Forget


# State --------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Member:
    uri: SipUri
    status: Status
    address: str
    listed: bool = True  # False: it has left the list and is only probed
    agent: Agent | None = None
    away_since: float = 0.0
    named: float = float("-inf")  # when somebody else last said that it is active, while it is not

    # C nodes, nodes that are away, and those of which it is not known what they are: pings
    next_ping: float = 0.0
    last_sent: float = float("-inf")
    ping: Notify | None = None  # on its way, not answered yet: what it is judged by
    excused: bool = False  # it spoke while a ping was on its way, and has not answered since
    owes_init: bool = False  # init_callback is to run for it when it knows us
    busy: bool = False  # it has answered 503, and has not answered otherwise since
    fails: int = 0
    counts_from: float = float("-inf")  # a failure before this time is not counted

    # Python nodes: swim.py
    state: State = State.ALIVE
    incarnation: int = 0  # 0: not known yet
    anew: bool = False  # it is back, and has not said yet with which incarnation
    suspicion: Suspicion | None = None
    share: int = 0  # its part in the digest

    # C nodes
    lists: dict[Key, SipUri] | None = None  # as active, while it was here; None: it never said
    introduce_at: float = _NEVER  # when it is asked whom it lists, to be told of us
    asking: bool = False  # its next answer is the answer to that
    introduced: float = -_NEVER  # when it was told of us last

    line: str = ""  # what is told of it, and what that was made of
    line_of: tuple[object, ...] = ()

    @property
    def active(self) -> bool:
        return self.status is Status.ACTIVE

    @property
    def python(self) -> bool:
        return self.agent is not None and self.agent.python

    @property
    def has_c_module(self) -> bool:
        """Not so while it is not known what it is."""
        return self.agent is not None and not self.agent.python

    @property
    def probed(self) -> bool:
        """Whether it takes part in the probes of Python nodes."""
        return self.python and self.active


@dataclass(slots=True)
class _Contact:
    """A notification address: where to ask, not a node of its own."""

    uri: SipUri
    addresses: list[SipUri] = field(default_factory=list)
    next_ask: float = 0.0
    srv: str = ""  # the name whose SRV records say where it is


class Membership:
    """incarnation: of this node; larger than any that it had before a restart (milliseconds of
    wall clock do).  admits: whether an address is in the allowed networks: whose requests are
    refused is not listed either, whoever names him."""

    def __init__(
        self,
        settings: Settings,
        rng: random.Random,
        incarnation: int = 1,
        admits: Callable[[str], bool] = lambda address: True,
    ) -> None:
        self._settings = settings
        self._admits = admits
        self._rng = rng
        self.local = settings.server_address
        self.incarnation = incarnation
        socket = settings.server_socket
        self._local_places = {self.local.key, (socket.host, socket.port)}
        self._members: dict[Key, _Member] = {}
        #: Python nodes that are not away: they are probed.  All others are in _pinged.
        self._probed: dict[Key, _Member] = {}
        self._pinged: dict[Key, _Member] = {}
        self._suspects: dict[Key, _Member] = {}
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
        self._share: CShare | None = None  # of C nodes' room, until the list changes
        self._came_at = 0.0  # when the last Python node came, and the first of those just before
        self._coming_since = 0.0
        self._settled = False  # seen from the last tick

        self._now = 0.0
        self._expected: float | None = None  # when tick() was due next, seen from the last one
        self._detector = Detector(settings, rng)
        self._rumours = Rumours()
        self._next_gossip = _NEVER
        self._last_gossip = float("-inf")
        self._digest = fingerprint(self.local, incarnation)
        self._last_incarnation = incarnation + TOO_FAR
        self._changed_at = 0.0
        self._next_sync = 0.0
        self._sync_pause = SYNC_MIN
        self._limit_said = False

    # What others read ----------------------------------------------------------------------

    def nodes(self) -> list[Node]:
        """The list, the local node first."""
        nodes = [_node(self.local, Status.ACTIVE, local=True, python=True)]
        nodes += [self._member_node(m) for m in self._members.values() if m.listed]
        return nodes

    def absent(self) -> list[Node]:
        """Nodes that have left the list and are not forgotten: they are probed."""
        return [self._member_node(m) for m in self._members.values() if not m.listed]

    @property
    def health(self) -> int:
        """How much this node doubts itself: 0 is well (Lifeguard's local health)."""
        return self._detector.health

    def next_deadline(self) -> float | None:
        """When tick() is due; None if never."""
        pinged = [m for m in self._pinged.values() if m.ping is None]
        times = [min(m.next_ping, m.introduce_at) for m in pinged]
        times += [c.next_ask for c in self._contacts if self._asks(c)]
        times += [m.suspicion.due() for m in self._suspects.values() if m.suspicion]
        if not self._settled:
            times.append(self._settled_at)
        if self._probed:
            times.append(self._detector.next_deadline())
            times.append(self._next_gossip)
        when = min(times, default=_NEVER)
        return None if when == _NEVER else when

    def leave_notices(self) -> Iterator[Notify]:
        """What to send when this Kamailio stops: to each node in words that it understands."""
        for member in self._members.values():
            if member.listed:
                status = leave_status(member.agent)
                incarnation = self.incarnation if member.python else 0
                body = f"{Line(self.local, status, incarnation)}\r\n"
                yield Notify(member.uri, body, 1, address=member.address)

    # Events --------------------------------------------------------------------------------

    def start(
        self, now: float, known: Iterable[Node] = (), lines: Iterable[Line] = ()
    ) -> list[Action]:
        """Begin, or go on after a failure of the engine with the nodes that were published and
        the lines that told of them."""
        self._now = self._came_at = self._coming_since = now
        said = {line.uri.key: line for line in lines}
        for node in known:
            if not node.local:
                uri = SipUri(node.host, node.port, node.transport)
                agent = Agent(python=True) if node.python else None
                address = f"[{node.address}]" if ":" in node.address else node.address
                member = _Member(uri, node.status, address, agent=agent, next_ping=now)
                member.state = State.ALIVE if member.active else State.DOWN
                line = said.get(uri.key)
                if node.python and line is not None:
                    member.incarnation = line.incarnation
                    if not member.active and rumour_of(line)[0] == State.LEFT.value:
                        member.state = State.LEFT
                self._members[uri.key] = member
                self._place(member)
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
        self._begin(now)
        self._set_agent(self._members.get(sender.key), agent)
        news = self._merge(sender.key, lines, agent)
        self._c_node_knows(sender.key, agent, lines)
        member = self._members.get(sender.key)
        self._set_agent(member, agent)
        if news and max_forwards > 1:
            self._tell_c_nodes(max_forwards - 1)
        if member is not None and agent.python:
            self._python_spoke(member, lines, is_request=True)
        self._first_list(member)
        return self.tick(now)

    def on_answer(
        self, notice: Notify, code: int, lines: list[Line], agent: Agent, now: float
    ) -> list[Action]:
        """The final answer to a notification that we sent; it may come late."""
        self._begin(now)
        if code != 200:
            member = self._members.get(notice.to.key)
            if code == 503 and member is not None and member.ping and not member.busy:
                # Too busy to answer, once: it is asked again before anything is concluded.
                member.busy, member.ping = True, None
                member.next_ping = now + PROBE_MIN
                return self.tick(now)
            # It lives, but its DMQ does not work: sending to it is no use.
            return self.on_no_answer(notice, now)
        to = notice.to
        member = self._members.get(to.key)
        was_away = member is not None and not member.active
        is_unknown = member is None or member.agent is None
        if member is not None:
            self._set_agent(member, agent)
            member.ping, member.excused = None, False
            if not member.python:
                self._alive(member)
            member.next_ping = now + self._interval()
        if member is None and to.key in self._contact_keys:
            # (Answers to probes say nothing of other addresses behind the name.)
            for contact in self._contacts:
                if to in contact.addresses:
                    contact.next_ask = now + ASK_AGAIN
        self._merge(to.key if agent.python else None, lines, agent, is_answer=True)
        if is_unknown and notice.body == QUESTION:
            self._met(to, agent)
        self._c_node_knows(to.key, agent, lines, is_answer=True)
        if member is not None and member.python:
            self._python_spoke(member, lines, is_request=False)
            if not any(line.uri.key == to.key and line.incarnation for line in lines):
                self._change(member, Cause.ANSWERED)
            if notice.asked_by is not None:
                self._report(notice.asked_by, member, reached=True)
        if member is not None and was_away and member.active:
            self._tell_c_nodes(1, but=member)
        if member is None:
            member = self._members.get(to.key)
        elif member.owes_init and member.python:
            self._init(member)
        self._first_list(member, is_new=is_unknown)
        return self.tick(now)

    def on_no_answer(self, notice: Notify, now: float) -> list[Action]:
        """A notification that we sent was not answered in time, or not with 200."""
        self._begin(now)
        member = self._members.get(notice.to.key)
        if member is not None:
            if notice.asked_by is not None:
                self._report(notice.asked_by, member, reached=False)
            elif notice is member.ping:
                member.ping = None
                if not member.probed:  # meanwhile it may have said that it is a Python node
                    self._failed(member)
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
        self._begin(now)
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
                    self._add(uri, addresses[0], itself)
        else:
            self._unresolvable = {h: t for h, t in self._unresolvable.items() if t > now}
            self._unresolvable[host] = now + RESOLVE_PAUSE
        return self.tick(now)

    # The operator's commands: those of the C module's RPC (its development branch).  Nobody else
    # is told, and none of them outlasts what the node itself says or answers next.

    def add(self, uri: SipUri, now: float) -> list[Action]:
        """dmq.add: list a node as active, and ping it.  Nothing happens if it is listed, also
        under another name, or if it is the local one."""
        self._begin(now)
        for key, member in list(self._members.items()):
            place = (member.address, member.uri.port)
            if not member.listed and uri.key in (key, place):
                self._forget(member)  # it was only probed
        if uri.key not in self._members and uri.key != self.local.key:
            self._learn(Line(uri, "active"), itself=False)
        return self.tick(now)

    def remove(self, uri: SipUri, now: float) -> list[Action]:
        """dmq.remove: take a node from the list and forget it."""
        self._begin(now)
        member = self._members.get(uri.key)
        if member is not None:
            self._actions.append(Forget(uri.key))
            self._forget(member)
            if member.listed:
                self._set_status(member, Status.DISABLED)
                self._touch()
        return self.tick(now)

    def change_status(self, uri: SipUri, status: Status, now: float) -> list[Action]:
        """dmq.change_status, of a node on the list; it is pinged at the usual time."""
        self._begin(now)
        member = self._members.get(uri.key)
        if member is not None and status is not Status.ACTIVE:
            self._actions.append(Forget(uri.key))
            member.ping = None
        if member is not None and member.listed:
            if member.active:
                member.away_since = now
            self._set_fails(member, 0)
            member.counts_from = now
            member.next_ping = now + self._interval()
            member.state = State.ALIVE if status is Status.ACTIVE else State.DOWN
            member.suspicion = None
            self._set_status(member, status)
            self._place(member)
        return self.tick(now)

    def _begin(self, now: float) -> None:
        """Each event begins here: if this process stood still, what it missed says nothing of
        others."""
        if (
            self._expected is not None
            and now - self._expected > self._settings.probe_timeout / 1000
        ):
            late = now - self._expected
            self._detector.postpone(late)
            for member in self._suspects.values():
                if member.suspicion:
                    member.suspicion.since += late
            self._expected = None
        self._now = now

    def tick(self, now: float) -> list[Action]:
        """Time has come for what next_deadline() said (or may have); gives what is to be done."""
        self._begin(now)
        for contact in self._contacts:
            if contact.next_ask <= now and self._asks(contact):
                self._ask(contact)
        for member in list(self._pinged.values()):
            since = max(member.away_since, member.named)
            if not member.listed and now - since > self._settings.reconnect_timeout:
                self._forget(member)
            elif member.ping is None and member.introduce_at <= now:
                member.introduce_at, member.asking = now + PROBE_MIN, True
                self._ping(member)
            elif member.next_ping <= now and member.ping is None:
                self._ping(member)
        if self._probed:
            self._probe()
            for member in list(self._suspects.values()):
                suspicion = member.suspicion
                if suspicion is None:
                    continue
                if suspicion.expires() <= now:
                    self._change(member, Cause.EXPIRED)
                elif suspicion.asks() <= now and not suspicion.asked:
                    suspicion.asked = True  # its refutation may have passed us by
                    if self._is_one_of_few():
                        self._say_to(member, patience=2.0)
            self._gossip()
        settled = now >= self._settled_at
        if settled is not self._settled:
            self._settled, self._share = settled, None
            self._changed = True  # what C nodes are answered
        if self._changed:
            self._say_limit()
        actions, self._actions = self._actions, []
        if self._changed:
            self._changed = False
            actions.insert(0, Publish())
        deadline = self.next_deadline()
        self._expected = None if deadline is None else max(now, deadline)
        return actions

    # What lists and rumours say --------------------------------------------------------------

    def _merge(
        self, sender: Key | None, lines: list[Line], agent: Agent, is_answer: bool = False
    ) -> bool:
        """Apply a list; True if it told us something new."""
        news = False
        for line in lines:
            key = line.uri.key
            itself = key == sender
            member = self._members.get(key)
            if itself and line.incarnation:
                # By its own clock, which may be years from ours.
                self._last_incarnation = max(self._last_incarnation, line.incarnation + TOO_FAR)
            if line.incarnation > self._last_incarnation:
                continue
            if key == self.local.key:
                self._said_of_us(line, sender)
            elif member is None:
                if line.status == "active" and rumour_of(line)[0] == "alive":
                    news |= self._learn(line, itself, agent if itself else None)
            elif itself:
                if line.uri.transport != member.uri.transport:
                    member.uri = line.uri
                    self._place(member)
                    self._touch()
                news |= self._heard_itself(member, line, is_answer)
            elif line.incarnation and member.python:
                state, by = rumour_of(line)
                if sender is not None and state == "down":
                    teller = self._members.get(sender)
                    by |= {mark(teller.uri)} if teller else set()
                self._heard_of(member, line.incarnation, state, by)
            elif (line.status == "active") != member.active:
                self._look(member)
        return news

    def _learn(self, line: Line, itself: bool, agent: Agent | None = None) -> bool:
        uri = line.uri
        if is_address(uri.host):
            return self._add(uri, uri.host, itself, line.incarnation, agent)
        if self._now >= self._unresolvable.get(uri.host, self._now):
            if uri.host not in self._resolving and len(self._resolving) >= 1000:
                return False  # it is told again
            waiting = self._resolving.setdefault(uri.host, {})
            if not waiting:
                self._actions.append(Resolve(uri.host))
            waiting[uri] = waiting.get(uri, False) or itself
        return False

    def _add(
        self,
        uri: SipUri,
        address: str,
        itself: bool,
        incarnation: int = 0,
        agent: Agent | None = None,
    ) -> bool:
        """A node that is not on the list; itself: it is the one that says so."""
        place = (address, uri.port)
        if place in self._local_places or not self._admits(address.strip("[]")):
            return False
        for other in self._members.values():
            if (other.address, other.uri.port) == place:
                if not itself:
                    return False
                self._forget(other)
                if other.active:
                    self._actions.append(Tell(DOWN, self._member_node(other)))
                break
        if incarnation and agent is None:
            agent = Agent(python=True)  # only of those an incarnation is told
        member = _Member(uri, Status.ACTIVE, address, agent=agent, next_ping=self._now)
        if member.python:
            member.incarnation = incarnation
            if self._now >= self._settled_at:
                self._coming_since = self._now
            self._came_at = self._now
        self._members[uri.key] = member
        self._place(member)
        self._touch()
        self._rumour(member)
        self._actions.append(Tell(UP, self._member_node(member)))
        return True

    def _heard_itself(self, member: _Member, line: Line, is_answer: bool) -> bool:
        """A node speaks of itself: it is believed."""
        before = member.active
        if member.python and line.incarnation:
            state, by = rumour_of(line)
            self._heard_of(member, line.incarnation, state, by)
            if state == "alive" and line.incarnation == member.incarnation and is_answer:
                # One that only speaks may hear nothing: it is asked (_heard_of).
                self._change(member, Cause.ANSWERED)
        elif line.status == "active":
            self._alive(member)
            if not before:
                # A worker of it has answered before its engine began: that will say.
                member.anew = True
                member.ping, member.next_ping = None, self._now
            elif member.ping and not member.excused:
                # The answer may have been lost: it is asked again before anything is concluded,
                # but once, since it may hear nothing of us.
                member.ping, member.excused = None, True
                member.next_ping = self._now + PROBE_MIN
        elif before:
            member.state = State.LEFT
            self._away(member, Status(line.status))
        return member.active is not before

    def _heard_of(
        self, member: _Member, incarnation: int, state: str, by: frozenset[str] | set[str]
    ) -> None:
        """What is said of a Python node, in order of its incarnations."""
        if state == "alive":
            if incarnation > member.incarnation:
                started_again = 0 < member.incarnation < incarnation - RESTARTS and not member.anew
                self._set_incarnation(member, incarnation)
                if not self._change(member, Cause.NEWER):
                    self._rumour(member)
                    if started_again:  # before anybody missed it
                        self._init(member)
            elif not member.active:
                self._look(member)
            return
        if incarnation < member.incarnation:
            return
        self._set_incarnation(member, incarnation)
        suspicion = member.suspicion
        if suspicion is not None:
            self._confirm(member, suspicion, by)
            if state == "down" and self._now < suspicion.asks():
                # Who says so has begun before us, or was behind a cut that has just healed: the
                # suspect gets its time to refute.
                state = "suspect"
        self._change(member, _CAUSES[state], by)

    def _confirm(
        self, member: _Member, suspicion: Suspicion, by: frozenset[str] | set[str]
    ) -> None:
        """Others (or we ourselves) suspect it as well."""
        new = sorted(by - suspicion.by)[: MARKS - len(suspicion.by)]
        if new:
            # Two nodes may bear the same mark: this many confirm it at least.
            suspicion.by |= set(new)
            self._rumour(member)

    def _said_of_us(self, line: Line, sender: Key | None) -> None:
        """Somebody doubts us, or knows a later incarnation than ours: refute it.  (A C node's
        word needs no answer: our pings give it.)"""
        doubt = line.incarnation > 0 and rumour_of(line)[0] != "alive"
        if line.incarnation > self.incarnation or (doubt and line.incarnation == self.incarnation):
            if doubt:
                self._detector.worse()
            self._digest ^= fingerprint(self.local, self.incarnation)
            self.incarnation = line.incarnation + 1
            self._digest ^= fingerprint(self.local, self.incarnation)
            self._touch()
            self._say(self.local.key, "")  # the head of each message tells it
        teller = self._members.get(sender) if doubt and sender else None
        if teller is not None and teller.python:
            self._say_to(teller, patience=2.0)  # it need not wait for the rumour

    def _look(self, member: _Member) -> None:
        """Others see it otherwise than we do: ask it."""
        if not member.active:
            # Forgotten, it would be learned anew from them, as if it had come.
            member.named = self._now
        if self._now - member.last_sent >= PROBE_MIN and not member.probed:
            member.next_ping = self._now

    # How a node changes ----------------------------------------------------------------------

    def _change(
        self, member: _Member, cause: Cause, by: frozenset[str] | set[str] = frozenset()
    ) -> bool:
        """Let a Python node change as swim.TRANSITIONS says; True if it did."""
        new = TRANSITIONS.get((member.state, cause))
        if new is None or not member.python:
            return False
        member.state = new
        member.suspicion = None
        if new is State.SUSPECT:
            by = set(sorted(by)[:MARKS]) or {mark(self.local)}
            member.suspicion = self._detector.suspicion(self._now, by, len(self._probed))
            if cause is Cause.MISSED or self._is_one_of_few():
                self._say_to(member, patience=2.0)
        elif new is State.ALIVE:
            if not member.active:
                self._alive(member)
                if cause is Cause.ANSWERED:
                    # It is told what was thought of it, so that it refutes that for all.
                    line = rumour_line(member.uri, member.incarnation, State.DOWN.value)
                    self._say_to(member, more=line, patience=2.0)
        else:
            self._away(member, self._status_away(member, new))
        self._place(member)
        if cause is not Cause.ANSWERED:
            self._rumour(member)
        return True

    def _status_away(self, member: _Member, state: State) -> Status:
        """The C module's rules for a node that does not answer any more."""
        settings = self._settings
        if state is State.LEFT or settings.fail_count_enabled:
            return Status.NOT_ACTIVE
        if member.uri.key in self._contact_keys or not settings.remove_inactive:
            return Status.NOT_ACTIVE
        return Status.DISABLED

    def _alive(self, member: _Member) -> None:
        self._set_fails(member, 0)
        member.busy = False
        member.state = State.ALIVE
        if not member.active:
            member.listed = True
            self._set_status(member, Status.ACTIVE)
            self._place(member)
            if self._first_list_told:
                self._init(member)

    def _away(self, member: _Member, status: Status) -> None:
        if member.active:
            member.away_since = self._now
        self._set_status(member, status)
        member.ping, member.excused = None, False
        member.counts_from = self._now + self._settings.ping_interval
        member.next_ping = self._now + PROBE_MIN
        self._place(member)

    def _failed(self, member: _Member) -> None:
        """The C module's rules for a ping without answer (6.1)."""
        settings, now = self._settings, self._now
        if member.listed and (member.active or now >= member.counts_from):
            self._set_fails(member, member.fails + 1)
            if member.status is Status.DISABLED:
                member.listed = False
                self._touch()
                self._place(member)
            elif settings.fail_count_enabled:
                if not member.active:
                    if member.fails > settings.fail_count_threshold_disabled:
                        self._away(member, Status.DISABLED)
                elif member.fails > settings.fail_count_threshold_not_active:
                    self._away(member, Status.NOT_ACTIVE)
            else:
                self._away(member, self._status_away(member, State.DOWN))
        if member.active:
            member.next_ping = now + self._interval()
        else:
            pause = max(PROBE_MIN, min((now - member.away_since) / 5, PROBE_MAX))
            pause *= max(1.0, (len(self._probed) + 1) / PROBERS)
            member.next_ping = member.last_sent + pause * self._rng.uniform(0.8, 1.0)

    def _set_status(self, member: _Member, status: Status) -> None:
        if member.status is not status:
            member.status = status
            member.asking, member.introduce_at, member.introduced = False, _NEVER, -_NEVER
            if member.owes_init:
                member.owes_init = self._first_list_told = False  # it is for the next one
            self._touch()
            self._actions.append(Tell(_EVENTS[status], self._member_node(member)))

    def _set_fails(self, member: _Member, count: int) -> None:
        if member.fails != count:
            member.fails = count
            self._touch()

    def _set_agent(self, member: _Member | None, agent: Agent) -> None:
        if member is None or member.agent == agent:
            return
        if member.python is not agent.python:
            # The first word of it, or kemi_dmq took the C module's place, or the other way round.
            member.incarnation = 0
            member.suspicion = None
            member.state = State.ALIVE if member.active else State.DOWN
            member.next_ping = self._now
        member.agent = agent
        if not member.has_c_module:
            member.lists, member.introduce_at = None, _NEVER
        self._touch()
        self._place(member)

    def _set_incarnation(self, member: _Member, incarnation: int) -> None:
        if incarnation != member.incarnation:
            member.incarnation, member.anew = incarnation, False
            self._touch()
            self._place(member)

    def _place(self, member: _Member) -> None:
        """Put a member where its state belongs, and its part into the digest."""
        key, here = member.uri.key, member.uri.key in self._members
        was_probed = bool(self._probed)
        for group, belongs in (
            (self._probed, member.probed),
            (self._pinged, not member.probed),
            (self._suspects, member.suspicion is not None),
        ):
            if here and belongs:
                group[key] = member
            else:
                group.pop(key, None)
        if self._probed and not was_probed:
            self._detector.start(self._now)
        counts = here and member.active and member.agent is not None
        share = 0
        if counts and (member.incarnation or not member.python):
            share = fingerprint(member.uri, member.incarnation)
        if share != member.share:
            self._digest ^= share ^ member.share
            member.share = share
            self._touch()

    def _forget(self, member: _Member) -> None:
        self._members.pop(member.uri.key, None)
        member.suspicion = None
        self._rumours.drop(member.uri.key)
        self._place(member)

    def _first_list(self, member: _Member | None, is_new: bool = False) -> None:
        """member: who has spoken, if it is listed already (a name may be looked up first).  is_new:
        it has answered our QUESTION, so it does not know us yet."""
        if member is not None and not self._first_list_told:
            self._first_list_told = True
            if is_new and member.python:
                member.owes_init = True
            else:
                self._init(member)

    def _init(self, member: _Member) -> None:
        """Run init_callback for a node, when it knows us: C modules answer those on their list."""
        if member.has_c_module and not self._is_known_to(member):
            member.owes_init = True
        else:
            self._run_init(member)

    def _run_init(self, member: _Member) -> None:
        member.owes_init = False
        self._actions.append(FirstList(self._member_node(member)))

    # Between Python nodes: probes --------------------------------------------------------------

    def _probe(self) -> None:
        for step in self._detector.tick(
            self._now,
            lambda: list(self._probed),
            lambda: [key for key in self._probed if key not in self._suspects],
        ):
            member = self._probed.get(step.key)
            if member is None:
                continue
            if isinstance(step, Probe):
                self._say_to(member, patience=self._detector.patience * 2)
            elif isinstance(step, AskOthers):
                for key in step.helpers:
                    head = self._head(probe=step.key)
                    self._say_to(self._probed[key], head, patience=2 * self._detector.patience)
            elif isinstance(step, Missed):
                by = {mark(self.local)}
                by |= {mark(self._members[k].uri) for k in step.confirmed_by if k in self._members}
                if member.suspicion is not None:
                    self._confirm(member, member.suspicion, by)
                self._change(member, Cause.MISSED, by)

    def _python_spoke(self, member: _Member, lines: list[Line], is_request: bool) -> None:
        """A Python node has told or answered something: what its own line says."""
        own = next((line for line in lines if line.uri.key == member.uri.key), None)
        if not is_request and member.state is not State.LEFT:
            self._detector.heard(member.uri.key)
        if own is None or not own.incarnation or own.status != "active":
            return
        head = parse_head(own)
        if head.probe is not None and is_request:
            self._probe_for(member, head.probe)
        if head.reached is not None:
            self._detector.heard(head.reached)
        if head.missed is not None:
            self._detector.missed_by(head.missed, member.uri.key)
        if head.wants_list and is_request and member.probed:
            self._send_rest(member)
        if head.digest is not None:
            self._compare(member, head.digest)

    def _probe_for(self, asker: _Member, key: Key) -> None:
        target = self._members.get(key)
        if target is not None and target.python:
            self._say_to(target, patience=self._detector.patience, asked_by=asker.uri.key)

    def _report(self, asker: Key, member: _Member, reached: bool) -> None:
        to = self._probed.get(asker)
        if to is not None:
            key = member.uri.key
            head = self._head(reached=key) if reached else self._head(missed=key)
            self._say_to(to, head, patience=1.0)

    # Between Python nodes: rumours and lists -----------------------------------------------------

    def _head(
        self,
        wants_list: bool = False,
        probe: Key | None = None,
        reached: Key | None = None,
        missed: Key | None = None,
    ) -> Head:
        return Head(self.local, self.incarnation, self._digest, wants_list, probe, reached, missed)

    def _is_one_of_few(self) -> bool:
        """Of many nodes that could all tell one the same, some FEW do."""
        return self._rng.random() * len(self._probed) < FEW

    def _say_to(
        self,
        member: _Member,
        head: Head | None = None,
        *,
        patience: float,
        more: str = "",
        asked_by: Key | None = None,
    ) -> None:
        """A message to a Python node, with what else there is to tell."""
        if member.state is not State.ALIVE and not more:
            more = self._line_of(member)  # so that it can refute
        rumours = "" if more else self._rumours.take(self._rumour_limit())
        self._actions.append(
            Notify(
                member.uri,
                (head or self._head()).line() + more + rumours,
                1,
                patience,
                member.address,
                again=patience / 3,
                asked_by=asked_by,
            )
        )

    def _line_of(self, member: _Member) -> str:
        by = member.suspicion.by if member.suspicion else ()
        of = (member.uri, member.incarnation, member.state, member.python, len(by))
        if member.line_of != of:
            state = member.state.value if member.python else "alive"
            member.line = rumour_line(member.uri, member.incarnation, state, by)
            member.line_of = of
        return member.line

    def _rumour(self, member: _Member) -> None:
        """Pass on what we now believe of a node."""
        if (member.python or member.active) and (member.incarnation or not member.python):
            self._say(member.uri.key, self._line_of(member))

    def _say(self, key: Key, line: str) -> None:
        self._rumours.add(key, line)
        self._next_gossip = min(self._next_gossip, max(self._now, self._last_gossip + GOSSIP_PAUSE))

    def _rumour_limit(self) -> int:
        """In how many messages a rumour travels (memberlist's retransmit_mult)."""
        return self._settings.retransmit_mult * math.ceil(math.log10(len(self._probed) + 2))

    def _gossip(self) -> None:
        if self._now < self._next_gossip:
            return
        self._last_gossip = self._now
        # A suspect has been told itself what is thought of it.
        nodes = [m for m in self._probed.values() if m.state is State.ALIVE]
        nodes = nodes or list(self._probed.values())
        for member in self._rng.sample(nodes, min(self._settings.gossip_nodes, len(nodes))):
            if self._rumours:
                self._say_to(member, patience=0.5)
        if self._rumours:
            self._next_gossip = self._now + self._settings.gossip_interval / 1000
        else:
            self._next_gossip = _NEVER
            self._changed = True  # the answers need not tell them any more

    def _compare(self, member: _Member, digest: int) -> None:
        """Exchange lists with a node whose digest is not ours, once rumours have come to rest."""
        now = self._now
        if digest == self._digest or now < self._next_sync or not member.probed:
            return
        # Who has just begun may know nothing but the one who speaks to it.
        quiet = not self._rumours and now - self._changed_at >= QUIET
        if not quiet and self._next_sync > 0:
            return
        self._next_sync = now + self._sync_pause * self._rng.uniform(0.5, 1.5)
        self._sync_pause = min(2 * self._sync_pause, SYNC_MAX)
        for number, piece in enumerate(gossip.pieces(self._list_lines())):
            self._say_to(member, self._head(wants_list=number == 0), patience=2.0, more=piece)

    def _send_rest(self, member: _Member) -> None:
        """A list that does not fit into the answer follows in pieces."""
        lines = list(self._list_lines())
        if sum(map(len, lines)) > LIST_BYTES:
            for piece in gossip.pieces(lines):
                self._say_to(member, patience=2.0, more=piece)

    def _list_lines(self) -> Iterator[str]:
        for member in self._members.values():
            if member.active or (member.python and member.incarnation):
                yield self._line_of(member)

    # Sending -------------------------------------------------------------------------------

    def _ping(self, member: _Member, max_forwards: int = 1) -> None:
        """To a C node, to one that is away, or to one of which it is not known what it is."""
        member.last_sent = self._now
        member.next_ping = self._now + self._interval()
        patience = 8.0
        if not member.active:
            max_forwards, patience = JOIN_MAX_FORWARDS, PROBE_PATIENCE
        if member.agent is None:
            body = QUESTION
        elif member.python:
            body = self._head(wants_list=True).line() + self._line_of(member)
        else:
            body = self._c_ping_body(member)
        ping = Notify(member.uri, body, max_forwards, patience, address=member.address)
        member.ping = member.ping or ping
        self._actions.append(ping)

    def _tell_c_nodes(self, max_forwards: int, but: _Member | None = None) -> None:
        """Pass the list on, as the C module does; Python nodes hear it as rumours."""
        for member in self._pinged.values():
            if member.active and member is not but:
                self._ping(member, max_forwards)

    def _met(self, place: SipUri, agent: Agent) -> None:
        """A node has answered our QUESTION, which said nothing of us."""
        member = self._members.get(place.key)
        self._set_agent(member, agent)
        if agent.python:
            # Others may have come to it since, so it is asked for its list again.
            head = self._head(wants_list=True)
            if member is not None:
                self._say_to(member, head, patience=2.0)
            else:  # it speaks of itself by a name, which is looked up, or resolves nowhere
                self._actions.append(Notify(place, head.line(), 1, 2.0))

    def _c_ping_body(self, member: _Member) -> str:
        """The list as it is told to a C node: nobody whom no C node lists.  One that is back asks
        nodes for their state when the first notification is here, once, and then has to know of
        some: it is told of those that it listed before."""
        known = self._c_share().known
        if not member.active and member.lists:
            active = {uri.key for uri in known} | self._probed.keys() | {self.local.key}
            known = [uri for key, uri in member.lists.items() if key in active]
        return build_body(known)

    def c_answer_body(self, is_new: bool = False) -> str:
        """What C nodes are answered: they know us.  is_new: one that is not on the list; it may
        ask nodes for their state now, once, so it is told of all at once that there is room for."""
        share = self._c_share()
        uris = [uri for uri in share.known if uri.key != self.local.key]
        if is_new and self._settled:
            uris += [uri for uri in share.fitting if uri.key != self.local.key]
        return build_body([self.local, *uris])

    def answer_body(self) -> str:
        """What Python nodes are answered."""
        return self._head().line() + self._rumours.peek()

    def list_body(self) -> str:
        """What Python nodes are answered that want the list: as much as one message takes."""
        lines = self._head().line()
        for line in self._list_lines():
            if len(lines) + len(line) > LIST_BYTES:
                break
            lines += line
        return lines

    # C nodes' room -------------------------------------------------------------------------------

    def _c_nodes(self) -> list[_Member]:
        """The active ones that are known to be C nodes."""
        return [m for m in self._pinged.values() if m.active and m.has_c_module]

    def _c_share(self) -> CShare:
        if self._share is None:
            c_nodes = self._c_nodes()
            listed: dict[Key, SipUri] = {}
            for c_node in c_nodes:
                listed |= c_node.lists or {}
            python = {self.local.key: self.local}
            python |= {key: member.uri for key, member in self._probed.items()}
            active = python | {key: m.uri for key, m in self._pinged.items() if m.active}
            share = c_share(listed, {m.uri.key for m in c_nodes}, active, python)
            if self._settled and self._probed and not share.left_out:
                share = CShare([*share.known, *share.fitting], [], 0)  # no care is needed
            self._share = share
        return self._share

    @property
    def _settled_at(self) -> float:
        """When the Python nodes know each other."""
        return min(self._came_at + QUIET, self._coming_since + SETTLED)

    def _c_node_knows(
        self, sender: Key, agent: Agent, lines: list[Line], is_answer: bool = False
    ) -> None:
        """A C node has said whom it lists."""
        member = self._members.get(sender)
        if member is None or agent.python or not member.active or not lines:
            return
        lists = {line.uri.key: line.uri for line in lines if line.status == "active"}
        if not is_answer:
            # Whom it sends to it has on its list, though not as active yet.
            lists[self.local.key] = self.local
        if member.lists != lists:
            member.lists = lists
            self._touch()
        self._introduce(member, is_answer)

    def _is_known_to(self, c_node: _Member) -> bool:
        return c_node.lists is not None and self.local.key in c_node.lists

    def _introduce(self, member: _Member, is_answer: bool) -> None:
        """Tell C nodes of us, if there is room: one of them first, and only when it has just
        answered whom it lists (is_answer), so that no two Python nodes take the last place."""
        now, share = self._now, self._c_share()
        asked, member.asking = member.asking and is_answer, member.asking and not is_answer
        fits = any(uri.key == self.local.key for uri in share.fitting)
        known = any(uri.key == self.local.key for uri in share.known)
        if known:
            member.introduce_at = _NEVER
            for c_node in self._c_nodes():
                if not self._is_known_to(c_node) and now >= c_node.introduced + INTRODUCE_AGAIN:
                    c_node.introduced = now
                    self._ping(c_node)
        elif not fits:
            member.introduce_at = _NEVER
        elif member.introduce_at == _NEVER:
            again = member.introduced + INTRODUCE_AGAIN
            member.introduce_at = max(now, self._settled_at, again)
            if not self._probed:
                # As many may do just now that have never heard of each other.
                member.introduce_at += self._rng.uniform(0, JITTER)
            asked = is_answer and member.introduce_at <= now
        if (known or not fits) and member.owes_init and (self._is_known_to(member) or not known):
            self._run_init(member)
        if not asked or known or not fits:
            return
        untried = [m.uri.key for m in self._c_nodes() if m.introduced == -_NEVER]
        if now < self._settled_at:
            member.introduce_at = self._settled_at  # others have come meanwhile
        elif member.introduced == -_NEVER and member.uri.key != min(untried):
            member.introduce_at = now + PROBE_MIN
        else:
            member.introduce_at, member.introduced = _NEVER, now
            body = build_body([self.local, *share.known])
            self._actions.append(Notify(member.uri, body, 1, 8.0, address=member.address))

    def relays(self) -> dict[str, list[str]]:
        """C nodes (URIs) whose messages this node passes on, and to whom: the Python nodes that a C
        node cannot be told of.  Of those whom it knows the first one, by host and port, does it."""
        found: dict[str, list[str]] = {}
        share = self._c_share()
        told = {uri.key for uri in (*share.known, *share.fitting)}
        told_ones = sorted(key for key in self._probed if key in told)
        untold = {key: m for key, m in self._probed.items() if key not in told}
        for c_node in self._c_nodes() if untold else ():
            knows = c_node.lists or {}
            first = next((key for key in told_ones if key in knows), _LAST)
            if self.local.key in knows and self.local.key <= first:
                found[str(c_node.uri)] = [
                    str(m.uri) for key, m in untold.items() if key not in knows
                ]
        return found

    def _say_limit(self) -> None:
        """Once: that C nodes cannot be told of all."""
        if self._limit_said or not self._c_nodes():
            return
        share = self._c_share()
        if share.left_out and self._settled:
            self._limit_said = True
            count = len(share.known) + len(share.fitting)
            self._actions.append(
                Warn(
                    f"a C node can be told of {count} nodes, and the bus has "
                    f"{count + share.left_out}: messages of "
                    "C nodes are passed on to the others, which C nodes do not reach by themselves"
                )
            )

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

    def _ask(self, contact: _Contact) -> None:
        alone = not any(member.active for member in self._members.values())
        contact.next_ask = self._now + (ASK_ALONE if alone else ASK_AGAIN)
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
                self._actions.append(Notify(uri, QUESTION, JOIN_MAX_FORWARDS, PROBE_PATIENCE))

    def _set_places(self, contact: _Contact, places: list[Key]) -> None:
        chosen = list(dict.fromkeys(places)) if self._settings.multi_notify else places[:1]
        uris = [SipUri(host, port, contact.uri.transport) for host, port in chosen]
        contact.addresses = [uri for uri in uris if uri.key not in self._local_places]
        self._contact_keys = {uri.key for c in self._contacts for uri in c.addresses}

    # Small things --------------------------------------------------------------------------

    def _touch(self) -> None:
        self._changed = True
        self._changed_at = self._now
        self._sync_pause = SYNC_MIN
        self._share = None

    def _member_node(self, member: _Member) -> Node:
        node = _node(member.uri, member.status, python=member.python, address=member.address)
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
