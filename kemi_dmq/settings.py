"""The settings of a node: the C module's parameters by name, and a few of our own.

They come from keyword arguments (``DMQ(server_address=…)``) or from ``#!define DMQ_…`` lines in
kamailio.cfg (``DMQ.from_defs()``), are checked here without Kamailio, and never change while it
runs.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from .batch import PEER as BATCH
from .networks import Network, contains, parse_network
from .trust import KEY_ID, Key
from .wire import SipUri, Via, WireError, is_address, normal_host, parse_uri


class Hidden:
    """Stands for a value that no error and no log may show."""

    def __repr__(self) -> str:
        return "(not shown here)"


class SettingError(ValueError):
    """A setting is missing or wrong: names the setting, the value and what would be right."""

    def __init__(self, name: str, value: object, right: str) -> None:
        self.name = name
        given = "is not set" if value is None else f"is {value!r}"
        super().__init__(f"kemi_dmq: setting {name} {given}; it must be {right}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Checked settings.  Times are in seconds, flags are 0 or 1, as in the C module."""

    #: SIP URI under which the others reach this node.  Required.
    server_address: SipUri
    #: The listening socket to send from, ``udp:10.0.0.20:5060``; by default that of
    #: server_address.  Set it where server_address is an advertised address.
    server_socket: Via
    #: Where to ask for the bus at start, and again while this node is alone.
    notification_address: tuple[SipUri, ...] = ()
    #: The peer that carries node lists; the same on the whole bus.
    notification_channel: str = "notification_peer"
    #: 1: ask all addresses to which a name in notification_address resolves, 0: the first.
    multi_notify: int = 0
    #: 0: each SIP worker runs peers itself.  Above: handle_message hands over to so many
    #: processes, which kemi_dmq.cfg starts.
    num_workers: int = 0
    #: Accepted for kamailio.cfg files of the C module; nothing here polls.
    worker_usleep: int = 0
    #: Seconds between two pings of a node.
    ping_interval: int = 60
    #: 1: a node that does not answer leaves the list; 0: it stays there as not active.
    remove_inactive: int = 1
    #: 1: unanswered pings are counted and the two thresholds below apply.
    fail_count_enabled: int = 0
    #: A node is not active when more pings in a row than this were not answered.
    fail_count_threshold_not_active: int = 0
    #: A node is disabled (or removed) when more pings in a row than this were not answered.
    fail_count_threshold_disabled: int = 1
    #: Accepted for kamailio.cfg files of the C module: init_callback always gets the node.
    init_with_single: int = 0
    #: Method of the KEMI handler that is told dmq:peer-up, -down and -disabled; "" for none.
    event_callback: str = ""
    #: 1: messages without a response callback are sent without a transaction.
    sl_send: int = 0
    #: Milliseconds that an answer is waited for (tm's name and default); where a message goes
    #: through tm, that of tm counts.
    fr_timer: int = 30_000
    #: 1: what is sent at once goes through tm, with what hangs on it (its timers and statistics,
    #: event_route[tm:local-request]); it costs half as much again.  0: only what must (docs/
    #: messages.md).
    use_tm: int = 0
    #: 1: C modules that stand after app_python3 in kamailio.cfg (htable, dialog, dmq_usrloc,
    #: presence, from 6.1 on rtpengine) use this bus as they would use dmq.so.  Needs python3-cffi.
    bind_c_modules: int = 0
    #: Python nodes watch each other by probes (docs/membership.md); names and meanings are those of
    #: HashiCorp's memberlist.  Milliseconds between two probes that a node sends.
    probe_interval: int = 900
    #: Milliseconds until a probe that was not answered is tried through others; less than
    #: probe_interval, when it has been missed.
    probe_timeout: int = 400
    #: Through how many others.
    indirect_checks: int = 3
    #: A suspicion that others confirm lasts so many probe_intervals, during which the suspect can
    #: refute it.
    suspicion_mult: int = 3
    #: One that nobody confirms lasts so many times as long.
    suspicion_max_timeout_mult: int = 2
    #: How far a node that doubts itself stretches its timeouts.
    awareness_max_multiplier: int = 8
    #: Milliseconds between two messages with the same news, to how many nodes at a time, and in how
    #: many messages in all (times the logarithm of the number of nodes).
    gossip_interval: int = 200
    gossip_nodes: int = 3
    retransmit_mult: int = 4
    #: Seconds after which a node that is away, and that nobody says is there, is forgotten (Serf's
    #: name); until then it is probed, at least every 10 s.  Notification addresses are never
    #: forgotten.
    reconnect_timeout: int = 600
    #: Bytes of shared memory that remember answered requests, so that a copy of one is answered
    #: again and not run again.  8 MB hold 32 s (RFC 3261, timer J) of 8,000 messages a second.
    once_memory: int = 8 * 1024 * 1024
    #: What the C nodes of this bus read over TCP and TLS (their core parameter tcp_rd_buf_size):
    #: a larger message to one of them is refused at the call.
    c_tcp_rd_buf_size: int = 16384
    #: Networks from which KDMQ requests are taken, others get 403.  Empty: loopback, private,
    #: link-local and shared ranges (networks.DEFAULT_NETWORKS), and the addresses that
    #: server_address and notification_address name.
    allowed_networks: tuple[Network, ...] = ()
    #: Keys of the bus: the first one signs, all of them verify.  Empty: nothing is signed.
    keys: tuple[Key, ...] = ()
    #: Seconds for which a signed message counts, before and after the time that it bears.
    key_window: int = 60
    #: With keys: networks whose nodes need not sign, since they cannot (dmq.so).
    unsigned_networks: tuple[Network, ...] = ()
    #: Bytes of messages, ordered or with a deadline, that may wait for one node; above, the call
    #: gives -1.  Each message counts for its body and 1,000.
    outbox_memory: int = 8 * 1024 * 1024
    #: 1: bcast_message hands its message to the engine's process, which sends it: the call costs
    #: the same whatever the number of nodes.  0: the calling process sends to one node after the
    #: other.
    outbox: int = 1
    #: Bytes of a datagram in which messages that wait together travel to a Python node (docs/
    #: messages.md), headers included; more where the path takes it.  0: each travels alone.
    batch_bytes: int = 1300


