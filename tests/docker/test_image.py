"""The image, the compose file and the commands of the README around them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import uuid
from pathlib import Path

import pytest

from tests.support.kamailio import wait_for

from .containers import SUITES, Bus, Container, docker
from .test_transports import own_ca

ROOT = Path(__file__).resolve().parents[2]


def health(node: Container) -> str:
    return docker("inspect", "-f", "{{.State.Health.Status}}", node.id).strip()


@pytest.mark.parametrize("suite", SUITES)
def test_the_image_is_what_a_user_expects(bus: Bus, suite: str) -> None:
    # As it is, with its own script and cfg.
    node = bus.c("solo", suite)
    node.environment.clear()
    node.start()
    wait_for(lambda: health(node) == "healthy", 20)
    command = docker("exec", node.id, "cat", "/proc/1/cmdline")
    assert command.startswith("kamailio"), "Kamailio is PID 1"
    assert docker("exec", node.id, "id", "-u").strip() != "0"
    for tool in ("gcc", "cc", "g++", "pip", "pip3", "make"):
        assert docker("exec", node.id, "sh", "-c", f"command -v {tool} || true").strip() == ""
    installed = docker("exec", node.id, "python3", "-c", "import kemi_dmq; print(kemi_dmq)")
    assert "/usr/lib/kemi_dmq/" in installed
    version = ".".join(str(part) for part in SUITES[suite])
    assert f"kamailio {version}." in docker("exec", node.id, "kamailio", "-v")
    logs = subprocess.run(["docker", "logs", node.id], capture_output=True, text=True, check=True)
    assert "Listening on" in logs.stdout and logs.stderr == ""
    node.stop()


def serves_the_bus(transport: str) -> str:
    """What core.psx calls the processes behind the bus's own socket, and no others."""
    return r"udp receiver child=\d+ sock=\S+:5060" if transport == "udp" else "tcp receiver"


@pytest.mark.parametrize(
    ("suite", "transport", "family"),
    [
        *((suite, "udp", "ipv4") for suite in SUITES),
        ("bookworm", "udp", "ipv6"),
        ("trixie", "tcp", "ipv4"),
        ("forky", "tls", "ipv4"),
    ],
)
def test_the_health_check_asks_the_node_itself(
    bus: Bus, suite: str, transport: str, family: str, tmp_path: Path
) -> None:
    """A Kamailio where those who serve the bus hang runs, and is not healthy."""
    environment = {"DMQ_TRANSPORT": transport, "DMQ_FAMILY": family}
    if transport == "tls":
        bus.volumes.append(own_ca(tmp_path / "tls"))
        for name, file in (("CERTIFICATE", "node.pem"), ("KEY", "node.key"), ("CA", "ca.pem")):
            environment[f"TLS_{name}"] = f"/tls/{file}"
    # The image's own script, which tells of the engine.
    own = {"NODE_SCRIPT": "", "DMQ_EVENT_CALLBACK": ""}
    hang: list[tuple[Container, str]] = [
        (bus.python("n", suite, **environment, **own), serves_the_bus(transport)),
        (bus.c("x", suite, **environment), serves_the_bus(transport)),
    ]
    if (transport, family) == ("udp", "ipv4"):
        engine = "RTIMER EXEC child=0 timer=dmq_engine"
        hang.append((bus.python("e", suite, **environment, **own), engine))
    for node, _ in hang:
        node.options = ["--health-interval", "1s"]
        node.start()

    def send(signal: str) -> None:
        for node, what in hang:
            pids = " ".join(re.findall(rf"PID: (\d+)\s+DSC: {what}", listed[node]))
            assert pids, listed[node]
            docker("exec", node.id, "sh", "-c", f"kill -{signal} {pids}")

    def wait_all(state: str) -> None:
        wait_for(lambda: {health(n) for n, _ in hang} == {state}, 40, lambda: f"all are {state}")

    wait_all("healthy")
    listed = {node: node.kamcmd("core.psx") for node, _ in hang}
    send("STOP")
    wait_all("unhealthy")
    send("CONT")
    wait_all("healthy")


