"""DMQ: what a script creates, and the life of a script in Kamailio: load, reload, processes.

One Runtime lives in each process from the first load to the end.  DMQ objects are handles on it:
after a reload, also one that failed, the names of the script's module may be bound to another
DMQ object than before; all of them act on the same bus.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import settings as settings_module
from .api import DmqApi, channel_taken
from .bus import Bus, describe
from .commands import Commands
from .dropin import DropIn
from .node import Node
from .outbox import Outbox
from .peer import Registry
from .settings import SettingError, Settings
from .shared import Shared
from .table import NodeTable
from .wire import is_address

if TYPE_CHECKING:
    from .host.kamailio import KamailioHost
    from .host.reload import LoadWatch

#: A secret of fewer characters is warned of.
SHORT_SECRET = 16

registry = Registry()
_api = DmqApi(registry)
_runtime: Runtime | None = None


def dmq_load_api() -> DmqApi:
    """The API of this Kamailio's bus.  It can be loaded before DMQ() exists, by modules that the
    script imports."""
    return _api


class Runtime:
    """This process's side of the bus.  Made once, in the process that loads the script first."""

    def __init__(self, settings: Settings) -> None:
        from .host.kamailio import KamailioHost, addresses_of
        from .host.reload import ReloadSymbols

        self.settings = settings
        self.host = KamailioHost()
        self.host.use_socket(settings.server_socket)
        self.symbols = ReloadSymbols()
        self.shared = Shared(
            settings.once_memory,
            num_workers=settings.num_workers,
            signs=bool(settings.keys),
            fr_timer=settings.fr_timer / 1000,
            c_modules=bool(settings.bind_c_modules),
        )
        self.bus = Bus(
            settings,
            self.shared,
            self.host,
            registry,
            local_address=_local_address(settings, addresses_of),
        )
        _api._bind(self.bus, self.refuse)
        self.drop_in = DropIn(self.bus)
        self.commands = Commands(self.bus, addresses_of)
        table = settings_module.unquoted(self.host.define("DMQ_NODES_TABLE"))
        self._table = NodeTable(self.host, table) if table else None
        self.handler: Any = None  # the script's, as it was taken last
        self.script_version = 0  # of this process's script
        self._engine_process: Any = None  # in the engine's process
        self._resolver: Any = None  # there, too
        self._outbox: Outbox | None = None  # there, too
        self._load_watch: LoadWatch | None = None
        self.refused = False  # the script being loaded is not to be taken

    # Load and reload -----------------------------------------------------------------------

    def adopt(self, handler: Any) -> Any:
        """Wire a script's handler to the bus; see DMQ.attach()."""
        from .host.reload import LoadWatch, keep

        if self.refused and self.handler is not None:
            registry.discard()
            return self.handler
        callback = self.settings.event_callback
        if callback and not callable(getattr(handler, callback, None)):
            error = SettingError(
                "event_callback", callback, "a method of the handler given to attach()"
            )
            self.refuse(str(error))
            registry.discard()
            return self.handler
        self._wire(handler)
        self.bus.attached = True
        keep(handler)
        keep(traceback.format_exception)
        if self.handler is None:
            self.handler = handler
            self._load_watch = LoadWatch(self.symbols)
            registry.commit()
            # What is alive now stays shared between the processes.
            gc.collect()
            gc.freeze()
        return handler

    def _wire(self, handler: Any) -> None:
        add = {
            "ksr_dmq_engine": self._engine_entry,
            "ksr_dmq_callbacks": self._callbacks_entry,
            "ksr_dmq_worker": self._worker_entry,
            **self.commands.methods(),
            "ksr_uac_event": _chain(self.bus.on_outcome, getattr(handler, "ksr_uac_event", None)),
            "ksr_reply_route": _chain(self.bus.on_reply, getattr(handler, "ksr_reply_route", None)),
            "child_init": self._child_init(handler, getattr(handler, "child_init", None)),
        }
        if not hasattr(handler, "ksr_onsend_route"):
            # Where it is missing, 5.6 leaves an AttributeError pending in t_replicate().
            add["ksr_onsend_route"] = lambda msg: 1
        for name, function in add.items():
            try:
                setattr(handler, name, function)
            except AttributeError:
                raise TypeError(
                    f"the handler given to attach() takes no attribute {name}; give it no __slots__"
                ) from None

    def _child_init(self, handler: Any, users: Callable[[int], int] | None) -> Callable[[int], int]:
        def child_init(rank: int) -> int:
            self.host.leave_room()
            result = users(rank) if users is not None else 0
            if handler is not self.handler:
                self._take(handler)
            if self._load_watch is not None and self._load_watch.overtaken():
                self.host.log("info", "kemi_dmq: reload asked for meanwhile: loading once more")
                return -1  # "failed": Kamailio loads again at the next call
            return 0 if result is None else result

        return child_init

    def _take(self, handler: Any) -> None:
        """A reload has gone well in this process: the new script counts from now on."""
        self.handler = handler
        registry.commit()
        self.bus.forget_functions()
        self.script_version = self.symbols.version
        if self.script_version > self.shared.words.get("script_version"):
            self.shared.words.set("script_version", self.script_version)
        self.shared.callbacks_inbox.wake()
        if self.shared.workers is not None:
            self.shared.workers.wake()

    def reloaded_with(self, given: dict[str, object]) -> None:
        """The script runs again: its settings are told about, and change nothing."""
        registry.open_generation()
        self.refused = False
        try:
            settings = settings_module.check(given)
        except SettingError as error:
            self.refuse(str(error))
            return
        if settings != self.settings:
            names = [
                name
                for name in settings_module.NAMES
                if getattr(settings, name) != getattr(self.settings, name)
            ]
            self._tell_once(
                f"kemi_dmq: changed settings ({', '.join(names)}) count from the next start on"
            )

    def refuse(self, text: str) -> None:
        """The script being loaded is wrong: it is not taken; at start Kamailio stops."""
        self.refused = True
        if self.handler is None:
            self.host.log("crit", text)
            raise SystemExit(1)
        self._tell_once(f"{text}; the script is not taken, the one before it goes on")

    def _tell_once(self, text: str) -> None:
        """One line for each reload, not one for each process."""
        version = self.symbols.version + 1
        if self.shared.words.get("reload_told") != version:
            self.shared.words.set("reload_told", version)
            self.host.log("err", text)

    # Processes of our own ------------------------------------------------------------------

    def _engine_entry(self, msg: Any, event: str = "") -> int:
        from .host.process import EngineProcess, Resolver

        if self._resolver is None:
            self._resolver = Resolver()
        try:
            if self._engine_process is None:
                self._engine_process = EngineProcess(
                    self.bus, self.host, self.symbols, self._resolver, self._outbox
                )
                self._outbox = self._engine_process.outbox  # it outlives an engine that fails
            self._engine_process.run()
        except Exception as error:
            self._engine_process = None
            self.shared.counters.add("engine_failures")
            self.host.log(
                "crit", f"kemi_dmq: the engine failed and starts again: {describe(error)}"
            )
        return 1

    def _callbacks_entry(self, msg: Any, event: str = "") -> int:
        from .host.process import run_callbacks

        def run_event(name: str, node: Node) -> None:
            callback = self.settings.event_callback
            event_route = getattr(self.handler, "ksr_dmq_event_route", None)
            if callback or event_route:
                self.host.set_ruri(node.uri)
            if event_route:  # a kamailio.cfg that routes by itself
                event_route(msg, name)
            if callback:
                getattr(self.handler, callback)(msg, name)

        run_callbacks(self.bus, self.host, self.symbols, self._stale, run_event, self._table)
        return 1

    def _worker_entry(self, msg: Any, event: str = "") -> int:
        from .host.process import run_worker

        run_worker(self.bus, self.host.worker_number(), self.symbols, self._stale)
        return 1

    def _stale(self) -> bool:
        """Whether another process runs a newer script than this one."""
        return self.shared.words.get("script_version") > self.script_version


