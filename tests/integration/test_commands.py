"""The operator's commands and the list in an htable (kemi_dmq_rpc.cfg), over kamcmd."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests.support.kamailio import BOTH_ROUTINGS, ROOT, Bed, PythonNode, wait_for, whole

A, B, C, D = "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"
NOTIFY = f"sip:{A}:5060"
RPC = f'include_file "{ROOT}/kamailio-cfg/kemi_dmq_rpc.cfg"'

pytestmark = BOTH_ROUTINGS


def shown(node: PythonNode) -> dict[str, dict[str, str]]:
    """uri -> its columns, as kamcmd htable.dump shows them."""
    found = re.findall(r"name: (\S+)\s+value: (\S+)", node.kamcmd("htable.dump", "dmq_nodes"))
    return {uri: dict(item.split("=", 1) for item in row.split(";")) for uri, row in found}


def statuses(node: PythonNode) -> dict[str, str]:
    return {uri: columns["status"] for uri, columns in shown(node).items()}


def run(node: PythonNode, command: str, argument: str) -> None:
    node.kamcmd("evrexec.run", f"dmq:{command}", *([argument] if argument else []))


def events(node: PythonNode, uri: str) -> list[str]:
    return [e["name"] for e in node.events("event", node=uri)]


def test_the_list_is_in_an_htable(bed: Bed) -> None:
    a = bed.python(A, after=RPC)
    b, c = bed.python(B, NOTIFY), bed.c(C, NOTIFY, ping_interval=60)
    a.start()
    wait_for(lambda: statuses(a) == {a.uri: "active"})
    b.start()
    c.start()
    wait_for(whole(a, b, c), 3)
    wait_for(lambda: statuses(a) == a.nodes())
    columns = {"status": "active", "proto": "udp"}
    assert shown(a) == {
        a.uri: {**columns, "resolved_ip": A, "local": "1", "kemi_dmq": "1"},
        b.uri: {**columns, "resolved_ip": B, "local": "0", "kemi_dmq": "1"},
        c.uri: {**columns, "resolved_ip": C, "local": "0", "kemi_dmq": "0"},
    }
    b.wait_settled()
    b.stop()
    wait_for(lambda: b.uri not in a.active())
    wait_for(lambda: statuses(a) == a.nodes())
    a.kamcmd("app_python.reload")
    b.start()
    wait_for(whole(a, b, c), 3)
    wait_for(lambda: statuses(a) == a.nodes(), why="also after a reload")


def test_a_node_that_is_added_joins_and_one_that_is_removed_is_gone_until_it_speaks(
    bed: Bed,
) -> None:
    """With the C node: neither knows of the other, and it never asks."""
    a = bed.python(A, after=RPC, defines={"ping_interval": 60})
    c = bed.c(C, ping_interval=60)
    a.start()
    c.start()
    run(a, "add", c.uri)
    wait_for(whole(a, c), 3)
    wait_for(lambda: events(a, c.uri) == ["dmq:peer-up"])
    assert c.bcast(b"hello") == 200
    wait_for(lambda: a.events("message", node=c.uri))

    run(a, "remove", c.uri)
    wait_for(lambda: statuses(a) == a.nodes() == {a.uri: "active"})
    assert a.uri in c.active(), "nobody else is told"
    wait_for(lambda: events(a, c.uri) == ["dmq:peer-up", "dmq:peer-disabled"])
    assert a.command("bcast", body="not for c") == 0
    run(a, "add", c.uri)
    wait_for(whole(a, c), 3)
    assert a.command("bcast", body="for c") == 0
    wait_for(lambda: c.got() == ["for c"])
    # Restarted, it speaks, and is back without a command.
    run(a, "remove", c.uri)
    wait_for(lambda: c.uri not in a.nodes())
    c.stop()
    text = c.cfg.read_text()
    loaded = 'loadmodule "dmq.so"'
    c.cfg.write_text(
        text.replace(loaded, f'{loaded}\nmodparam("dmq", "notification_address", "{a.uri}")')
    )
    c.start()
    wait_for(whole(a, c), 3)


def test_a_status_is_changed_until_the_node_answers_the_next_ping(bed: Bed) -> None:
    a = bed.python(A, after=RPC)
    c = bed.c(C, NOTIFY, ping_interval=60)
    a.start()
    c.start()
    wait_for(whole(a, c), 3)
    seen: list[str] = []

    def back() -> bool:
        seen.append(a.nodes()[c.uri])
        return seen[-1] == "active"

    for status, event in (("disabled", "dmq:peer-disabled"), ("not_active", "dmq:peer-down")):
        run(a, "change_status", f"{c.uri} {status}")
        wait_for(lambda status=status: a.nodes()[c.uri] == status)  # type: ignore[misc]
        wait_for(lambda event=event: events(a, c.uri)[-1] == event)  # type: ignore[misc]
        assert a.command("bcast", body="not for c") == 0
        assert c.got() == []
        wait_for(back, 7, "it answered a ping")
        assert set(seen) == {status, "active"}
        seen.clear()
        wait_for(lambda: events(a, c.uri)[-1] == "dmq:peer-up")
    run(a, "change_status", f"{c.uri} disabled")
    wait_for(lambda: statuses(a)[c.uri] == "disabled")
    run(a, "change_status", f"{c.uri} active")
    wait_for(lambda: statuses(a)[c.uri] == "active")
    assert a.command("bcast", body="for c") == 0
    wait_for(lambda: c.got() == ["for c"])


def test_kamctl_rpc_does_the_same(bed: Bed, tmp_path: Path) -> None:
    fifo = f"""