def test_any_answer_is_a_sign_of_health(bus: Bus, tmp_path: Path) -> None:
    """A script of the user's own need not know what the health check asks."""
    own = tmp_path / "own.py"
    text = (ROOT / "docker/node/node.py").read_text()
    own.write_text(text.replace('KSR.is_method("INFO")', "False"))
    own.chmod(0o644)
    bus.volumes.append(f"{own}:/own.py:ro")
    node = bus.python("n", "bookworm", NODE_SCRIPT="/own.py", DMQ_EVENT_CALLBACK="")
    node.options = ["--health-interval", "1s"]
    node.start()
    wait_for(lambda: health(node) == "healthy", 20)
    answer = docker("exec", node.id, "python3", "/opt/node/health.py", "--show", check=False)
    assert "405" in answer


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("DMQ_PING_INTERVAL", "1", "kemi_dmq: setting ping_interval is 1; it must be"),
        ("DMQ_PIMG_INTERVAL", "10", "did you mean DMQ_PING_INTERVAL?"),
        ("DMQ_TRANSPORT", "foo", "DMQ_TRANSPORT is 'foo'; it must be one of udp, tcp, tls"),
        ("DMQ_SERVER_SOCKET", "foo", "DMQ_SERVER_SOCKET is 'foo'; it must be a socket such as"),
    ],
)
def test_a_wrong_setting_ends_the_container_with_one_line(
    bus: Bus, name: str, value: str, said: str
) -> None:
    node = bus.python("wrong", "bookworm", **{name: value})
    node.start()
    state = "{{.State.Status}} {{.State.ExitCode}}"
    wait_for(lambda: docker("inspect", "-f", state, node.id).startswith("exited"), 10)
    assert docker("inspect", "-f", state, node.id).split()[1] != "0"
    assert node.log().count(said) == 1
    logs = subprocess.run(["docker", "logs", node.id], capture_output=True, text=True, check=True)
    assert logs.stderr == ""


def test_it_can_be_stopped_while_it_starts(bus: Bus, tmp_path: Path) -> None:
    """Before Kamailio is there; kept there by a slow interpreter."""
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "sitecustomize.py").write_text(
        'import time\n\nopen("/events/started", "w").close()\ntime.sleep(30)\n'
    )
    for path in (slow, *slow.iterdir()):
        path.chmod(0o755)
    bus.volumes.append(f"{slow}:/slow:ro")
    node = bus.python("n", "bookworm", PYTHONPATH="/slow:/usr/lib/kemi_dmq")
    node.start()
    wait_for((node.directory / "started").exists, 20)
    node.stop()
    assert "kamailio" not in node.log()


@pytest.mark.parametrize("server_address", ["sip:node-1.test:5090", "sip:{address}:5090"])
def test_kamailio_listens_where_server_address_says(bus: Bus, server_address: str) -> None:
    """With a name: on the container's own address, at the name's port."""
    one = bus.python("one", "bookworm")
    address = server_address.format(address=one.address)
    one.environment["DMQ_SERVER_ADDRESS"] = address
    other = bus.python(
        "other", "bookworm", DMQ_NOTIFICATION_ADDRESS=f"sip:{one.address}:5090"
    )  # fmt: skip
    for node in (one, other):
        node.start()
        node.wait_up()
    wait_for(lambda: one.active() == {address, other.uri}, 5, lambda: one.active())
    if "node-1.test" not in address:  # that name resolves nowhere
        wait_for(lambda: other.active() == {address, other.uri}, 5, lambda: other.active())


@pytest.mark.parametrize(("suite", "most"), [("bookworm", 6), ("trixie", 3), ("forky", 3)])
def test_make_up_starts_a_bus_and_scales_it(images: None, suite: str, most: int) -> None:
    """The README's commands, as they are written there; the images are built already."""
    project = f"kemidmqtest{uuid.uuid4().hex[:8]}"
    variables = (f"PROJECT={project}", f"SUITE={suite}", "BUILD=:")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}

    def make(*arguments: str) -> str:
        done = subprocess.run(
            ["make", "-C", str(ROOT), *arguments, *variables],
            env=environment, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def commands(said: str) -> list[list[str]]:
        return [line.split() for line in said.splitlines() if line.startswith("  docker exec ")]

    def seen(command: list[str]) -> list[str]:
        """What kamcmd in the C node shows as active."""
        shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        found = []
        for block in shown.split("}"):
            fields = dict(re.findall(r"(\w+): (\S+)", block))
            if fields.get("status") == "active":
                found.append(fields["host"])
        assert len(set(found)) == len(found), "each is there once"
        return found

    try:
        kamcmd, show = commands(make("up"))
        assert len(seen(kamcmd)) == 4, "three Python nodes and the C node; make up has waited"
        if most > 3:
            make("up", f"NODES={most}")
        assert len(seen(kamcmd)) == most + 1, "all Python nodes and the C node"

        def view() -> list[str]:
            done = subprocess.run(show, capture_output=True, text=True, check=True)
            return [status for _, status, *_ in json.loads(done.stdout)["nodes"]]

        wait_for(lambda: view() == ["active"] * (most + 1), 10, view)
        network = docker("network", "inspect", "-f", "{{.Internal}}", f"{project}_bus")
        assert network.strip() == "true"
    except BaseException:
        by_project = f"label=com.docker.compose.project={project}"
        for container in docker("ps", "-aq", "--filter", by_project, check=False).split():
            print(docker("logs", container, check=False)[-3000:])
        raise
    finally:
        make("down")
    assert docker("ps", "-aq", "--filter", f"label=com.docker.compose.project={project}") == ""
