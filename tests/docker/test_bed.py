"""Nodes that come and go, on each generation of Kamailio and on mixed buses."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from tests.support.kamailio import wait_for

from .conftest import Clock
from .containers import AnyNode, Bus, CContainer, PythonContainer, docker

Measured = Callable[[str, float], None]

#: variant -> the suites of three Python nodes and those of the C nodes
VARIANTS = {
    "bookworm": (("bookworm",) * 3, ("bookworm",)),
    "trixie": (("trixie",) * 3, ("trixie",)),
    "forky": (("forky",) * 3, ("forky",)),
    # C nodes of 5.6 and 6.1 on one bus do not know each other's statuses: ours stand between.
    "mixed": (("bookworm", "trixie", "forky"), ("bookworm", "forky")),
}
#: What a C node needs to take back a node that it holds for dead, or to drop one: its transaction
#: times out after 30 s, and its next ping comes after 5 s.
C_PATIENCE = 45


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def whole(nodes: Sequence[AnyNode], watchers: Sequence[AnyNode] | None = None) -> bool:
    """Whether watchers (by default: nodes) list exactly the nodes as active."""
    everyone = {node.uri for node in nodes}
    return all(node.active() == everyone for node in (nodes if watchers is None else watchers))


def views(nodes: Sequence[AnyNode]) -> Callable[[], str]:
    return lambda: "; ".join(f"{n.name} {n.uri} sees {sorted(n.active())}" for n in nodes)


def make(
    bus: Bus, variant: str, **environment: str
) -> tuple[list[PythonContainer], list[CContainer]]:
    """Three Python nodes, of which the first is the notification node, and the C nodes."""
    suites, c_suites = VARIANTS[variant]
    a = bus.python("a", suites[0], **environment)
    # C nodes get it by address: with a name, C lists the notification node twice (5.6, 6.0) or
    # under the name only (6.1), and sends it each broadcast as often.
    named = {"DMQ_NOTIFICATION_ADDRESS": a.uri.replace(a.address, a.name)}
    if bus.ipv6 or a.transport != "udp":
        named = {"DMQ_NOTIFICATION_ADDRESS": a.uri}  # a name has an IPv4 address as well
    addressed = {"DMQ_NOTIFICATION_ADDRESS": a.uri}
    pythons = [
        a,
        *(
            bus.python(name, suite, **{**named, **environment})
            for name, suite in zip("bc", suites[1:], strict=True)
        ),
    ]
    cs = [
        bus.c(f"x{number}", suite, **{**addressed, **environment})
        for number, suite in enumerate(c_suites)
    ]
    return pythons, cs


def start(nodes: Sequence[AnyNode]) -> None:
    for node in nodes:
        node.start()
    for node in nodes:
        node.wait_up()


def become_whole(
    nodes: Sequence[AnyNode],
    clock: Clock,
    measured: Measured,
    what: str,
    seconds: float,
    c_seconds: float,
) -> None:
    """The Python nodes list all nodes, and so do the C nodes; notes both times."""
    pythons = [node for node in nodes if isinstance(node, PythonContainer)]
    wait_for(lambda: whole(nodes, pythons), seconds, views(nodes))
    measured(f"{what} | Python nodes", clock.seconds)
    wait_for(lambda: whole(nodes), max(0.5, c_seconds - clock.seconds), views(nodes))
    measured(f"{what} | all nodes", clock.seconds)


ORDERS = {
    "notification node first": "a b c x0 x1",
    "notification node last": "x0 x1 b c a",
    "C nodes first": "x0 x1 a b c",
}


@pytest.mark.parametrize("order", ORDERS)
def test_nodes_join_in_any_order(bus: Bus, variant: str, order: str, measured: Measured) -> None:
    pythons, cs = make(bus, variant)
    everyone: list[AnyNode] = [*pythons, *cs]
    nodes = {node.name: node for node in everyone}
    in_order = [nodes[name] for name in ORDERS[order].split() if name in nodes]
    start(in_order[:-1])
    last = in_order[-1]
    last.create()
    clock = Clock()
    last.start()
    # A C node asks again at its next ping only.
    patience = 8 if order == "notification node first" else 15
    become_whole(in_order, clock, measured, f"join, {order}", 8, patience)


def test_six_nodes_at_once(bus: Bus, variant: str, measured: Measured) -> None:
    pythons, cs = make(bus, variant)
    notify = {"DMQ_NOTIFICATION_ADDRESS": "sip:a:5060"}
    for name, suite in zip("de"[len(cs) - 1 :], VARIANTS[variant][0], strict=False):
        pythons.append(bus.python(name, suite, **notify))
    nodes: list[AnyNode] = [*pythons, *cs]
    assert len(nodes) == 6
    for node in nodes:
        node.create()
    threads = [threading.Thread(target=node.start) for node in nodes]
    clock = Clock()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    become_whole(nodes, clock, measured, "join, six at once", 10, 20)


ROLES = {"a": " of the notification node", "b": "", "c": "", "x1": " of a C node"}


def hits(name: str) -> list[tuple[str, str]]:
    """Whom it hits: that Python node; on the mixed bus also the notification node and a C node."""
    return [*((variant, name) for variant in VARIANTS), ("mixed", "a"), ("mixed", "x1")]


@pytest.mark.parametrize(
    ("variant", "who", "how"),
    # A rolling restart ends each of them by SIGTERM.
    [*((v, "b", "SIGTERM") for v in VARIANTS), *((*hit, "kill -9") for hit in hits("b"))],
)
def test_gone_and_back_at_once(
    bus: Bus, variant: str, who: str, how: str, measured: Measured
) -> None:
    """Also in the eyes of C nodes with the default ping interval of a minute.  The notification
    node asks nobody, and nobody has missed it: the others' pings are the first to find it."""
    pythons, cs = make(bus, variant, DMQ_PING_INTERVAL="5" if who == "a" else "60")
    nodes: list[AnyNode] = [*pythons, *cs]
    start(nodes)
    wait_for(lambda: whole(nodes), 10, views(nodes))
    node = next(n for n in nodes if n.name == who)
    before = time.time()
    clock = Clock()
    if how == "SIGTERM":
        docker("stop", "-t", "30", node.id)
    else:
        node.kill()
    node.start()
    node.wait_up()
    what = f"return{ROLES[who]} at once after {how}"
    measured(f"{what} | it answers", clock.seconds)
    happened = node.moments(before)  # now: the engine forgets
    gone = happened["start"][0][0] - happened["kill"][0][0]
    assert gone < 2, "this is about a node that is started again within two seconds"
    if how == "SIGTERM":
        node.check_stop(happened)
    assert node.active()
    become_whole(nodes, clock, measured, what, 8, 10)


