"""Ordered messages of 200 bytes to one peer on one node: how many a second, how long each takes.

Two Kamailios on loopback.  Of ordered messages one is on its way at a time, so their number is
bounded by the way there and back; with a deadline alone 32 are.  One SIP worker sends as many as
are taken; then, for the latency, at half that rate.  Latency is from the call to the peer's
callback.  Processor time is that of both Kamailios.  Medians of several runs.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

from .buses import Bus
from .load import Sender
from .modes import Mode
from .report import Options, Report
from .rounds import CPU, Candidate, Column, Figures, alternate, table

TITLE = "Ordered messages"
RUNS = 5
MODES = (
    Mode("ordered=True", how="ordered"),
    Mode("ordered=True, response callback", how="ordered_told"),
    Mode("deadline=60", how="deadline"),
    Mode("plain, for comparison"),
    Mode("plain, response callback", how="callback"),
)
SPEED, P50, P99 = "speed", "p50", "p99"


def measure(directory: Path, options: Options) -> Report:
    bus = Bus(MODES[0], directory, 110, 1, small=False)
    client = Sender("127.0.0.49")
    try:
        with bus.running():
            candidates = [
                Candidate(mode.name, slices(client, bus, mode, options.slice)) for mode in MODES
            ]
            alternate(candidates, min(options.rounds, RUNS), TITLE)
    finally:
        client.close()
    columns = [
        Column("messages/s", SPEED, 1, 0),
        Column("CPU µs per message", digits=0),
        Column("p50 ms", P50, 1, 2),
        Column("p99 ms", P99, 1, 2),
    ]
    return Report(table(candidates, columns))


def slices(client: Sender, bus: Bus, mode: Mode, size: int) -> Callable[[], Figures]:
    meter = bus.meter()

    def send(rate: float) -> list[tuple[float, float]]:
        """When each was sent, and when it came."""
        what = (
            f"X-What: timed {mode.how} {size} text-200 {rate}\r\nX-Node: {bus.receivers[0].uri}\r\n"
        )
        bus.forget_stamps()
        message = client.build("INFO", "send", bus.sender.address, "x", what)
        client.run([message], bus.sender.address, b"200", again=120)
        return bus.stamps(size)[0]

    def run() -> Figures:
        before = meter.read()
        stamps = send(0)
        cost = (meter.read() - before) / size
        first, last = min(sent for sent, _ in stamps), max(came for _, came in stamps)
        speed = size / (last - first)
        cuts = statistics.quantiles([came - sent for sent, came in send(speed / 2)], n=100)
        return {CPU: cost, SPEED: speed, P50: cuts[49] * 1000, P99: cuts[98] * 1000}

    return run
