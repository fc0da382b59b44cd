"""Messages that wait: sent together, in order, kept for nodes that are away; each with one outcome.

Pure, as the rest of the engine: posts, answers and the node list come in with the time, sends and
outcomes go out.  A message for one node is a letter; what travels in one KDMQ request is a parcel,
of one letter or of several that waited together (batch.py).  Letters stand in lanes: an ordered one
in that of its node and peer, which has one parcel on its way at a time; the others in one lane of
their node, which has WINDOW, or in another one if the node wants their peer's messages alone.

    letter:  waiting --> in a parcel --> answered
                |              |
                v              v
             expired       timed out
    parcel:  open --> (ordered lanes, if letters timed out) settling --> closed

- Nothing waits in order to be sent together: flush(), which the engine calls when it has taken what
  was there, sends all that may leave.
- A parcel leaves when its node is active and its lane has room.  Until its answer it is sent
  again, after T1 and then twice as long each time up to T2; not while the node is away, and at once
  when it is back.  All copies have one Call-ID and branch, so that a Python node runs one.
- At its deadline a letter ends: as expired if it never left, so that it has certainly not run; as
  timed out if it did.  When all letters of a parcel have ended the lane goes on; an ordered one
  SETTLE later, or when the answer comes late, so that no copy still on its way is overtaken.
- Nothing is refused here: what was accepted at the call has an outcome.  ``full`` names the nodes
  that hold so much that the next call is to be refused.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from . import batch
from .message import Outcome
from .node import Node
from .wire import ENCODED, parse_uri

Key = tuple[str, int]

T1 = 0.5
T2 = 4.0
#: Parcels without an order that are on their way to one node at a time: a node that is back gets
#: what waited for it without its receive buffer running over.
WINDOW = 32
#: So many messages to a peer travel alone when its node has wanted that; then it is asked again,
#: since the script there may be another one.
ALONE = 10_000
#: The name of the lane for those without an order; no peer has it.
_SINGLES = " "
#: Answers to a batch of who does not know what that is: not found, and those of RFC 3261 to types
#: and extensions.
REFUSES_BATCHES = frozenset({404, 415, 420, 421})
_SOME_DIFFER = REFUSES_BATCHES | {batch.MIXED}
#: Of a node that has just started and takes nothing signed before that: code and reason.
NOT_YET = (503, "Not Yet")
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

    def item(self) -> batch.Item:
        """As it travels."""
        content_type = self.content_type + ENCODED if self.encoded else self.content_type
        return batch.Item(self.peer_id, self.max_forwards, content_type, self.body)


class Answered(NamedTuple):
    code: int
    reason: str
    body: str | bytes
    content_type: str


FINE = Answered(200, "OK", "", "")


@dataclass(slots=True, eq=False)
class Letter:
    """A message for one node."""

    number: int
    post: Post
    piece: batch.Piece  # the same for all nodes
    uri: str  # the node's
    size: int  # bytes that it counts for
    lane: _Lane
    alone: bool = False  # its receiver has not taken it in a batch
    ended: bool = False
    due: float | None = None  # when its timer runs out: only while it waits


@dataclass(slots=True, eq=False)
class Parcel:
    """What travels in one request.  token: nobody who has seen others can guess it."""

    number: int
    token: str
    letters: list[Letter]
    lane: _Lane
    size: int  # of all letters
    quiet: bool  # nobody waits for its answer, but to send no more copies
    thinned: bool = False  # some letters have ended
    settling: bool = False
    due: float | None = None
    pause: float = 0.0
    last_sent: float = 0.0

    def live(self) -> list[Letter]:
        return [letter for letter in self.letters if not letter.ended]


@dataclass(slots=True, eq=False)
class _Place:
    """What is here for one node."""

    key: Key
    node: Node | None = None  # while it is active
    held: int = 0  # bytes
    refuses_batches: bool = False
    #: Peers whose messages it wants alone, and how many go so until it is asked again.
    alone: dict[str, int] = field(default_factory=dict)
    lanes: dict[str, _Lane] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Lane:
    place: _Place
    peer_id: str  # "" for letters without an order
    window: int
    single: bool = False  # each letter travels alone
    waiting: OrderedDict[int, Letter] = field(default_factory=OrderedDict)
    open: dict[int, Parcel] = field(default_factory=dict)  # and settling


class Ended(NamedTuple):
    """A letter's outcome; release() it when it has been told."""

    letter: Letter
    outcome: Outcome
    answer: Answered | None