def test_leave_and_return(bus: Bus, variant: str, measured: Measured) -> None:
    pythons, cs = make(bus, variant, DMQ_PING_INTERVAL="60")
    nodes: list[AnyNode] = [*pythons, *cs]
    start(nodes)
    wait_for(lambda: whole(nodes), 10, views(nodes))
    b = pythons[1]
    rest = [node for node in nodes if node is not b]
    clock = Clock()
    b.stop()
    become_whole(rest, clock, measured, "leave (SIGTERM)", 3, 4)
    time.sleep(max(0.0, 2 - clock.seconds))  # away for two seconds
    clock = Clock()
    b.start()
    become_whole(nodes, clock, measured, "return after a leave", 6, 8)


@pytest.mark.parametrize("who", ["b", "a"])
@pytest.mark.parametrize("how", ["SIGTERM", "kill -9"])
def test_back_with_another_address_under_the_same_name(
    bus: Bus, variant: str, how: str, who: str, measured: Measured
) -> None:
    """As a container that is made anew; ``a`` is the notification node, which knows of nobody
    when it is back: the others have to resolve its name again."""
    pythons, cs = make(bus, variant)
    nodes: list[AnyNode] = [*pythons, *cs]
    start(nodes)
    wait_for(lambda: whole(nodes), 10, views(nodes))
    node = next(n for n in pythons if n.name == who)
    old = node.uri
    if how == "SIGTERM":
        node.stop()
    else:
        node.kill()
    node.remove()
    assert [name for name, _ in bus.logs] == [f"{who} ({node.suite})"], "its log is kept"
    node.move()
    clock = Clock()
    node.start()
    assert node.uri != old
    role = "a node" if who == "b" else "the notification node"
    what = f"{role} returns with another address after {how}"
    others = [n for n in pythons if n is not node]
    new = {n.uri for n in nodes}
    wait_for(lambda: all(n.active() >= new for n in pythons), 6 if who == "b" else 15, views(nodes))
    measured(f"{what} | Python nodes", clock.seconds)
    # The old address: it has said goodbye, or pings find that nobody is there.
    wait_for(lambda: all(old not in n.active() for n in others), 20, views(nodes))
    if who == "a" and how == "kill -9" and len(cs) > 1:
        # C nodes never remove their notification address, here the dead one, and believe each
        # other that it is active: as often as a ping of one finds it dead, the other's list
        # revives it.  That is so on a bus of C nodes alone, and may last.
        everyone = {n.uri for n in nodes}
        wait_for(lambda: whole(nodes, pythons), 20, views(nodes))
        wait_for(
            lambda: all(everyone <= n.active() <= everyone | {old} for n in cs),
            C_PATIENCE,
            views(nodes),
        )
        return
    wait_for(lambda: whole(nodes), C_PATIENCE, views(nodes))
    measured(f"{what} | all nodes, the old address gone", clock.seconds)


