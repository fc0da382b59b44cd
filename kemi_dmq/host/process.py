"""The two processes of our own: the engine's and the callbacks'.

Kamailio's rtimer starts each and calls into it; the call does not return while all is well.
"""

from __future__ import annotations

import gc
import os
import queue
import random
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from ..bus import Bus
from ..callbacks import run_callback
from ..engine import Engine, Published, resolved_event
from ..gate import named_in, with_named
from ..message import Outcome
from ..outbox import Ended, Outbox, outcome_event
from ..shared import Inbox
from ..table import NodeTable
from ..wire import SipUri
from .kamailio import KamailioHost, addresses_of
from .reload import ReloadSymbols
from .srv import lookup_srv

#: Without the reload lock's symbol a loop returns this often, so that a reload gets a chance.
SHORT_STAY = 0.1
#: Messages for the outbox that the engine takes before it looks at the rest of the world again.
LETTERS_A_TURN = 128
#: Seconds after which the engine moves though nothing has happened, for DMQ.health().
SIGN_OF_LIFE = 5.0
#: New objects in the engine's process after which it looks for garbage.
GARBAGE = 50_000
#: Seconds before each copy of the goodbye over UDP.  Nobody is left who would read an answer; those
#: that go out at once may find the same full receive buffer.
GOODBYES = (0.0, 0.02, 0.06)


