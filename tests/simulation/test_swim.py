"""How soon a death is seen, who is taken for dead, what it costs, and how a bus heals."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest

from kemi_dmq.settings import check
from kemi_dmq.swim import TRANSITIONS, Cause, State
from kemi_dmq.testing.simulator import Simulator


def hosts(count: int) -> list[str]:
    return [f"10.0.{n // 200}.{n % 200 + 1}" for n in range(count)]


def bus_of(count: int, seed: int) -> Simulator:
    """Nodes that know each other and have been at it for some seconds."""
    simulator = Simulator(seed)
    simulator.form(hosts(count))
    simulator.run(3 + seed % 10 / 7)
    assert simulator.whole()
    return simulator


def ups_and_downs(simulator: Simulator, since: float) -> list[str]:
    told = simulator.lines(datagrams=False, since=since)
    return [line for line in told if "dmq:peer-" in line]


def seconds_until_down(count: int, seed: int) -> float:
    """Until all know of a death."""
    simulator = bus_of(count, seed)
    simulator.kill(hosts(count)[1 + seed % (count - 1)])
    died = simulator.now
    assert simulator.run_until(simulator.whole, 20), simulator.transcript[-40:]
    return simulator.now - died


# Detection


@pytest.mark.parametrize(("count", "median", "runs"), [(10, 5.0, 21), (50, 6.0, 11)])
def test_a_death_is_known_everywhere_within_seconds(count: int, median: float, runs: int) -> None:
    seen = [seconds_until_down(count, seed) for seed in range(runs)]
    assert statistics.median(seen) <= median, seen
    assert max(seen) <= 10, seen


def test_two_nodes_see_each_others_death() -> None:
    assert seconds_until_down(2, 1) < 6


def test_a_death_is_known_everywhere_also_at_ten_percent_loss() -> None:
    simulator = bus_of(20, 1)
    simulator.loss = 0.1
    simulator.kill(hosts(20)[7])
    assert simulator.run_until(simulator.whole, 15)


# False alarms


def disturbed(seed: int, disturb: Callable[[Simulator], None], seconds: float) -> list[str]:
    """What 50 nodes are told while one thing or another is wrong with them."""
    simulator = bus_of(50, seed)
    began = simulator.now
    disturb(simulator)
    for _ in range(int(seconds / 10)):
        simulator.run(10)
        if told := ups_and_downs(simulator, began):
            return told
        simulator.forget_before(simulator.now)
    assert simulator.whole()
    return []


def lossy(simulator: Simulator) -> None:
    simulator.loss = 0.1


@pytest.mark.parametrize("seed", [1, 2])
def test_nobody_is_taken_for_dead_in_ten_minutes_at_ten_percent_loss(seed: int) -> None:
    assert disturbed(seed, lossy, 600) == []


VICTIM = hosts(50)[5]


@pytest.mark.parametrize("seed", range(8))
def test_a_node_that_stands_still_for_three_seconds_is_not_taken_for_dead(seed: int) -> None:
    assert disturbed(seed, lambda simulator: simulator.pause(VICTIM, 3.0), 20) == []


@pytest.mark.parametrize("seed", [1, 2])
def test_a_slow_node_is_not_taken_for_dead_and_takes_nobody_for_dead(seed: int) -> None:
    assert disturbed(seed, lambda simulator: simulator.slow(VICTIM, 0.05), 120) == []


@pytest.mark.parametrize("seed", [1, 2])
def test_a_node_behind_a_slow_link_is_not_taken_for_dead(seed: int) -> None:
    def slow_link(simulator: Simulator) -> None:
        simulator.link(VICTIM, None, latency=(0.4, 0.5))
        simulator.link(None, VICTIM, latency=(0.4, 0.5))

    assert disturbed(seed, slow_link, 120) == []


def test_a_node_that_stands_still_doubts_itself_first() -> None:
    simulator = bus_of(10, 3)
    simulator.pause(VICTIM, 2.5)
    simulator.run(2.6)
    health = simulator.python_node(VICTIM).engine.membership.health
    assert health > 0
    simulator.run(20)
    assert simulator.python_node(VICTIM).engine.membership.health == 0
    assert simulator.whole()


# Cost


def bytes_per_second(count: int, seconds: float = 10.0) -> float:
    """What a node of an idle bus sends in a second, on average."""
    simulator = bus_of(count, 1)
    simulator.run(20)  # what there was to tell has been told
    before = simulator.now
    simulator.run(seconds)
    sent = sum(len(record.text) for record in simulator.sent(since=before))
    return sent / count / seconds


def test_what_a_node_sends_does_not_grow_with_the_number_of_nodes() -> None:
    few, many = bytes_per_second(10), bytes_per_second(200)
    assert many < 1.1 * few
    assert few < 2500


@pytest.mark.timeout(400)
def test_a_thousand_nodes() -> None:
    """They keep quiet, learn of a death and of a newcomer."""
    simulator = bus_of(1000, 1)
    before = simulator.now
    simulator.run(2)
    assert len(list(simulator.sent(since=before))) < 1000 * 2 * 3
    simulator.records = False
    everybody = hosts(1000)
    simulator.kill(everybody[7])
    assert simulator.run_until(simulator.whole, 15)
    simulator.add_node("10.1.0.1", [everybody[0]])
    assert simulator.run_until(simulator.whole, 2)


# Healing


@pytest.mark.parametrize("count", [4, 10, 30])
@pytest.mark.parametrize("seconds", [8.0, 90.0])
def test_after_a_cut_in_half_all_lists_are_whole_again(count: int, seconds: float) -> None:
    simulator = bus_of(count, 1)
    everybody = hosts(count)
    halves = everybody[: count // 2], everybody[count // 2 :]
    simulator.partition(*halves)
    simulator.run(seconds)
    for half in halves:
        assert set(simulator.nodes_seen_by(half[0])) >= set(half)
    if seconds > 20:
        assert all(
            {h for h, status in simulator.nodes_seen_by(node).items() if status == "active"}
            == set(half)
            for half in halves
            for node in half
        )
    simulator.heal()
    assert simulator.run_until(simulator.whole, 15)


def test_a_cut_that_heals_takes_nobody_for_dead_who_was_seen_all_the_time() -> None:
    """The lists of the two sides name each other's nodes as down: that is no reason."""
    simulator = bus_of(10, 1)
    left, right = hosts(10)[:5], hosts(10)[5:]
    simulator.partition(left, right)
    simulator.run(60)
    simulator.heal()
    healed = simulator.now
    assert simulator.run_until(simulator.whole, 15)
    simulator.run(30)
    for line in ups_and_downs(simulator, healed):
        assert "dmq:peer-up" in line, line
    assert simulator.whole()


