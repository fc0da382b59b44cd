"""Memory of two nodes, one of which sends many messages to the other (1,000,000 by default).

*Private*: what no other process has, of all processes together.  *Shared*: memory that they share,
as far as it has ever been touched: Kamailio's, and with kemi_dmq ours (most of it `once_memory`,
8 MB).  *In use*: of Kamailio's shared memory, as `kamcmd core.shmmem` says.  *Fresh* is before the
messages.  *Busy* is the most that was seen among them: a transaction stays for 5 s after its end.
*First tenth* and *end* are read when no message has been under way for longer than that.
"""

from __future__ import annotations

import re
import statistics
import time
from pathlib import Path

from .buses import Bus, all_running
from .cpu import memory, tree
from .load import Sender
from .modes import PLAIN, THE_C_MODULE
from .nodes import NativeFloor, PythonSubject, Subject, running
from .report import Options, Plot, Report, markdown

TITLE = "Memory"
BATCH = 50
CHUNKS = 10
#: Messages a second at most: 5 s of transactions must fit into shared memory.
RATE = 9000
#: Seconds until a transaction is gone.
LINGERS = 7


def in_use_kib(node: Subject) -> int:
    found = re.search(r"\bused: (\d+)", node.kamcmd("core.shmmem"))
    assert found is not None
    return int(found[1]) // 1024


class Watch:
    """One node over time."""

    def __init__(self, name: str, node: Subject) -> None:
        self.name = name
        self._node = node
        self.private: list[list[int]] = []
        self.shared: list[int] = []
        self.in_use: list[int] = []
        self.busy = 0

    def read(self) -> None:
        found = [memory(pid) for pid in tree(self._node.pid)]
        self.private.append([each.private for each in found])
        self.shared.append(sum(each.shared for each in found))
        self.in_use.append(in_use_kib(self._node))

    def read_busy(self) -> None:
        self.busy = max(self.busy, in_use_kib(self._node))

    def row(self) -> list[str]:
        moments = (0, min(1, len(self.private) - 1), -1)
        cells = [
            self.name,
            f"{len(self.private[0])}",
            f"{statistics.median(self.private[-1]):,.0f}",
        ]
        for kib in ([sum(each) for each in self.private], self.shared, self.in_use):
            cells += [f"{kib[moment]:,}" for moment in moments]
        return [*cells, f"{self.busy or self.in_use[-1]:,}"]


def measure(directory: Path, options: Options) -> Report:
    client = Sender("127.0.0.49")
    buses = [
        Bus(mode, directory / f"{number}", 150 + number, 1, small=False)
        for number, mode in enumerate((PLAIN, THE_C_MODULE))
    ]
    floors: dict[str, Subject] = {
        "no DMQ, Python script": PythonSubject(
            "127.0.0.40", directory / "floor", script="floor.py"
        ),
        "no DMQ, native script": NativeFloor("127.0.0.41", directory / "native"),
    }
    lingers = 0 if options.quick else LINGERS
    watches: dict[Bus, list[Watch]] = {}
    with running(*floors.values()), all_running(buses):
        still = [Watch(name, node) for name, node in floors.items()]
        for bus in buses:
            watches[bus] = [
                Watch(f"{bus.mode.name}, sends", bus.sender),
                Watch(f"{bus.mode.name}, receives", bus.receivers[0]),
            ]
        for watch in still + [watch for pair in watches.values() for watch in pair]:
            watch.read()
        before = {bus: bus.delivered() for bus in buses}
        for chunk in range(CHUNKS):
            for bus in buses:
                if chunk:  # it has had nothing to do while the other one was busy
                    for watch in watches[bus]:
                        watch.read()
                send(client, bus, options.messages // CHUNKS, watches[bus])
        for bus in buses:
            bus.read_when_delivered(bus.meter(), before[bus], options.messages)
        time.sleep(lingers)
        for pair in watches.values():
            for watch in pair:
                watch.read()
        delivered = {bus: bus.delivered() - before[bus] for bus in buses}
    client.close()
    rows = [watch.row() for pair in watches.values() for watch in pair]
    rows += [watch.row() for watch in still]
    head = ["KiB", "processes", "private, median of a process, end"]
    for what in ("private, all", "shared, all", "in use"):
        head += [f"{what}: fresh", "first tenth", "end"]
    head.append("in use, busy")
    text = markdown(head, rows)
    text += "\nReceived: " + ", ".join(f"{b.mode.name} {n:,}" for b, n in delivered.items()) + ".\n"
    series: dict[str, list[tuple[float | str, float]]] = {}
    for pair in watches.values():
        for watch in pair:
            for what, kib in (
                ("private", [sum(each) for each in watch.private]),
                ("shared in use", watch.in_use),
            ):
                series[f"{watch.name}, {what}"] = [
                    (number * options.messages / CHUNKS, value / 1024)
                    for number, value in enumerate(kib)
                ]
    plot = Plot("memory", "Memory of a node, when it is idle again", "messages", "MiB", series)
    return Report(text, [plot])


def send(client: Sender, bus: Bus, messages: int, watches: list[Watch]) -> None:
    """At most RATE a second."""
    to, address = bus.receivers[0].uri, bus.sender.address
    at_a_time, begin, sent = 10, time.monotonic(), 0
    read_at = messages * 9 // 10
    while sent < messages:
        triggers = [bus.trigger(client, "send", BATCH, to=to) for _ in range(at_a_time)]
        client.run(triggers, address, b"200", 2)
        sent += at_a_time * BATCH
        if sent >= read_at:
            for watch in watches:
                watch.read_busy()
            read_at = messages
        time.sleep(max(0.0, begin + sent / RATE - time.monotonic()))
