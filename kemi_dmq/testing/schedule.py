"""Faults at given times as one line of text, and what must hold all the same.

    replay(seed=1, nodes="ppp6", schedule="2 kill 3; 10 restart 3; 0 cut 1 2 | 3 4; 60 heal")

A step is ``SECONDS ACTION ARGUMENTS``: so long after the step before, and nodes by their number.

    kill 3, leave 3, restart 3      restart: also one that runs
    fail 3                          the engine ends with an error and starts again
    pause 3 2.5                     for so many seconds
    slow 3 0.02                     seconds for each datagram and timer; 0 ends it
    skew 3 1.01 -3600               rate of its clocks; seconds that its wall clock is ahead
    cut 1 2 | 3 4                   between groups of nodes nothing passes
    oneway 1 2 | 3                  from the first group to the second nothing passes
    heal                            ends the cuts
    link 1 2 0.5                    loss from node 1 to node 2
    loss 0.1, duplication 0.1, reordering 0.1, latency 0.3

nodes: a letter for each: p a Python node, 5 and 6 one with the C module of Kamailio 5.6 and 6.1.
Node n is 10.0.0.n.  All have the first two as notification addresses.
"""

from __future__ import annotations

import inspect
import random
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from ..settings import SettingError
from .simulated_python import SimulatedPythonNode
from .simulator import AnyNode, Simulator
from .sip_text import short

#: Seconds between the starts of two nodes.
START = 0.2
#: After the last fault, and the last death, everything is known within so many seconds.
SETTLE = 40.0
#: C nodes wait 30 s for an answer, then ask again at their next ping.
SETTLE_WITH_C = 110.0
#: At any time: so long after its end, or its own last trouble, a node lists a dead one as active at
#: most.  A node that is cut off from all others takes its time: it doubts itself first.
DETECTION = 120.0
#: A whole bus is watched for so long whether it stays so.
STAYS = 30.0
SHOWN_LINES = 40


class ScenarioError(AssertionError):
    """What did not hold, and the line that runs the scenario again."""


class StepError(ValueError):
    """A step of a schedule is wrong: names it."""


@dataclass(frozen=True, slots=True)
class Step:
    delay: float
    action: str
    arguments: str = ""

    def __str__(self) -> str:
        return f"{self.delay:g} {self.action} {self.arguments}".strip()


def parse_schedule(text: str) -> list[Step]:
    """StepError for what is no schedule."""
    steps = []
    for part in filter(None, map(str.strip, text.split(";"))):
        delay, _, rest = part.partition(" ")
        action, _, arguments = rest.strip().partition(" ")
        if action not in ACTIONS:
            raise StepError(f"step {part!r}: action {action!r}; there are {', '.join(ACTIONS)}")
        try:
            steps.append(Step(float(delay), action, arguments.strip()))
        except ValueError:
            raise StepError(f"step {part!r}: it must begin with seconds") from None
    return steps


