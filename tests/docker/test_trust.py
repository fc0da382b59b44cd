"""Keys on every generation, with C nodes that cannot sign; over TLS as well, where OpenSSL's memory
is Kamailio's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.kamailio import wait_for
from tests.support.sip import request

from .containers import AnyNode, Bus, docker
from .test_bed import VARIANTS, make, start, views, whole
from .test_transports import own_ca

SIZES = (1, 30_000)
#: Sends a request, in hex, to an address and prints the first line of the answer.  On one line:
#: Docker's events show it.
ASK = (
    "import socket, sys; sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
    "sock.settimeout(3); sock.sendto(bytes.fromhex(sys.argv[2]), (sys.argv[1], 5060)); "
    "print(sock.recv(65535).decode().splitlines()[0])"
)


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("transport", ["udp", "tls"])
def test_nodes_sign_and_strangers_stay_out(
    bus: Bus, variant: str, transport: str, tmp_path: Path
) -> None:
    environment = {
        "DMQ_KEYS": "k1:0123456789abcdef0123456789abcdef",
        "DMQ_TRANSPORT": transport,
        "DMQ_C_TCP_RD_BUF_SIZE": "131072",
    }
    if transport == "tls":
        bus.volumes.append(own_ca(tmp_path / "tls"))
        for name, file in (("CERTIFICATE", "node.pem"), ("KEY", "node.key"), ("CA", "ca.pem")):
            environment[f"TLS_{name}"] = f"/tls/{file}"
    pythons, cs = make(bus, variant, **environment)
    for node in pythons:
        node.environment["DMQ_UNSIGNED_NETWORKS"] = ",".join(c.address for c in cs)
    nodes: list[AnyNode] = [*pythons, *cs]
    start(nodes)
    wait_for(lambda: whole(nodes), 15, views(nodes))
    for size in SIZES:
        assert pythons[1].command("bcast", body="p", times=size) == 0
        assert cs[0].bcast("c" * size)
    for node in (pythons[0], pythons[2]):
        wait_for(lambda node=node: sorted(map(len, node.heard())) == [1, 1, 30_000, 30_000])  # type: ignore[misc]
    for node in pythons:
        counters = node.command("counters")
        assert counters["not_signed"] == counters["answers_refused"] == 0, node.name
    if transport == "udp":
        body = b"sip:192.0.2.1:5060;status=active\r\n"
        a, b = pythons[:2]
        forged = request(
            a.address, user="notification_peer", body=body, sender=f"{b.address}:5060"
        ).replace(b"127.0.0.1:5060;branch", b"127.0.0.1:5060;rport;branch")
        said = docker("exec", b.id, "python3", "-c", ASK, a.address, forged.hex())
        assert said.strip() == "SIP/2.0 403 Not Signed"
        assert whole(nodes), views(nodes)()
    for ending in nodes:
        ending.stop()
