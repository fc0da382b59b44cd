from counter import Counter

from kemi_dmq.testing.simulator import Simulator

A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"


def bus(seed=1, **network):
    simulator = Simulator(seed, **network)
    for address in (A, B, C):
        simulator.add_node(
            address,
            notification=[A],
            script=lambda node: Counter(node.api, {}, node.wall),
        )
    assert simulator.run_until(simulator.whole, 10)
    simulator.run(1)
    return simulator


def values(simulator):
    return [simulator.node(address).script.value() for address in (A, B, C)]


def test_three_nodes_count_together():
    simulator = bus()
    simulator.node(A).script.add()
    simulator.node(B).script.add(10)
    simulator.run(0.1)
    assert values(simulator) == [11, 11, 11]
    assert simulator.errors() == []


def test_a_cut_loses_nothing():
    simulator = bus()
    simulator.partition([A], [B, C])
    simulator.run(60)
    simulator.node(A).script.add()
    simulator.node(C).script.add(10)
    simulator.run(0.1)
    assert values(simulator) == [1, 10, 10]
    simulator.heal()
    simulator.run(20)
    assert values(simulator) == [11, 11, 11]


def test_a_node_that_starts_again_learns_what_it_has_missed():
    simulator = bus()
    simulator.node(C).script.add()
    simulator.run(1)
    simulator.kill(C)
    simulator.node(B).script.add(10)
    simulator.run(60)
    simulator.restart(C)
    simulator.run(5)
    simulator.node(C).script.add(100)
    simulator.run(5)
    assert values(simulator) == [111, 111, 111]


def test_nothing_is_counted_twice_or_lost_on_a_bad_network():
    for seed in range(20):
        simulator = bus(seed, loss=0.2, duplication=0.2, reordering=0.2)
        for number in range(30):
            simulator.node((A, B, C)[number % 3]).script.add()
            simulator.run(0.1)
        simulator.calm()
        simulator.run(30)
        assert values(simulator) == [30, 30, 30], "\n".join(simulator.transcript)
