"""dmq.so's RPC commands, with bind_c_modules 1: over kamcmd, and JSON-RPC for kamctl rpc."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

from tests.support.c_modules import BIND
from tests.support.kamailio import BOTH_ROUTINGS, Bed, CNode, PythonNode, wait_for, whole
from tests.support.sip import SipSocket

A, B, C = "127.0.0.2", "127.0.0.3", "127.0.0.4"
NOTIFY = f"sip:{A}:5060"

pytestmark = BOTH_ROUTINGS


def listed(node: PythonNode | CNode) -> list[dict[str, str]]:
    blocks = node.kamcmd("dmq.list_nodes").split("}")
    return [dict(re.findall(r"(\w+): (\S+)", block)) for block in blocks if "host" in block]


def test_list_nodes_shows_what_a_c_node_shows(bed: Bed) -> None:
    a = bed.python(A, defines=BIND)
    b, c = bed.python(B, NOTIFY), bed.c(C, NOTIFY)
    for node in (a, b, c):
        node.start()
    wait_for(whole(a, b, c), 3)

    def rows(node: PythonNode | CNode) -> dict[str, dict[str, str]]:
        found = {row["host"]: row for row in listed(node)}
        for row in found.values():
            row.pop("kemi_dmq", None)
            row.pop("fail_count", None)  # in C from 6.1 on
            # C knows no transport of a URI that names none.
            row["proto"] = "udp" if row["proto"] == "*" else row["proto"].lower()
            assert row.pop("local") == str(int(row["host"] == node.address))
        return found

    assert rows(a) == rows(c)
    ours = {row["host"]: row["kemi_dmq"] for row in listed(a)}
    assert ours == {A: "1", B: "1", C: "0"}
    a.kamcmd("app_python.reload")
    assert a.command("nodes")
    assert set(rows(a)) == {A, B, C}


def test_list_nodes_counts_pings_without_answer(bed: Bed) -> None:
    a = bed.python(A, defines=BIND)
    a.start()

    def row() -> tuple[str, str]:
        (found,) = [row for row in listed(a) if row["host"] == B]
        return found["status"], found["fail_count"]

    with SipSocket(B, 5060) as peer:
        a.kamcmd("dmq.add", f"sip:{B}:5060")
        for code, shown in ((500, ("disabled", "1")), (200, ("active", "0"))):
            ping = b""
            while not ping.startswith(b"KDMQ"):
                ping = peer.receive(5) or b""
            lines = ping.split(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
            kept = [x for x in lines if x.split(":")[0] in ("Via", "From", "To", "Call-ID", "CSeq")]
            reply = [f"SIP/2.0 {code} X", *kept, "Content-Length: 0", "", ""]
            peer.send("\r\n".join(reply).encode(), A)
            wait_for(lambda shown=shown: row() == shown)  # type: ignore[misc]


def test_a_node_that_goes_by_a_name_shows_its_own_address(bed: Bed, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n{A} a.bus.test\n{C} c.bus.test\n")
    mount = f'mount --bind {hosts} /etc/hosts && exec "$@"'
    a = bed.python(A, defines={**BIND, "server_address": "sip:a.bus.test:5060"})
    socket = f'modparam("dmq", "server_socket", "udp:{C}:5060")'
    c = bed.c(C, server_address="sip:c.bus.test:5060", before=socket)
    rows = []
    for node in (a, c):
        node.prefix = ["unshare", "--mount", "sh", "-c", mount, "sh"]
        node.start()
        rows += [(row["host"], row["resolved_ip"]) for row in listed(node) if row["local"] == "1"]
    assert rows == [("a.bus.test", A), ("c.bus.test", C)]


def test_the_commands_answer_and_do_what_they_say(bed: Bed) -> None:
    a = bed.python(A, defines={**BIND, "ping_interval": 60})
    c = bed.c(C, ping_interval=60)
    a.start()
    c.start()
    assert "Ok. DMQ node added." in a.kamcmd("dmq.add", c.uri)
    wait_for(whole(a, c), 3)
    assert "error: 500 - sip:127.0.0.4:5060 is on the list" in a.kamcmd("dmq.add", c.uri)
    changed = a.kamcmd("dmq.change_status", c.uri, "disabled")
    assert "Ok. DMQ node status changed." in changed
    wait_for(lambda: a.nodes()[c.uri] == "disabled")
    again = a.kamcmd("dmq.change_status", c.uri, "disabled")
    assert "Ok. DMQ node status is already disabled." in again
    assert "error: 500 - the status must be one of" in a.kamcmd("dmq.change_status", c.uri, "up")
    assert "error: 500 - sip:127.0.0.2:5060 is the local node" in a.kamcmd("dmq.remove", a.uri)
    assert "Ok. DMQ node removed." in a.kamcmd("dmq.remove", c.uri)
    wait_for(lambda: c.uri not in a.nodes())
    assert f"error: 500 - no node {c.uri} is on the list" in a.kamcmd("dmq.remove", c.uri)
    for command in ("add", "remove", "change_status"):
        assert "error: 500 - it needs the SIP URI" in a.kamcmd(f"dmq.{command}")
    assert a.counters()["native_errors"] == 0
    assert "Print all nodes" in a.kamcmd("help", "dmq.list_nodes")


def test_kamctl_rpc_gets_the_same(bed: Bed, tmp_path: Path) -> None:
    """Through the FIFO of jsonrpcs, that is in another process than kamcmd's."""
    fifo = f"""
loadmodule "jsonrpcs.so"
modparam("jsonrpcs", "fifo_name", "{tmp_path}/rpc.fifo")
modparam("jsonrpcs", "dgram_socket", "")
"""
    a = bed.python(A, defines=BIND, before=fifo)
    a.start()

    def kamctl(*arguments: str) -> dict[str, Any]:
        env = {**os.environ, "RPCFIFOPATH": f"{tmp_path}/rpc.fifo", "HOME": str(tmp_path)}
        command = ["kamctl", "rpc", *arguments]
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, timeout=20)
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    (row,) = kamctl("dmq.list_nodes")["result"]
    assert row["host"] == A and row["local"] == 1
    error = kamctl("dmq.remove", a.uri)["error"]
    assert error == {"code": 500, "message": f"{a.uri} is the local node"}
