"""t_replicate, t_replicate_mode and is_from_node on registrations and publications by sipp, on a
bus of two Python nodes and a C node with real registrars."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.integration.test_multi_notify import use_dns
from tests.support import dns, sipp
from tests.support.dns import DnsServer
from tests.support.kamailio import SCRIPT, Bed, CNode, PythonNode, wait_for, whole
from tests.support.sip import SipSocket, request

A, B, C = "127.0.0.2", "127.0.0.3", "127.0.0.4"
NOTIFY = f"sip:{A}:5060"
COUNT = 60

REGISTRAR = """
loadmodule "usrloc.so"
loadmodule "registrar.so"
modparam("usrloc", "preload", "location")
"""
# What a user of dmq.so writes, in a KEMI script and in a native one.
PYTHON_ROUTE = """
def replicate():
    if KSR.is_method("REGISTER"):
        KSR.registrar.save("location", 0)
    else:
        KSR.hdr.append_to_reply("SIP-ETag: 1\\r\\n")
        KSR.sl.send_reply(200, "OK")
    again = KSR.hdr.get("X-Mode") == "again" and KSR.pv.get("$sp") == 5099
    KSR.err(
        f"GOT {KSR.kx.get_method()} from={KSR.kx.get_srcip()} callid={KSR.kx.get_callid()} "
        f"body={KSR.pv.get('$(rb{s.md5})')} from_node={KSR.dmq.is_from_node()}\\n"
    )
    result = KSR.dmq.t_replicate_mode(1) if again else KSR.dmq.t_replicate()
    if result != 0:
        KSR.err(f"NOT REPLICATED {KSR.kx.get_callid()}\\n")