@dataclass(frozen=True, slots=True)
class _Range:
    low: int
    high: int

    def __str__(self) -> str:
        return f"a number from {self.low} to {self.high}"


_FLAG = _Range(0, 1)
_RANGES = {
    "multi_notify": _FLAG,
    "num_workers": _Range(0, 64),
    "worker_usleep": _Range(0, 10_000_000),
    "ping_interval": _Range(5, 86_400),
    "remove_inactive": _FLAG,
    "fail_count_enabled": _FLAG,
    "fail_count_threshold_not_active": _Range(0, 1000),
    "fail_count_threshold_disabled": _Range(0, 1000),
    "init_with_single": _FLAG,
    "sl_send": _FLAG,
    "fr_timer": _Range(100, 600_000),
    "use_tm": _FLAG,
    "bind_c_modules": _FLAG,
    "probe_interval": _Range(100, 60_000),
    "probe_timeout": _Range(50, 60_000),
    "indirect_checks": _Range(0, 10),
    "suspicion_mult": _Range(1, 100),
    "suspicion_max_timeout_mult": _Range(1, 100),
    "awareness_max_multiplier": _Range(1, 100),
    "gossip_interval": _Range(20, 10_000),
    "gossip_nodes": _Range(1, 20),
    "retransmit_mult": _Range(1, 100),
    "reconnect_timeout": _Range(10, 30 * 86_400),
    "once_memory": _Range(64 * 1024, 4 * 1024**3),
    "c_tcp_rd_buf_size": _Range(1024, 16 * 1024**2),
    "key_window": _Range(5, 3600),
    "outbox_memory": _Range(64 * 1024, 1024**3),
    "outbox": _FLAG,
    "batch_bytes": _Range(0, 32_000),
}
NAMES = tuple(field.name for field in fields(Settings))
#: Names of things whose values are not shown, even where there is no such setting.
_SECRET = re.compile(r"key|secret|passw", re.IGNORECASE)
_TOKEN = re.compile(r"[A-Za-z0-9._~!$&'()*+,=-]+")
_URI_HELP = "a SIP URI such as sip:10.0.0.20:5060 or sip:10.0.0.20:5060;transport=tcp"
_SOCKET = re.compile(r"(udp|tcp|tls|sctp):(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+):([0-9]{1,5})", re.I)


