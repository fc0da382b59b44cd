"""10,000 phones register at one node, each REGISTER saved there and broadcast to 3 others.

Kamailio's registrar saves the contact in memory and answers; then the script broadcasts some 200
bytes.  The REGISTERs come at a fixed rate, whether they are answered or not: half of what the
slowest one bears.  A phone waits for its 200; a message's latency is from the broadcast to the
receiver's peer, as under "Under load".  Processor time is that of all four Kamailios.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from .buses import Bus, all_running, losses
from .load import Sender
from .modes import LOAD, C
from .report import Options, Report
from .rounds import CPU, Candidate, Column, Figures, alternate, table

TITLE = "A registration storm"
RECEIVERS = 3
PHONES = 10_000
WINDOW = 20
P50, P99, PHONE50, PHONE99 = "p50", "p99", "phone50", "phone99"


def measure(directory: Path, options: Options) -> Report:
    client = Sender("127.0.0.49")
    buses = [
        Bus(mode, directory / f"{number}", 130 + number, RECEIVERS, registrar=True)
        for number, mode in enumerate(LOAD)
    ]
    rounds = 1 if options.quick else max(1, PHONES // options.slice)
    try:
        with all_running(buses):
            rate = min(most(client, bus, options.slice) for bus in buses) / 2
            candidates = [
                Candidate(bus.mode.name, slices(client, bus, options.slice, rate)) for bus in buses
            ]
            alternate(candidates, rounds, TITLE)
    finally:
        client.close()
    base = next(c for c, mode in zip(candidates, LOAD, strict=True) if mode.kind == C)
    columns = [
        Column("CPU µs per REGISTER"),
        Column("ratio to C", base=base),
        Column("phone waits, p50 ms", PHONE50, 1, 2),
        Column("p99 ms", PHONE99, 1, 2),
        Column("message, p50 ms", P50, 1, 2),
        Column("p99 ms", P99, 1, 2),
        Column("ratio to C", P99, base=base),
    ]
    text = table(candidates, columns)
    sent = rounds * options.slice
    text += f"\n{sent:,} REGISTERs for each row, {rate:,.0f} a second; in all "
    text += f"{client.sent_again} had to be sent again.\n{losses(buses)}"
    return Report(text)


def registers(client: Sender, bus: Bus, size: int, begin: int) -> list[bytes]:
    return [
        client.build(
            "REGISTER",
            f"user{number}",
            bus.sender.address,
            b"",
            f"Contact: <sip:user{number}@{client.via}>\r\nExpires: 3600\r\n"
            f"X-What: timed {bus.mode.how} 1 text-200 0\r\n",
        )
        for number in range(begin, begin + size)
    ]


def most(client: Sender, bus: Bus, size: int) -> float:
    """REGISTERs per second at a fixed window."""
    messages = registers(client, bus, size, 0)
    bus.forget_stamps()
    begin = time.time()
    client.run(messages, bus.sender.address, b"200", WINDOW)
    last = max(came for node in bus.stamps(size) for _, came in node)
    return size / (last - begin)


def slices(client: Sender, bus: Bus, size: int, rate: float) -> Callable[[], Figures]:
    meter = bus.meter()
    number = size

    def run() -> Figures:
        nonlocal number
        messages = registers(client, bus, size, number)
        number += size
        delivered = bus.delivered()
        bus.forget_stamps()
        spent = -meter.read()
        phone = statistics.quantiles(client.pace(messages, bus.sender.address, b"200", rate), n=100)
        spent += bus.read_when_delivered(meter, delivered, size * RECEIVERS)
        stamps = bus.stamps(size)
        cuts = statistics.quantiles([came - sent for node in stamps for sent, came in node], n=100)
        return {
            CPU: spent / size,
            PHONE50: phone[49] * 1000,
            PHONE99: phone[98] * 1000,
            P50: cuts[49] * 1000,
            P99: cuts[98] * 1000,
        }

    return run
