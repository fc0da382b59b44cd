"""The two processes of our own: the engine's and the callbacks'.

Kamailio's rtimer starts each and calls into it; the call does not return while all is well.
"""

from __future__ import annotations

import os
import queue
import random
import select
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from ..bus import Bus, describe
from ..engine import Engine, resolved_event, unpack_node, unpack_nodes
from ..message import Reply
from ..shared import Inbox
from ..table import NodeTable
from ..wire import SipUri
from .kamailio import KamailioHost, addresses_of
from .reload import ReloadSymbols
from .srv import lookup_srv

#: Without the reload lock's symbol a loop returns this often, so that a reload gets a chance.
SHORT_STAY = 0.1
#: Seconds after which the engine moves though nothing has happened, for DMQ.health().
SIGN_OF_LIFE = 5.0


class Resolver:
    """Looks names up in threads, so that the engine never waits for the DNS.  No KSR there."""

    #: Look-ups at a time: one that hangs does not hold up the others.  A name that nobody knows yet
    #: is asked for every second, and a DNS that is silent takes some 10 s for each (resolv.conf).
    THREADS = 16

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        #: ("resolved", …) events
        self.answers: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._threads = 0
        self._idle = threading.Semaphore(0)

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
            targets = [
                (address, record.port)
                for record in (lookup_srv(srv) if srv else ())
                for address in addresses_of(record.target)
            ]
            self._tell(resolved_event(host, addresses_of(host), srv, targets))
            self._idle.release()

    def _tell(self, event: tuple[Any, ...]) -> None:
        self.answers.put(event)
        os.eventfd_write(self.fd, 1)


class EngineProcess:
    """The process that owns the membership; the Outside of the engine."""

    def __init__(
        self, bus: Bus, host: KamailioHost, symbols: ReloadSymbols, resolver: Resolver
    ) -> None:
        self._bus = bus
        self._host = host
        self._symbols = symbols
        self._resolver = resolver
        self._goodbye: list[tuple[SipUri, str]] = []
        self._stale_goodbye = True
        self._engine = Engine(bus.settings, self, random.Random(os.urandom(16)), bus.user_agent())
        self._started = False

    def run(self) -> None:
        """Work until Kamailio stops, or for SHORT_STAY where the reload lock cannot be given
        back; then it goes on when it is called again.  After an exception another one begins,
        with the list that is in shared memory."""
        shared = self._bus.shared
        stays = self._symbols.release()
        signal.signal(signal.SIGTERM, self._leave)
        signal.signal(signal.SIGINT, self._leave)
        shared.words.set("engine_pid", os.getpid())
        inbox, engine = shared.engine_inbox, self._engine
        inbox.wake()  # for what a failure has left there
        if not self._started:
            self._started = True
            _, known = shared.snapshot.read()
            engine.start(time.monotonic(), list(unpack_nodes(known)[0]))
        leaves_at = None if stays else time.monotonic() + SHORT_STAY
        while leaves_at is None or time.monotonic() < leaves_at:
            if self._stale_goodbye:
                self._goodbye = engine.leave_texts()
                self._stale_goodbye = False
            now = time.monotonic()
            shared.words.set("engine_moved_ms", int(now * 1000))
            deadlines = (engine.next_deadline(), leaves_at, now + SIGN_OF_LIFE)
            timeout = max(0.0, min(t for t in deadlines if t is not None) - now)
            if timeout > 0:
                select.select([inbox.fd, self._resolver.fd], [], [], timeout)
            inbox.clear_wake()
            for event in inbox.take():
                engine.handle(event, time.monotonic())
            self._take_answers()
            engine.tick(time.monotonic())

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
            self._engine.handle(event, time.monotonic())

    def _leave(self, signum: int, frame: FrameType | None) -> None:
        """Say goodbye.  All other processes have died where they stood, holding whatever they
        held: this takes no lock of ours, of tm or of uac, and ends in any case."""
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(1)
        if self._stale_goodbye:  # the list has changed just now
            try:
                self._goodbye = self._engine.leave_texts()
            except Exception:
                pass  # in the middle of a change: then the nodes from before it
        for to, text in self._goodbye:
            self._host.send_text(to, text)
        for to, text in self._goodbye:
            if to.transport == "udp":
                self._host.send_text(to, text)
        os._exit(0)

    # The engine's Outside

    def send(self, to: SipUri, text: str) -> None:
        self._host.send_text(to, text)

    def publish(self, value: tuple[Any, ...]) -> None:
        self._bus.shared.snapshot.publish(value)
        self._bus.shared.callbacks_inbox.wake()  # it shows the list in a table
        self._stale_goodbye = True

    def callback(self, event: tuple[Any, ...]) -> None:
        if not self._bus.shared.callbacks_inbox.put(event):
            self._bus.shared.counters.add("inbox_full")
            self._host.log("err", "kemi_dmq: the inbox of the callbacks process is full")

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
    """Run the script's callbacks, one after the other, until the script was loaded anew.  Shows
    the list in table."""
    inbox = bus.shared.callbacks_inbox

    def waits(value: bool) -> None:
        if value and table is not None and not table.show(bus.node_list().nodes):
            host.log("err", f"kemi_dmq: the htable {table.name} does not take the node list")

    _serve(inbox, symbols, stale, lambda event: _run_callback(bus, event, run_event), waits)


