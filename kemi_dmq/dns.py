"""SRV look-ups as messages (RFC 1035, RFC 2782): questions out, answers in.  Pure.

Python looks up addresses only; host/srv.py sends these.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

SRV = 33
_IN = 1
_HEADER = 12
#: More targets than this are left out: one answer must not make us ask half the world.
MAX_TARGETS = 64


class DnsError(ValueError):
    """What came is no answer to the question."""


@dataclass(frozen=True, slots=True)
class Srv:
    """One record: where a service is."""

    priority: int
    weight: int
    port: int
    target: str


@dataclass(frozen=True, slots=True)
class ResolvConf:
    """What /etc/resolv.conf says (resolv.conf(5)), with its defaults."""

    nameservers: tuple[str, ...] = ("127.0.0.1",)
    search: tuple[str, ...] = ()
    ndots: int = 1
    timeout: int = 5
    attempts: int = 2

    def names(self, name: str) -> list[str]:
        """The names to ask for, in their order, until one exists."""
        if name.endswith("."):
            return [name[:-1]]
        searched = [f"{name}.{domain}" for domain in self.search]
        return [name, *searched] if name.count(".") >= self.ndots else [*searched, name]


def parse_resolv_conf(text: str) -> ResolvConf:
    nameservers: list[str] = []
    search: tuple[str, ...] = ()
    options = {"ndots": 1, "timeout": 5, "attempts": 2}
    for line in text.splitlines():
        word, *values = re.split(r"[#;]", line, maxsplit=1)[0].split() or [""]
        if word == "nameserver" and values:
            try:
                nameservers.append(str(ipaddress.ip_address(values[0])))
            except ValueError:
                continue
        elif word in ("search", "domain") and values:
            search = tuple(value.rstrip(".") for value in values if value != ".")
        elif word == "options":
            for option in values:
                name, _, value = option.partition(":")
                if name in options and value.isdigit():
                    options[name] = int(value)
    return ResolvConf(
        tuple(nameservers[:3]) or ("127.0.0.1",),
        search,
        min(options["ndots"], 15),
        max(1, min(options["timeout"], 30)),
        max(1, min(options["attempts"], 5)),
    )


def build_query(number: int, name: str) -> bytes:
    """A question for the SRV records of name; DnsError if that is no name."""
    labels = name.rstrip(".").split(".")
    data = b""
    for label in labels:
        try:
            raw = label.encode("ascii")
        except UnicodeEncodeError:
            raise DnsError(f"{name!r} is not ASCII") from None
        if not 0 < len(raw) < 64:
            raise DnsError(f"{name!r} has a label of {len(raw)} bytes")
        data += bytes([len(raw)]) + raw
    if len(data) > 254:
        raise DnsError(f"{name!r} is too long")
    recursion_desired = 0x0100
    head = b"".join(word.to_bytes(2) for word in (number, recursion_desired, 1, 0, 0, 0))
    return head + data + b"\0" + SRV.to_bytes(2) + _IN.to_bytes(2)


@dataclass(frozen=True, slots=True)
class SrvAnswer:
    """records: in the order in which they are to be tried.  truncated: ask again over TCP.
    failed: this server cannot say; another one may."""

    records: tuple[Srv, ...] = ()
    truncated: bool = False
    failed: bool = False


def parse_answer(data: bytes, query: bytes) -> SrvAnswer:
    """The answer to a query; DnsError if it is not one."""
    if len(data) < _HEADER or data[:2] != query[:2] or not data[2] & 0x80:
        raise DnsError("not an answer to this question")
    rcode = data[3] & 15
    questions, answers = (int.from_bytes(data[n : n + 2]) for n in (4, 6))
    place = _HEADER
    if questions:
        # Some servers leave it out when they fail; else it must be ours.
        name, place = _name(data, place)
        if name != _name(query, _HEADER)[0] or _word(data, place) != SRV:
            raise DnsError("an answer to another question")
        place += 4
    if rcode not in (0, 3):  # 3: there is no such name
        return SrvAnswer(failed=True)
    if data[2] & 2:
        return SrvAnswer(truncated=True)
    records = []
    for _ in range(answers):
        _, place = _name(data, place)
        kind, size = _word(data, place), _word(data, place + 8)
        place += 10
        if place + size > len(data):
            raise DnsError("a record ends behind the message")
        if kind == SRV:  # an alias (CNAME) may stand before it
            priority, weight, port = (_word(data, place + n) for n in (0, 2, 4))
            target = _name(data, place + 6)[0]
            if target and port:  # "." says that the service is not offered
                records.append(Srv(priority, weight, port, target))
        place += size
    records.sort(key=lambda record: (record.priority, -record.weight, record.target, record.port))
    return SrvAnswer(tuple(records[:MAX_TARGETS]))


def _word(data: bytes, place: int) -> int:
    if place + 2 > len(data):
        raise DnsError("the message ends too soon")
    return int.from_bytes(data[place : place + 2])


def _name(data: bytes, place: int) -> tuple[str, int]:
    """A name, in lower case, and the place behind it."""
    labels: list[str] = []
    behind = 0
    for _ in range(128):
        if place >= len(data):
            raise DnsError("a name ends behind the message")
        length = data[place]
        if length >= 0xC0:  # the rest stands elsewhere
            behind = behind or place + 2
            place = _word(data, place) & 0x3FFF
        elif length == 0:
            return ".".join(labels).lower(), behind or place + 1
        elif length < 64:
            label = data[place + 1 : place + 1 + length]
            if len(label) < length:
                raise DnsError("a label ends behind the message")
            labels.append(label.decode("ascii", "replace"))
            place += 1 + length
        else:
            raise DnsError("an unknown kind of label")
    raise DnsError("a name without end")