def check(given: Mapping[str, object]) -> Settings:
    """Settings from keyword arguments; SettingError for the first that is missing or wrong."""
    for name in given:
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, 1)
            hint = f"did you mean {near[0]}?" if near else "there are " + ", ".join(NAMES)
            shown = Hidden() if _SECRET.search(name) or near == ["keys"] else given[name]
            raise SettingError(name, shown, f"left out: there is no such setting; {hint}")
    values: dict[str, object] = {k: v for k, v in given.items() if v is not None}
    address = _uri("server_address", values.pop("server_address", None))
    socket = values.pop("server_socket", None)
    values["server_socket"] = (
        Via(address.transport, address.host, address.port)
        if socket in (None, "")
        else _socket(socket)
    )
    values["notification_address"] = tuple(
        _uri("notification_address", item)
        for item in _items(
            "notification_address",
            values.pop("notification_address", ()),
            f"a list of SIP URIs; each {_URI_HELP}",
        )
    )
    for name, limits in _RANGES.items():
        if name in values:
            values[name] = _number(name, values[name], limits)
    channel = values.get("notification_channel", "notification_peer")
    if not isinstance(channel, str) or not _TOKEN.fullmatch(channel) or channel == BATCH:
        right = f"the user part of a SIP URI, other than {BATCH}"
        raise SettingError("notification_channel", channel, right)
    callback = values.get("event_callback", "")
    if not isinstance(callback, str) or (callback and not callback.isidentifier()):
        raise SettingError("event_callback", callback, "the name of a method of the KEMI handler")
    for name in ("allowed_networks", "unsigned_networks"):
        values[name] = _networks(name, values.get(name, ()))
    values["keys"] = _keys(values.get("keys", ()))
    settings = Settings(server_address=address, **values)  # type: ignore[arg-type]
    _check_allowed(settings, given.get("allowed_networks"))
    if settings.probe_timeout >= settings.probe_interval:
        name = "probe_timeout" if "probe_timeout" in values else "probe_interval"
        right = f"less than probe_interval, which is {settings.probe_interval}"
        if name == "probe_interval":
            right = f"more than probe_timeout, which is {settings.probe_timeout}"
        raise SettingError(name, values[name], right)
    return settings


def from_defs(get: Callable[[str], object]) -> dict[str, object]:
    """The settings that kamailio.cfg defines; get("DMQ_X") gives a define's text, or None."""
    given: dict[str, object] = {}
    for name in NAMES:
        text = unquoted(get("DMQ_" + name.upper()))
        if text is not None:
            given[name] = text
    return given


def unquoted(text: Any) -> Any:
    """A define's value without the quotes that it was written with."""
    if isinstance(text, str) and len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    return text


def _items(name: str, value: object, right: str) -> Iterable[object]:
    if isinstance(value, str):
        return [item for item in re.split(r"[,\s]+", value) if item]
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        return value
    raise SettingError(name, Hidden() if name == "keys" else value, right)


def _networks(name: str, value: object) -> tuple[Network, ...]:
    right = (
        "a list of networks such as 10.1.0.0/16,192.0.2.7,2001:db8::/32, with no bits set behind "
        "the prefix"
    )
    networks = []
    for item in _items(name, value, right):
        try:
            networks.append(parse_network(str(item)))
        except ValueError:
            raise SettingError(name, item, right) from None
    return tuple(networks)


def _check_allowed(settings: Settings, given: object) -> None:
    """A notification address whose requests would be refused is a mistake."""
    for uri in settings.notification_address:
        if (
            settings.allowed_networks
            and is_address(uri.host)
            and not contains(settings.allowed_networks, uri.host)
        ):
            raise SettingError(
                "allowed_networks", given, f"wider: {uri.host} of notification_address is not in it"
            )


def _keys(value: object) -> tuple[Key, ...]:
    """No error shows any part of an entry: what stands for an id may be a secret."""
    right = (
        'a list such as "k1:secret,k2:other-secret": each an id (letters, digits, . _ -, at most '
        "32), a colon and a secret without spaces and commas"
    )
    keys: list[Key] = []
    for number, item in enumerate(_items("keys", value, right), 1):
        key_id, _, secret = item.partition(":") if isinstance(item, str) else ("", "", "")
        if not KEY_ID.fullmatch(key_id) or not secret or re.search(r"[,\s]", secret):
            raise SettingError("keys", Hidden(), f"{right}; entry {number} is none")
        if any(key.id == key_id for key in keys):
            raise SettingError("keys", Hidden(), f"{right}; entry {number} has the id of another")
        keys.append(Key(key_id, secret.encode("utf-8", "surrogatepass")))
    return tuple(keys)


def _uri(name: str, value: object) -> SipUri:
    if not isinstance(value, str):
        raise SettingError(name, value, _URI_HELP)
    try:
        uri = parse_uri(value.strip())
    except WireError:
        raise SettingError(name, value, _URI_HELP) from None
    return uri.with_user("")


def _socket(value: object) -> Via:
    right = "a listening socket such as udp:10.0.0.20:5060"
    match = _SOCKET.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or not 0 < int(match[3]) < 65536:
        raise SettingError("server_socket", value, right)
    try:
        return Via(match[1].lower(), normal_host(match[2]), int(match[3]))
    except WireError:
        raise SettingError("server_socket", value, right) from None


def _number(name: str, value: object, limits: _Range) -> int:
    if isinstance(value, bool):
        value = int(value)
    if isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]+\s*", value):
        value = int(value)
    if not isinstance(value, int) or not limits.low <= value <= limits.high:
        raise SettingError(name, value, str(limits))
    return value
