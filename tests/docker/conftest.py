from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.outcome import look_at

from .containers import SUITES, Bus


@pytest.fixture(scope="session")
def images() -> None:
    """The images of all generations; make test builds them before it runs these tests."""
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    ):
        if os.environ.get("CI") == "true":
            pytest.fail("no Docker Engine answers, and CI needs one")
        pytest.skip("no Docker Engine answers")
    for suite in SUITES:
        command = ["docker", "image", "inspect", f"kemi-dmq:{suite}"]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.fail(f"no image kemi-dmq:{suite}; docker/build.sh {suite} makes it")


@pytest.fixture
def bus(images: None, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bus]:
    bus = Bus(tmp_path, ipv6="ipv6" in request.node.name)
    try:
        yield bus
    finally:
        logs = bus.close()
    look_at(request.node, logs)


@pytest.fixture
def measured(request: pytest.FixtureRequest, variant: str) -> Any:
    """Note a time for the table in docs/: measured("join", seconds)."""

    def note(what: str, seconds: float) -> None:
        file = os.environ.get("KEMI_DMQ_MEASURED")
        line = f"{what}\t{variant}\t{seconds:.2f}\n"
        print(line.strip())
        if file:
            fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            os.write(fd, line.encode())
            os.close(fd)

    return note


class Clock:
    def __init__(self) -> None:
        self.start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start
