"""UDP, TCP and TLS, over IPv4 and IPv6, with small and large bodies, both ways with C nodes."""

from __future__ import annotations

import hashlib
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


#: What OpenSSL says of a certificate of another CA.
REFUSED = "certificate verify failed"


def an_outsider_stays_outside(bus: Bus, nodes: list[AnyNode], environment: dict[str, str]) -> None:
    """Its own certificate is of another CA, and it trusts the bus's: only the bus can refuse it.
    It asks the first node, and the second one asks it."""
    a, b = nodes[:2]
    own = {"TLS_CERTIFICATE": "/other/node.pem", "TLS_KEY": "/other/node.key"}
    notify = {"DMQ_NOTIFICATION_ADDRESS": a.uri}
    outsider = bus.python("outsider", a.suite, **{**environment, **own, **notify})
    start([outsider])
    wait_for(lambda: REFUSED in a.log(), 10, f"{a.name} refuses it")
    b.stop()
    b.remove()
    b.environment["DMQ_NOTIFICATION_ADDRESS"] += f",{outsider.uri}"
    start([b])
    wait_for(lambda: REFUSED in b.log(), 10, f"{b.name} refuses it")
    wait_for(lambda: whole(nodes), 10, views(nodes))
    assert outsider.active() == {outsider.uri}


def body(node: AnyNode, size: int) -> str:
    """One that shows where a part of it is missing, or at another place."""
    return "".join(f"{node.name} {number:6} " for number in range(size // 8 + 1))[:size]


def digest(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_messages_of_all_sizes_arrive(
    bus: Bus, variant: str, family: str, transport: str, tmp_path: Path
) -> None:
    """Each node broadcasts each size.  The nodes listen on that transport only; the test itself
    drives them on another port.  Nobody whose certificate is of another CA gets onto the bus."""
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
    if (family, transport) == ("ipv4", "tls"):
        own_ca(tmp_path / "other")
        bus.volumes.append(f"{tmp_path / 'other'}:/other:ro")
    start(nodes)
    wait_for(lambda: whole(nodes), 15, views(nodes))
    for size in SIZES:
        for node in nodes:
            assert node.bcast(body(node, size))
    for node in nodes:
        due = sorted(digest(body(n, size)) for n in nodes if n is not node for size in SIZES)
        wait_for(
            lambda node=node, due=due: sorted(node.digests()) == due,  # type: ignore[misc]
            10,
            lambda node=node, due=due: f"{node.name} has {node.digests()}, due {due}",  # type: ignore[misc]
        )
    for node in pythons:
        counters = node.command("counters")
        assert counters["send_failures"] == 0 and counters["bad_requests"] == 0
    assert whole(nodes), views(nodes)()
    if (family, transport) == ("ipv4", "tls"):
        an_outsider_stays_outside(bus, nodes, environment)
    for ending in nodes:
        ending.stop()
