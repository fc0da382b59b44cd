"""What happened in a simulation, as text: a line for each datagram and each change."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from ..wire import WireError, parse_uri
from .sip_text import SipText, parse, short
from .timeline import EPOCH

Key = tuple[str, int]

#: Of a body that is no node list, and of a line that names no node, so much is shown.
SHOWN = 40
_EPOCH_MS = int(EPOCH * 1000)


class Record(NamedTuple):
    time: float
    node: Key | None  # None: the network
    what: str
    to: Key | None = None  # of a datagram
    text: str = ""  # of a datagram: what it carries


class Transcript:
    """on False: nothing more is recorded, which saves time and memory."""

    def __init__(self, channel: str = "notification_peer") -> None:
        self.on = True
        self.channel = channel
        self.records: list[Record] = []

    def note(self, time: float, node: Key | None, what: str) -> None:
        if self.on:
            self.records.append(Record(time, node, what))

    def datagram(self, time: float, node: Key, to: Key, text: str, fate: str) -> None:
        """fate: "", or what became of it."""
        if self.on:
            self.records.append(Record(time, node, fate, to, text))

    def lines(
        self, datagrams: bool = True, since: float = 0.0, until: float = math.inf
    ) -> list[str]:
        return [
            self._line(record)
            for record in self.records
            if since <= record.time < until and (datagrams or record.to is None)
        ]

    def _line(self, record: Record) -> str:
        who = short(record.node) if record.node else "network"
        what = record.what
        if record.to is not None:
            fate = f"  ({what})" if what else ""
            what = f"-> {short(record.to)}  {summary(record.text, self.channel)}{fate}"
        return f"{record.time:10.4f}  {who:15}  {what}"


def summary(text: str, channel: str = "notification_peer") -> str:
    """A message in one line."""
    message = parse(text)
    if message.code:
        peer = message.header("To").partition("sip:")[2].partition("@")[0]
        words = [str(message.code)]
    else:
        peer = parse_uri(message.uri).user
        words = ["KDMQ", f"mf {message.header('Max-Forwards')}"]
    if peer != channel:
        words.insert(1, peer)
        if message.body:
            words.append(_shortened(repr(message.body.strip())))
    else:
        kind = message.header("Content-Type").partition("/")[2]
        if kind and kind != "plain":
            words.append(kind.removeprefix("kemi-dmq-"))
        words.append(f"[{', '.join(_nodes(message))}]")
    return " ".join(words)


_NODE = re.compile(r"(sips?:[^;\s]+)((?:;[^;\s]+)*)")


def _nodes(message: SipText) -> list[str]:
    """The lines of a node list.  Lines of other kinds are shown as they are."""
    shown = []
    for line in message.body.splitlines():
        match = _NODE.fullmatch(line.strip())
        try:
            words = [short(parse_uri(match[1]).key)] if match else [_shortened(line.strip())]
        except WireError:
            words = ["?"]
        for param in match[2].split(";")[1:] if match else ():
            name, _, value = param.partition("=")
            if name == "status":
                words += [value] if value != "active" else []
            elif name == "inc" and value.isdigit():
                # Milliseconds since the simulation started, mostly.
                number = int(value)
                words.append(f"inc={number - _EPOCH_MS if number >= _EPOCH_MS else number}")
            elif name != "transport":
                # Of a digest the beginning is enough to see whether two are the same.
                words.append(f"{name}={value[:8]}" if len(value) > 15 else param)
        shown.append(" ".join(words))
    return [line for line in shown if line]


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
