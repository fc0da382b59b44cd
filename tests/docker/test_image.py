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


@pytest.mark.parametrize("kind", ["python", "c"])
def test_the_health_check_asks_the_node_itself(bus: Bus, kind: str) -> None:
    """A Kamailio whose SIP workers hang runs, and is not healthy."""
    node: Container = bus.python("n", "bookworm") if kind == "python" else bus.c("n", "bookworm")
    node.start()
    wait_for(lambda: health(node) == "healthy", 20)
    workers = re.findall(r"PID: (\d+)\s+DSC: udp receiver", node.kamcmd("core.psx"))
    assert workers
    docker("exec", node.id, "sh", "-c", f"kill -STOP {' '.join(workers)}")
    wait_for(lambda: health(node) == "unhealthy", 40)
    docker("exec", node.id, "sh", "-c", f"kill -CONT {' '.join(workers)}")
    wait_for(lambda: health(node) == "healthy", 20)


def test_a_wrong_setting_ends_the_container_with_one_line(bus: Bus) -> None:
    node = bus.python("wrong", "bookworm", DMQ_PING_INTERVAL="1")
    node.start()
    state = "{{.State.Status}} {{.State.ExitCode}}"
    wait_for(lambda: docker("inspect", "-f", state, node.id).startswith("exited"), 10)
    assert docker("inspect", "-f", state, node.id).split()[1] != "0"
    assert node.log().count("kemi_dmq: setting ping_interval is 1; it must be") == 1


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


def test_make_up_starts_a_bus_and_scales_it(images: None) -> None:
    """The README's commands, as they are written there."""
    project = f"kemidmqtest{uuid.uuid4().hex[:8]}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}

    def make(*arguments: str) -> str:
        done = subprocess.run(
            ["make", "-C", str(ROOT), *arguments, f"PROJECT={project}"],
            env=environment, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def commands(said: str) -> list[list[str]]:
        return [line.split() for line in said.splitlines() if line.startswith("  docker exec ")]

    def seen(command: list[str]) -> set[str]:
        """What kamcmd in the C node shows as active."""
        shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        found = set()
        for block in shown.split("}"):
            fields = dict(re.findall(r"(\w+): (\S+)", block))
            if fields.get("status") == "active":
                found.add(fields["host"])
        return found

    try:
        kamcmd, show = commands(make("up"))
        assert len(seen(kamcmd)) == 4, "three Python nodes and the C node; make up has waited"
        make("up", "NODES=6")
        assert len(seen(kamcmd)) == 7, "six Python nodes and the C node"

        def view() -> list[str]:
            done = subprocess.run(show, capture_output=True, text=True, check=True)
            return [status for _, status, *_ in json.loads(done.stdout)["nodes"]]

        assert view() == ["active"] * 7
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