def _chain(ours: Callable[[], bool], users: Callable[..., int] | None) -> Callable[..., int]:
    def call(msg: Any, *args: Any) -> int:
        if ours() or users is None:
            return 1
        return users(msg, *args)

    return call


class DMQ:
    """The bus of this Kamailio.  Create it once, when the script loads.

    Settings are those of the C module by name (see kemi_dmq.settings.Settings).  One that is
    missing or wrong stops Kamailio at start with one line; when the script is loaded again it is
    logged, and the script that ran before goes on.
    """

    def __init__(self, **given: Any) -> None:
        global _runtime
        if _runtime is None:
            _runtime = _first_start(given)
        else:
            _runtime.reloaded_with(given)
        self._runtime = _runtime
        self._bus = _runtime.bus

    @classmethod
    def from_defs(cls, **given: Any) -> DMQ:
        """A DMQ with the settings that kamailio.cfg defines (``#!define DMQ_SERVER_ADDRESS …``);
        keyword arguments go before them."""
        host = _checked_host()
        return cls(**{**settings_module.from_defs(host.define), **given})

    def attach(self, handler: Any) -> Any:
        """Add to the script's handler what the bus needs, and give it back: the last thing that
        mod_init() does.

        Adds ksr_dmq_engine and ksr_dmq_callbacks; puts itself before child_init, ksr_uac_event
        and ksr_reply_route, each of which goes on to the handler's own one.
        """
        return self._runtime.adopt(handler)

    def install(self) -> None:
        """Make KSR.dmq.* what it is with dmq.so (see kemi_dmq.dropin)."""
        import KSR

        KSR.dmq = self._runtime.drop_in  # type: ignore[assignment]

    def handle_message(self) -> int:
        """Work off the KDMQ request being handled and reply to it.  SIP worker; with num_workers
        above 0 a worker runs the peer and replies, and for a C module, if the message is large, the
        callbacks process.

        Returns 0 (the script ends here), also for an unknown peer (404) and for a copy; -1 after
        400, 413, 503, or 500 because the peer's callback raised."""
        return self._bus.handle(0)

    def process_message(self) -> int:
        """The same, at once and in this SIP worker in any case."""
        return self._bus.handle(0, at_once=True)

    def nodes(self) -> tuple[Node, ...]:
        """All nodes on the list, the local one first.  Any process; costs next to nothing."""
        return self._bus.node_list().nodes

    def counters(self) -> dict[str, int]:
        """Totals over all processes since the start (kemi_dmq.shared.COUNTERS says of what)."""
        return self._runtime.shared.counters.totals()

    def health(self) -> dict[str, float]:
        """engine_pid (0: it never started); engine_moved: seconds since the engine last did
        something (it does when something happens, and every 5 s when nothing does), -1 if it
        never did."""
        words = self._runtime.shared.words
        moved = words.get("engine_moved_ms") / 1000
        return {
            "engine_pid": words.get("engine_pid"),
            "engine_moved": max(0.0, time.monotonic() - moved) if moved else -1.0,
        }

    @property
    def settings(self) -> Settings:
        return self._runtime.settings

    @property
    def api(self) -> DmqApi:
        return _api