@pytest.mark.parametrize(("variant", "who"), hits("c"))
def test_a_death_is_noticed(bus: Bus, variant: str, who: str, measured: Measured) -> None:
    pythons, cs = make(bus, variant)
    nodes: list[AnyNode] = [*pythons, *cs]
    start(nodes)
    wait_for(lambda: whole(nodes), 10, views(nodes))
    victim = next(node for node in nodes if node.name == who)
    others = [node for node in pythons if node is not victim]
    clock = Clock()
    victim.kill()
    wait_for(lambda: all(victim.uri not in n.active() for n in others), 20, views(nodes))
    measured(f"death{ROLES[who]} (kill -9, ping_interval 5) | Python nodes", clock.seconds)
    clock = Clock()
    victim.start()
    # A C node has it as active still, or takes it back at its own next ping.  The notification
    # node asks nobody: the others find it.
    patience = 15 if who == "a" else 12
    become_whole(nodes, clock, measured, f"return{ROLES[who]} after a death", patience, C_PATIENCE)


@pytest.mark.parametrize(("variant", "who"), hits("b"))
def test_a_node_that_was_only_slow_is_back_by_itself(
    bus: Bus, variant: str, who: str, measured: Measured
) -> None:
    pythons, cs = make(bus, variant)
    nodes: list[AnyNode] = [*pythons, *cs]
    start(nodes)
    wait_for(lambda: whole(nodes), 10, views(nodes))
    slow = next(node for node in nodes if node.name == who)
    others = [node for node in pythons if node is not slow]

    def noted(node: PythonContainer) -> Counter[str]:
        """What the node was told of the slow one."""
        told = Counter(str(e["name"]) for e in node.events("event", node=slow.uri))
        told["init"] = len(node.events("init", node=slow.uri))
        return told

    before = {node.name: noted(node) for node in others}
    slow.pause()
    time.sleep(20)  # this long is what the test is about
    assert all(slow.uri not in node.active() for node in others), "the others have noticed"
    clock = Clock()
    slow.unpause()
    become_whole(
        nodes, clock, measured, f"return{ROLES[who]} after a pause of 20 s", 15, C_PATIENCE
    )
    # A notification address that does not answer stays listed as not active.
    gone = "dmq:peer-down" if who == "a" else "dmq:peer-disabled"
    once = {gone: 1, "dmq:peer-up": 1, "init": 1}
    for node in others:
        wait_for(
            lambda node=node: noted(node) - before[node.name] == once,  # type: ignore[misc]
            5,
            lambda node=node: f"told {once}, once each: {noted(node) - before[node.name]}",  # type: ignore[misc]
        )


class Stream:
    """Broadcasts from several nodes, each at a steady rate."""

    def __init__(self, *senders: AnyNode) -> None:
        #: when, who sent it, the body
        self.sent: list[tuple[float, str, str]] = []
        #: when, whose
        self.refused: list[tuple[float, str]] = []
        self._failures: list[BaseException] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(node,)) for node in senders]

    def _run(self, sender: AnyNode) -> None:
        try:
            number = 0
            while not self._stop.wait(0.05):
                number += 1
                body = f"{sender.name}-{number}"
                before = time.time()
                if sender.bcast(body):
                    self.sent.append((before, sender.name, body))
                else:
                    self.refused.append((before, sender.name))
        except BaseException as error:
            self._failures.append(error)

    def count(self, sender: AnyNode) -> int:
        return sum(who == sender.name for _, who, _ in list(self.sent))

    def __enter__(self) -> Stream:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert not self._failures, self._failures


