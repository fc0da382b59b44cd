"""UDP, TCP and TLS, over IPv4 and IPv6, with small and large bodies, both ways with C nodes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.kamailio import wait_for

from .containers import Bus
from .test_bed import VARIANTS, make, start, whole

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
    environment = {
        "DMQ_TRANSPORT": transport,
        "DMQ_FAMILY": family,
        "DMQ_C_TCP_RD_BUF_SIZE": "131072",
    }
    suffix = {"udp": ":5060", "tcp": ":5060;transport=tcp", "tls": ":5061;transport=tls"}
    if transport == "tls":
        bus.volumes.append(own_ca(tmp_path / "tls"))
        environment["TLS_CERTIFICATE"] = "/tls/node.pem"
        environment["TLS_KEY"] = "/tls/node.key"
        environment["TLS_CA"] = "/tls/ca.pem"
    pythons, cs = make(bus, variant, **environment)
    nodes = [*pythons, *cs]
    a = nodes[0]
    a.start()
    a.wait_up()
    host = f"[{a.address}]" if ":" in a.address else a.address
    for node in nodes[1:]:
        node.environment["DMQ_NOTIFICATION_ADDRESS"] = f"sip:{host}{suffix[transport]}"
    start(nodes[1:])
    wait_for(lambda: whole(nodes), 8, "all list all")
    for number, size in enumerate(SIZES, 1):
        assert pythons[1].command("bcast", body="p", times=size) == 0
        assert cs[0].bcast("c" * size) == 200
        for node in pythons:
            if node is not pythons[1]:
                wait_for(
                    lambda node=node, size=size: (
                        {  # type: ignore[misc]
                            ord("p") * size,
                            ord("c") * size,
                        }
                        <= {event["sum"] for event in node.events("message")}
                    ),
                    8,
                    f"{node.name} has both messages of {size} bytes",
                )
        for c in cs:
            expected = number if c is cs[0] else 2 * number
            wait_for(
                lambda c=c, expected=expected: len(c.heard()) == expected,  # type: ignore[misc]
                8,
                f"{c.name} has the messages of {size} bytes",
            )
    assert whole(nodes)
    for node in pythons:
        counters = node.command("counters")
        assert counters["send_failures"] == 0 and counters["bad_requests"] == 0
