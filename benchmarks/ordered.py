"""Ordered messages of 200 bytes to one peer on one node: how many a second, how long each takes.

Two Kamailios on loopback.  Of ordered messages one is on its way at a time, so their number is
bounded by the way there and back; with a deadline alone 32 are.  One SIP worker sends as many as
are taken; then, for the latency, at half that rate.  Latency is from the call to the peer's
callback.  Processor time is that of both Kamailios.  Medians of several runs.
"""

from __future__ import annotations

import statistics
import struct
import time
from pathlib import Path

from tests.support.sip import SipSocket, request

from .nodes import PythonSubject, running, wait_active
from .rounds import markdown

TITLE = "Ordered messages"
RUNS = 5
HOWS = {
    "ordered": "ordered=True",
    "ordered_told": "ordered=True, response callback",
    "deadline": "deadline=60",
    "plain": "plain, for comparison",
    "plain_told": "plain, response callback",
}


def measure(directory: Path, rounds: int, size: int) -> str:
    rows = []
    notes = directory / "times"
    notes.touch()
    nodes = [
        PythonSubject(
            address,
            directory / address,
            "sip:127.0.0.48:5060" if number else "",
            script="ordered_node.py",
        )
        for number, address in enumerate(("127.0.0.48", "127.0.0.49"))
    ]
    a, b = nodes
    for node in nodes:
        node._env["BENCH_TIMES"] = str(notes)
    with running(a, b):
        wait_active([a], b.uri)
        wait_active([b], a.uri)
        meters = [node.meter() for node in nodes]
        speeds: dict[str, list[float]] = {how: [] for how in HOWS}
        costs: dict[str, list[float]] = {how: [] for how in HOWS}
        waits: dict[str, list[list[float]]] = {how: [] for how in HOWS}
        for number in range(min(rounds, RUNS) + 1):
            for how in HOWS:
                before = sum(meter.read() for meter in meters)
                _, speed = send(a, b.uri, notes, how, size, 0)
                cost = (sum(meter.read() for meter in meters) - before) / size / 1000
                latencies, _ = send(a, b.uri, notes, how, size, speed / 2)
                if number:  # the first round does not count
                    speeds[how].append(speed)
                    costs[how].append(cost)
                    waits[how].append(statistics.quantiles(latencies, n=100))
    for how, name in HOWS.items():
        rows.append(
            [
                name,
                f"{statistics.median(speeds[how]):.0f}",
                f"{statistics.median(costs[how]):.0f}",
                f"{statistics.median(cuts[49] for cuts in waits[how]):.2f}",
                f"{statistics.median(cuts[98] for cuts in waits[how]):.2f}",
            ]
        )
    return markdown(["", "messages/s", "CPU µs per message", "p50 ms", "p99 ms"], rows)


def send(
    node: PythonSubject, to: str, notes: Path, how: str, count: int, rate: float
) -> tuple[list[float], float]:
    """Latencies in ms, and messages per second from the first call to the last callback."""
    notes.write_bytes(b"")
    begin = time.monotonic_ns()
    with SipSocket() as sip:
        body = f"{count} {rate} {to}".encode()
        data = request(
            node.address, method="INFO", user=how, body=body, via=sip.name, sender=sip.name
        )
        reply = sip.ask(data, node.address, 120)
        if reply is None or reply.code != 200:
            raise RuntimeError(f"{node.address} does not send\n{node.log()[-2000:]}")
    limit = time.monotonic() + 60
    while notes.stat().st_size < 16 * count:
        if time.monotonic() > limit:
            raise RuntimeError(f"{notes.stat().st_size // 16} of {count} messages arrived")
        time.sleep(0.005)
    found = list(struct.iter_unpack("QQ", notes.read_bytes()))
    end = max(when for _, when in found)
    return [taken / 1e6 for taken, _ in found], count / (end - begin) * 1e9
