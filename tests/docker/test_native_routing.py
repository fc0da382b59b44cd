"""kemi_dmq_native.cfg on each generation of Kamailio."""

from __future__ import annotations

import pytest

from tests.support.kamailio import ROOT, wait_for

from .containers import SUITES, Bus, PythonContainer


@pytest.fixture(params=SUITES)
def suite(bus: Bus, request: pytest.FixtureRequest) -> str:
    """The package and the include that are tested are this checkout's."""
    for path in ("kemi_dmq", "kamailio-cfg", "tests/docker/native.cfg"):
        bus.volumes.append(f"{ROOT / path}:/checkout/{path}:ro")
    return str(request.param)


def native(bus: Bus, name: str, suite: str, **environment: str) -> PythonContainer:
    return bus.python(
        name,
        suite,
        KAMAILIO_CFG="/checkout/tests/docker/native.cfg",
        PYTHONPATH="/checkout",
        DMQ_SCRIPT="/checkout/kamailio-cfg/kemi_dmq_native.py",
        DMQ_PEERS_FILE="/script/node_script.py",
        **environment,
    )


def events(node: PythonContainer) -> list[str]:
    """What its event routes were told, in order."""
    return [line.rpartition("EVENT ")[2] for line in node.log().splitlines() if "EVENT " in line]


def test_native_nodes_join_send_both_ways_run_event_routes_and_reload(bus: Bus, suite: str) -> None:
    notify = {"DMQ_NOTIFICATION_ADDRESS": "sip:a:5060"}
    a, b = native(bus, "a", suite), native(bus, "b", suite, **notify)
    c = bus.c("x", suite, DMQ_NOTIFICATION_ADDRESS=a.uri)
    for node in (a, b, c):
        node.start()
        node.wait_up()
    everyone = {a.uri, b.uri, c.uri}
    wait_for(lambda: all(n.active() == everyone for n in (a, b, c)), 20, "all list all")

    wait_for(lambda: sorted(events(a)) == sorted(f"up {n.uri}" for n in (b, c)))
    reply = a.ask("MESSAGE", "acme", b"from a's route")
    assert reply is not None and reply.code == 200
    assert c.bcast("from c")
    wait_for(lambda: sorted(b.heard()) == ["from a's route", "from c"])
    wait_for(lambda: "body=from a's route" in c.log() and a.heard() == ["from c"])
    assert a.command("bcast", body="asked", param="p") == 0
    wait_for(lambda: [e["code"] for e in a.events("reply")] == [200, 200])
    assert not [line for line in a.log().splitlines() if "REPLY" in line and " dmq-" in line]

    script = a.own_script
    script.write_text(script.read_text().replace("VERSION = 1 ", "VERSION = 2 "))
    a.kamcmd("app_python.reload")
    wait_for(lambda: a.command("nodes")["version"] == 2)
    b.stop()
    wait_for(lambda: a.active() == {a.uri, c.uri} and c.active() == {a.uri, c.uri}, 5)
    wait_for(lambda: len(events(a)) == 3)
    assert events(a)[2] in (f"down {b.uri}", f"disabled {b.uri}")
    wait_for(lambda: a.events("event")[-1]["version"] == 2, why="callbacks are reloaded, too")
    b.start()
    b.wait_up()
    wait_for(lambda: all(n.active() == everyone for n in (a, b, c)), 20, "all list all again")
    wait_for(lambda: events(a)[-1] == f"up {b.uri}")
