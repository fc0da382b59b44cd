"""Until a death is known everywhere, who is taken for dead, and what the watching costs.

From the simulator (latency 0.2 to 2 ms, all settings as by default, `ping_interval` 5 for C): the
real code of kemi_dmq, and a model of the C module with its rules and its 1,024 bytes.  A death is
known when nobody lists the dead node as active any more.  "Taken for dead": how often a node was
told so of one that was alive, in 10 minutes at 10 % loss.  Bytes are those of the SIP messages that
a node sends, answers included, without IP and UDP headers; once on a quiet bus, once at 10 % loss.

The rows of Kamailio are real ones on this machine, with `ping_interval` 5: one is killed with
kill -9.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from kemi_dmq.testing.simulator import Simulator

from .nodes import CSubject, PythonSubject, Subject, running, wait_active
from .report import Options, Report, markdown

TITLE = "Membership"
COUNTS = (10, 50, 200, 1000)
#: The model of the C module is not run with more: it has stopped long before.
C_COUNTS = (10, 25, 50)
C_ROUNDS = 5
MINUTES = 10
LOSS = 0.1
PING_INTERVAL = 5
#: Buses of real Kamailios, and how often one of them is killed.
REAL_COUNTS = (3, 10)
REAL_RUNS = 3
NONE = "-"


def measure(directory: Path, options: Options) -> Report:
    rounds = options.rounds
    counts, c_counts = ((10,), (10,)) if options.quick else (COUNTS, C_COUNTS)
    rows = []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        # The longest first.
        disturbed = {n: pool.submit(disturbed_bus, n) for n in reversed(counts)}
        quiet = {n: pool.submit(quiet_bus, n) for n in reversed(counts)}
        deaths = {
            n: [pool.submit(deaths_on, n, seed, k) for seed, k in shared_out(n, rounds)]
            for n in reversed(counts)
        }
        c_rows = [pool.submit(c_bus, n, rounds) for n in c_counts]
        for n in counts:
            seconds = [second for future in deaths[n] for second in future.result()]
            alarms, lossy = disturbed[n].result()
            costs = [f"{quiet[n].result():,.0f}", f"{lossy:,.0f}"]
            rows.append(
                ["kemi_dmq, simulated", f"{n:,}", *median_p90(seconds), f"{alarms}", *costs]
            )
        rows += [row.result() for row in c_rows]
    # dmq.so takes half a minute to see a death.
    kinds = {"python": "kemi_dmq"} if options.quick else {"python": "kemi_dmq", "c": "dmq.so"}
    sizes = REAL_COUNTS[:1] if options.quick else REAL_COUNTS
    for kind, name in kinds.items():
        for count, seconds in real(directory, kind, min(rounds, REAL_RUNS), sizes).items():
            figures = [f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f} (the longest)"]
            rows.append([f"{name}, Kamailio", f"{count}", *figures, *[NONE] * 3])
    head = ["", "nodes", "death known, s: median", "p90", "taken for dead"]
    return Report(markdown([*head, "bytes per node and second", "at 10 % loss"], rows))


def median_p90(seconds: list[float]) -> tuple[str, str]:
    p90 = seconds[0]
    if len(seconds) > 1:
        p90 = statistics.quantiles(seconds, n=10, method="inclusive")[-1]
    return f"{statistics.median(seconds):.1f}", f"{p90:.1f}"


# Simulated nodes with kemi_dmq


def hosts(count: int) -> list[str]:
    return [f"10.0.{n // 200}.{n % 200 + 1}" for n in range(count)]


def bus_of(count: int, seed: int) -> Simulator:
    simulator = Simulator(seed, records=False)
    simulator.form(hosts(count))
    simulator.run(5)
    assert simulator.whole()
    return simulator


def shared_out(count: int, rounds: int) -> list[tuple[int, int]]:
    """(seed, how many deaths) of buses: a large one takes long to begin, so it sees more."""
    each = max(1, count // 100)
    rounds = min(rounds, max(10, 5000 // count))
    return [(seed, min(each, rounds - seed * each)) for seed in range(-(-rounds // each))]


def deaths_on(count: int, seed: int, number: int) -> list[float]:
    """Seconds until all know of a death, one death after the other."""
    simulator = bus_of(count, seed)
    chance = random.Random(seed)
    seconds = []
    for victim in chance.sample(hosts(count), number):
        simulator.run(10 + chance.random())
        simulator.kill(victim)
        died = simulator.now
        if not simulator.run_until(simulator.whole, 120):
            raise RuntimeError(f"{count} nodes, seed {seed}: {victim}'s death is not known")
        seconds.append(simulator.now - died)
    return seconds


def sent_bytes(simulator: Simulator) -> int:
    return sum(node.sent_bytes for node in simulator.nodes.values())


def quiet_bus(count: int) -> float:
    """Bytes per node and second where nothing happens."""
    simulator = bus_of(count, 1)
    simulator.run(20)  # what there was to tell has been told
    before, seconds = sent_bytes(simulator), 30
    simulator.run(seconds)
    return (sent_bytes(simulator) - before) / count / seconds


def disturbed_bus(count: int) -> tuple[int, float]:
    """How often somebody was taken for dead, and bytes per node and second."""
    simulator = bus_of(count, 2)
    simulator.loss = LOSS
    before, seconds = sent_bytes(simulator), 60 * MINUTES
    told = [len(node.told) for node in simulator.nodes.values()]
    simulator.run(seconds)
    alarms = 0
    for node, already in zip(simulator.nodes.values(), told, strict=True):
        events = [event for event, _ in node.told[already:]]
        alarms += events.count("dmq:peer-down") + events.count("dmq:peer-disabled")
    return alarms, (sent_bytes(simulator) - before) / count / seconds


# The model of the C module


def c_bus(count: int, rounds: int) -> list[str]:
    name = ["C module, simulated", f"{count}"]
    simulator = c_bus_of(count, 1)
    if simulator.stuck():
        stopped = f"stopped: {len(simulator.stuck())} of them, the others stay apart"
        return [*name, stopped, *[NONE] * 4]
    before, seconds = sent_bytes(simulator), 60
    simulator.run(seconds)
    quiet = (sent_bytes(simulator) - before) / count / seconds
    before = sent_bytes(simulator)
    simulator.loss = LOSS
    alarms = 0
    active = count * count
    for _ in range(60 * MINUTES):
        simulator.run(1)
        now = sum(len(node.active_keys()) for node in simulator.nodes.values())
        alarms += max(0, active - now)
        active = now
    lossy = (sent_bytes(simulator) - before) / count / 60 / MINUTES
    deaths = [c_death(count, seed) for seed in range(min(rounds, C_ROUNDS))]
    return [*name, *median_p90(deaths), f"{alarms}", f"{quiet:,.0f}", f"{lossy:,.0f}"]


def c_bus_of(count: int, seed: int) -> Simulator:
    simulator = Simulator(seed, records=False)
    chance = random.Random(seed)
    first = hosts(count)[0]
    for host in hosts(count):
        notification = [first] if host != first else []
        simulator.add_node(host, notification, python=False, ping_interval=PING_INTERVAL)
        simulator.run(0.1 + chance.random() * PING_INTERVAL)  # they do not all ping together
    simulator.run(2 * PING_INTERVAL)
    return simulator


def c_death(count: int, seed: int) -> float:
    simulator = c_bus_of(count, seed)
    simulator.run(random.Random(seed).random() * PING_INTERVAL)
    victim = hosts(count)[-1]
    simulator.kill(victim)
    died = simulator.now
    key = simulator.node(victim).uri.key
    others = [node for node in simulator.nodes.values() if node.alive]
    while any(key in node.active_keys() for node in others):
        simulator.run(0.1)
    return simulator.now - died


# Real ones


def real(directory: Path, kind: str, runs: int, sizes: Sequence[int]) -> dict[int, list[float]]:
    """Seconds until nobody lists the one that was killed, for buses of each size, side by side."""
    found: dict[int, list[float]] = {count: [] for count in sizes}
    for run in range(runs):
        buses = {
            count: [node(kind, directory / f"{kind}{run}", number, i) for i in range(count)]
            for number, count in enumerate(sizes)
        }
        everybody = [subject for bus in buses.values() for subject in bus]
        with running(*everybody):
            for bus in buses.values():
                for subject in bus:
                    wait_active(bus, subject.uri, 60)
            time.sleep(random.random() * PING_INTERVAL)
            killed: dict[int, float] = {}
            for count, bus in buses.items():
                bus[-1].kill()
                killed[count] = time.monotonic()
            waiting = dict(buses)
            while waiting:
                for count, bus in list(waiting.items()):
                    if not any(bus[-1].uri in subject.active() for subject in bus[:-1]):
                        found[count].append(time.monotonic() - killed[count])
                        del waiting[count]
                time.sleep(0.05)
    return found


def node(kind: str, directory: Path, bus: int, index: int) -> Subject:
    address = f"127.0.{50 + bus}.{index + 1}"
    place, notification = directory / address, f"sip:127.0.{50 + bus}.1:5060" if index else ""
    if kind == "c":
        return CSubject(address, place, notification, ping_interval=PING_INTERVAL)
    return PythonSubject(address, place, notification, defines={"PING_INTERVAL": PING_INTERVAL})
