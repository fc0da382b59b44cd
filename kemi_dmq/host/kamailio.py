"""Kamailio as a host: the only place that imports KSR.

Functions that are called for every message are bound once, as attributes, without a wrapper.
What Kamailio's functions really do is in docs/kamailio.md.
"""

from __future__ import annotations

import base64
import ctypes
import functools
import json
import re
import socket
from collections.abc import Callable
from typing import Any

import KSR

from ..trust import Parts
from ..wire import METHOD, SUPPORTED, SipUri, Via

_LOG = {"err": KSR.err, "warn": KSR.warn, "info": KSR.info, "crit": KSR.crit}
_BINARY = "$(var(kemi_dmq_body){s.decode.base64})"


#: What kemi_dmq calls; kamailio-cfg/kemi_dmq.cfg loads them.
MODULES = ("tm", "sl", "pv", "textops", "corex", "kemix", "uac", "rtimer")


def missing_modules() -> list[str]:
    if not hasattr(KSR, "kx"):
        return ["kemix"]
    return [module for module in MODULES if not KSR.kx.ifdef(f"MOD_{module}")]


_ROOM = (*(128, 256, 512) * 8, *(1024,) * 4, 2048, 2048, 4096, 4096, 8192)
_HOPS = {str(number): number for number in range(256)}


