"""Nodes that come and go, on each generation of Kamailio and on mixed buses."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.kamailio import wait_for

from .conftest import Clock
from .containers import Bus, CContainer, Container, PythonContainer

Measured = Callable[[str, float], None]

#: variant -> the suites of three Python nodes and those of the C nodes
VARIANTS = {
    "bookworm": (("bookworm",) * 3, ("bookworm",)),
    "trixie": (("trixie",) * 3, ("trixie",)),
    "forky": (("forky",) * 3, ("forky",)),
    # C nodes of 5.6 and 6.1 on one bus do not know each other's statuses: ours stand between.
    "mixed": (("bookworm", "trixie", "forky"), ("bookworm", "forky")),
}


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def whole(nodes: list[Any]) -> bool:
    everyone = {node.uri for node in nodes}
    return all(node.active() == everyone for node in nodes)


def make(
    bus: Bus, variant: str, **environment: str
) -> tuple[list[PythonContainer], list[CContainer]]:
    """Three Python nodes, of which the first is the notification node, and the C nodes."""
    suites, c_suites = VARIANTS[variant]
    notify = {"DMQ_NOTIFICATION_ADDRESS": "sip:a:5060", **environment}
    pythons = [bus.python("a", suites[0], **environment)]
    pythons += [bus.python(n, s, **notify) for n, s in zip("bc", suites[1:], strict=True)]
    cs = [bus.c(f"x{number}", suite, **notify) for number, suite in enumerate(c_suites)]
    return pythons, cs


def start(nodes: list[Any]) -> None:
    for node in nodes:
        node.start()
    for node in nodes:
        node.wait_up()


def test_nodes_join_when_the_notification_node_starts_first(
    bus: Bus, variant: str, measured: Measured
) -> None:
    pythons, cs = make(bus, variant)
    nodes = [*pythons, *cs]
    start([*nodes])
    clock = Clock()
    wait_for(lambda: whole(nodes), 5, "all list all")
    measured("join, notification node first", clock.seconds)


def test_nodes_join_when_the_notification_node_starts_last(
    bus: Bus, variant: str, measured: Measured
) -> None:
    suites, _ = VARIANTS[variant]
    # Its name must resolve when the others start, so it has been there and has gone.
    a = bus.python("a", suites[0])
    a.start()
    a.wait_up()
    a.stop()
    others = [
        bus.python(name, suite, DMQ_NOTIFICATION_ADDRESS="sip:a:5060")
        for name, suite in zip("bc", suites[1:], strict=True)
    ]
    start(others)
    a.start()
    a.wait_up()
    clock = Clock()
    wait_for(lambda: whole([a, *others]), 3, "all list all")
    measured("join, notification node last", clock.seconds)


def test_six_nodes_at_once(bus: Bus, variant: str, measured: Measured) -> None:
    suites, c_suites = VARIANTS[variant]
    notify = {"DMQ_NOTIFICATION_ADDRESS": "sip:a:5060"}
    nodes: list[Any] = [bus.python("a", suites[0])]
    nodes += [bus.python(n, suites[i % 3], **notify) for i, n in enumerate(("b", "c", "d", "e"), 1)]
    nodes.append(bus.c("x0", c_suites[0], **notify))
    nodes[0].start()
    nodes[0].wait_up()
    threads = [threading.Thread(target=node.start) for node in nodes[1:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for node in nodes:
        node.wait_up()
    clock = Clock()
    wait_for(lambda: whole(nodes), 5, "all list all")
    measured("join, six at once", clock.seconds)


def test_leave_return_with_the_same_address_and_with_another(
    bus: Bus, variant: str, measured: Measured
) -> None:
    pythons, cs = make(bus, variant, DMQ_PING_INTERVAL="60")
    nodes = [*pythons, *cs]
    start(nodes)
    wait_for(lambda: whole(nodes), 5)
    b = pythons[1]
    rest = [node for node in nodes if node is not b]
    clock = Clock()
    assert b.stop() < 2.5, "the engine of containers needs some of this time itself"
    wait_for(lambda: whole(rest), 2, "B is gone for all")
    measured("leave (SIGTERM)", clock.seconds)
    time.sleep(max(0.0, 2 - clock.seconds))  # away for two seconds
    b.start()
    b.wait_up()
    clock = Clock()
    wait_for(lambda: whole(nodes), 4, "B is back for all")
    measured("return within 2 s", clock.seconds)

    old = b.uri
    b.stop()
    b.remove()
    bus.take_an_address(b.suite)
    b.start()
    b.wait_up()
    assert b.uri != old
    clock = Clock()
    wait_for(lambda: whole(nodes), 4, "the new address is there and the old one is not")
    measured("return with another address", clock.seconds)


def test_kill_is_noticed_and_a_restart_is_seen(bus: Bus, variant: str, measured: Measured) -> None:
    pythons, cs = make(bus, variant)
    nodes = [*pythons, *cs]
    start(nodes)
    wait_for(lambda: whole(nodes), 5)
    victim = pythons[2]
    victim.kill()
    clock = Clock()
    others = [node for node in pythons if node is not victim]
    wait_for(lambda: all(victim.uri not in n.active() for n in others), 20, "noticed by pings")
    measured("death noticed by Python nodes (kill -9, ping_interval 5)", clock.seconds)
    victim.start()
    victim.wait_up()
    clock = Clock()
    # A C node has it as active still, or takes it back at its own next ping.
    wait_for(lambda: all(n.active() >= {m.uri for m in pythons} for n in pythons), 4)
    measured("return after kill -9", clock.seconds)
    wait_for(lambda: whole(nodes), 45, "also in the eyes of C nodes")


def test_a_node_that_was_only_slow_is_back_by_itself(
    bus: Bus, variant: str, measured: Measured
) -> None:
    pythons, cs = make(bus, variant)
    nodes = [*pythons, *cs]
    start(nodes)
    wait_for(lambda: whole(nodes), 5)
    slow = pythons[1]
    slow.pause()
    time.sleep(20)  # this long is what the test is about
    slow.unpause()
    clock = Clock()
    wait_for(lambda: all(n.active() >= {m.uri for m in pythons} for n in pythons), 15)
    measured("return after 20 s of pause", clock.seconds)
    # C nodes: they had it as active all the time, or ping it.
    wait_for(lambda: whole(nodes), 45, "also in the eyes of C nodes")
    assert len(slow.events("init")) >= 1


class Stream:
    """Broadcasts from a Python node and from a C node, at a steady rate."""

    def __init__(self, python: PythonContainer, c: CContainer) -> None:
        self.python, self.c = python, c
        #: when, who sent it, the body
        self.sent: list[tuple[float, str, str]] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(python.name, self._python)),
            threading.Thread(target=self._run, args=(c.name, self._c)),
        ]

    def _python(self, body: str) -> bool:
        try:
            return bool(self.python.command("bcast", 1.0, body=body) == 0)
        except TimeoutError:  # it is being restarted
            return False

    def _c(self, body: str) -> bool:
        return self.c.bcast(body) == 200

    def _run(self, sender: str, send: Callable[[str], bool]) -> None:
        number = 0
        while not self._stop.wait(0.05):
            number += 1
            body = f"{sender}-{number}"
            before = time.time()
            if send(body):
                self.sent.append((before, sender, body))

    def __enter__(self) -> Stream:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_rolling_restart_under_broadcasts(bus: Bus, variant: str, measured: Measured) -> None:
    """Who is up gets every message sent while up, none twice."""
    pythons, cs = make(bus, variant)
    sender = bus.python("s", VARIANTS[variant][0][0], DMQ_NOTIFICATION_ADDRESS="sip:a:5060")
    pythons.append(sender)
    nodes: list[Any] = [*pythons, *cs]
    start(nodes)
    wait_for(lambda: whole(nodes), 5)
    # name -> the times from when on and until when it was up and the bus whole
    up: dict[str, list[list[float]]] = {node.name: [[0.0, float("inf")]] for node in nodes}
    with Stream(sender, cs[0]) as stream:
        for node in nodes:
            up[node.name][-1][1] = time.time() - 0.2
            node.stop()
            node.start()
            node.wait_up()
            wait_for(lambda: whole(nodes), 8, f"{node.name} is back")
            up[node.name].append([time.time() + 0.1, float("inf")])
            seen = len(stream.sent)
            wait_for(lambda seen=seen: len(stream.sent) > seen + 20, 10)  # type: ignore[misc]

    def was_up(name: str, when: float) -> bool:
        return any(begin <= when <= end for begin, end in up[name])

    due = [(when, who, body) for when, who, body in stream.sent if was_up(who, when)]
    assert len({who for _, who, _ in due}) == 2 and len(due) > 50

    def missed() -> list[tuple[str, str]]:
        heard = {node.name: set(node.heard()) for node in nodes}
        return [
            (node.name, body)
            for node in nodes
            for when, who, body in due
            if who != node.name and was_up(node.name, when) and body not in heard[node.name]
        ]

    wait_for(lambda: not missed(), 10, f"nobody has missed a message: {missed()[:5]}")
    for node in pythons:
        assert len(node.heard()) == len(set(node.heard())), f"{node.name} got one twice"


def test_reload_under_a_stream_of_messages(bus: Bus, variant: str, measured: Measured) -> None:
    pythons, cs = make(bus, variant)
    nodes: list[Container] = [*pythons, *cs]
    start(nodes)
    wait_for(lambda: whole(nodes), 5)
    target, sender = pythons[1], pythons[2]
    with Stream(sender, cs[0]) as stream:
        wait_for(lambda: len(target.heard()) > 20, 10)
        script = target.script()
        script.write_text(script.read_text().replace("VERSION = 1 ", "VERSION = 2 "))
        target.kamcmd("app_python.reload")
        clock = Clock()
        wait_for(lambda: target.events("message")[-1]["version"] == 2, 1, "the new script answers")
        measured("reload", clock.seconds)
        count = len(target.heard())
        wait_for(lambda: len(target.heard()) > count + 20, 10)
    bodies = [body for _, _, body in stream.sent]
    wait_for(lambda: set(bodies) <= set(target.heard()), 5, "none lost")
    assert len(target.heard()) == len(set(target.heard())), "none twice"
