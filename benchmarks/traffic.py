"""Broadcasts of 200 bytes to 3 nodes under load.

*As many as go*: 20 requests to the sender are unanswered at any time, each for ten broadcasts, so
that what a request itself costs counts for little (for one each see the registration storm).  The
peer answers at once.  Messages per second are those that the receivers got, all three together,
from the first request to the last delivery; processor time is that of all four Kamailios, with what
the requests cost, for each message that a receiver got.  *Latency*: the requests come at a fixed
rate, answered or not: for one broadcast each at half of what the C module does at most, and for ten
each at half of what each does at most itself.  It runs from the call to the receiver's peer, which
writes down when that was (in C: until its script sees the message, before dmq_handle_message).  The
load comes from a Python process on the same machine.

Redis and NATS (Debian's) stand for what a user might pick instead: the SIP worker publishes over a
connection of its own, and three Kamailios have subscribed, in a process of their own.  The server's
processor time counts.  NATS does not say whether a message has arrived anywhere, nor does Redis'
pub/sub, and neither has members that are told of each other.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .brokers import installed
from .buses import Bus, all_running, losses
from .cpu import Meter
from .load import Sender
from .modes import BROKERS, LOAD, C, Mode
from .report import Options, Plot, Report
from .rounds import CPU, Candidate, Column, Figures, alternate, table

TITLE = "Under load"
RECEIVERS = 3
WINDOW = 20
#: Broadcasts that each request causes, where as many as go are measured.
A_REQUEST = 10
#: Slices there are so many times as long: filling up and running empty is to count for little.
LONGER = 3
SPEED, PER_CPU, GENERATOR = "speed", "per_cpu", "generator"
P50, P99, RATE = "p50", "p99", "rate"
#: What the latency is measured at, and how many broadcasts each request causes there.
LOADS = {"half of C's load": 1, "half of its own load": A_REQUEST}


def measure(directory: Path, options: Options) -> Report:
    modes = [*LOAD, *(mode for mode in BROKERS if installed(mode.kind))]
    missing = [mode.name for mode in BROKERS if not installed(mode.kind)]
    report = compare(directory, options, modes, "load")
    report.text += "".join(f"\n{name} is not installed.\n" for name in missing)
    return report


def compare(directory: Path, options: Options, modes: Sequence[Mode], name: str) -> Report:
    """Of these modes; name: what the names of plots begin with."""
    client = Sender("127.0.0.49")
    base_at = [mode.kind for mode in modes].index(C)
    buses = []
    for number, mode in enumerate(modes):
        place = directory / f"{number}"
        place.mkdir()
        buses.append(Bus(mode, place, 120 + number, RECEIVERS))
    try:
        with all_running(buses):
            flat_out = [
                Candidate(bus.mode.name, as_many_as_go(client, bus, LONGER * options.slice))
                for bus in buses
            ]
            alternate(flat_out, options.rounds, TITLE)
            c = flat_out[base_at]
            rates = [
                (c.median(SPEED) / RECEIVERS / 2, own.median(SPEED) / RECEIVERS / 2)
                for own in flat_out
            ]
            latencies: list[list[Candidate]] = []
            pooled: list[dict[str, list[float]]] = []
            for number, (what, each) in enumerate(LOADS.items()):
                pooled.append({bus.mode.name: [] for bus in buses})
                latencies.append(
                    [
                        Candidate(
                            bus.mode.name,
                            at_rate(
                                client,
                                bus,
                                options.slice,
                                each,
                                rate[number],
                                pooled[-1][bus.mode.name],
                            ),
                        )
                        for bus, rate in zip(buses, rates, strict=True)
                    ]
                )
                alternate(latencies[-1], options.rounds, f"{TITLE}: {what}")
    finally:
        client.close()
    text = table(
        flat_out,
        [
            Column("messages/s", SPEED, 1, 0),
            Column("ratio to C", SPEED, base=c),
            Column("CPU µs per message"),
            Column("messages per CPU second, ratio to C", PER_CPU, base=c),
            Column("load generator, % of a processor", GENERATOR, 0.01, 0),
        ],
    )
    for number, (what, candidates) in enumerate(zip(LOADS, latencies, strict=True)):
        base = candidates[base_at]
        for candidate, rate in zip(candidates, rates, strict=True):
            for figures in candidate.rounds:
                figures[RATE] = rate[number] * RECEIVERS
        text += "\n" + table(
            candidates,
            [
                Column(f"messages/s, {what}", RATE, 1, 0),
                Column("p50 ms", P50, 1, 2),
                Column("p99 ms", P99, 1, 2),
                Column("p99, ratio to C", P99, base=base),
                Column("CPU µs per message"),
                Column("CPU, ratio to C", base=base),
            ],
        )
    text += losses(buses)
    if client.sent_again:
        text += f"\nRequests that had to be sent again: {client.sent_again}.\n"
    return Report(
        text,
        [
            Plot(
                f"{name}",
                "Messages delivered per second of processor time, all nodes",
                "",
                "messages",
                {c.name: [("", c.median(PER_CPU))] for c in flat_out},
            ),
            Plot(
                f"{name}-latency",
                "Latency at half of the C module's load",
                "part of the messages, %",
                "ms at most",
                {name: quantiles(values) for name, values in pooled[0].items()},
                log_y=True,
            ),
        ],
    )


def quantiles(values: list[float]) -> list[tuple[float | str, float]]:
    cuts = statistics.quantiles(values, n=200)
    return [((number + 1) / 2, cut * 1000) for number, cut in enumerate(cuts)]


def spent_on(bus: Bus, meter: Meter, messages: int, load: Callable[[], object]) -> int:
    """Processor time of all nodes until so many messages that load() causes are delivered."""
    delivered = bus.delivered()
    bus.forget_stamps()
    spent = -meter.read()
    load()
    return spent + bus.read_when_delivered(meter, delivered, messages)


def as_many_as_go(client: Sender, bus: Bus, size: int) -> Callable[[], Figures]:
    """A slice: so many broadcasts, a few for each request."""
    each = min(A_REQUEST, size)
    size -= size % each
    messages = size * RECEIVERS
    meter, address = bus.meter(), bus.sender.address

    def run() -> Figures:
        triggers = [bus.trigger(client, "bcast", each) for _ in range(size // each - 1)]
        triggers.append(bus.trigger(client, "bcast", each, "timed"))  # these tell when it ends
        begin = busy = 0.0

        def load() -> None:
            nonlocal begin, busy
            begin, own = time.time(), time.process_time()
            client.run(triggers, address, b"200", WINDOW)
            busy = (time.process_time() - own) / (time.time() - begin)

        spent = spent_on(bus, meter, messages, load)
        seconds = max(came for node in bus.stamps(each) for _, came in node) - begin
        return {
            CPU: spent / messages,
            SPEED: messages / seconds,
            PER_CPU: messages / spent * 1e9,
            GENERATOR: busy,
        }

    return run


def at_rate(
    client: Sender, bus: Bus, size: int, each: int, rate: float, pool: list[float]
) -> Callable[[], Figures]:
    """A slice at a rate of so many broadcasts a second, a few for each request.  pool: where all
    latencies go."""
    each = min(each, size)
    size -= size % each
    messages = size * RECEIVERS
    meter, address = bus.meter(), bus.sender.address

    def run() -> Figures:
        triggers = [bus.trigger(client, "bcast", each, "timed") for _ in range(size // each)]
        spent = spent_on(
            bus, meter, messages, lambda: client.pace(triggers, address, b"200", rate / each)
        )
        taken = [came - sent for node in bus.stamps(size) for sent, came in node]
        pool.extend(taken)
        cuts = statistics.quantiles(taken, n=100)
        return {CPU: spent / messages, P50: cuts[49] * 1000, P99: cuts[98] * 1000}

    return run