@dataclass
class Scenario:
    """settle, detection: seconds after which lists must be whole, and a dead node must not be
    listed as active any more; by default what suits nodes.  settings: for all nodes."""

    seed: int = 0
    nodes: str = "ppp"
    schedule: str = ""
    settle: float = 0.0
    detection: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    records: bool = True

    def __post_init__(self) -> None:
        if not self.nodes or set(self.nodes) - set("p56"):
            raise ValueError(f"nodes is {self.nodes!r}; it must be of the letters p, 5 and 6")
        usual = SETTLE if set(self.nodes) == {"p"} else SETTLE_WITH_C
        self.settle = self.settle or usual
        self.detection = self.detection or DETECTION
        self._limits = [("settle", self.settle, usual), ("detection", self.detection, DETECTION)]
        self.steps = parse_schedule(self.schedule)
        self.simulator = Simulator(self.seed, records=self.records)
        self._all_nodes: list[AnyNode] = []  # also those that were replaced by a restart
        self._dead_since: dict[str, float] = {}
        self._calm_since: dict[str, float] = {}  # node -> since when it has worked normally

    @property
    def command(self) -> str:
        """The line that runs it again."""
        words = ["python3", "-m", "kemi_dmq.testing", "--seed", str(self.seed)]
        words += ["--nodes", self.nodes, "--schedule", self.schedule]
        for name, value in self.settings.items():
            words += ["--set", f"{name}={value}"]
        for name, seconds, usual in self._limits:
            if seconds != usual:
                words += [f"--{name}", f"{seconds:g}"]
        return shlex.join(words)

    @property
    def addresses(self) -> list[str]:
        return [f"10.0.0.{number}" for number in range(1, len(self.nodes) + 1)]

    # Running -------------------------------------------------------------------------------

    def run(self) -> Simulator:
        """Run it all; ScenarioError for what does not hold, or when a node's own code raises."""
        try:
            self._run()
        except (ScenarioError, StepError, SettingError):
            raise
        except Exception as error:
            self._fail(f"{type(error).__name__}: {error}", error)
        return self.simulator

    def _run(self) -> None:
        for address, letter in zip(self.addresses, self.nodes, strict=True):
            self.simulator.add_node(
                address,
                self.addresses[:2],
                letter == "p",
                (5, 6) if letter == "5" else (6, 1),
                **self.settings,
            )
            self._started(address)
            self.simulator.run(START)
        for step in self.steps:
            self._let_pass(step.delay)
            self._do(step)
        self._end()

    def _end(self) -> None:
        simulator = self.simulator
        simulator.calm()
        first = self.addresses[0]
        if not simulator.node(first).alive:  # somebody must be there to be asked for the bus
            self._do(Step(0, "restart", "1"))
        for address in self.addresses:
            self._calm_since[address] = max(self._calm_since[address], simulator.now)
        self._let_pass(self.settle)
        told = {node: len(node.told) for node in self._all_nodes}
        for _ in range(int(STAYS)):
            wrong = self._wrong_lists()
            if wrong:
                self._fail(f"{self.settle:g} s after the last fault {wrong}")
            self._let_pass(1.0)
        for node, count in told.items():
            if len(node.told) > count:
                event, other = node.told[count]
                self._fail(f"{short(node.uri.key)} was told {event} {other} on a quiet bus")
        self._check_told()

    def _let_pass(self, seconds: float) -> None:
        end = self.simulator.now + seconds
        while self.simulator.now < end:
            self.simulator.run(min(1.0, end - self.simulator.now))
            self._check()

    # Steps ---------------------------------------------------------------------------------

    def _do(self, step: Step) -> None:
        method = getattr(self, f"_do_{step.action}")
        arguments = step.arguments.split()
        try:
            inspect.signature(method).bind(*arguments)
        except TypeError as error:
            raise StepError(f"step {str(step)!r}: {error}") from None
        method(*arguments)

    def _address(self, number: str) -> str:
        if not number.isdigit() or not 1 <= int(number) <= len(self.nodes):
            raise StepError(
                f"node {number!r} in {self.schedule!r}: there are 1 to {len(self.nodes)}"
            )
        return self.addresses[int(number) - 1]

    def _number(self, text: str) -> float:
        try:
            return float(text)
        except ValueError:
            raise StepError(f"{text!r} in {self.schedule!r}: a number must be there") from None

    def _groups(self, *words: str) -> list[list[str]]:
        groups: list[list[str]] = [[]]
        for word in words:
            if word == "|":
                groups.append([])
            else:
                groups[-1].append(self._address(word))
        if len(groups) < 2:
            raise StepError(f"{' '.join(words)!r} in {self.schedule!r}: groups are parted by |")
        return groups

    def _started(self, address: str) -> None:
        self._all_nodes.append(self.simulator.node(address))
        self._dead_since.pop(address, None)
        self._calm_since[address] = self.simulator.now

    def _do_kill(self, number: str) -> None:
        address = self._address(number)
        if self.simulator.node(address).alive:
            self.simulator.kill(address)
            self._dead_since[address] = self.simulator.now

    def _do_leave(self, number: str) -> None:
        address = self._address(number)
        if self.simulator.node(address).alive:
            self.simulator.resume(address)
            self.simulator.leave(address)
            self._dead_since[address] = self.simulator.now

    def _do_restart(self, number: str) -> None:
        self.simulator.restart(self._address(number))
        self._started(self._address(number))

    def _do_fail(self, number: str) -> None:
        node = self.simulator.node(self._address(number))
        if isinstance(node, SimulatedPythonNode) and node.alive and not node.paused:
            self.simulator.note(node.uri, "its engine fails")
            node.engine_fails()
            self._calm_since[self._address(number)] = self.simulator.now

    def _do_pause(self, number: str, seconds: str) -> None:
        address = self._address(number)
        if self.simulator.node(address).alive:
            self.simulator.pause(address, self._number(seconds))
            self._calm_since[address] = self.simulator.now + self._number(seconds)

    def _do_slow(self, number: str, delay: str) -> None:
        self.simulator.slow(self._address(number), self._number(delay))
        self._calm_since[self._address(number)] = (
            float("inf") if self._number(delay) else self.simulator.now
        )

    def _do_skew(self, number: str, rate: str, wall: str = "0") -> None:
        self.simulator.skew(self._address(number), self._number(rate), self._number(wall))

    def _do_cut(self, *words: str) -> None:
        self.simulator.partition(*self._groups(*words))

    def _do_oneway(self, *words: str) -> None:
        senders, receivers, *_ = self._groups(*words)
        self.simulator.partition_one_way(senders, receivers)

    def _do_heal(self) -> None:
        self.simulator.heal()

    def _do_link(self, sender: str, receiver: str, loss: str) -> None:
        self.simulator.link(self._address(sender), self._address(receiver), loss=self._number(loss))

    def _do_loss(self, value: str) -> None:
        self._set("loss", self._number(value))

    def _do_duplication(self, value: str) -> None:
        self._set("duplication", self._number(value))

    def _do_reordering(self, value: str) -> None:
        self._set("reordering", self._number(value))

    def _do_latency(self, value: str) -> None:
        self._set("latency", (0.0002, self._number(value)))

    def _set(self, name: str, value: object) -> None:
        setattr(self.simulator, name, value)
        self.simulator.note(None, f"{name} {value}")

    # What must hold ------------------------------------------------------------------------

    def _check(self) -> None:
        """At any time."""
        simulator = self.simulator
        for address in self.addresses:
            node = simulator.node(address)
            if not node.alive:
                continue
            if node.uri.key not in node.active_keys():
                self._fail(f"{address} does not list itself as active")
            if not isinstance(node, SimulatedPythonNode):
                continue
            for other, since in self._dead_since.items():
                late = simulator.now - max(since, self._calm_since[address])
                if late > self.detection and simulator.node(other).uri.key in node.active_keys():
                    self._fail(f"{address} lists {other} as active, {late:.1f} s after its end")
        if simulator.stuck():
            self._fail(f"a C node has stopped working: {simulator.stuck()}")

    def _check_told(self) -> None:
        """Callbacks were told of each change once, and of the last one."""
        for node in self._all_nodes:
            last: dict[str, str] = {}
            for event, other in node.told:
                if event == "init":
                    continue
                if event == last.get(other, "dmq:peer-down" if other not in last else ""):
                    self._fail(f"{short(node.uri.key)} was told {event} {other} for no change")
                last[other] = event
            if isinstance(node, SimulatedPythonNode) and node.alive:
                up = {other for other, event in last.items() if event == "dmq:peer-up"}
                active = {short(key) for key in node.active_keys() - {node.uri.key}}
                if up != active:
                    self._fail(f"{short(node.uri.key)} lists {active} and was told of {up}")

    def _wrong_lists(self) -> str:
        """Each node lists all that run.  A dead one is on no Python node's list; C nodes may go on
        telling each other of a dead notification address for ever."""
        running = self.simulator.running()
        for key in sorted(running):
            node = self.simulator.nodes[key]
            active = node.active_keys()
            missing = ", ".join(map(short, sorted(running - active)))
            if missing:
                return f"{short(key)} does not list {missing} as active"
            dead = ", ".join(map(short, sorted(active - running)))
            if dead and isinstance(node, SimulatedPythonNode):
                return f"{short(key)} lists {dead} as active, which does not run"
        return ""

    def _fail(self, what: str, cause: Exception | None = None) -> NoReturn:
        shown = "\n".join(self.simulator.transcript[-SHOWN_LINES:])
        raise ScenarioError(
            f"{what} (at {self.simulator.now:.1f} s)\nrun it again:  {self.command}\n{shown}"
        ) from cause