def run_worker(bus: Bus, number: int, symbols: ReloadSymbols, stale: Callable[[], bool]) -> None:
    """Run peers for the SIP workers, one message after the other, until the script was loaded
    anew.  Processes beyond num_workers have nothing to do."""
    workers = bus.shared.workers
    if workers is None or number >= len(workers.inboxes):
        if symbols.release():
            select.select([], [], [])
        return

    inbox = workers.inboxes[number]

    def waits(value: bool) -> None:
        workers.idle[number] = value and inbox.backlog() == 0

    _serve(inbox, symbols, stale, bus.run_job, waits)


def _serve(
    inbox: Inbox,
    symbols: ReloadSymbols,
    stale: Callable[[], bool],
    run: Callable[[tuple[Any, ...]], None],
    waits: Callable[[bool], None] = lambda value: None,
) -> None:
    """run() each event of an inbox until the script was loaded anew (stale()): then Kamailio
    loads it here too, before it calls again.  waits() is told before and after each wait."""
    inbox.wake()  # for what may have been left there
    stays = symbols.release()
    leaves_at = None if stays else time.monotonic() + SHORT_STAY
    while not stale():
        timeout = None if leaves_at is None else max(0.0, leaves_at - time.monotonic())
        waits(True)
        select.select([inbox.fd], [], [], timeout)
        waits(False)
        inbox.clear_wake()
        for event in inbox.take():
            run(event)
            if stale():
                inbox.wake()  # what is left is for the new script
                return
        if leaves_at is not None and time.monotonic() >= leaves_at:
            return


def _run_callback(bus: Bus, event: tuple[Any, ...], run_event: Any) -> None:
    kind = event[0]
    if kind == "timeout":
        bus.run_response(event[1], Reply(408, "Request Timeout", "", "", timed_out=True))
    elif kind == "init":
        node = unpack_node(event[1]) if event[1] else None
        for peer in bus.registry.peers():
            if peer.init_callback is not None:
                try:
                    peer.init_callback(node)
                except BaseException as error:  # also sys.exit(): it is the user's code
                    _user_error(bus, f"init_callback of peer {peer.peer_id}", error)
    elif kind == "event":
        try:
            run_event(event[1], unpack_node(event[2]))
        except BaseException as error:
            _user_error(bus, f"event_callback for {event[1]}", error)


def _user_error(bus: Bus, what: str, error: BaseException) -> None:
    bus.shared.counters.add("user_errors")
    bus.host.log("err", f"kemi_dmq: {what} raised: {describe(error)}")
