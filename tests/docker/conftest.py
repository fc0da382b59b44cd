from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .containers import SUITES, Bus

ROOT = Path(__file__).resolve().parents[2]
FAILED = pytest.StashKey[bool]()
TROUBLE = ("Unhandled exception", "Traceback", "SystemError", "core was", "the engine failed")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Any:
    outcome = yield
    report = outcome.get_result()
    if report.when == "call":
        item.stash[FAILED] = report.failed


@pytest.fixture(scope="session")
def images() -> None:
    """The images of all generations, built once per run (by whichever process is first)."""
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    ):
        if os.environ.get("CI") == "true":
            pytest.fail("no Docker Engine answers, and CI needs one")
        pytest.skip("no Docker Engine answers")
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    with (ROOT / ".images.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        if lock.read() == run:
            return
        for suite in SUITES:
            subprocess.run([ROOT / "docker/build.sh", suite], check=True)
        lock.truncate(0)
        lock.write(run)
        lock.flush()


@pytest.fixture
def bus(images: None, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bus]:
    bus = Bus(tmp_path, ipv6="ipv6" in request.node.name)
    yield bus
    failed = request.node.stash.get(FAILED, False)
    troubles = []
    for name, log in bus.close():
        if failed:
            print(f"--- log of {name}\n{log[-5000:]}")
        troubles += [f"{name}: {word}\n{log[-3000:]}" for word in TROUBLE if word in log]
    assert not troubles, "\n".join(troubles)


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