loadmodule "jsonrpcs.so"
modparam("jsonrpcs", "fifo_name", "{tmp_path}/rpc.fifo")
modparam("jsonrpcs", "dgram_socket", "")
"""
    a, c = bed.python(A, before=fifo, after=RPC), bed.c(C, ping_interval=60)
    a.start()
    c.start()

    def kamctl(*arguments: str) -> str:
        env = {**os.environ, "RPCFIFOPATH": f"{tmp_path}/rpc.fifo", "HOME": str(tmp_path)}
        command = ["kamctl", "rpc", *arguments]
        return subprocess.run(
            command, env=env, stdout=subprocess.PIPE, text=True, timeout=20
        ).stdout

    kamctl("evrexec.run", "dmq:add", c.uri)
    wait_for(whole(a, c), 3)
    kamctl("evrexec.run", "dmq:change_status", f"{c.uri} disabled")
    wait_for(lambda: a.nodes()[c.uri] == "disabled")
    wait_for(
        lambda: f"status=disabled;proto=udp;resolved_ip={C}" in kamctl("htable.dump", "dmq_nodes")
    )


def test_what_is_refused_is_one_log_line_and_changes_nothing(bed: Bed) -> None:
    a = bed.python(A, after=RPC)
    b = bed.python(B, NOTIFY)
    a.start()
    b.start()
    wait_for(whole(a, b), 3)
    wait_for(lambda: events(a, b.uri) == ["dmq:peer-up"])
    before = a.nodes()
    cases = [
        ("add", "", "it needs the SIP URI of a node"),
        ("add", "mailto:x", "it needs the SIP URI of a node"),
        ("add", b.uri, f"{b.uri} is on the list already"),
        ("add", a.uri, f"{a.uri} is on the list already"),
        ("add", "sip:nobody.invalid:5060", "the name nobody.invalid has no address"),
        ("remove", f"sip:{D}:5060", f"no node sip:{D}:5060 is on the list"),
        ("remove", a.uri, f"{a.uri} is the local node"),
        ("change_status", b.uri, "the status must be one of active, not_active, disabled"),
        ("change_status", f"{b.uri} gone", "the status must be one of active"),
        ("change_status", f"{a.uri} disabled", f"{a.uri} is the local node"),
        ("change_status", f"sip:{D}:5060 disabled", f"no node sip:{D}:5060 is on the list"),
    ]
    for command, argument, said in cases:
        log = len(a.log())
        run(a, command, argument)
        lines = [line for line in a.log()[log:].splitlines() if "command dmq:" in line]
        assert len(lines) == 1, a.log()[log:]
        assert f"dmq:{command} {argument!r} refused: {said}" in lines[0]
        assert a.nodes() == before
    assert a.counters()["engine_failures"] == 0
    assert [e["name"] for e in a.events("event")] == ["dmq:peer-up"]