"""
C_ROUTE = """
    if (is_method("REGISTER|PUBLISH")) {
        if (is_method("REGISTER")) { save("location"); }
        else { append_to_reply("SIP-ETag: 1\\r\\n"); sl_send_reply("200", "OK"); }
        $var(node) = -1;
        if (dmq_is_from_node()) { $var(node) = 1; }
        xlog("L_ERR", "GOT $rm from=$si callid=$ci body=$(rb{s.md5}) from_node=$var(node)\\n");
        dmq_t_replicate();
        xlog("L_ERR", "NOT REPLICATED $ci\\n");
        exit;
    }
    if (is_method("REGISTER")) {"""


def python_node(bed: Bed, address: str, notification: str = "") -> PythonNode:
    branch = '        elif KSR.is_method("REGISTER"):\n'
    text = SCRIPT.read_text()
    assert branch in text
    ours = f'        elif KSR.is_method_in("RP"):\n            replicate()\n{branch}'
    script = text.replace(branch, ours) + PYTHON_ROUTE
    return bed.python(address, notification, script=script, after=REGISTRAR)


def c_node(bed: Bed, address: str, notification: str = "") -> CNode:
    node = bed.c(address, notification, before=REGISTRAR)
    text = node.cfg.read_text()
    assert '    if (is_method("REGISTER")) {' in text
    text = text.replace('    if (is_method("REGISTER")) {', C_ROUTE)
    node.cfg.write_text(text)
    return node


def got(node: PythonNode | CNode, method: str) -> list[dict[str, str]]:
    """The requests that a node's script saw, one by one."""
    pattern = rf"GOT {method} from=(\S+) callid=(\S+) body=(\S*) from_node=(-?1)"
    names = ("source", "call_id", "body", "from_node")
    return [dict(zip(names, found, strict=True)) for found in re.findall(pattern, node.log())]


def not_replicated(node: PythonNode | CNode) -> list[str]:
    return re.findall(r"NOT REPLICATED (\S+)", node.log())


def registered(node: PythonNode | CNode) -> set[str]:
    return set(re.findall(r"AoR: (\S+)", node.kamcmd("ul.dump")))


@pytest.fixture
def nodes(bed: Bed) -> dict[str, PythonNode | CNode]:
    made: list[PythonNode | CNode] = [
        python_node(bed, A),
        python_node(bed, B, NOTIFY),
        c_node(bed, C, NOTIFY),
    ]
    for node in made:
        node.start()
    wait_for(whole(*made), 3, "all list all")
    return {node.address: node for node in made}


@pytest.mark.parametrize("origin", [A, C], ids=["to a Python node", "to a C node"])
def test_what_one_node_is_told_all_know_and_nothing_goes_round(
    nodes: dict[str, PythonNode | CNode], origin: str, tmp_path: Path
) -> None:
    for method in ("REGISTER", "PUBLISH"):
        sipp.run(tmp_path, method, origin, "127.0.0.9", COUNT)
    others = [node for address, node in nodes.items() if address != origin]
    users = {f"user{number}@bus.test" for number in range(1, COUNT + 1)}
    for node in nodes.values():
        for method in ("REGISTER", "PUBLISH"):
            wait_for(lambda n=node, m=method: len(got(n, m)) >= COUNT)  # type: ignore[misc]
        found = registered(node)
        assert {name.partition("@")[0] for name in found} == {u.partition("@")[0] for u in users}
    # A request that went round would be a copy at one of them: the last ones have had their time
    # once each replica has refused to send each of them on.
    for node in others:
        wait_for(lambda n=node: len(not_replicated(n)) >= 2 * COUNT)  # type: ignore[misc]
    for method in ("REGISTER", "PUBLISH"):
        at_origin = got(nodes[origin], method)
        assert {(g["source"], g["from_node"]) for g in at_origin} == {("127.0.0.9", "-1")}
        expected = Counter({(g["call_id"], g["body"]): 1 for g in at_origin})
        assert len(expected) == COUNT
        for node in others:
            seen = got(node, method)
            assert Counter((g["call_id"], g["body"]) for g in seen) == expected
            assert {(g["source"], g["from_node"]) for g in seen} == {(origin, "1")}
    assert not_replicated(nodes[origin]) == []


@pytest.mark.parametrize(
    ("origin", "mode"),
    # In a native script dmq_t_replicate("1") fails: "failed to get parameter value".
    [(A, ""), (C, ""), (A, "again")],
    ids=["to a Python node", "to a C node", "to a Python node without the loop test"],
)
def test_what_comes_from_a_node_goes_on_only_without_the_loop_test(
    nodes: dict[str, PythonNode | CNode], origin: str, mode: str, tmp_path: Path
) -> None:
    """The sender is a node by its address, whatever the port; sipp's is 5099."""
    others = [node for address, node in nodes.items() if address != origin]
    header = f"X-Mode: {mode}" if mode else ""
    sipp.run(tmp_path, "REGISTER", origin, B, 5, header=header)
    wait_for(lambda: len(got(nodes[origin], "REGISTER")) == 5)
    assert {g["from_node"] for g in got(nodes[origin], "REGISTER")} == {"1"}
    if mode:
        for node in others:
            wait_for(lambda n=node: len(not_replicated(n)) == 5)  # type: ignore[misc]
            assert {g["source"] for g in got(node, "REGISTER")} == {origin}
            assert len(got(node, "REGISTER")) == 5
        assert not_replicated(nodes[origin]) == []
    else:
        wait_for(lambda: len(not_replicated(nodes[origin])) == 5)
        assert all(got(node, "REGISTER") == [] for node in others)


# In kamailio.cfg --------------------------------------------------------------------------------

NATIVE_ROUTE = """
    if (is_method("REGISTER|PUBLISH")) {
        if (is_method("REGISTER")) { save("location"); }
        else { append_to_reply("SIP-ETag: 1\\r\\n"); sl_send_reply("200", "OK"); }
        $var(node) = -1;
        if (python_exec("dmq_is_from_node")) { $var(node) = 1; }
        xlog("L_ERR", "GOT $rm from=$si callid=$ci body=$(rb{s.md5}) from_node=$var(node)\\n");
        if ($hdr(X-Mode) == "again" && $sp == 5099) {
            if (!python_exec("dmq_t_replicate", "1")) { xlog("L_ERR", "NOT REPLICATED $ci\\n"); }
        } else {
            if (!python_exec("dmq_t_replicate")) { xlog("L_ERR", "NOT REPLICATED $ci\\n"); }
        }
        exit;
    }
"""


@pytest.mark.parametrize("mode", ["", "again"])
def test_native_routes_replicate_as_scripts_do(bed: Bed, tmp_path: Path, mode: str) -> None:
    """From a user's phone, and then from a node's address: only dmq_t_replicate("1") sends that
    on.  B has native routing, too; C is a C node."""
    nodes: list[PythonNode | CNode] = []
    for address, notify in ((A, ""), (B, NOTIFY)):
        before = 'loadmodule "xlog.so"'
        made = bed.python(address, notify, native=True, before=before, after=REGISTRAR)
        text = made.cfg.read_text()
        command = '    if (is_method("INFO|REGISTER")) {'
        assert command in text
        made.cfg.write_text(text.replace(command, NATIVE_ROUTE + command))
        nodes.append(made)
    nodes.append(c_node(bed, C, NOTIFY))
    for each in nodes:
        each.start()
    wait_for(whole(*nodes), 3, "all list all")
    a, *others = nodes
    for method in ("REGISTER", "PUBLISH"):
        sipp.run(tmp_path, method, A, "127.0.0.9", 20)
    for node in others:
        wait_for(lambda n=node: len(not_replicated(n)) == 40)  # type: ignore[misc]
        for method in ("REGISTER", "PUBLISH"):
            seen = got(node, method)
            assert sorted(g["call_id"] for g in seen) == sorted(
                g["call_id"] for g in got(a, method)
            )
            assert {(g["source"], g["from_node"]) for g in seen} == {(A, "1")}
        assert len(registered(node)) == 20
    assert not_replicated(a) == []
    sipp.run(tmp_path, "PUBLISH", A, B, 5, header=f"X-Mode: {mode}" if mode else "")
    wait_for(lambda: len(got(a, "PUBLISH")) == 25)
    if mode:
        for node in others:
            wait_for(lambda n=node: len(not_replicated(n)) == 45)  # type: ignore[misc]
        assert not_replicated(a) == []
    else:
        wait_for(lambda: len(not_replicated(a)) == 5)
        assert [len(got(node, "PUBLISH")) for node in others] == [20, 20]


# Nodes that cannot be sent to ---------------------------------------------------------------------

IPV6, NO_SOCKET, NAME = "[::1]:5060", "127.0.0.77:5060;transport=tcp", "node.bus.test:5060"
DEAD_DNS = {("node.bus.test", dns.A): [dns.a("127.0.0.43")]}


@pytest.mark.parametrize("place", [0, 1, 2], ids=["first", "second", "last"])
@pytest.mark.parametrize("reply", ["before", "after"])
def test_those_that_cannot_be_sent_to_cost_the_others_nothing(
    bed: Bed, tmp_path: Path, place: int, reply: str
) -> None:
    """IPv6 without a socket for it is refused by tm itself; each other node gets one copy, also
    one with a name while the DNS is dead: it was looked up when the node joined."""
    route = {
        "before": 'KSR.sl.send_reply(200, "OK"); result = KSR.dmq.t_replicate()',
        "after": 'result = KSR.dmq.t_replicate(); KSR.sl.send_reply(200, "OK")',
    }[reply]
    branch = '        elif KSR.is_method("REGISTER"):\n'
    said = 'KSR.err(f"RESULT {result} within {time.monotonic() - start}\\n")'
    publish = f'        elif KSR.is_method("PUBLISH"):\n            {route}\n            {said}\n'
    script = SCRIPT.read_text().replace(branch, publish + branch)
    script = script.replace(
        "    def ksr_request_route(self, msg):\n",
        "    def ksr_request_route(self, msg):\n        start = time.monotonic()\n",
    )
    a = bed.python(A, script=script, defines={"ping_interval": 600})
    use_dns(a, tmp_path, "timeout:2 attempts:2")
    a.start()
    reached = ["127.0.0.41:5060", "127.0.0.42:5060", NAME]
    order = [*reached[:place], IPV6, NO_SOCKET, *reached[place:]]
    addresses = ["127.0.0.41", "127.0.0.42", "127.0.0.43"]
    with contextlib.ExitStack() as stack, SipSocket("127.0.0.9") as sip:
        sockets = [stack.enter_context(SipSocket(address, 5060)) for address in addresses]
        with DnsServer(DEAD_DNS):
            for number, host in enumerate(order, 2):
                body = f"sip:{host};status=active\r\n".encode()
                sender = host.partition(";")[0]
                data = request(
                    A, user="notification_peer", body=body, via=sip.name, sender=sender
                )  # fmt: skip
                assert sip.ask(data, A) is not None
                wait_for(lambda n=number: len(a.active()) == n)  # type: ignore[misc]
        with DnsServer({}, silent=True):
            answer = sip.ask(request(A, method="PUBLISH", via=sip.name, sender=sip.name), A)
            assert answer is not None and answer.code == 200
            for address, node in zip(addresses, sockets, strict=True):
                branches: set[bytes] = set()
                while data := node.receive(0.1 if branches else 1) or b"":
                    if data.startswith(b"PUBLISH"):
                        branches |= set(re.findall(rb"Via: SIP/2.0/UDP 127.0.0.2\S+", data))
                assert len(branches) == 1, (address, branches, a.log()[-2000:])
    found = re.search(r"RESULT (-?\d+) within (\S+)", a.log())
    assert found is not None
    assert (found[1], float(found[2]) < 0.5) == ("-1", True)


def test_nodes_of_both_transports_get_it(bed: Bed) -> None:
    both = "listen=udp:{0}:5060\nlisten=tcp:{0}:5060"
    a, b, c = nodes = (
        bed.python(A, listen=both.format(A)),
        bed.python(
            B,
            NOTIFY,
            defines={"server_address": f"sip:{B}:5060;transport=tcp"},
            listen=both.format(B),
        ),
        bed.python(C, NOTIFY, listen=both.format(C)),
    )
    b.uri += ";transport=tcp"
    for node in nodes:
        node.start()
    wait_for(whole(*nodes), 5, "all list all")
    with SipSocket("127.0.0.9") as sip:
        for _ in range(3):
            data = request(A, method="REGISTER", via=sip.name, sender=sip.name)
            answer = sip.ask(data, A)
            assert answer is not None and answer.code == 200
    for node in nodes:
        wait_for(lambda n=node: len(n.events("register")) == 3)  # type: ignore[misc]
    assert [event["result"] for event in a.events("register")] == [0, 0, 0]
    children = b.children()
    workers = [children[event["pid"]] for event in b.events("register")]
    assert all(worker.startswith("tcp receiver") for worker in workers), workers
    workers = [c.children()[event["pid"]] for event in c.events("register")]
    assert all(worker.startswith("udp receiver") for worker in workers), workers