class _Service:
    """The look-up of a name's SRV records."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.targets: list[tuple[str, int]] = []


class Resolver:
    """Looks names up in threads, so that the engine never waits for the DNS.  No KSR there."""

    #: Look-ups at a time: one that hangs does not hold up the others.  A name that nobody knows yet
    #: is asked for every second, and a DNS that is silent takes some 10 s for each (resolv.conf).
    THREADS = 16
    #: Seconds that a name's own addresses wait for its SRV records, which go before them.
    SOON = 0.5

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        #: ("resolved", …) events
        self.answers: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._threads = 0
        self._idle = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._services: dict[str, _Service] = {}  # asked for and not answered yet

    def ask(self, host: str, srv: str) -> None:
        if self._asked.qsize() >= 1000:
            self._tell(resolved_event(host, [], srv, []))  # it is asked for again
            return
        self._asked.put((host, srv))
        if not self._idle.acquire(blocking=False) and self._threads < self.THREADS:
            self._threads += 1
            threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        # Signals are the main thread's.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            host, srv = self._asked.get()
            if srv:
                self._look_up_both(host, srv)
            else:
                self._tell(resolved_event(host, addresses_of(host), "", []))
            self._idle.release()

    def _look_up_both(self, host: str, srv: str) -> None:
        """A name that /etc/hosts knows has its addresses also while the DNS is silent: then they
        are told at once, and once more with the SRV records when these come."""
        with self._lock:
            service = self._services.get(srv)
            first = service is None
            if service is None:
                service = self._services[srv] = _Service()
                threading.Thread(target=self._find, args=(srv, service), daemon=True).start()
        addresses = addresses_of(host)
        told = bool(addresses) and not service.done.wait(self.SOON)
        if told:
            self._tell(resolved_event(host, addresses, srv, []))
        if told and not first:
            return  # who asked first tells the rest
        service.done.wait()
        if service.targets or not told:
            self._tell(resolved_event(host, addresses, srv, service.targets))

    def _find(self, srv: str, service: _Service) -> None:
        try:
            service.targets = [
                (address, record.port)
                for record in lookup_srv(srv)
                for address in addresses_of(record.target)
            ]
        finally:
            with self._lock:
                del self._services[srv]
            service.done.set()

    def _tell(self, event: tuple[Any, ...]) -> None:
        self.answers.put(event)
        os.eventfd_write(self.fd, 1)


class EngineProcess:
    """The process that owns the membership; the Outside of the engine."""

    def __init__(
        self,
        bus: Bus,
        host: KamailioHost,
        symbols: ReloadSymbols,
        resolver: Resolver,
        outbox: Outbox | None = None,
    ) -> None:
        self._bus = bus
        self._host = host
        self._symbols = symbols
        self._resolver = resolver
        self._goodbye: list[tuple[SipUri, str]] = []
        self._stale_goodbye = True
        self._names = named_in(bus.settings)
        self._engine = Engine(
            bus.settings,
            self,
            # Of the system's randomness: what it gives goes out, and must not tell what comes next.
            random.SystemRandom(),
            bus.user_agent(),
            bus.gate,
            time.time_ns() // 1_000_000,
            outbox,
        )
        self.outbox = self._engine.outbox
        self._started = False
        self._look_at: float | None = 0.0  # when to look for what is unanswered

    def run(self) -> None:
        """Work until Kamailio stops, or for SHORT_STAY where the reload lock cannot be given
        back; then it goes on when it is called again.  After an exception another one begins,
        with the list that is in shared memory."""
        shared = self._bus.shared
        stays = self._symbols.release()
        signal.signal(signal.SIGTERM, self._leave)
        signal.signal(signal.SIGINT, self._leave)
        shared.words.set("engine_pid", os.getpid())
        inbox, posts, engine = shared.engine_inbox, shared.posts, self._engine
        inbox.wake()  # for what a failure has left there
        posts.wake()
        if not self._started:
            self._started = True
            # What lives as long as the process is not looked through for garbage, and what a
            # message needs has no cycles: looking took a fifth of the time.
            gc.collect()  # an engine that failed
            gc.freeze()
            gc.set_threshold(GARBAGE)
            _, known = shared.snapshot.read()
            engine.start(time.monotonic(), Published(known) if known else None)
            local = self._bus.settings.server_address.host
            if local in self._names:
                self.resolve(local, "")
        leaves_at = None if stays else time.monotonic() + SHORT_STAY
        while leaves_at is None or time.monotonic() < leaves_at:
            if self._stale_goodbye:
                self._goodbye = engine.leave_texts()
                self._stale_goodbye = False
            now = time.monotonic()
            shared.words.set("engine_moved_ms", int(now * 1000))
            if self._look_at is None and shared.unanswered.watched:
                self._look_at = now + shared.unanswered.soon
            deadlines = (engine.next_deadline(), leaves_at, self._look_at, now + SIGN_OF_LIFE)
            timeout = max(0.0, min(t for t in deadlines if t is not None) - now)
            if engine.outbox.wants_answers and not inbox.empty():
                timeout = 0.0  # they came before it was known that they are wanted
            ready, _, _ = select.select([inbox.fd, posts.fd, self._resolver.fd], [], [], timeout)
            if posts.fd in ready:  # first: answers that woke nobody have time
                self._take_posts(posts)
                engine.send_out(time.monotonic())
            if inbox.fd in ready:
                inbox.clear_wake()
            for event in inbox.take():
                engine.handle(event, time.monotonic())
            if self._resolver.fd in ready:
                self._take_answers()
            if self._look_at is not None and self._look_at <= time.monotonic():
                self._look()
            engine.tick(time.monotonic())

    def _take_posts(self, posts: Inbox) -> None:
        """Some of what waits, so that answers and node lists do not wait for all of it."""
        posts.clear_wake()
        now = time.monotonic()
        letters = 0
        for event in posts.take_in_order(now):
            self._engine.handle(event, now)
            letters += len(event[-1])
            if letters >= LETTERS_A_TURN:
                posts.wake()
                break

    def _look(self) -> None:
        """Look after what other processes have sent."""
        pause = self._bus.shared.unanswered.tick(self._host.send_text, self._bus.timed_out)
        self._look_at = None if pause is None else time.monotonic() + pause

    def _take_answers(self) -> None:
        try:
            os.eventfd_read(self._resolver.fd)
        except BlockingIOError:
            return
        while True:
            try:
                event = self._resolver.answers.get_nowait()
            except queue.Empty:
                return
            self._allow_named(event)
            self._engine.handle(event, time.monotonic())

    def _allow_named(self, event: tuple[Any, ...]) -> None:
        """Tell all processes which addresses a name in the settings stands for."""
        _, host, addresses, _srv, targets = event
        if host in self._names:
            named = self._bus.shared.named
            before = tuple(named.read()[1] or ())
            after = with_named(before, [*addresses, *(address for address, _ in targets)])
            if after != before:
                named.publish(after)

    def _leave(self, signum: int, frame: FrameType | None) -> None:
        """Say goodbye.  All other processes have died where they stood, holding whatever they
        held: this takes no lock of ours, of tm or of uac, and ends in any case."""
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(1)
        if self._stale_goodbye or self._bus.settings.keys:
            # The list has changed just now, or the texts are to bear this moment.
            try:
                self._goodbye = self._engine.leave_texts()
            except Exception:
                pass  # in the middle of a change: then the nodes from before it
        for number, pause in enumerate(GOODBYES):
            time.sleep(pause)
            for to, text in self._goodbye:
                if number == 0 or to.transport == "udp":
                    self._host.send_text(to, text)
        totals = self._bus.shared.counters.totals()
        lost = totals["outbox_posted"] - sum(totals[f"outbox_{o.value}"] for o in Outcome)
        if lost > 0:
            self._host.log("err", f"kemi_dmq: {lost} messages that waited are lost: Kamailio stops")
        os._exit(0)

    # The engine's Outside

    def send(self, to: SipUri, text: str) -> None:
        self._host.send_text(to, text)

    def publish(self, value: Callable[[], tuple[Any, ...]]) -> None:
        self._bus.shared.snapshot.publish(value())
        self._bus.shared.callbacks_inbox.wake()  # it shows the list in a table
        self._stale_goodbye = True

    def callback(self, event: tuple[Any, ...]) -> bool:
        if self._bus.shared.callbacks_inbox.put(event):
            return True
        self._bus.log_some("kemi_dmq: a callback holds up those that follow")
        return False

    def outcome(self, ended: Ended) -> bool:
        shared = self._bus.shared
        # The rest is left for what membership tells.
        if shared.callbacks_inbox.fills_up():
            return False
        if not shared.callbacks_inbox.put(outcome_event(ended)):
            return False
        shared.counters.add(f"outbox_{ended.outcome.value}")
        return True

    def ended_silently(self, counts: dict[Outcome, int]) -> None:
        for outcome, count in counts.items():
            self._bus.shared.counters.add(f"outbox_{outcome.value}", count)

    def want_answers(self, wanted: bool) -> None:
        self._bus.shared.words.set("answers_wanted", int(wanted))

    def full(self, nodes: frozenset[tuple[str, int]]) -> None:
        self._bus.shared.full_nodes.publish(tuple(nodes))

    def resolve(self, host: str, srv: str) -> None:
        self._resolver.ask(host, srv)


def run_callbacks(
    bus: Bus,
    host: KamailioHost,
    symbols: ReloadSymbols,
    stale: Callable[[], bool],
    run_event: Any,
    table: NodeTable | None,
) -> None:
    """Run the script's callbacks, and peers of C modules that it is left to, one after the other,
    until the script was loaded anew.  Shows the list in table."""
    inbox, c_messages = bus.shared.callbacks_inbox, bus.shared.c_messages
    served: list[_Served] = [
        (inbox, inbox.take, lambda event: run_callback(bus, event, run_event)),
    ]
    if c_messages is not None:
        served.append(
            (c_messages.inbox, c_messages.take, lambda event: bus.run_c_message(event[0]))
        )

    def waits(value: bool) -> None:
        if value and table is not None and not table.show(bus.node_list().nodes):
            host.log("err", f"kemi_dmq: the htable {table.name} does not take the node list")

    _serve(served, symbols, stale, waits)


def run_worker(bus: Bus, number: int, symbols: ReloadSymbols, stale: Callable[[], bool]) -> None:
    """Run peers for the SIP workers, one message after the other, until the script was loaded
    anew.  Processes beyond num_workers have nothing to do."""
    workers = bus.shared.workers
    if workers is None or number >= len(workers.inboxes):
        if symbols.release():
            select.select([], [], [])
        return

    def run(job: tuple[Any, ...]) -> None:
        workers.begins(number)
        bus.run_job(job)

    inbox = workers.inboxes[number]
    _serve([(inbox, inbox.take, run)], symbols, stale, lambda value: workers.waits(number, value))


#: An inbox, how its events are taken, and what is called with each.
_Served = tuple[Inbox, Callable[[], Iterator[tuple[Any, ...]]], Callable[[tuple[Any, ...]], None]]


def _serve(
    served: list[_Served],
    symbols: ReloadSymbols,
    stale: Callable[[], bool],
    waits: Callable[[bool], None],
) -> None:
    """Work off inboxes until the script was loaded anew (stale()): then Kamailio loads it here
    too, before it calls again.  What the first one has goes before what others have.  waits() is
    told before and after each wait."""
    for inbox, _, _ in served:
        inbox.wake()  # for what may have been left there
    first = served[0][0]
    stays = symbols.release()
    leaves_at = None if stays else time.monotonic() + SHORT_STAY
    while not stale():
        timeout = None if leaves_at is None else max(0.0, leaves_at - time.monotonic())
        waits(True)
        select.select([inbox.fd for inbox, _, _ in served], [], [], timeout)
        waits(False)
        for inbox, take, run in served:
            inbox.clear_wake()
            for event in take():
                run(event)
                if stale():
                    return  # what is left is for the new script
                if inbox is not first and not first.empty():
                    inbox.wake()
                    break
        if leaves_at is not None and time.monotonic() >= leaves_at:
            return
