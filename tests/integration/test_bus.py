"""Joining, finding each other, and messages: Python nodes and C nodes on one bus."""

from __future__ import annotations

import itertools
import time

import pytest

from tests.support.kamailio import BOTH_ROUTINGS, Bed, CNode, PythonNode, wait_for, whole

pytestmark = BOTH_ROUTINGS
A, B, C = "127.0.0.2", "127.0.0.3", "127.0.0.4"
NOTIFY = f"sip:{A}:5060"


@pytest.mark.parametrize("order", list(itertools.permutations("abc")), ids="".join)
def test_all_nodes_find_each_other_in_any_order_of_start(bed: Bed, order: tuple[str, ...]) -> None:
    nodes: dict[str, PythonNode | CNode] = {
        "a": bed.python(A),
        "b": bed.python(B, NOTIFY),
        "c": bed.c(C, NOTIFY),
    }
    for name in order:
        nodes[name].start()
    # A C node asks its notification address once, then at its next ping.
    seconds = 12 if order.index("c") < order.index("a") else 2
    before = time.monotonic()
    wait_for(whole(*nodes.values()), seconds, "all three list all three")
    print(f"whole after {time.monotonic() - before:.2f} s")


def test_python_nodes_find_a_c_node_as_notification_node(bed: Bed) -> None:
    nodes = (bed.c(A), bed.python(B, NOTIFY), bed.python(C, NOTIFY))
    for node in nodes:
        node.start()
    wait_for(whole(*nodes), 2, "all three list all three")


def test_broadcast_and_single_messages_both_ways(bed: Bed) -> None:
    a, b, c = bed.python(A), bed.python(B, NOTIFY), bed.c(C, NOTIFY)
    for node in (a, b, c):
        node.start()
    wait_for(whole(a, b, c), 2)
    assert a.command("bcast", body="from a") == 0
    assert c.bcast(b"from c") == 200
    assert b.command("send", body="to c", to=c.uri) == 0
    assert b.command("send", body="to a", to=a.uri) == 0
    assert c.send(b"c to a", a.uri) == 200
    wait_for(lambda: sorted(c.got()) == ["from a", "to c"], why="what C got")
    heard = {"to a", "from c", "c to a"}
    wait_for(
        lambda: {bytes.fromhex(e["body"]).decode() for e in a.events("message")} == heard,
        why="what A got",
    )
    wait_for(lambda: len(b.events("message")) == 2, why="what B got")
    assert {e["node"] for e in b.events("message")} == {a.uri, c.uri}
