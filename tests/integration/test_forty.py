"""Forty Kamailios on one machine: more than a C module's list holds."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.kamailio import Bed, CNode, PythonNode, wait_for, whole

COUNT = 40
#: Whom it hits, none of them the notification node.
LEAVES, DIE = 17, (5, 23, 38)
AWAY = ("dmq:peer-down", "dmq:peer-disabled")


def make(bed: Bed, contact: str = "sip:127.0.1.1:5060") -> list[PythonNode]:
    nodes = []
    for number in range(COUNT):
        node = bed.python(
            f"127.0.1.{number + 1}",
            contact if number or contact != "sip:127.0.1.1:5060" else "",
            children=1,
            before="#!define DMQ_KEEP_BUFFERS",
            defines={"once_memory": 256 * 1024},
        )
        node.shm_mb, node.pkg_mb = 8, 4
        nodes.append(node)
    return nodes


def losses(watchers: Sequence[PythonNode], since: float) -> dict[str, dict[str, float]]:
    """uri -> watcher -> when it was told that this one of them is away."""
    uris = {node.uri for node in watchers}
    found: dict[str, dict[str, float]] = {}
    for watcher in watchers:
        for event in watcher.events("event"):
            is_new = event["time"] >= since and event["node"] in uris
            if is_new and event["name"] in AWAY:
                found.setdefault(event["node"], {}).setdefault(watcher.uri, event["time"])
    return found


def known_everywhere(nodes: Sequence[PythonNode], gone: PythonNode, since: float) -> float:
    """Seconds until all others were told that a node is away; none of them was taken for it."""
    wait_for(
        lambda: len(losses(nodes, since).get(gone.uri, {})) == len(nodes) - 1,
        20,
        lambda: f"{gone.uri} is away for all: {losses(nodes, since)}",
    )
    found = losses(nodes, since)
    assert list(found) == [gone.uri], "nobody else was taken for away"
    return max(found[gone.uri].values()) - since


@pytest.mark.timeout(300)
def test_forty_nodes(bed: Bed) -> None:
    nodes = make(bed)
    began = time.time()
    nodes[0].start()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda node: node.start(), nodes[1:]))
    started = time.time()
    wait_for(whole(*nodes), 10, "all list all")
    joined = time.time()
    print(f"started in {started - began:.1f} s, whole {joined - started:.1f} s later")

    time.sleep(20)
    assert losses(nodes, began) == {}, "nobody was taken for dead"
    assert whole(*nodes)()

    before = time.time()
    nodes[LEAVES].stop()
    seconds = known_everywhere(nodes, nodes[LEAVES], before)
    print(f"a leave is known everywhere after {seconds:.2f} s")
    assert seconds < 1
    left = [node for node in nodes if node is not nodes[LEAVES]]

    seen = []
    for number in DIE:
        victim = nodes[number]
        before = time.time()
        victim.kill()
        seen.append(known_everywhere(left, victim, before))
        left.remove(victim)
    print(f"a death is known everywhere after {', '.join(f'{s:.1f}' for s in seen)} s")
    assert statistics.median(seen) < 8
    assert max(seen) < 10
    wait_for(whole(*left), 5, "the living list each other")

    for number in (LEAVES, *DIE):
        nodes[number].start()
    wait_for(whole(*nodes), 10, "all list all again")

    c = bed.c("127.0.1.200", nodes[0].uri, ping_interval=5)
    c.start()
    passed_on(c, nodes)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("contact", ["a Python node", "the C node"])
def test_a_c_node_that_was_there_before_forty_goes_on(bed: Bed, contact: str) -> None:
    """They come in any order, and each could be the one too many for it."""
    c = bed.c("127.0.1.200", "sip:127.0.1.1:5060", ping_interval=5)
    nodes = make(bed, c.uri if contact == "the C node" else "sip:127.0.1.1:5060")
    nodes[0].start()
    c.start()
    order = nodes[1:]
    random.Random(1).shuffle(order)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda node: node.start(), order))
    passed_on(c, nodes)


def passed_on(c: CNode, nodes: Sequence[PythonNode]) -> None:
    """What a C node broadcasts reaches each Python node once, also those of whom it cannot know."""
    everyone = {c.uri, *(node.uri for node in nodes)}
    wait_for(lambda: all(node.active() == everyone for node in nodes), 15, "all list all and it")
    seen: list[tuple[float, set[str]]] = []

    def settled() -> bool:
        """It has known the same nodes for longer than a ping takes to tell all of them so."""
        known = c.active() - {c.uri}
        if not seen or seen[-1][1] != known:
            seen.append((time.monotonic(), known))
        return len(known) > 15 and time.monotonic() - seen[-1][0] > 7

    wait_for(settled, 60, lambda: f"the C node knows {seen[-1]}")
    known = seen[-1][1]
    assert len(known) < COUNT
    print(f"the C node knows {len(known)} of {COUNT}")
    bodies = [f"from c {number}" for number in range(3)]
    for body in bodies:
        assert c.bcast(body.encode()) == 200

    def heard(node: PythonNode) -> list[str]:
        found = (bytes.fromhex(event["body"]).decode() for event in node.events("message"))
        return sorted(body for body in found if body in bodies)

    wait_for(
        lambda: all(set(heard(node)) == set(bodies) for node in nodes),
        10,
        lambda: {node.uri: heard(node) for node in nodes if set(heard(node)) != set(bodies)},
    )
    assert all(heard(node) == bodies for node in nodes), "each once"
    relayed = sum(node.counters()["relayed"] for node in nodes)
    assert relayed == len(bodies) * (COUNT - len(known))