class Outbox:
    """memory: bytes that may wait for one node until it counts as full.  boot: what no other
    outbox has; with a parcel's number it names the parcel on the wire.  room: bytes that the
    messages of a batch for a node may have; 0 for one that takes none.  token: a new one each time
    it is called."""

    def __init__(
        self, memory: int, boot: str, room: Callable[[Node], int], token: Callable[[], str]
    ) -> None:
        self._memory = memory
        self.boot = boot
        self.room = room
        self.token = token
        #: What is to be done: parcels to send now, and outcomes to tell.  The engine takes them
        #: out one by one, so an error in one loses no other.
        self.to_send: deque[Parcel] = deque()
        self.ended: deque[Ended] = deque()
        #: How many letters have ended of which nobody is to be told.
        self.silent: Counter[Outcome] = Counter()
        #: Letters whose outcome is not yet told.
        self.waiting = 0
        #: Nodes for which no more is to be accepted.
        self.full: frozenset[Key] = frozenset()
        #: Letters and parcels so far; each has its number.
        self.count = 0
        self._places: dict[Key, _Place] = {}
        self._lanes: dict[str, _Lane] = {}  # those without an order, by their nodes' URIs
        self._alone: set[str] = set()  # peers that some node has wanted messages alone for
        self._ready: dict[_Lane, None] = {}  # where something may leave at the next flush()
        self._held_up: dict[_Lane, None] = {}  # where something waits for an answer
        self._on_their_way: dict[int, Parcel] = {}  # open and settling
        self._due: list[tuple[float, int, Letter | Parcel]] = []  # a heap; may hold stale ones
        self._pushes = itertools.count()
        self._timed = 0  # letters and parcels that have a timer

    # What comes in -------------------------------------------------------------------------

    def post(self, post: Post) -> None:
        """A call; they come in the order in which they are to be kept."""
        self.waiting += len(post.uris)
        piece = batch.Piece(post.item())
        size = len(post.body) + len(post.callback) + OVERHEAD
        name = post.peer_id if post.ordered else ""
        number, ready, lanes = self.count, self._ready, self._lanes
        by_node = bool(name) or post.peer_id in self._alone
        for uri in post.uris:
            lane = None if by_node else lanes.get(uri)
            if lane is None:
                lane = self._lane(uri, name, post.peer_id)
            number += 1
            lane.waiting[number] = Letter(number, post, piece, uri, size, lane)
            ready[lane] = None
            self._hold(lane.place, size)
        self.count = number

    def _lane(self, uri: str, name: str, peer_id: str) -> _Lane:
        """That of a node, for letters in order (name: their peer's) or without ("")."""
        place = self._place(parse_uri(uri).key)
        if peer_id in place.alone:
            place.alone[peer_id] -= 1
            if not place.alone[peer_id]:
                del place.alone[peer_id]
            elif not name:
                return self._lane_of(place, _SINGLES)
        lane = self._lane_of(place, name)
        if not name:
            self._lanes[uri] = lane
        return lane

    def _lane_of(self, place: _Place, name: str) -> _Lane:
        """name: a peer's, "", or _SINGLES, for those that travel alone so that others need not."""
        lane = place.lanes.get(name)
        if lane is None:
            single = name == _SINGLES
            peer_id = "" if single else name
            lane = _Lane(place, peer_id, 1 if peer_id else WINDOW, single)
            place.lanes[name] = lane
        return lane

    def _place(self, key: Key) -> _Place:
        place = self._places.get(key)
        if place is None:
            place = self._places[key] = _Place(key)
        return place

    def answered(self, number: int, token: str, answer: Answered) -> None:
        """The final answer to a parcel; of later ones, and of a wrong number or token, nothing
        comes."""
        parcel = self._on_their_way.get(number)
        if parcel is None or parcel.token != token:
            return
        if answer[:2] == NOT_YET and not parcel.settling:
            return  # it is sent again
        if parcel.quiet and not parcel.thinned and answer.code not in _SOME_DIFFER:
            self._end_all(parcel)
        elif not parcel.settling:
            again = []
            for letter, its in zip(parcel.letters, self._answers(parcel, answer), strict=True):
                if letter.ended:
                    continue
                if its is None:
                    letter.alone = True
                    again.append(letter)
                else:
                    self._end(letter, Outcome.ANSWERED, its)
            lane = parcel.lane
            if again and not lane.peer_id:
                lane = self._lane_of(lane.place, _SINGLES)
                self._ready[lane] = None
            for letter in reversed(again):
                letter.lane = lane
                lane.waiting[letter.number] = letter
                lane.waiting.move_to_end(letter.number, last=False)
                self._plan(letter, letter.post.expires)
        self._close(parcel)

    def _answers(self, parcel: Parcel, answer: Answered) -> list[Answered | None]:
        """To each letter; None for one that is to be sent alone."""
        count = len(parcel.letters)
        if count == 1:
            return [answer]
        if answer.code in REFUSES_BATCHES:
            parcel.lane.place.refuses_batches = True
            return [None] * count
        if answer.code != batch.MIXED:
            return [answer] * count
        text = answer.body if isinstance(answer.body, str) else answer.body.decode(errors="replace")
        try:
            answers = batch.unpack_answers(text, count)
        except batch.BatchError:
            return [Answered(500, "Unreadable Answer", "", "")] * count
        found: list[Answered | None] = []
        for letter, its in zip(parcel.letters, answers, strict=True):
            if its.code == batch.SEND_ALONE:
                parcel.lane.place.alone[letter.post.peer_id] = ALONE
                self._alone.add(letter.post.peer_id)
                found.append(None)
            else:
                found.append(Answered(*its))
        return found

    def set_nodes(self, nodes: Iterable[Node], now: float) -> None:
        """The list has changed."""
        active = {(node.host, node.port): node for node in nodes if node.active}
        for key, node in active.items():
            place = self._place(key)
            if place.node != node:
                place.node, place.refuses_batches = node, False
                place.alone.clear()
                for lane in place.lanes.values():
                    for parcel in lane.open.values():
                        if any(letter.post.expires > now for letter in parcel.live()):
                            parcel.pause = 0.0
                            self._send(parcel, now)
                    self._ready[lane] = None
        for place in [place for key, place in self._places.items() if key not in active]:
            place.node = None
            if not place.held and not any(lane.open for lane in place.lanes.values()):
                del self._places[place.key]
                self._lanes.clear()

    @property
    def wants_answers(self) -> bool:
        """Whether something can leave when an answer is here."""
        return bool(self._held_up)

    def node_of(self, parcel: Parcel) -> Node | None:
        """The node to which a parcel of to_send goes; None if it is not to leave any more."""
        gone = parcel.settling or parcel.number not in self._on_their_way
        return None if gone else parcel.lane.place.node

    def release(self, letter: Letter) -> None:
        """Its outcome has been told: it takes no more room."""
        self._release(letter.lane.place, 1, letter.size)

    def _release(self, place: _Place, count: int, size: int) -> None:
        self.waiting -= count
        place.held -= size
        if self.full and place.key in self.full and place.held < self._memory * 7 // 8:
            self.full -= {place.key}

    # Time ----------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When tick() is due; None if never."""
        self._drop_stale()
        return self._due[0][0] if self._due else None

    def tick(self, now: float) -> None:
        """Time has come for what next_deadline() said (or may have); then flush()."""
        while self._due and self._due[0][0] <= now:
            when, _, timed = heapq.heappop(self._due)
            if timed.due == when:
                self._timed -= 1
                timed.due = None
                if isinstance(timed, Letter):
                    del timed.lane.waiting[timed.number]
                    self._end(timed, Outcome.EXPIRED)
                    self._ready[timed.lane] = None
                else:
                    self._time_out(timed, now)
        self.flush(now)

    def flush(self, now: float) -> None:
        """Send all that may leave now."""
        while self._ready:
            lane = next(iter(self._ready))
            del self._ready[lane]
            self._go_on(lane, now)

    def held(self, node: Key) -> int:
        """Bytes that wait for a node."""
        place = self._places.get(node)
        return place.held if place is not None else 0

    # The life of letters and parcels ----------------------------------------------------------

    def _go_on(self, lane: _Lane, now: float) -> None:
        """Send of a lane what may leave now."""
        while lane.waiting and len(lane.open) < lane.window:
            letters = self._next_letters(lane, now)
            if not letters:
                break
            self.count += 1
            size, quiet = 0, not lane.peer_id
            for letter in letters:
                size += letter.size
                if letter.post.callback:
                    quiet = False
            parcel = Parcel(self.count, self.token(), letters, lane, size, quiet)
            lane.open[parcel.number] = self._on_their_way[parcel.number] = parcel
            self._send(parcel, now)
        if not lane.waiting:
            self._held_up.pop(lane, None)
            if lane.peer_id and not lane.open:
                lane.place.lanes.pop(lane.peer_id, None)
            return
        if lane.open:
            self._held_up[lane] = None
        else:
            self._held_up.pop(lane, None)
        for letter in reversed(lane.waiting.values()):
            if letter.due is not None:
                break  # and those before it
            self._plan(letter, letter.post.expires)

    def _next_letters(self, lane: _Lane, now: float) -> list[Letter]:
        """Those that leave together, taken out of what waits."""
        place = lane.place
        node = place.node
        letters: list[Letter] = []
        expired: list[Letter] = []
        left, before = 0, None
        for letter in lane.waiting.values():
            post = letter.post
            if post.expires <= now:
                expired.append(letter)
                continue
            if node is None or (post.encoded and not node.python):
                break
            if not letters:
                alone = letter.alone or lane.single or lane.peer_id in place.alone
                alone = alone or not node.python or place.refuses_batches
                # One is nothing to reckon room for, and the rule on a bus that is not busy.
                left = 0 if alone or len(lane.waiting) == 1 else self.room(node)
            elif letter.alone or len(letters) == batch.MAX_MESSAGES:
                break
            if left:
                piece = letter.piece
                size = piece.same_size if piece.head == before else piece.first_size
                if letters and size > left:
                    break
                left, before = max(0, left - size), piece.head
            letters.append(letter)
            if not left:
                break
        for letter in letters:
            self._take_out(letter)
        for letter in expired:
            self._take_out(letter)
            self._end(letter, Outcome.EXPIRED)
        return letters

    def _take_out(self, letter: Letter) -> None:
        del letter.lane.waiting[letter.number]
        if letter.due is not None:
            self._timed -= 1
            letter.due = None

    def _send(self, parcel: Parcel, now: float) -> None:
        self.to_send.append(parcel)
        parcel.last_sent = now
        if parcel.pause:
            parcel.pause = min(2 * parcel.pause, T2)
        else:
            node = parcel.lane.place.node
            parcel.pause = T1 if node is not None and node.transport == "udp" else T2
        self._plan(parcel, min(now + parcel.pause, _earliest(parcel.live())))

    def _time_out(self, parcel: Parcel, now: float) -> None:
        """Its timer has run out."""
        if parcel.settling:
            self._close(parcel)
            return
        for letter in parcel.live():
            if letter.post.expires <= now:
                parcel.thinned = True
                self._end(letter, Outcome.TIMED_OUT)
        live = parcel.live()
        if live:
            again = parcel.last_sent + parcel.pause
            if parcel.lane.place.node is None:
                self._plan(parcel, _earliest(live))
            elif now < again:
                self._plan(parcel, min(again, _earliest(live)))
            else:
                self._send(parcel, now)
            return
        settled = parcel.last_sent + SETTLE
        if parcel.lane.peer_id and settled > now:
            parcel.settling = True
            self._plan(parcel, settled)
        else:
            self._close(parcel)

    def _end(self, letter: Letter, outcome: Outcome, answer: Answered | None = None) -> None:
        letter.ended = True
        if not letter.post.callback:
            # Nobody is to be told, so it takes no more room.
            self.silent[outcome] += 1
            self.release(letter)
            return
        if answer is not None:
            self._hold(letter.lane.place, len(answer.body))
            letter.size += len(answer.body)
        self.ended.append(Ended(letter, outcome, answer))

    def _end_all(self, parcel: Parcel) -> None:
        """Of a parcel of whose letters nobody is to be told."""
        count = len(parcel.letters)
        self.silent[Outcome.ANSWERED] += count
        self._release(parcel.lane.place, count, parcel.size)

    def _close(self, parcel: Parcel) -> None:
        """It is no longer on its way: the next one may leave."""
        del self._on_their_way[parcel.number]
        del parcel.lane.open[parcel.number]
        if parcel.due is not None:
            self._timed -= 1
            parcel.due = None
        self._ready[parcel.lane] = None

    # Small things --------------------------------------------------------------------------

    def _plan(self, timed: Letter | Parcel, when: float) -> None:
        if timed.due is None:
            self._timed += 1
        timed.due = when
        heapq.heappush(self._due, (when, next(self._pushes), timed))

    def _hold(self, place: _Place, size: int) -> None:
        place.held += size
        if place.held >= self._memory and place.key not in self.full:
            self.full |= {place.key}

    def _drop_stale(self) -> None:
        due = self._due
        while due and due[0][2].due != due[0][0]:
            heapq.heappop(due)
        if len(due) > 2 * self._timed + 1000:
            self._due = [entry for entry in due if entry[2].due == entry[0]]
            heapq.heapify(self._due)


def _earliest(letters: list[Letter]) -> float:
    return min([letter.post.expires for letter in letters])


# Events, as they travel through the inboxes ----------------------------------------------------


def post_event(now: float, *post: Any) -> tuple[Any, ...]:
    """post: as Post has it.  now: time.monotonic() at the call (Inbox.take_in_order)."""
    return ("post", now, *post)


def reply_event(call_id: str, answer: Answered) -> tuple[Any, ...]:
    return ("reply", call_id, *answer)


def fine_event(parcel: str) -> tuple[Any, ...]:
    """200 to a parcel of which nobody waits for the answer, named as in its Call-ID."""
    return ("fine", parcel)


def outcome_event(ended: Ended) -> tuple[Any, ...]:
    """For the callbacks process."""
    letter, outcome, answer = ended
    if answer is None:
        reason = "Expired" if outcome is Outcome.EXPIRED else "Request Timeout"
        answer = Answered(408, reason, "", "")
    return ("outcome", f"{letter.uri}|{letter.post.callback}", outcome.value, *answer)
