"""Notification addresses that are names: A, AAAA and SRV records of a DNS server of the test's."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.support import dns
from tests.support.dns import DnsServer
from tests.support.kamailio import BOTH_ROUTINGS, Bed, CNode, Kamailio, PythonNode, wait_for, whole

A, B, C, D = "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"

pytestmark = BOTH_ROUTINGS
SERVICE = "_sip._udp.bus.test"
RECORDS: dns.Records = {
    (SERVICE, dns.SRV): [dns.srv(10, 5, 5060, "a.bus.test"), dns.srv(20, 5, 5070, "b.bus.test")],
    ("a.bus.test", dns.A): [dns.a(A)],
    ("b.bus.test", dns.A): [dns.a(B)],
    ("bus.test", dns.A): [dns.a(C)],
}


def use_dns(
    node: Kamailio, directory: Path, options: str = "timeout:1 attempts:1", hosts: str = ""
) -> None:
    """Run it in a mount namespace whose resolv.conf names the test's server, and whose hosts has
    these lines."""
    conf = directory / "resolv.conf"
    conf.write_text(f"nameserver 127.0.0.53\noptions {options}\n")
    hosts_file = directory / "hosts"
    # Kamailio asks for its own name at start.
    hosts_file.write_text(f"127.0.0.1 localhost {socket.gethostname()}\n{hosts}")
    command = f"mount --bind {conf} /etc/resolv.conf && mount --bind {hosts_file} /etc/hosts && "
    command += 'exec "$@"'
    node.prefix = ["unshare", "--mount", "sh", "-c", command, "sh"]


def alone(bed: Bed) -> list[PythonNode | CNode]:
    """Three nodes that do not know each other: A, B at port 5070, C."""
    nodes: list[PythonNode | CNode] = [
        bed.python(A),
        bed.python(
            B,
            defines={"server_address": f"sip:{B}:5070"},
            listen=f"listen=udp:{B}:5070\nlisten=udp:{B}:5060",
        ),
        bed.c(C),
    ]
    nodes[1].uri = f"sip:{B}:5070"
    for node in nodes:
        node.start()
    return nodes


@pytest.mark.parametrize(
    ("uri", "multi_notify", "met"),
    [
        (f"sip:{SERVICE}", 1, [A, B]),
        (f"sip:{SERVICE}:5070", 1, [B]),  # a port chooses among the targets
        ("sip:bus.test", 1, [C]),  # as in C: SRV records of the name as it stands, and addresses
        ("sip:bus.test", 0, [A]),  # without a port: the first target (RFC 3263)
        ("sip:bus.test:5060", 0, [C]),
    ],
)
def test_where_the_bus_is_says_the_dns(
    bed: Bed, tmp_path: Path, uri: str, multi_notify: int, met: list[str]
) -> None:
    nodes = alone(bed)
    d = bed.python(D, uri, defines={"multi_notify": multi_notify})
    use_dns(d, tmp_path)
    with DnsServer(RECORDS) as server:
        d.start()
        there = [node for node in nodes if node.address in met]
        wait_for(whole(d, *there), 5, f"they meet; asked: {server.asked}")
    # All addresses are asked at once, so what the others were asked has long been there.
    for node in nodes:
        if node not in there:
            assert node.active() == {node.uri}
            if isinstance(node, PythonNode):
                assert node.counters()["received"] == 0


def test_an_answer_cut_short_is_asked_for_over_tcp(bed: Bed, tmp_path: Path) -> None:
    a, d = bed.python(A), bed.python(D, f"sip:{SERVICE}", defines={"multi_notify": 1})
    use_dns(d, tmp_path)
    a.start()
    with DnsServer(RECORDS, truncate=True) as server:
        d.start()
        wait_for(whole(a, d), 5)
        assert ("tcp", SERVICE, dns.SRV) in server.asked


def test_a_dns_that_does_not_answer_holds_nobody_up(bed: Bed, tmp_path: Path) -> None:
    """The engine goes on meanwhile, workers answer, and once the DNS answers they meet."""
    a, b = bed.python(A), bed.python(B)
    d = bed.python(D, f"sip:{SERVICE},sip:{B}:5060", defines={"multi_notify": 1})
    use_dns(d, tmp_path, "timeout:2 attempts:2")
    a.start()
    b.start()
    with DnsServer(RECORDS, silent=True) as server:
        d.start()
        wait_for(lambda: ("udp", SERVICE, dns.SRV) in server.asked)
        wait_for(whole(b, d), 1, "the other notification address is asked all the same")
        assert a.active() == {a.uri}
        before = time.monotonic()
        for _ in range(20):
            d.command("nodes", _wait=0.5)
        assert time.monotonic() - before < 1
        server.silent = False
        wait_for(whole(a, b, d), 20, "they meet")


@pytest.mark.parametrize("multi_notify", [0, 1])
def test_a_dns_that_is_down_holds_back_no_name_of_etc_hosts(
    bed: Bed, tmp_path: Path, multi_notify: int
) -> None:
    """As in a container: its own names have addresses, and nobody says anything of SRV records."""
    a, b = bed.python(A), bed.python(B)
    d = bed.python(D, "sip:bus.test", defines={"multi_notify": multi_notify})
    use_dns(d, tmp_path, "timeout:5 attempts:2", f"{A} bus.test\n{B} bus.test\n")
    a.start()
    b.start()
    with DnsServer(RECORDS, silent=True) as server:
        d.start()
        wait_for(whole(a, b, d) if multi_notify else whole(a, d), 3, "they meet")
        asked = [what for what in server.asked if what[2] == dns.SRV]
        assert len(asked) == 1, "one look-up at a time, however often the name is asked for"


def test_srv_records_that_come_late_are_asked_as_well(bed: Bed, tmp_path: Path) -> None:
    a, b, c = alone(bed)
    d = bed.python(D, "sip:bus.test", defines={"multi_notify": 1})
    hosts = f"{C} bus.test\n{A} a.bus.test\n{B} b.bus.test\n"
    use_dns(d, tmp_path, "timeout:1 attempts:2", hosts)
    records = {("bus.test", dns.SRV): RECORDS[SERVICE, dns.SRV]}
    with DnsServer(records, silent=True) as server:
        d.start()
        wait_for(whole(c, d), 3, "the address")
        server.silent = False
        wait_for(whole(a, b, c, d), 5, "the targets")


def test_aaaa_records(bed: Bed, tmp_path: Path) -> None:
    """A bus of IPv6 addresses; the name has A records as well, where nobody is."""
    addresses = ["fd00::2", "fd00::3", "fd00::4"]
    for address in addresses:
        subprocess.run(["ip", "addr", "add", f"{address}/128", "dev", "lo", "nodad"], check=False)
    records = {("bus.test", dns.AAAA): [dns.aaaa(address) for address in addresses[:2]]}
    nodes = []
    for address, control in zip(addresses, (A, B, C), strict=True):
        node = bed.python(
            control,
            "sip:bus.test:5060" if control == C else "",
            defines={
                "server_address": f"sip:[{address}]:5060",
                "multi_notify": 1,
            },
            # The test's commands come to the IPv4 socket.
            listen=f"listen=udp:[{address}]:5060\nlisten=udp:{control}:5060",
        )
        node.uri = f"sip:[{address}]:5060"
        nodes.append(node)
    use_dns(nodes[2], tmp_path)
    with DnsServer(records):
        for node in nodes:
            node.start()
        wait_for(whole(*nodes), 5, "they meet")