def _checked_host() -> KamailioHost:
    from .host.kamailio import KamailioHost, missing_modules

    missing = missing_modules()
    if missing:
        import KSR

        names = ", ".join(f"{name}.so" for name in missing)
        KSR.crit(f"kemi_dmq: not loaded: {names}; include kemi_dmq.cfg in kamailio.cfg\n")
        raise SystemExit(1)
    return KamailioHost()


def _first_start(given: dict[str, Any]) -> Runtime:
    host = _checked_host()
    try:
        settings = settings_module.check(given)
        name = "server_socket" if given.get("server_socket") else "server_address"
        if not host.listens_on(settings.server_socket):
            raise SettingError(
                name,
                given[name],
                "an address that this Kamailio listens on (see its listen parameters); set "
                "server_socket too if server_address is an advertised one",
            )
        started = host.workers_started()
        if settings.num_workers > started:
            raise SettingError(
                "num_workers",
                settings.num_workers,
                f"at most {started}, as many as kemi_dmq.cfg starts: #!define DMQ_NUM_WORKERS "
                "before it is included",
            )
        if settings.notification_channel in registry.live:  # of a module that was imported before
            raise channel_taken(settings.notification_channel)
    except SettingError as error:
        host.log("crit", str(error))
        raise SystemExit(1) from None
    if any(len(key.secret) < SHORT_SECRET for key in settings.keys):
        host.log(
            "warn",
            f"kemi_dmq: a secret in setting keys has less than {SHORT_SECRET} characters: who has "
            "seen one message can guess it; openssl rand -base64 32 makes a better one",
        )
    if settings.unsigned_networks and not settings.keys:
        host.log("warn", "kemi_dmq: unsigned_networks means nothing without keys: nobody signs")
    runtime = Runtime(settings)
    if settings.bind_c_modules:
        _bind_c_modules(runtime)
    registry.open_generation()
    return runtime


def _local_address(settings: Settings, addresses_of: Callable[[str], list[str]]) -> str:
    """The IP address of this node, whose own name was looked up a moment ago."""
    host = settings.server_address.host
    if not is_address(host):
        host = settings.server_socket.host
        host = host if is_address(host) else next(iter(addresses_of(host)), "")
    return host.strip("[]")


def _bind_c_modules(runtime: Runtime) -> None:
    wrong = ""
    try:
        from .native.binding import bind
        from .native.core import UnfitError
    except ImportError as error:
        wrong = f"0 without cffi ({error}); Debian's package for Kamailio's python3 is python3-cffi"
    else:
        try:
            bind(runtime.bus, runtime.host, registry, runtime.commands)
        except UnfitError as error:
            wrong = str(error)
    if wrong:
        runtime.host.log("crit", str(SettingError("bind_c_modules", 1, wrong)))
        raise SystemExit(1)
