"""How long a third node needs until all three list all three as active."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from .nodes import CSubject, PythonSubject, Subject, running, wait_active
from .report import Options, Report, markdown

TITLE = "Joining"
ADDRESSES = ("127.0.0.45", "127.0.0.46", "127.0.0.47")
RUNS = 5
#: kind of the notification node, of the second, and of the one that joins last
BUSES = {
    "Python joins Python and C": ("python", "c", "python"),
    "C joins Python and Python": ("python", "python", "c"),
    "Python joins Python and Python": ("python", "python", "python"),
    "C joins C and C": ("c", "c", "c"),
}


def measure(directory: Path, options: Options) -> Report:
    rows = []
    for name, kinds in BUSES.items():
        figures = [
            once(directory / f"{number}" / "-".join(kinds), kinds)
            for number in range(min(options.rounds, RUNS))
        ]
        columns = list(zip(*figures, strict=True))
        rows.append([name, *(f"{statistics.median(column):.2f}" for column in columns)])
    return Report(markdown(["", "s from its first answer", "s from its start"], rows))


def once(directory: Path, kinds: tuple[str, ...]) -> tuple[float, float]:
    """Seconds until the bus is whole, from the last node's first answer and from its start."""
    nodes = [node(kind, directory, index) for index, kind in enumerate(kinds)]
    *first, last = nodes
    everyone = {subject.uri for subject in nodes}
    with running(*first):
        for subject in first:
            wait_active(first, subject.uri)
        before = time.monotonic()
        with running(last):
            answered = time.monotonic()
            while not all(subject.active() == everyone for subject in nodes):
                if time.monotonic() > answered + 30:
                    raise RuntimeError(f"not whole: {[s.active() for s in nodes]}")
            whole = time.monotonic()
    return whole - answered, whole - before


def node(kind: str, directory: Path, index: int) -> Subject:
    address = ADDRESSES[index]
    notification = f"sip:{ADDRESSES[0]}:5060" if index else ""
    if kind == "c":
        return CSubject(address, directory / address, notification)
    return PythonSubject(address, directory / address, notification)