class KamailioHost:
    def __init__(self) -> None:
        kx: Any = KSR.kx
        self.ruri_user: Callable[[], str | None] = kx.get_ruser
        self.from_uri: Callable[[], str | None] = kx.get_furi
        self.source_ip: Callable[[], str | None] = kx.get_srcip
        self.call_id: Callable[[], str | None] = kx.get_callid
        self.any_call: Callable[[], object] = KSR.is_KDMQ  # of no effect
        self.drop: Callable[[], None] = KSR.set_drop
        self._body = kx.get_body
        self._method = kx.get_method
        self._original_uri = kx.get_ouri
        self._port = kx.get_srcport
        self._transport = kx.get_proto
        self._came_to = kx.get_rcvaddr_sock
        self._sendx = KSR.corex.sendx
        self._header = KSR.hdr.get
        self._pv = KSR.pv.get
        self._reply = KSR.sl.send_reply
        self._append = KSR.hdr.append_to_reply
        self._sets = KSR.pv.sets
        self._seti = KSR.pv.seti
        self._unset = KSR.pv.unset
        self._uac_req_send: Callable[[], int] = KSR.uac.uac_req_send
        self._socks: dict[str, str] = {}

    def leave_room(self) -> None:
        """Leave free pieces of many sizes in this process's private memory, 32 KB in all.

        Kamailio's default allocator looks through its lists of free pieces, one for each size,
        upwards from the size wanted.  A process that has freed little yet has one piece only, the
        rest of its memory, in the last of 2,000 lists; every allocation then walks there, which is
        half of what a message costs.  Values of script variables with others between them, freed
        again, are pieces that stay apart.
        """
        for number, size in enumerate(_ROOM):
            KSR.pvx.var_sets(f"kemi_dmq_room{number}", "x" * size)
        KSR.pvx.var_sets("kemi_dmq_room", "x")
        for number in range(len(_ROOM)):
            KSR.pvx.var_seti(f"kemi_dmq_room{number}", 0)

    # The request or reply being handled

    def identity(self) -> object:
        # RFC 3261, 17.2.3: the topmost Via (branch and sent-by) names the transaction; the
        # Call-ID guards against senders whose branches repeat.
        return (self._header("Via"), self.call_id())

    def request(self, source_ip: str) -> tuple[str, str | bytes | None, str, tuple[str, int], int]:
        try:
            from_uri = self.from_uri() or ""
        except UnicodeDecodeError:
            from_uri = ""
        hops = self.header("Max-Forwards")
        return (
            from_uri,
            self.body(),
            self.header("Content-Type"),
            (source_ip, int(self._port() or 0)),
            _HOPS[hops] if hops in _HOPS else self.max_forwards(),
        )

    def signed_parts(self) -> Parts | None:
        try:
            parts = (self._method(), self._original_uri(), self.from_uri(), self.ruri_user())
        except UnicodeDecodeError:
            return None
        body = self.body()
        method, ruri, from_uri, peer = (self._text(part) for part in parts)
        # The one is the first header of that name; the other is what C modules see, the first one
        # in whatever form.
        content_type = self.header("Content-Type")
        if body is None or content_type != self.content_type():
            return None
        raw = body.encode() if isinstance(body, str) else body
        # Over UDP the body is the rest of the datagram, for C modules what Content-Length says.
        length = self._pv("$cl")
        if length is not None and length != len(raw):
            return None
        return Parts(method, ruri, from_uri, peer, content_type, raw)

    def body(self) -> str | bytes | None:
        try:
            return self._body() or ""
        except UnicodeDecodeError:
            encoded = self._pv("$(rb{s.encode.base64})")
            return base64.b64decode(encoded) if isinstance(encoded, str) else None

    def content_type(self) -> str:
        return self._read("$cT")

    def max_forwards(self) -> int:
        value = self.header("Max-Forwards").strip()
        return int(value) if value.isascii() and value.isdigit() and len(value) < 6 else 0

    def source(self) -> tuple[str, int]:
        return (self._text(self.source_ip()), int(self._port() or 0))

    def header(self, name: str) -> str:
        try:
            return self._text(self._header(name))
        except UnicodeDecodeError:
            return ""

    def headers(self) -> str | None:
        try:
            value = self._pv("$msg(hdrs)")
        except UnicodeDecodeError:
            return None
        return value if isinstance(value, str) and "\0" not in value else None

    def size(self) -> int:
        return int(self._pv("$ml") or 0)

    def whole(self) -> bytes | None:
        try:
            value = self._pv("$mb")
        except UnicodeDecodeError as error:
            return bytes(error.object)
        return value.encode() if isinstance(value, str) else None

    def way_back(self) -> tuple[str, str]:
        return self._text(self._transport()), self._text(self._came_to())

    def send_reply(self, way_back: tuple[str, str], to: tuple[str, int], text: str) -> bool:
        transport, sock = way_back
        ip = to[0].strip("[]")
        place = f"[{ip}]:{to[1]}" if ":" in ip else f"{ip}:{to[1]}"
        # Over TCP and TLS Kamailio finds the connection by the other side's address and port.
        return self._sendx(f"sip:{place};transport={transport}", sock, text) >= 0

    def reply(
        self, code: int, reason: str, body: str = "", content_type: str = "", headers: str = ""
    ) -> bool:
        self._append(SUPPORTED + headers if headers else SUPPORTED)
        if body and KSR.textops.set_reply_body(body, content_type) < 0:
            return False
        return self._reply(code, reason) >= 0

    def reply_code(self) -> int:
        return int(self._pv("$rs") or 0)

    def reply_reason(self) -> str:
        return self._read("$rr")

    # Sending

    def send(
        self,
        to: SipUri,
        from_uri: SipUri,
        headers: str,
        body: str | bytes,
        event_param: str,
        next_hop: str = "",
    ) -> bool:
        # What a script set there before must not travel with our message, nor ours with its next.
        self._unset("$uac_req(all)")
        try:
            return self._send(to, from_uri, headers, body, event_param, next_hop)
        finally:
            self._unset("$uac_req(all)")

    def _send(
        self,
        to: SipUri,
        from_uri: SipUri,
        headers: str,
        body: str | bytes,
        event_param: str,
        next_hop: str,
    ) -> bool:
        sets = self._sets
        sock = self.socket(to.transport)
        if not (
            sock
            and sets("$uac_req(method)", METHOD)
            and sets("$uac_req(ruri)", str(to))
            and sets("$uac_req(furi)", str(from_uri))
            and sets("$uac_req(hdrs)", headers)
            and sets("$uac_req(sock)", sock)
        ):
            return False
        if next_hop and not sets("$uac_req(ouri)", next_hop):
            return False
        if body and not self._set_body(body):
            return False
        if event_param:
            self._seti("$uac_req(evroute)", 1)
            if not sets("$uac_req(evparam)", event_param):
                return False
        return bool(self._uac_req_send() >= 0)

    def _set_body(self, body: str | bytes) -> bool:
        text: str | None = None
        if isinstance(body, str):
            text = body if "\0" not in body else None
        elif b"\0" not in body:
            try:
                text = body.decode()
            except UnicodeDecodeError:
                text = None
        if text is not None:
            return self._sets("$uac_req(body)", text)
        # KEMI's strings are C strings: other bytes go through a transformation.
        raw = body.encode() if isinstance(body, str) else body
        KSR.pvx.var_sets("kemi_dmq_body", base64.b64encode(raw).decode())
        done = KSR.pvx.evalx("$uac_req(body)", _BINARY) >= 0
        KSR.pvx.var_sets("kemi_dmq_body", "")
        return done and bool(KSR.pv.get("$(uac_req(body){s.len})") == len(raw))

    def use_socket(self, via: Via) -> None:
        """Send from this socket; to a node of another transport Kamailio chooses one."""
        self._socks[via.transport] = f"{via.transport}:{via.host}:{via.port}"
        self._via = via

    def socket(self, transport: str) -> str:
        sock = self._socks.get(transport)
        if sock is None:
            via = Via(transport, self._via.host, self._via.port)
            sock = f"{transport}:{via.host}:{via.port}" if self.listens_on(via) else ""
            self._socks[transport] = sock
        return sock

    def send_text(self, to: SipUri, text: str) -> bool:
        sock = self.socket(to.transport)
        # Without a socket of that transport corex connects all the same, and Kamailio's TCP
        # process dies of the answer where it listens on UDP only.
        return bool(sock) and self._sendx(_place_text(to), sock, text) >= 0

    def replicate(self, places: list[SipUri]) -> bool:
        ruri = str(KSR.pv.get("$ru"))
        number, all_done = 0, True
        for place in places:
            sock = self.socket(place.transport)
            if not sock or (number and KSR.corex.append_branch_uri(ruri) < 0):
                all_done = False
                continue
            number += 1
            KSR.corex.set_send_socket(sock)
            if KSR.tm.t_replicate(str(place)) < 0:
                all_done = False
        return all_done

    def is_myself(self, uri: str) -> bool:
        return bool(KSR.is_myself(uri))

    def event(self) -> tuple[str, int, bool]:
        code = int(self._pv("$uac_req(evcode)") or 0)
        # Only a failure can be tm's own.
        timed_out = code >= 300 and self._pv("$uac_req(evtype)") == 2
        return self._read("$uac_req(evparam)"), code, timed_out

    # Kamailio

    def log(self, level: str, text: str) -> None:
        _LOG[level](text.replace("\0", "?").encode("ascii", "backslashreplace").decode() + "\n")

    def define(self, name: str) -> str | None:
        if not KSR.kx.ifdef(name):
            return None
        value = KSR.kx.get_def(name)
        return "" if value is None else str(value)

    def worker_number(self) -> int:
        """Which of the processes of its rtimer this one is."""
        return int(self._pv("$rtimer_worker") or 0)

    def workers_started(self) -> int:
        """How many worker processes kemi_dmq.cfg starts: in its rtimer, mode is their number."""
        found = re.search(r"mode=(\d+)", self.define("DMQ_WORKERS_TIMER") or "")
        return int(found[1]) if found else 0

    def listens_on(self, socket_: Via) -> bool:
        for address in addresses_of(socket_.host):
            uri = f"sip:{address}:{socket_.port};transport="
            # is_myself() also says yes to an alias, and to that one for any transport.
            if KSR.is_myself(uri + socket_.transport) and (
                _is_local(address) or not KSR.is_myself(uri + "sctp")
            ):
                return True
        return False

    @functools.cache  # noqa: B019 - one host lives as long as Kamailio
    def version(self) -> str:
        return str(KSR.pv.get("$version(num)"))

    def take_variable(self, name: str) -> str | bytes:
        """The value of $var(name), which is empty from now on."""
        value: str | bytes | int | None
        try:
            value = KSR.pvx.var_get(name)
        except UnicodeDecodeError:
            encoded = self._pv(f"$(var({name}){{s.encode.base64}})")
            value = base64.b64decode(encoded) if isinstance(encoded, str) else ""
        self.set_variable(name, "")
        return value if isinstance(value, (str, bytes)) else str(value or 0)

    def set_variable(self, name: str, text: str) -> None:
        KSR.pvx.var_sets(name, text)

    def run_event_route(self, name: str) -> None:
        """Run kamailio.cfg's event_route[name], if there is one, with the R-URI of set_ruri().
        In a process of rtimer's: evrexec gives the route the message that rtimer gave us."""
        if _core_has_event_route(name):
            request = {"jsonrpc": "2.0", "method": "evrexec.run", "params": [name], "id": 1}
            KSR.jsonrpcs.exec(json.dumps(request))

    def table_set(self, table: str, key: str, value: str) -> bool:
        return KSR.htable.sht_sets(table, key, value) >= 0

    def table_remove(self, table: str, key: str) -> bool:
        return KSR.htable.sht_rm(table, key) >= 0

    def set_ruri(self, uri: str) -> None:
        KSR.seturi(uri)

    def _read(self, name: str) -> str:
        try:
            return self._text(self._pv(name))
        except UnicodeDecodeError:
            return ""

    @staticmethod
    def _text(value: object) -> str:
        return value if isinstance(value, str) else ""


@functools.lru_cache(maxsize=4096)
def _place_text(to: SipUri) -> str:
    return str(to.with_user(""))


def _core_has_event_route(name: str) -> bool:
    """Whether kamailio.cfg has it: evrexec logs an error if not.  True where we cannot know."""
    try:
        core = ctypes.CDLL(None)
        routes = ctypes.c_char.in_dll(core, "event_rt")
        return bool(core.route_lookup(ctypes.byref(routes), name.encode()) >= 0)
    except (AttributeError, ValueError):
        return True


def _is_local(address: str) -> bool:
    """Whether this machine has an IP address (or may bind any)."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address.strip("[]"), 0))
    except OSError:
        return False
    return True


def addresses_of(host: str) -> list[str]:
    """The addresses of a host name as SIP URIs write them; empty if it does not resolve.
    Waits for the DNS: only for the start and for the engine's own thread."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):  # UnicodeError: a label that no DNS name can have
        return []
    hosts = [f"[{item[4][0]}]" if ":" in str(item[4][0]) else str(item[4][0]) for item in found]
    return list(dict.fromkeys(hosts))
