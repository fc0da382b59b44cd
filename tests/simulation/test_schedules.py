"""Any faults at any times: Hypothesis drives buses of 3 to 12 nodes, and what fails is one line to
run again."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kemi_dmq.membership import Membership
from kemi_dmq.testing.__main__ import main
from kemi_dmq.testing.schedule import (
    Scenario,
    ScenarioError,
    Step,
    parse_schedule,
    random_scenario,
    replay,
)
from kemi_dmq.testing.simulated_c import SimulatedCNode

Draw = Callable[[st.SearchStrategy[Any]], Any]


@st.composite
def scenarios(draw: Draw) -> Scenario:
    nodes = "p" + draw(st.text("p56", min_size=2, max_size=11))
    number = st.integers(1, len(nodes)).map(str)
    numbers = list(range(1, len(nodes) + 1))

    def step(action: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
        delays = st.sampled_from([0.0, 0.05, 1.0, 7.0, 40.0])
        texts = st.tuples(*arguments).map(lambda values: " ".join(map(str, values)))
        return st.builds(Step, delays, st.just(action), texts)

    def share(*values: float) -> st.SearchStrategy[float]:
        return st.sampled_from(values)

    def groups() -> st.SearchStrategy[str]:
        halves = st.tuples(st.permutations(numbers), st.integers(1, len(nodes) - 1))
        return halves.map(
            lambda half: (
                " ".join(map(str, half[0][: half[1]]))
                + " | "
                + " ".join(map(str, half[0][half[1] :]))
            )
        )

    steps = st.one_of(
        step("kill", number),
        step("leave", number),
        step("restart", number),
        step("fail", number),
        step("pause", number, share(0.5, 3, 20)),
        step("slow", number, share(0, 0.005, 0.05)),
        step("skew", number, share(0.98, 1.0, 1.02), share(-3600, 0, 5)),
        step("cut", groups()),
        step("oneway", groups()),
        step("heal"),
        step("link", number, number, share(0.3, 1)),
        step("loss", share(0, 0.05, 0.2)),
        step("duplication", share(0, 0.3)),
        step("reordering", share(0, 0.3)),
        step("latency", share(0.002, 0.3)),
    )
    schedule = draw(st.lists(steps, max_size=10))
    return Scenario(draw(st.integers(0, 2**32)), nodes, "; ".join(map(str, schedule)))


@settings(max_examples=60)
@given(scenarios())
def test_whatever_happens_lists_are_whole_in_the_end_and_callbacks_were_told_once(
    scenario: Scenario,
) -> None:
    scenario.run()


@pytest.mark.parametrize("seed", range(20))
def test_scenarios_that_a_seed_draws(seed: int) -> None:
    random_scenario(seed).run()


# What failed once -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "nodes", "schedule"),
    [
        # C nodes go on telling each other of a dead notification address; we do not believe them.
        (38, "p6pp5655p", "40 pause 1 20; 40 skew 1 0.98 9; 1 oneway 7 | 2; 1 kill 2"),
        (1, "ppp6", "2 kill 3; 10 restart 3; 0 cut 1 2 | 3 4; 90 heal"),
    ],
)
def test_what_was_worth_keeping(seed: int, nodes: str, schedule: str) -> None:
    replay(seed, nodes, schedule)


# The schedule itself ------------------------------------------------------------------------------


@given(scenarios())
@settings(max_examples=50)
def test_a_schedule_is_the_same_after_it_was_written_and_read(scenario: Scenario) -> None:
    assert "; ".join(map(str, parse_schedule(scenario.schedule))) == scenario.schedule


@pytest.mark.parametrize(
    ("schedule", "wrong"),
    [
        ("2 explode 3", "explode"),
        ("kill 3", "action '3'"),
        ("soon kill 3", "must begin with seconds"),
        ("1 kill 9", "node '9'"),
        ("1 kill 0", "node '0'"),
        ("1 pause 2", "step '1 pause 2'.*seconds"),
        ("1 heal 2", "step '1 heal 2'"),
        ("1 loss much", "'much'"),
        ("1 oneway 1", "parted by"),
    ],
)
def test_a_wrong_step_is_named(schedule: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        replay(1, "ppp", schedule)


def test_wrong_nodes_are_named() -> None:
    with pytest.raises(ValueError, match="'pq'"):
        Scenario(nodes="pq")


# Do the checks notice anything? -------------------------------------------------------------------


def failure(seed: int, nodes: str, schedule: str) -> str:
    with pytest.raises(ScenarioError) as caught:
        replay(seed, nodes, schedule)
    assert f"--seed {seed} --nodes {nodes} --schedule '{schedule}'" in str(caught.value)
    return str(caught.value)


def test_a_dead_node_that_stays_on_a_list_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Membership, "nodes", _with_the_dead(Membership.nodes))
    assert "as active" in failure(1, "ppp", "1 kill 3")


def _with_the_dead(nodes: Any) -> Any:
    seen: dict[Any, Any] = {}

    def also_the_dead(self: Membership) -> Any:
        known = seen.setdefault(id(self), {})
        for node in nodes(self):
            if node.active:
                known[node.uri] = node
        return list(known.values())

    return also_the_dead


def test_a_node_that_misses_another_one_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Membership, "nodes", lambda self: _all_nodes(self)[:2])
    assert "does not list" in failure(1, "ppp", "1 heal")


_all_nodes = Membership.nodes


def test_an_event_that_is_told_twice_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from kemi_dmq.testing.simulated_python import SimulatedPythonNode

    told_once = SimulatedPythonNode.callback

    def twice(self: SimulatedPythonNode, event: tuple[Any, ...]) -> bool:
        told_once(self, event)
        return told_once(self, event)

    monkeypatch.setattr(SimulatedPythonNode, "callback", twice)
    assert "for no change" in failure(1, "ppp", "1 heal")


def test_a_healthy_node_that_is_called_down_for_a_moment_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from kemi_dmq.testing.simulated_python import SimulatedPythonNode

    start = SimulatedPythonNode.start

    def start_and_flap(self: SimulatedPythonNode, *known: Any) -> None:
        start(self, *known)
        for after, event in ((50.3, "dmq:peer-down"), (50.6, "dmq:peer-up")):
            self.after(after, self.told.append, (event, "10.0.0.1"))

    monkeypatch.setattr(SimulatedPythonNode, "start", start_and_flap)
    assert "on a quiet bus" in failure(1, "ppp", "1 heal")


def test_a_c_node_that_stops_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kemi_dmq.testing.simulated_c.LIST_BYTES", 100)
    assert "has stopped working" in failure(1, "pp6p", "1 heal")
    assert SimulatedCNode.__doc__


def test_code_that_raises_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*arguments: object) -> None:
        raise KeyError("who")

    monkeypatch.setattr(Membership, "on_no_answer", raises)
    assert "KeyError: 'who'" in failure(1, "ppp", "1 kill 3")


# The command --------------------------------------------------------------------------------------


def test_the_command_runs_a_schedule(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "1", "--schedule", "2 kill 3", "--set", "ping_interval=6"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "1 run, 0 failed"
    assert any(line.endswith("10.0.0.3         is killed") for line in lines)
    assert not any("KDMQ" in line for line in lines), "changes only, unless asked for more"
    assert main(["--seed", "1", "--schedule", "2 kill 3", "--transcript", "all"]) == 0
    assert any("KDMQ" in line for line in capsys.readouterr().out.splitlines())


def test_the_command_shows_what_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Membership, "nodes", lambda self: _all_nodes(self)[:1])
    assert main(["--seed", "3", "--runs", "2"]) == 1
    out = capsys.readouterr().out
    assert "2 runs, 2 failed" in out
    assert out.count("run it again:  python3 -m kemi_dmq.testing --seed ") == 2


def test_the_command_names_what_is_wrong_with_its_arguments() -> None:
    for wrong in (["--schedule", "1 explode 2"], ["--nodes", "x", "--schedule", ""]):
        with pytest.raises(SystemExit):
            main(wrong)
    with pytest.raises(SystemExit):
        main(["--set", "ping_interval=soon"])


def test_random_scenarios_are_drawn_from_the_seed_alone() -> None:
    first = random_scenario(5)
    random.seed(1)
    again = random_scenario(5)
    assert (first.nodes, first.schedule) == (again.nodes, again.schedule)
    assert random_scenario(6).schedule != first.schedule
