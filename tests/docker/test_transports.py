"""UDP, TCP and TLS, over IPv4 and IPv6, with small and large bodies, both ways with C nodes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.kamailio import wait_for

from .containers import AnyNode, Bus
from .test_bed import VARIANTS, make, start, views, whole

SIZES = (1, 1400, 30_000)


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def own_ca(directory: Path) -> str:
    """A CA and one certificate for all nodes of the test; gives the volume that holds them."""
    directory.mkdir()

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    # Not RSA: processes of one Kamailio share a key, and with OpenSSL 3 they spoil each other's RSA
    # signatures now and then ("last octet invalid"), with the C module as well.
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    openssl(
        "req", "-x509", *new, "-subj", "/CN=test CA", "-keyout", "ca.key", "-out", "ca.pem"
    )  # fmt: skip
    openssl("req", *new, "-subj", "/CN=node", "-keyout", "node.key", "-out", "node.csr")
    openssl(
        "x509", "-req", "-in", "node.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
        "-days", "2", "-out", "node.pem",
    )  # fmt: skip
    for file in directory.iterdir():
        file.chmod(0o644)
    directory.chmod(0o755)
    return f"{directory}:/tls:ro"


@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_messages_of_all_sizes_arrive(
    bus: Bus, variant: str, family: str, transport: str, tmp_path: Path
) -> None:
    """The nodes listen on that transport only; the test itself drives them on another port."""
    environment = {
        "DMQ_TRANSPORT": transport,
        "DMQ_FAMILY": family,
        # What the C nodes' cfg sets: they take the large messages over TCP.
        "DMQ_C_TCP_RD_BUF_SIZE": "131072",
    }
    if transport == "tls":
        bus.volumes.append(own_ca(tmp_path / "tls"))
        environment["TLS_CERTIFICATE"] = "/tls/node.pem"
        environment["TLS_KEY"] = "/tls/node.key"
        environment["TLS_CA"] = "/tls/ca.pem"
    pythons, cs = make(bus, variant, **environment)
    nodes: list[AnyNode] = [*pythons, *cs]
    start(nodes)
    wait_for(lambda: whole(nodes), 15, views(nodes))
    python, c = pythons[1], cs[0]
    for size in SIZES:
        assert python.command("bcast", body="p", times=size) == 0
        assert c.bcast("c" * size)
    for node in nodes:
        # Of each size one from the Python node and one from the C node, but for the sender.
        due = sorted(size for size in SIZES for sender in (python, c) if sender is not node)
        wait_for(
            lambda node=node, due=due: sorted(node.sizes()) == due,  # type: ignore[misc]
            10,
            lambda node=node, due=due: f"{node.name} has {node.sizes()}, due {due}",  # type: ignore[misc]
        )
    for node in pythons:
        due_sums = sorted(
            ord(letter) * size
            for size in SIZES
            for letter, sender in (("p", python), ("c", c))
            if sender is not node
        )
        assert sorted(event["sum"] for event in node.events("message")) == due_sums, node.name
        counters = node.command("counters")
        assert counters["send_failures"] == 0 and counters["bad_requests"] == 0
    assert whole(nodes), views(nodes)()
    for ending in nodes:
        ending.stop()
