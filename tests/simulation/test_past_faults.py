"""What once went wrong between Python nodes."""

from __future__ import annotations

import pytest

from kemi_dmq.gossip import fingerprint, rumour_line
from kemi_dmq.testing.simulator import Simulator
from kemi_dmq.wire import Agent, SipUri, WireError, parse_line, parse_uri

from .test_swim import bus_of, hosts


@pytest.mark.parametrize("seed", range(4))
def test_the_death_of_a_node_that_has_just_come_is_seen_as_soon_as_others(seed: int) -> None:
    simulator = bus_of(50, seed)
    simulator.records = False
    simulator.run(1 + 45 * seed / 4)
    simulator.add_node("10.1.0.1", [hosts(50)[0]])
    assert simulator.run_until(simulator.whole, 10)
    simulator.run(2)
    simulator.kill("10.1.0.1")
    assert simulator.run_until(simulator.whole, 10)


def test_different_lists_have_different_digests() -> None:
    def digest(*nodes: tuple[int, int]) -> int:
        value = 0
        for host, incarnation in nodes:
            value ^= fingerprint(parse_uri(f"sip:10.0.0.{host}:5060"), incarnation)
        return value

    now = 1_764_057_600_123
    assert digest((4, now), (5, now), (6, now), (7, now)) != digest()
    # Two nodes that have each refuted once.
    assert digest((1, now), (2, now + 330)) != digest((1, now + 1), (2, now + 331))
    # Both halves of the 64 bits say the same.
    value = digest((1, now), (2, now))
    assert value >> 32 != value & 0xFFFFFFFF


def test_no_incarnation_makes_a_node_unreadable() -> None:
    simulator = bus_of(5, 1)
    victim, helper = hosts(5)[2], simulator.python_node(hosts(5)[0])
    line = parse_line(f"sip:{victim}:5060;status=active;inc=999999999999999999;state=suspect;by=1")
    helper.engine.membership.on_notification(
        parse_uri(f"sip:{hosts(5)[1]}:5060"), [line], Agent(python=True), 1, helper.monotonic()
    )
    helper.work_off()
    simulator.run(60)
    assert sum(simulator.python_node(host).counters["bad_lines"] for host in hosts(5)) == 0


def test_pods_behind_a_name_are_forgotten() -> None:
    simulator = Simulator(1, records=False)
    pods = hosts(3)
    simulator.names["bus.example"] = list(pods)
    for host in pods:
        simulator.add_node(host, ["bus.example"], multi_notify=1)
    assert simulator.run_until(simulator.whole, 10)
    simulator.run(5)
    gone = pods.pop(0)
    simulator.leave(gone)
    pods.append("10.0.0.9")
    simulator.names["bus.example"] = list(pods)
    simulator.add_node("10.0.0.9", ["bus.example"], multi_notify=1)
    simulator.run(2000)
    assert gone not in simulator.nodes_seen_by(pods[0])


def test_a_node_that_speaks_and_hears_nothing_does_not_come_and_go() -> None:
    simulator = bus_of(4, 1)
    simulator.partition_one_way(hosts(4)[1:], hosts(4)[:1])
    node = simulator.python_node(hosts(4)[1])
    already = len(node.told)
    simulator.run(60)
    assert len(node.told) - already <= 2, node.told[already:]


def test_a_suspicion_of_many_is_not_read_as_alive() -> None:
    marks = [f"{n:04x}" for n in range(60)]
    with pytest.raises(WireError):
        parse_line(rumour_line(SipUri("10.0.0.1", 5060), 5, "suspect", marks))


def test_a_c_node_that_one_node_cannot_reach_does_not_come_and_go_there() -> None:
    """It was forgotten after reconnect_timeout, and learned anew from the others as if it came."""
    simulator = Simulator(1, records=False)
    apart, others = "10.0.0.1", ["10.0.0.2", "10.0.0.3"]
    for host in (apart, *others):
        simulator.add_node(host, [others[0]], reconnect_timeout=120)
    simulator.add_node("10.0.0.9", [others[0]], python=False)
    assert simulator.run_until(simulator.whole, 15)
    simulator.partition([apart], ["10.0.0.9"])
    simulator.run(120)
    node = simulator.python_node(apart)
    assert simulator.nodes_seen_by(others[0])["10.0.0.9"] == "active"
    already = len(node.told)
    simulator.run(600)
    assert node.told[already:] == []
    simulator.heal()
    simulator.run(30)
    assert simulator.nodes_seen_by(apart)["10.0.0.9"] == "active"


def test_a_suspicion_does_not_bring_the_words_of_all_upon_the_suspect() -> None:
    """Each of the others told it that it was suspected: N datagrams for each suspicion."""
    simulator = bus_of(200, 1)
    victim = simulator.python_node(hosts(200)[5])
    simulator.run(5)
    start = simulator.now
    simulator.pause(hosts(200)[5], 3.2)
    simulator.run(8)
    suspected = [
        record
        for record in simulator.sent(since=start)
        if record.to == victim.uri.key and "state=suspect" in record.text
    ]
    assert victim.engine.membership.incarnation > 1
    assert 1 <= len(suspected) <= 80, len(suspected)


def test_who_was_forgotten_in_a_long_cut_comes_back_by_the_notification_address() -> None:
    """Also where its name has another address by then."""
    simulator = Simulator(2, records=False)
    simulator.names["bus.example"] = ["10.0.0.1"]
    for host in ("10.0.0.1", "10.0.0.2", "10.0.0.3"):
        simulator.add_node(host, ["bus.example"], reconnect_timeout=60)
    assert simulator.run_until(simulator.whole, 10)
    simulator.partition(["10.0.0.1", "10.0.0.2", "10.0.0.9"], ["10.0.0.3"])
    simulator.run(120)
    assert "10.0.0.3" not in simulator.nodes_seen_by("10.0.0.2")
    assert "10.0.0.2" not in simulator.nodes_seen_by("10.0.0.3")
    # The notification node moves while one cannot see it.
    simulator.leave("10.0.0.1")
    simulator.names["bus.example"] = ["10.0.0.9"]
    simulator.add_node("10.0.0.9", ["bus.example"], reconnect_timeout=60)
    simulator.run(30)
    others = [simulator.python_node(host) for host in ("10.0.0.2", "10.0.0.3")]
    already = [len(node.told) for node in others]
    simulator.heal()
    assert simulator.run_until(simulator.whole, 15)
    simulator.run(1)
    told = [node.told[count:] for node, count in zip(others, already, strict=True)]
    assert ("dmq:peer-up", "10.0.0.3") in told[0] and ("dmq:peer-up", "10.0.0.2") in told[1]


def test_what_a_c_node_broadcasts_is_passed_on_by_another_when_the_one_that_did_so_dies() -> None:
    hosts = [f"10.0.1.{n}" for n in range(1, 41)]
    simulator = Simulator(1, records=False)
    simulator.add_node("10.0.2.1", [hosts[0]], python=False, version=(5, 6))
    for host in hosts:
        simulator.add_node(host, hosts[:1])
    simulator.run(20)

    def relaying() -> list[str]:
        alive = [node for host in hosts if (node := simulator.python_node(host)).alive]
        return [n.uri.host for n in alive if any(n.engine.membership.relays().values())]

    (first,) = relaying()
    simulator.kill(first)
    simulator.run(20)
    (second,) = relaying()
    assert second != first
