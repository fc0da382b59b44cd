"""Messages that wait: sent in order, kept for nodes that are away, each with exactly one outcome.

Pure, as the rest of the engine: posts, answers and the node list come in with the time, sends and
outcomes go out.  A message for one node is a letter.  Letters stand in lanes: an ordered one in
that of its node and peer, which has one letter on its way at a time; the others in one lane of
their node, which has WINDOW.

    waiting --> open --> answered
       |          |
       v          v
    expired   timed out --> settling (ordered lanes)

- A letter leaves when its node is active and its lane has room.  Until its answer it is sent
  again, after T1 and then twice as long each time up to T2; not while the node is away, and at
  once when it is back.  All copies have one Call-ID and branch, so that a Python node runs one.
- At its deadline it ends: as expired if it never left, so that it has certainly not run; as timed
  out if it did.  Then its lane goes on; an ordered one SETTLE later, or when the answer comes late,
  so that no copy still on its way is overtaken by the next letter.
- Nothing is refused here: what was accepted at the call has an outcome.  ``full`` names the nodes
  that hold so much that the next call is to be refused.
"""

from __future__ import annotations

import enum
import heapq
import itertools
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .message import Outcome
from .node import Node
from .wire import parse_uri

Key = tuple[str, int]

T1 = 0.5
T2 = 4.0
#: Letters without an order that are on their way to one node at a time: a node that is back gets
#: what waited for it without its receive buffer running over.
WINDOW = 32
#: How long a datagram may live in the network (RFC 3261, T4).
SETTLE = 5.0
#: What a letter counts for besides its body.
OVERHEAD = 1000
#: Seconds that a message is kept if it is ordered and no deadline is given (RFC 3261, timer F).
DEADLINE = 32.0
#: At most so long, because receivers remember no longer what has run.
MAX_DEADLINE = 86_400


class Post(NamedTuple):
    """One call of send_message or bcast_message, as it travels to the engine."""

    peer_id: str
    body: str
    encoded: bool  # the body is base64, for Python nodes only
    content_type: str
    max_forwards: int
    ordered: bool
    expires: float
    #: Who is told the outcome, as in the event_param of Bus; "" for nobody.
    callback: str
    uris: tuple[str, ...]


class Answered(NamedTuple):
    code: int
    reason: str
    body: str | bytes
    content_type: str


class _State(enum.Enum):
    WAITING = 1
    OPEN = 2
    SETTLING = 3
    ENDED = 4


@dataclass(slots=True, eq=False)
class Letter:
    """A message for one node."""

    number: int
    post: Post
    uri: str  # the node's
    node: Key
    size: int  # bytes that it counts for
    lane: _Lane
    state: _State = _State.WAITING
    due: float | None = None  # when its timer runs out
    pause: float = 0.0
    last_sent: float = 0.0


@dataclass(slots=True, eq=False)
class _Lane:
    node: Key
    peer_id: str  # "" for letters without an order
    waiting: OrderedDict[int, Letter] = field(default_factory=OrderedDict)
    open: dict[int, Letter] = field(default_factory=dict)  # and settling

    @property
    def window(self) -> int:
        return 1 if self.peer_id else WINDOW


class Ended(NamedTuple):
    """A letter's outcome; release() it when it has been told."""

    letter: Letter
    outcome: Outcome
    answer: Answered | None


