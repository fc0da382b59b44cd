"""From a SIP worker to 1, 3, 10 and 30 nodes: what a broadcast costs, and when the last has it.

The nodes are real Kamailios, the receiving ones with one SIP worker (and dmq.so with one dmq
worker).  *One at a time*: a request makes the sender broadcast once, and the next one leaves when
all have got it; how long the call took by the clock, and from the call to the moment that the last
node's peer runs (in C: that its script sees the message, before dmq_handle_message).  After the
pause before it nothing is in the processor's caches, which is most of the time of a short call.
*In bursts*: requests each make it broadcast many times; how long a call took then; processor time
of all nodes, the sender and the receivers, for each message that a receiver got, as counted there;
and of the sender's SIP workers alone, which also take the answers, for each broadcast.  dmq.so
stops at 26 nodes, so that it has no row with 30.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from .buses import Bus, all_running, losses
from .load import Sender
from .modes import BROADCAST, C
from .report import Options, Plot, Report, markdown
from .rounds import CPU, Candidate, Figures, alternate

TITLE = "Broadcasting"
COUNTS = (1, 3, 10, 30)
QUICK_COUNTS = (1, 3)
C_MOST = 24  # receivers
#: Messages on their way at a time: what the sender's socket holds of answers.
IN_FLIGHT = 60
#: Seconds between two bursts: what is under way is worked off.
BETWEEN = 0.002
#: Broadcasts of a round that go out alone.
SINGLES = 20
CALL, BURST, LAST, WORKERS = "call", "burst", "last", "workers"


def measure(directory: Path, options: Options) -> Report:
    rows = []
    lost = ""
    plots: dict[str, dict[str, list[tuple[float | str, float]]]] = {CPU: {}, CALL: {}, LAST: {}}
    client = Sender("127.0.0.49")
    for count in QUICK_COUNTS if options.quick else COUNTS:
        buses = [
            Bus(mode, directory / f"{count}-{number}", 100 + number, count)
            for number, mode in enumerate(BROADCAST)
            if mode.kind != C or count <= C_MOST
        ]
        with all_running(buses):
            candidates = [
                Candidate(bus.mode.name, slices(client, bus, count, options.slice)) for bus in buses
            ]
            alternate(candidates, options.rounds, f"{TITLE} to {count}")
        base = next(
            (c for c, bus in zip(candidates, buses, strict=True) if bus.mode.kind == C), None
        )
        for candidate in candidates:
            cells = [f"to {count}: {candidate.name}"]
            for figure in (CALL, BURST, WORKERS, CPU, LAST):
                cells.append(f"{candidate.median(figure) / 1000:,.1f}")
                cells.append(candidate.ratio_text(base, figure) if base else "-")
                if figure in plots:
                    series = plots[figure].setdefault(candidate.name, [])
                    series.append((count, candidate.median(figure) / 1000))
            rows.append(cells)
        lost += losses(buses)
        if base is None:
            rows.append([f"to {count}: C module", "stops at 26", *["-"] * 9])
    client.close()
    head = ["", "call returns, µs", "ratio to C", "in bursts, µs", "ratio to C"]
    head += ["sender's SIP workers, CPU µs per broadcast", "ratio to C"]
    head += ["CPU µs per delivered message", "ratio to C"]
    text = markdown([*head, "last node has it, µs", "ratio to C"], rows)
    titles = {
        CALL: ("broadcast-call", "Until a broadcast returns", "µs"),
        CPU: ("broadcast-cpu", "Processor time of all nodes per delivered message", "CPU µs"),
        LAST: ("broadcast-last", "Until the last node has it, on an idle bus", "µs"),
    }
    return Report(
        text + lost,
        [
            Plot(name, title, "receiving nodes", unit, plots[figure], log_x=True)
            for figure, (name, title, unit) in titles.items()
        ],
    )


def slices(client: Sender, bus: Bus, count: int, size: int) -> Callable[[], Figures]:
    """A slice: as many broadcasts as deliver size messages, then single ones."""
    meter, workers = bus.meter(), bus.sender.workers_meter()
    calls = max(1, min(50, IN_FLIGHT // count))
    times = max(1, size // (calls * count))
    address = bus.sender.address
    singles = min(SINGLES, max(3, size // 50))

    def run() -> Figures:
        messages = calls * times * count
        triggers = [bus.trigger(client, "bcast", calls) for _ in range(times)]
        delivered = bus.delivered()
        spent, spent_there = -meter.read(), -workers.read()
        burst = []
        for trigger in triggers:
            burst += [int(us) for us in client.run([trigger], address, b"200")]
            time.sleep(BETWEEN)
        spent += bus.read_when_delivered(meter, delivered, messages)
        spent_there += workers.read()
        bus.forget_stamps()
        took = []
        for number in range(singles):
            trigger = bus.trigger(client, "bcast", 1, "timed")
            took += [int(us) for us in client.run([trigger], address, b"200")]
            bus.stamps(number + 1)
        last: dict[float, float] = {}
        for stamps in bus.stamps(singles):
            for sent, came in stamps:
                last[sent] = max(last.get(sent, 0), came)
        return {
            CPU: spent / messages,
            WORKERS: spent_there / (calls * times),
            CALL: statistics.median(took) * 1000,
            BURST: statistics.median(burst) * 1000,
            LAST: statistics.median(came - sent for sent, came in last.items()) * 1e9,
        }

    return run
