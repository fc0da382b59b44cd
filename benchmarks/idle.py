"""What a node costs that has nothing to do but be on the bus: processor time per second.

Buses of 3, 10 and 30 nodes, all at the same time, for longer than a ping_interval (60 s): the mean
of their nodes, each with one SIP worker.  Kamailio itself does not sleep either: the last row is
one without DMQ and without Python.  dmq.so stops at 26 nodes.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from .buses import Bus, all_running
from .cpu import Meter, tree
from .modes import PLAIN, THE_C_MODULE, C
from .nodes import NativeFloor, Subject, running
from .report import Options, Plot, Report, markdown

TITLE = "Idle"
COUNTS = (3, 10, 30)
C_MOST = 25
SECONDS = 65


def measure(directory: Path, options: Options) -> Report:
    counts, seconds = ((3,), 2) if options.quick else (COUNTS, SECONDS)
    buses = {
        (mode, count): Bus(mode, directory / f"{mode.kind}{count}", 140 + number, count - 1)
        for number, (mode, count) in enumerate(
            (mode, count) for mode in (PLAIN, THE_C_MODULE) for count in counts
        )
        if mode.kind != C or count <= C_MOST
    }
    floors: dict[str, Subject] = {
        "no DMQ": NativeFloor("127.0.0.41", directory / "native", small=True),
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(running(*floors.values()))
        stack.enter_context(all_running(list(buses.values())))
        # The small ones, which are all alike.
        pids = {
            key: [pid for node in bus.receivers for pid in tree(node.pid)]
            for key, bus in buses.items()
        }
        meters = {key: Meter(pids[key]) for key in buses}
        floor_meters = {name: Meter(tree(node.pid)) for name, node in floors.items()}
        before = {key: meter.read() for key, meter in meters.items()}
        floor_before = {name: meter.read() for name, meter in floor_meters.items()}
        begin = time.monotonic()
        time.sleep(seconds)
        spent = {
            key: (meter.read() - before[key]) / len(buses[key].receivers)
            for key, meter in meters.items()
        }
        floor_spent = {name: m.read() - floor_before[name] for name, m in floor_meters.items()}
        took = time.monotonic() - begin
    rows = []
    series: dict[str, list[tuple[float | str, float]]] = {}
    for mode in (PLAIN, THE_C_MODULE):
        row = [mode.name]
        for count in counts:
            if (mode, count) in spent:
                figure = spent[mode, count] / took / 1e6
                series.setdefault(mode.name, []).append((f"{count} nodes", figure))
                row.append(f"{figure:.2f}")
            else:
                row.append("stops at 26")
        rows.append(row)
    for name, nanoseconds in floor_spent.items():
        figure = nanoseconds / took / 1e6
        rows.append([name, *[f"{figure:.2f}"] * len(counts)])
        series[name] = [(f"{count} nodes", figure) for count in counts]
    head = ["CPU ms per second and node", *(f"bus of {count}" for count in counts)]
    plot = Plot("idle", "Processor time of an idle node", "", "ms per second", series)
    return Report(markdown(head, rows), [plot])