class Outbox:
    """memory: bytes that may wait for one node until it counts as full.  boot: what no other
    outbox has; with a letter's number it names the letter on the wire."""

    def __init__(self, memory: int, boot: str) -> None:
        self._memory = memory
        self.boot = boot
        #: What is to be done: letters to send now, and outcomes to tell.  The engine takes them
        #: out one by one, so an error in one loses no other.
        self.to_send: deque[Letter] = deque()
        self.ended: deque[Ended] = deque()
        #: Letters whose outcome is not yet told.
        self.waiting = 0
        #: Nodes for which no more is to be accepted.
        self.full: frozenset[Key] = frozenset()
        self._count = 0
        self._nodes: dict[Key, Node] = {}  # the active ones
        self._lanes: dict[Key, dict[str, _Lane]] = {}
        self._on_their_way: dict[int, Letter] = {}  # open and settling
        self._due: list[tuple[float, int, Letter]] = []  # a heap; may hold what is no longer due
        self._pushes = itertools.count()
        self._timed = 0  # letters that have a timer
        self._held: dict[Key, int] = {}

    # What comes in -------------------------------------------------------------------------

    def post(self, post: Post, now: float) -> None:
        """A call; they come in the order in which they are to be kept."""
        self.waiting += len(post.uris)
        for uri in post.uris:
            key = parse_uri(uri).key
            lanes = self._lanes.setdefault(key, {})
            name = post.peer_id if post.ordered else ""
            lane = lanes.get(name)
            if lane is None:
                lane = lanes[name] = _Lane(key, name)
            self._count += 1
            size = len(post.body) + len(post.callback) + OVERHEAD
            letter = Letter(self._count, post, uri, key, size, lane)
            self._hold(letter, size)
            lane.waiting[letter.number] = letter
            self._go_on(lane, now)
            if letter.state is _State.WAITING:
                self._plan(letter, post.expires)

    def answered(self, number: int, answer: Answered, now: float) -> None:
        """The final answer to a letter; of later ones and unknown numbers nothing comes."""
        letter = self._on_their_way.get(number)
        if letter is None:
            return
        if letter.state is _State.OPEN:
            self._end(letter, Outcome.ANSWERED, answer)
        self._close(letter, now)

    def set_nodes(self, nodes: Iterable[Node], now: float) -> None:
        """The list has changed."""
        before = self._nodes
        self._nodes = {(node.host, node.port): node for node in nodes if node.active}
        for key in [key for key in self._lanes if key in self._nodes]:
            if before.get(key) != self._nodes[key]:
                for lane in list(self._lanes[key].values()):
                    for letter in lane.open.values():
                        if letter.state is _State.OPEN and letter.post.expires > now:
                            letter.pause = 0.0
                            self._send(letter, now)
                    self._go_on(lane, now)

    def node_of(self, letter: Letter) -> Node | None:
        """The node to which a letter of to_send goes; None if it is not to leave any more."""
        return self._nodes.get(letter.node) if letter.state is _State.OPEN else None

    def release(self, letter: Letter) -> None:
        """Its outcome has been told: it takes no more room."""
        self.waiting -= 1
        key = letter.node
        self._held[key] -= letter.size
        if not self._held[key]:
            del self._held[key]
        if key in self.full and self._held.get(key, 0) < self._memory - self._memory // 8:
            self.full -= {key}

    # Time ----------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When tick() is due; None if never."""
        self._drop_stale()
        return self._due[0][0] if self._due else None

    def tick(self, now: float) -> None:
        """Time has come for what next_deadline() said (or may have)."""
        while self._due and self._due[0][0] <= now:
            when, _, letter = heapq.heappop(self._due)
            if letter.due == when:
                self._timed -= 1
                letter.due = None
                self._time_out(letter, now)

    def held(self, node: Key) -> int:
        """Bytes that wait for a node."""
        return self._held.get(node, 0)

    # The life of a letter ------------------------------------------------------------------

    def _go_on(self, lane: _Lane, now: float) -> None:
        """Send of a lane what may leave now."""
        while lane.waiting and len(lane.open) < lane.window:
            letter = next(iter(lane.waiting.values()))
            if letter.post.expires <= now:
                del lane.waiting[letter.number]
                self._end(letter, Outcome.EXPIRED)
                self._over(letter)
                continue
            node = self._nodes.get(lane.node)
            if node is None or (letter.post.encoded and not node.python):
                break
            del lane.waiting[letter.number]
            letter.state = _State.OPEN
            lane.open[letter.number] = self._on_their_way[letter.number] = letter
            self._send(letter, now)
        if not lane.waiting and not lane.open:
            lanes = self._lanes.get(lane.node, {})
            if lanes.pop(lane.peer_id, None) is not None and not lanes:
                del self._lanes[lane.node]

    def _send(self, letter: Letter, now: float) -> None:
        self.to_send.append(letter)
        letter.last_sent = now
        first = T1 if self._nodes[letter.node].transport == "udp" else T2
        letter.pause = min(2 * letter.pause, T2) or first
        self._plan(letter, min(now + letter.pause, letter.post.expires))

    def _time_out(self, letter: Letter, now: float) -> None:
        """Its timer has run out."""
        lane, expires = letter.lane, letter.post.expires
        if letter.state is _State.WAITING:
            del lane.waiting[letter.number]
            self._end(letter, Outcome.EXPIRED)
            self._over(letter)
            self._go_on(lane, now)
        elif letter.state is _State.SETTLING:
            self._close(letter, now)
        elif now < expires:
            if letter.node in self._nodes:
                self._send(letter, now)
            else:
                self._plan(letter, expires)
        else:
            self._end(letter, Outcome.TIMED_OUT)
            settled = letter.last_sent + SETTLE
            if lane.peer_id and settled > now:
                letter.state = _State.SETTLING
                self._plan(letter, settled)
            else:
                self._close(letter, now)

    def _end(self, letter: Letter, outcome: Outcome, answer: Answered | None = None) -> None:
        if answer is not None and letter.post.callback:
            self._hold(letter, len(answer.body))
            letter.size += len(answer.body)
        self.ended.append(Ended(letter, outcome, answer))

    def _close(self, letter: Letter, now: float) -> None:
        """It is no longer on its way: the next one may leave."""
        del self._on_their_way[letter.number]
        del letter.lane.open[letter.number]
        self._over(letter)
        self._go_on(letter.lane, now)

    def _over(self, letter: Letter) -> None:
        letter.state = _State.ENDED
        if letter.due is not None:
            self._timed -= 1
            letter.due = None

    # Small things --------------------------------------------------------------------------

    def _plan(self, letter: Letter, when: float) -> None:
        if letter.due is None:
            self._timed += 1
        letter.due = when
        heapq.heappush(self._due, (when, next(self._pushes), letter))

    def _drop_stale(self) -> None:
        due = self._due
        while due and due[0][2].due != due[0][0]:
            heapq.heappop(due)
        if len(due) > 2 * self._timed + 1000:
            self._due = [entry for entry in due if entry[2].due == entry[0]]
            heapq.heapify(self._due)

    def _hold(self, letter: Letter, size: int) -> None:
        held = self._held[letter.node] = self._held.get(letter.node, 0) + size
        if held >= self._memory and letter.node not in self.full:
            self.full |= {letter.node}


# Events, as they travel through the inboxes ----------------------------------------------------


def post_event(now: float, post: Post) -> tuple[Any, ...]:
    """now: time.monotonic() at the call (Inbox.take_in_order)."""
    return ("post", now, *post)


def reply_event(call_id: str, answer: Answered) -> tuple[Any, ...]:
    return ("reply", call_id, *answer)


def outcome_event(ended: Ended) -> tuple[Any, ...] | None:
    """For the callbacks process; None if nobody asked for it."""
    letter, outcome, answer = ended
    if not letter.post.callback:
        return None
    if answer is None:
        reason = "Expired" if outcome is Outcome.EXPIRED else "Request Timeout"
        answer = Answered(408, reason, "", "")
    return ("outcome", f"{letter.uri}|{letter.post.callback}", outcome.value, *answer)
