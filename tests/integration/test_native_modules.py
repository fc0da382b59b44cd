"""usrloc, dialog and presence of Debian's packages on kemi_dmq without dmq.so."""

from __future__ import annotations

import pytest

from tests.support.c_modules import (
    BIND,
    DIALOG,
    PRESENCE,
    ROUTES,
    USRLOC,
    AnyNode,
    call,
    contacts,
    dialogs,
    publish,
    published,
    register,
)
from tests.support.kamailio import SCRIPT, Bed, PythonNode, wait_for, whole
from tests.support.sip import SipSocket

A, B = "127.0.0.2", "127.0.0.3"
NOTIFY = f"sip:{A}:5060"
#: The one that is given something, and the one that it must reach.
PAIRS = [("python", "c"), ("c", "python"), ("python", "python")]
pairs = pytest.mark.parametrize(("first", "second"), PAIRS, ids=[f"{x} to {y}" for x, y in PAIRS])


def node(bed: Bed, kind: str, address: str, modules: str, notify: str = "") -> AnyNode:
    if kind == "c":
        return bed.c(address, notify, before=modules)
    script = SCRIPT.read_text() + ROUTES
    return bed.python(address, notify, defines=BIND, after=modules, script=script)


def check(*nodes: AnyNode) -> None:
    for each in nodes:
        if isinstance(each, PythonNode):
            counters = each.counters()
            assert counters["native_errors"] == counters["callback_errors"] == 0
            assert counters["send_failures"] == counters["user_errors"] == 0
            assert each.stop() < 2


@pairs
def test_a_registration_on_one_node_is_found_on_the_other(
    bed: Bed, first: str, second: str
) -> None:
    a, b = node(bed, first, A, USRLOC), node(bed, second, B, USRLOC, NOTIFY)
    a.start()
    b.start()
    wait_for(whole(a, b), 3)
    with SipSocket() as sip:
        register(sip, A, "alice", 600)
        wait_for(lambda: contacts(b, "alice") == [f"sip:alice@{sip.name}"])
        register(sip, A, "alice", 0)
        wait_for(lambda: not contacts(b, "alice"))
        # What is registered while a node is away it gets when it is back.
        b.stop()
        register(sip, A, "bob", 600)
        b.start()
        wait_for(lambda: contacts(b, "bob") == [f"sip:bob@{sip.name}"], 12)
    check(a, b)


@pairs
def test_a_call_through_one_node_is_known_to_the_other(bed: Bed, first: str, second: str) -> None:
    a, b = node(bed, first, A, DIALOG), node(bed, second, B, DIALOG, NOTIFY)
    a.start()
    b.start()
    wait_for(whole(a, b), 3)
    with call(A) as call_id:
        wait_for(lambda: dialogs(a) == {call_id: "4"})
        wait_for(lambda: dialogs(b) == {call_id: "4"}, why="the confirmed call")
        if (first, second) == ("python", "python"):
            with call(B) as other:
                wait_for(lambda: dialogs(a) == dialogs(b) == {call_id: "4", other: "4"})
            wait_for(lambda: dialogs(a).get(other) != "4" and dialogs(b).get(other) != "4")
        # A node that comes anew asks for the calls that there are.
        b.stop()
        b.start()
        wait_for(lambda: dialogs(b).get(call_id) == "4", 12)
    wait_for(lambda: dialogs(b).get(call_id) != "4", why="the call has ended")
    check(a, b)


@pairs
def test_presence_is_published_on_one_node_and_known_on_the_other(
    bed: Bed, first: str, second: str
) -> None:
    a, b = node(bed, first, A, PRESENCE), node(bed, second, B, PRESENCE, NOTIFY)
    a.start()
    b.start()
    wait_for(whole(a, b), 3)
    with SipSocket() as sip:
        publish(sip, A, "alice")
    wait_for(lambda: "alice" in published(b), why="B knows alice")
    check(a, b)