def test_rolling_restart_under_broadcasts(bus: Bus, variant: str, measured: Measured) -> None:
    """Who is up gets every message sent while up, none twice."""
    pythons, cs = make(bus, variant)
    sender = bus.python("s", VARIANTS[variant][0][0], DMQ_NOTIFICATION_ADDRESS="sip:a:5060")
    pythons.append(sender)
    nodes: list[AnyNode] = [*pythons, *cs]
    start(nodes)
    wait_for(lambda: whole(nodes), 10, views(nodes))
    senders: list[AnyNode] = [sender, *cs]
    # name -> the times from when on and until when it was up and the bus whole
    up: dict[str, list[list[float]]] = {node.name: [[0.0, float("inf")]] for node in nodes}
    with Stream(*senders) as stream:
        for node in nodes:
            up[node.name][-1][1] = time.time() - 0.2
            node.stop()
            clock = Clock()
            node.start()
            node.wait_up()
            wait_for(lambda: whole(nodes), 8, views(nodes))
            measured("return in a rolling restart | all nodes", clock.seconds)
            up[node.name].append([time.time() + 0.1, float("inf")])
            seen = len(stream.sent)
            wait_for(lambda seen=seen: len(stream.sent) > seen + 20, 10)  # type: ignore[misc]

    def was_up(name: str, when: float, slack: float = 0.0) -> bool:
        return any(begin <= when and when + slack <= end for begin, end in up[name])

    # A sender has up to a second for its answer.
    assert [who for when, who in stream.refused if was_up(who, when, 1.0)] == [], "all accepted"
    due = [(when, who, body) for when, who, body in stream.sent if was_up(who, when)]
    assert {who for _, who, _ in due} == {node.name for node in senders}
    assert len(due) > 50

    def missed() -> list[tuple[str, str]]:
        heard = {node.name: set(node.heard()) for node in nodes}
        return [
            (node.name, body)
            for node in nodes
            for when, who, body in due
            if who != node.name and was_up(node.name, when) and body not in heard[node.name]
        ]

    wait_for(lambda: not missed(), 10, lambda: f"nobody has missed a message: {missed()[:5]}")
    for node in nodes:
        assert node.sent_twice() == [], node.name


def test_reload_under_a_stream_of_messages(bus: Bus, variant: str, measured: Measured) -> None:
    pythons, cs = make(bus, variant)
    nodes: list[AnyNode] = [*pythons, *cs]
    start(nodes)
    wait_for(lambda: whole(nodes), 10, views(nodes))
    target = pythons[1]
    senders: list[AnyNode] = [pythons[2], *cs]
    with Stream(*senders) as stream:
        wait_for(lambda: len(target.heard()) > 20, 10)
        script = target.script()
        script.write_text(script.read_text().replace("VERSION = 1 ", "VERSION = 2 "))
        reloaded = time.time()
        target.kamcmd("app_python.reload")
        wait_for(lambda: target.events("message", version=2), 5)
        first = target.events("message", version=2)[0]["time"] - reloaded
        assert first < 1, "the new script's callback answers within 1 s"
        measured("reload, until the new script answers", first)
        wait_for(lambda: time.time() > reloaded + 1)
        sent = {node.name: stream.count(node) for node in senders}
        wait_for(lambda: all(stream.count(node) > sent[node.name] + 20 for node in senders), 10)
    old = [e["time"] for e in target.events("message", version=1)]
    assert max(old) < reloaded + 1, "all of its workers run the new script after 1 s"
    assert stream.refused == []
    bodies = {body for _, _, body in stream.sent}
    assert {who for _, who, _ in stream.sent} == {node.name for node in senders}
    for node in nodes:
        due = {body for body in bodies if not body.startswith(f"{node.name}-")}
        wait_for(
            lambda node=node, due=due: due <= set(node.heard()),  # type: ignore[misc]
            5,
            lambda node=node, due=due: f"{node.name} lost {due - set(node.heard())}",  # type: ignore[misc]
        )
        assert node.sent_twice() == [], node.name
