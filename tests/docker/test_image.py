"""The image and the compose file themselves."""

from __future__ import annotations

import os
import re
import subprocess
import uuid
from pathlib import Path

import pytest

from tests.support.kamailio import wait_for

from .containers import SUITES, Bus, docker

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("suite", SUITES)
def test_the_image_is_what_a_user_expects(bus: Bus, suite: str) -> None:
    # As it is, with its own script.
    node = bus.c("solo", suite)
    node.environment.clear()
    node.start()
    wait_for(
        lambda: docker("inspect", "-f", "{{.State.Health.Status}}", node.id).strip() == "healthy",
        20,
        "the health check asks the node itself",
    )
    command = docker("exec", node.id, "cat", "/proc/1/cmdline")
    assert command.startswith("kamailio"), "Kamailio is PID 1"
    assert docker("exec", node.id, "id", "-u").strip() != "0"
    for tool in ("gcc", "cc", "pip", "pip3", "make"):
        assert docker("exec", node.id, "sh", "-c", f"command -v {tool} || true").strip() == ""
    installed = docker("exec", node.id, "python3", "-c", "import kemi_dmq; print(kemi_dmq)")
    assert "/usr/lib/kemi_dmq/" in installed
    version = ".".join(str(part) for part in SUITES[suite])
    assert f"kamailio {version}." in docker("exec", node.id, "kamailio", "-v")
    logs = subprocess.run(["docker", "logs", node.id], capture_output=True, text=True, check=True)
    assert "Listening on" in logs.stdout and logs.stderr == ""
    assert node.stop() < 2.5, "less than 2 s, and what Docker itself needs"


def test_a_wrong_setting_ends_the_container_with_one_line(bus: Bus) -> None:
    node = bus.python("wrong", "bookworm", DMQ_PING_INTERVAL="1")
    node.start()
    state = "{{.State.Status}} {{.State.ExitCode}}"
    wait_for(lambda: docker("inspect", "-f", state, node.id).startswith("exited"), 10)
    assert docker("inspect", "-f", state, node.id).split()[1] != "0"
    assert node.log().count("kemi_dmq: setting ping_interval is 1; it must be") == 1


def test_compose_starts_a_bus_and_scales_it(images: None) -> None:
    project = f"kemidmqtest{uuid.uuid4().hex[:8]}"
    compose = ["docker-compose", "-p", project, "-f", str(ROOT / "docker/compose.yaml")]
    environment = {**os.environ, "SUITE": "bookworm"}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [*compose, *arguments], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def seen() -> set[str]:
        """What kamcmd in the C node shows as active."""
        shown = run("exec", "-T", "c", "kamcmd", "-s", "unix:/run/node/ctl", "dmq.list_nodes")
        found = set()
        for block in shown.split("}"):
            fields = dict(re.findall(r"(\w+): (\S+)", block))
            if fields.get("status") == "active":
                found.add(fields["host"])
        return found

    try:
        run("up", "-d")
        wait_for(lambda: len(seen()) == 4, 20, "three Python nodes and the C node")
        run("up", "-d", "--scale", "node=6", "--no-recreate")
        wait_for(lambda: len(seen()) == 7, 20, "six Python nodes and the C node")
        view = run("exec", "-T", "--index=6", "node", "python3", "/opt/node/health.py", "--show")
        assert view.count('"active"') == 7
        network = docker("network", "inspect", "-f", "{{.Internal}}", f"{project}_bus")
        assert network.strip() == "true"
    finally:
        run("down", "-t", "5")


def test_the_health_check_holds_for_a_c_node(bus: Bus) -> None:
    node = bus.c("c", "bookworm")
    node.start()
    node.wait_up()
    assert docker("exec", node.id, "python3", "/opt/node/health.py") == ""
