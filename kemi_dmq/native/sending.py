"""Messages of C modules go out: whole, whatever their size, through tm's own function.

The caller may hold a lock (htable's slot, usrloc's domain), so nothing here waits: no name is
looked up, and what the engine knows is read from its snapshot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..bus import MAX_UDP, Bus
from ..host.kamailio import KamailioHost
from ..node import Node, next_hop
from ..wire import METHOD, SUPPORTED, SipUri
from .core import Core
from .nodes import NodeStructs
from .outstanding import Outstanding

#: A C string (a str *), and what it points to, which must live as long: keep both.
_String = tuple[Any, Any]

LOCAL_COMPLETED = 1 << 10  # tm's TMCB_LOCAL_COMPLETED: a final reply, or none in time
#: Of the strings of one process that are made once.
MAX_STRINGS = 4096
_HEADERS = 600  # bytes that headers need at most, to tell large messages


class Sender:
    """One for each process, made before the fork."""

    def __init__(
        self,
        bus: Bus,
        host: KamailioHost,
        core: Core,
        nodes: NodeStructs,
        failed: Callable[..., Any],
    ) -> None:
        self._bus = bus
        self._host = host
        self._core = core
        self._nodes = nodes
        self._outstanding = Outstanding(bus.shared.processes)
        self._strings: dict[tuple[Any, ...], _String] = {}
        self._functions: dict[int, Any] = {}
        self._completed = core.ffi.callback("transaction_cb", self._on_completed, onerror=failed)

    def send(
        self,
        peer_id: str,
        body: Any,
        nodes: tuple[Node, ...],
        resp_cback: Any,
        max_forwards: int,
        content_type: Any,
    ) -> int:
        """Send body (a str *) to each of nodes: 0, or -1 if one of them was not accepted."""
        bus, core = self._bus, self._core
        if not content_type:
            bus.log_some(f"kemi_dmq: a message to {peer_id} was not sent: no content type")
            bus.shared.counters.add("send_failures")
            return -1
        size = body.len if body else 0
        headers = self._headers(max_forwards, core.raw(content_type), size)
        wants_answer = bool(resp_cback) and bool(resp_cback.f)
        text = None
        if not wants_answer and bus.settings.sl_send and size:
            text = _plain(core.raw(body))
        result = 0
        for node in nodes:
            if size + _HEADERS > MAX_UDP or node.transport != "udp":
                self._tell_large(node, peer_id, size)
            if text is not None:
                kind = core.text(content_type)
                accepted = bus.send_stateless(node, peer_id, text, max_forwards, kind)
            else:
                if bus.settings.keys:
                    headers = self._signed(node, peer_id, max_forwards, content_type, body)
                accepted = self._request(
                    node, peer_id, headers, body, resp_cback if wants_answer else None
                )
            if accepted:
                bus.shared.counters.add("sent")
            else:
                bus.shared.counters.add("send_failures")
                bus.log_some(f"kemi_dmq: a message to {peer_id} at {node.uri} was not sent")
                result = -1
        return result

    def _request(self, node: Node, peer_id: str, headers: _String, body: Any, cback: Any) -> bool:
        # What C reads is kept by names of this function until it has returned: others that are
        # sent meanwhile (by a route that tm runs, say) may empty the table of strings.
        ffi = self._core.ffi
        socket = self._socket(node.transport)
        if socket is None:
            return False
        listed = (node.host, node.port) in self._bus.node_list().by_key
        method = self._string("method", text=lambda: METHOD)
        to = self._to(node, peer_id, listed)
        sender = self._from(peer_id)
        hop = self._next_hop(node, listed)
        request = ffi.new("uac_req_t *")
        request.method = method[0]
        request.headers = headers[0]
        if body:
            request.body = body
        request.ssock = socket[0]
        ticket = 0
        if cback is not None:
            ticket = self._outstanding.put(
                int(ffi.cast("uintptr_t", cback.f)),
                int(ffi.cast("uintptr_t", cback.param)),
                self._nodes.number(node, listed),
            )
            if not ticket:
                return False
            request.cb_flags = LOCAL_COMPLETED
            request.cb = self._completed
            request.cbp = ffi.cast("void *", ticket)
        next_hop = hop[0] if hop is not None else ffi.NULL
        # 0: a local-request route has dropped it, and no callback will come
        if self._core.request(request, to[0], to[0], sender[0], next_hop) > 0:
            return True
        self._outstanding.take(ticket)
        return False

    def _on_completed(self, cell: Any, kind: int, params: Any) -> None:
        """The final reply to a message is here (any process), or none came in time (tm's timer
        process, code 408); the C module's own callback runs at once, as dmq.so runs it."""
        ffi = self._core.ffi
        found = self._outstanding.take(int(ffi.cast("uintptr_t", params.param[0])))
        params.param[0] = ffi.NULL  # tm's own memory: it is not told again
        if found is None:
            return
        function, param, number = found
        # On a timeout tm's reply is no pointer; C modules get it as they do from dmq.so.
        timed_out = int(ffi.cast("intptr_t", params.rpl)) == -1
        self._bus.shared.counters.add("timeouts" if timed_out else "replies")
        callback = self._functions.get(function)
        if callback is None:
            callback = self._functions[function] = ffi.cast("resp_callback_t", function)
        pointer = self._nodes.numbered(number)
        if callback(params.rpl, params.code, pointer, ffi.cast("void *", param)) < 0:
            self._bus.shared.counters.add("user_errors")
            self._bus.log_some(
                f"kemi_dmq: a C module's response callback failed on {params.code} of "
                f"{self._nodes.uri(pointer) if number else 'a node'}"
            )

    # Strings that are needed again and again, made once ------------------------------------

    def _string(self, *key: Any, text: Callable[[], str]) -> _String:
        """Of a key of which there are few."""
        found = self._strings.get(key)
        if found is None:
            if len(self._strings) >= MAX_STRINGS:
                self._strings.clear()  # nodes have come and gone
            found = self._strings[key] = self._new(text())
        return found

    def _new(self, text: str) -> _String:
        raw = text.encode()
        buffer = self._core.ffi.new("char[]", raw)
        return self._core.ffi.new("str *", {"s": buffer, "len": len(raw)}), buffer

    def _headers(self, max_forwards: int, content_type: bytes, size: int) -> _String:
        return self._string(
            *("headers", max_forwards, content_type, size > 0),
            text=lambda: _headers(max_forwards, content_type, size),
        )

    def _signed(
        self, node: Node, peer_id: str, max_forwards: int, content_type: Any, body: Any
    ) -> _String:
        """Headers of one message to one node, with its signature."""
        core, bus = self._core, self._bus
        kind, raw = core.raw(content_type), core.raw(body) if body else b""
        to = bus.node_list().to_uri(node, peer_id)
        return self._new(
            _headers(max_forwards, kind, len(raw))
            + bus.gate.sign(to, bus.from_uri(peer_id), kind.decode("utf-8", "replace"), raw)
        )

    def _socket(self, transport: str) -> _String | None:
        """None where this Kamailio has no socket of that transport."""
        name = self._host.socket(transport)
        return self._string("socket", transport, text=lambda: name) if name else None

    def _to(self, node: Node, peer_id: str, listed: bool) -> _String:
        def text() -> str:
            return str(SipUri(node.host, node.port, node.transport, peer_id))

        # Strangers are without number.
        return self._string("to", node.uri, peer_id, text=text) if listed else self._new(text())

    def _from(self, peer_id: str) -> _String:
        return self._string("from", peer_id, text=lambda: str(self._bus.from_uri(peer_id)))

    def _next_hop(self, node: Node, listed: bool) -> _String | None:
        hop = next_hop(node)
        if not hop:
            return None
        return self._string("hop", hop, text=lambda: hop) if listed else self._new(hop)

    def _tell_large(self, node: Node, peer_id: str, size: int) -> None:
        """One line for this Kamailio's life: what the receiver may drop."""
        bus = self._bus
        if node.transport == "udp":
            what, remedy = MAX_UDP, "msg_recv_max_size (Kamailio 5.7 and later)"
        elif node.python or size + _HEADERS < bus.settings.c_tcp_rd_buf_size:
            return
        else:
            what, remedy = bus.settings.c_tcp_rd_buf_size, "tcp_rd_buf_size"
        if not bus.shared.words.get("large_told"):
            bus.shared.words.set("large_told", 1)
            bus.host.log(
                "warn",
                f"kemi_dmq: a C module's message to {peer_id} at {node.uri} has {size} bytes; a "
                f"node that reads at most {what} drops it: raise its {remedy}",
            )


def _headers(max_forwards: int, content_type: bytes, size: int) -> str:
    kind = content_type.decode("utf-8", "replace")
    return f"Max-Forwards: {max_forwards}\r\n{SUPPORTED}" + (
        f"Content-Type: {kind}\r\n" if size else ""
    )


def _plain(body: bytes) -> str | None:
    """The body as text that KEMI can send; None if it is none."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text
