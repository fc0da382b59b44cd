"""kemi_dmq_rpc.cfg on each generation of Kamailio, with a KEMI script and with native routing."""

from __future__ import annotations

import pytest

from tests.support.kamailio import ROOT, wait_for

from .containers import SUITES, Bus, PythonContainer

KEMI = {"KAMAILIO_CFG": "/rpc.cfg"}
NATIVE = {
    "KAMAILIO_CFG": "/native-rpc.cfg",
    "DMQ_SCRIPT": "/checkout/kamailio-cfg/kemi_dmq_native.py",
    "DMQ_PEERS_FILE": "/script/node_script.py",
}


def node(bus: Bus, suite: str, routing: dict[str, str]) -> PythonContainer:
    """A node with the package and the includes of this checkout."""
    for path in ("kemi_dmq", "kamailio-cfg", "tests/docker/native.cfg"):
        bus.volumes.append(f"{ROOT / path}:/checkout/{path}:ro")
    for name, included in (
        ("rpc.cfg", "/opt/node/kamailio.cfg"),
        ("native-rpc.cfg", "/checkout/tests/docker/native.cfg"),
    ):
        file = bus.directory / name
        rpc = "/checkout/kamailio-cfg/kemi_dmq_rpc.cfg"
        file.write_text(f'#!KAMAILIO\ninclude_file "{included}"\ninclude_file "{rpc}"\n')
        file.chmod(0o644)
        bus.volumes.append(f"{file}:/{name}:ro")
    settings = {"PYTHONPATH": "/checkout", "DMQ_PING_INTERVAL": "60", **routing}
    return bus.python("a", suite, **settings)


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("routing", [KEMI, NATIVE], ids=["kemi", "native"])
def test_commands_change_the_list_and_the_table_shows_it(
    bus: Bus, suite: str, routing: dict[str, str]
) -> None:
    a, c = node(bus, suite, routing), bus.c("x", suite)
    for each in (a, c):
        each.start()
        each.wait_up()

    def shows(status: str) -> bool:
        rows = a.kamcmd("htable.dump", "dmq_nodes")
        return f"status={status};proto=udp;resolved_ip={c.address};local=0;kemi_dmq=0" in rows

    a.kamcmd("evrexec.run", "dmq:add", c.uri)
    wait_for(lambda: a.active() == c.active() == {a.uri, c.uri} and shows("active"))
    a.kamcmd("evrexec.run", "dmq:change_status", f"{c.uri} disabled")
    wait_for(lambda: a.active() == {a.uri} and shows("disabled"))
    a.kamcmd("evrexec.run", "dmq:remove", c.uri)
    wait_for(lambda: c.address not in a.kamcmd("htable.dump", "dmq_nodes"))
    a.kamcmd("evrexec.run", "dmq:remove", c.uri)
    wait_for(lambda: f"refused: no node {c.uri} is on the list" in a.log())
