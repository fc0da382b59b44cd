"""Ordered messages and such with a deadline, on each generation of Kamailio and between them."""

from __future__ import annotations

import pytest

from tests.support.kamailio import ROOT, wait_for

from .containers import SUITES, Bus


@pytest.mark.parametrize(
    ("sender", "receiver"),
    [*((suite, suite) for suite in SUITES), ("bookworm", "forky"), ("forky", "bookworm")],
)
def test_messages_are_kept_in_order_and_arrive_exactly(
    bus: Bus, sender: str, receiver: str
) -> None:
    bus.volumes.append(f"{ROOT / 'kemi_dmq'}:/checkout/kemi_dmq:ro")  # this checkout's
    more = {"PYTHONPATH": "/checkout", "DMQ_NUM_WORKERS": "2"}
    a = bus.python("a", sender, **more)
    b = bus.python("b", receiver, DMQ_NOTIFICATION_ADDRESS=a.uri, **more)
    c = bus.c("x", receiver, DMQ_NOTIFICATION_ADDRESS=a.uri)
    for node in (a, b, c):
        node.start()
        node.wait_up()
    everyone = {a.uri, b.uri, c.uri}
    wait_for(lambda: all(n.active() == everyone for n in (a, b, c)), 20, "all list all")
    for number in range(20):
        assert a.command("bcast", body=f"n{number}", ordered=True, param=number) == 0
    expected = [f"n{number}" for number in range(20)]
    wait_for(lambda: b.heard() == expected and c.heard() == expected)
    wait_for(lambda: len(a.events("reply", outcome="answered", code=200)) == 40)

    body = bytes(range(256)).hex()
    assert a.command("send", hex=body, to=b.uri, ordered=True) == 0
    wait_for(lambda: b.events("message")[-1]["body"] == body)

    b.stop()
    wait_for(lambda: b.uri not in a.active(), 5)
    for number in range(10):
        assert (
            a.command("send", body=f"late{number}", to=b.uri, ordered=True, deadline=60, param=1)
            == 0
        )
    b.start()
    b.wait_up()
    wait_for(lambda: len(a.events("reply", param=1, outcome="answered")) >= 11, 15)
    late = [e["body"] for e in b.events("message")][21:]
    assert [bytes.fromhex(text).decode() for text in late] == [f"late{n}" for n in range(10)]