def test_a_node_that_left_is_not_revived_by_what_was_on_its_way() -> None:
    simulator = bus_of(5, 1)
    leaver = hosts(5)[3]
    others = [host for host in hosts(5) if host != leaver]
    simulator.link(leaver, None, reordering=0.5)
    simulator.leave(leaver)
    left = simulator.now
    simulator.run(30)
    told = ups_and_downs(simulator, left)
    assert not [line for line in told if "peer-up" in line]
    assert all(simulator.nodes_seen_by(host).get(leaver) != "active" for host in others)


def test_a_node_whose_clock_was_set_back_comes_back_all_the_same() -> None:
    simulator = bus_of(5, 1)
    host = hosts(5)[2]
    simulator.skew(host, wall=-3600.0)
    simulator.kill(host)
    assert simulator.run_until(simulator.whole, 15)
    simulator.restart(host)
    assert not simulator.whole()
    assert simulator.run_until(simulator.whole, 15)


# The rules


def test_the_table_of_transitions_has_an_end_and_a_way_back() -> None:
    for state in State:
        reached = {state}
        for _ in State:
            reached |= {new for (old, _), new in TRANSITIONS.items() if old in reached}
        assert reached == set(State), f"from {state} there is a way to all others"
    assert {cause for _, cause in TRANSITIONS} == set(Cause)


def test_the_defaults_leave_time_to_refute() -> None:
    """A node that stood still for 3 s can still refute: probe, then the shortest suspicion."""
    settings = check({"server_address": "sip:10.0.0.1:5060"})
    shortest = settings.probe_interval * (1 + settings.suspicion_mult) / 1000
    assert 3.3 < shortest < 4.5