ACTIONS = tuple(name.removeprefix("_do_") for name in vars(Scenario) if name.startswith("_do_"))


def replay(seed: int, nodes: str, schedule: str, **settings: Any) -> Simulator:
    """Run a scenario; ScenarioError says what does not hold."""
    return Scenario(seed, nodes, schedule, settings=settings).run()


def random_scenario(seed: int, **more: Any) -> Scenario:
    """One of 3 to 12 nodes and up to ten faults, all drawn from the seed."""
    rng = random.Random(seed)
    count = rng.randint(3, 12)
    letters = rng.choice(["p", "p", "ppp6", "p56"])
    nodes = "p" + "".join(rng.choice(letters) for _ in range(count - 1))
    steps = _random_steps(rng, count, rng.randint(1, 10))
    return Scenario(seed, nodes, "; ".join(map(str, steps)), **more)


def _random_steps(rng: random.Random, count: int, steps: int) -> Iterator[Step]:
    for _ in range(steps):
        one, other = rng.sample(range(1, count + 1), 2)
        cut = " ".join(str(n) for n in range(1, one + 1))
        rest = " ".join(str(n) for n in range(one + 1, count + 1))
        yield rng.choice(
            [
                Step(_delay(rng), "kill", f"{one}"),
                Step(_delay(rng), "leave", f"{one}"),
                Step(_delay(rng), "restart", f"{one}"),
                Step(_delay(rng), "fail", f"{one}"),
                Step(_delay(rng), "pause", f"{one} {rng.choice([0.5, 3, 20])}"),
                Step(_delay(rng), "slow", f"{one} {rng.choice([0, 0.005, 0.05])}"),
                Step(
                    _delay(rng), "skew", f"{one} {rng.choice([0.98, 1.02])} {rng.choice([-60, 9])}"
                ),
                Step(_delay(rng), "cut", f"{cut} | {rest}"),
                Step(_delay(rng), "oneway", f"{one} | {other}"),
                Step(_delay(rng), "heal"),
                Step(_delay(rng), "link", f"{one} {other} {rng.choice([0.3, 1])}"),
                Step(_delay(rng), "loss", f"{rng.choice([0, 0.05, 0.2])}"),
                Step(_delay(rng), "duplication", f"{rng.choice([0, 0.3])}"),
                Step(_delay(rng), "reordering", f"{rng.choice([0, 0.3])}"),
                Step(_delay(rng), "latency", f"{rng.choice([0.002, 0.3])}"),
            ]
        )


def _delay(rng: random.Random) -> float:
    return rng.choice([0, 0.05, 1, 7, 40])
