"""dmq_api_t for the C modules of this Kamailio: made once, at the first load of the script.

Modules whose mod_init runs later than app_python3's find it; they are those that stand after
app_python3 in kamailio.cfg.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from ..bus import Bus, describe
from ..commands import Commands
from ..host.kamailio import KamailioHost
from ..node import Node
from ..peer import Registry
from ..wire import WireError
from .core import Core, UnfitError
from .nodes import NodeStructs
from .peers import CPeer
from .rpc import Rpc
from .sending import Sender

_binding: Binding | None = None


def bind(bus: Bus, host: KamailioHost, registry: Registry, commands: Commands) -> None:
    """Let C modules find this bus, and RPC clients its commands; UnfitError says what is not as
    it must be.

    Called again it changes nothing."""
    global _binding
    if _binding is None:
        try:
            _binding = Binding(bus, host, registry, commands)
        except MemoryError:
            raise UnfitError(
                "0 where memory cannot be made executable (systemd's MemoryDenyWriteExecute), "
                "which cffi's callbacks need"
            ) from None
        except UnfitError:
            raise
        except Exception as error:  # what nobody has thought of is no reason to start
            raise UnfitError(f"0 here: it cannot be done ({describe(error)})") from None


class Binding:
    """The functions that C calls.  Each may be called in any process, with or without Python or a
    SIP message beneath it, and by a caller that holds locks."""

    def __init__(
        self, bus: Bus, host: KamailioHost, registry: Registry, commands: Commands
    ) -> None:
        self._bus = bus
        self._registry = registry
        self._core = core = Core(host.version())
        self._nodes = NodeStructs(core)
        self._sender = Sender(bus, host, core, self._nodes, self._failed)
        self._peers: dict[int, CPeer] = {}  # by the address of their structure
        socket = bus.settings.server_socket
        self._socket_text = core.ffi.new(
            "char[]", f"{socket.transport}:{socket.host}:{socket.port}".encode()
        )
        api = core.ffi.new("dmq_api_t *")
        functions: dict[str, tuple[Any, Any]] = {
            "register_dmq_peer": (self._register, core.ffi.NULL),
            "bcast_message": (self._bcast, -1),
            "send_message": (self._send, -1),
            "find_dmq_node_uri": (self._find, core.ffi.NULL),
        }
        if hasattr(api, "get_dmq_server_socket"):  # from 6.1 on
            functions["get_dmq_server_socket"] = (
                self._server_socket,
                core.ffi.new("str *", {"s": self._socket_text, "len": 0})[0],
            )
        for name, (function, error) in functions.items():
            kind = core.ffi.typeof(getattr(api, name))
            callback = core.ffi.callback(kind, function, error=error, onerror=self._failed)
            setattr(api, name, callback)
            setattr(self, f"_c_{name}", callback)  # kept for ever
        self._api = api
        self._bind = core.ffi.callback("bind_dmq_t", self._on_bind, error=-1, onerror=self._failed)
        self._rpc = Rpc(core, bus, commands, self._failed)
        core.add_command(b"bind_dmq", core.ffi.cast("void *", self._bind))

    def _failed(self, kind: type, error: BaseException, trace: TracebackType | None) -> None:
        """Something of ours raised in a call from C, which gets an error value."""
        self._bus.shared.counters.add("native_errors")
        self._bus.host.log(
            "err", f"kemi_dmq: a C module's call failed: {describe(error.with_traceback(trace))}"
        )

    def _on_bind(self, api: Any) -> int:
        api[0] = self._api[0]
        return 0

    def _register(self, given: Any) -> Any:
        single = bool(self._bus.settings.init_with_single)
        peer = CPeer(self._core, self._nodes, given, single)
        try:
            self._registry.register_permanent(peer.peer())
        except ValueError as error:
            self._bus.host.log("err", f"kemi_dmq: a C module's peer is not registered: {error}")
            return self._core.ffi.NULL
        self._peers[int(self._core.ffi.cast("uintptr_t", peer.struct))] = peer
        return peer.struct

    def _peer(self, pointer: Any) -> CPeer:
        found = self._peers.get(int(self._core.ffi.cast("uintptr_t", pointer)))
        if found is None:
            raise ValueError("the peer is not one that register_dmq_peer() has given")
        return found

    def _node(self, pointer: Any) -> Node | None:
        """The node as it is now; None if it is not on the list any more, and no stranger whose
        message is being handled."""
        node = self._bus.node_list().of_uri(self._nodes.uri(pointer))
        return self._nodes.known_stranger(pointer) if node is None else node

    def _bcast(self, peer: Any, body: Any, excluded: Any, cback: Any, hops: int, kind: Any) -> int:
        found = self._peer(peer)
        nodes = self._bus.node_list().active
        if found.asks is not None:
            nodes = tuple(node for node in nodes if node.uri == found.asks.uri)
        if excluded:
            without = self._node(excluded)
            if without is not None:
                place = (without.host, without.port)
                nodes = tuple(node for node in nodes if (node.host, node.port) != place)
        return self._sender.send(found.peer_id, body, nodes, cback, hops, kind)

    def _send(self, peer: Any, body: Any, pointer: Any, cback: Any, hops: int, kind: Any) -> int:
        peer_id = self._peer(peer).peer_id
        node = self._node(pointer) if pointer else None
        if node is None:
            uri = self._nodes.uri(pointer) if pointer else "no node"
            self._bus.shared.counters.add("send_failures")
            self._bus.log_some(
                f"kemi_dmq: a C module's message to {peer_id} at {uri} was not sent: "
                "it is not on the list"
            )
            return -1
        return self._sender.send(peer_id, body, (node,), cback, hops, kind)

    def _find(self, uri: Any) -> Any:
        try:
            return self._nodes.pointer(self._bus.find_node(self._core.text(uri)))
        except WireError:
            return self._core.ffi.NULL

    def _server_socket(self) -> Any:
        size = len(self._socket_text) - 1
        return self._core.ffi.new("str *", {"s": self._socket_text, "len": size})[0]
