from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.kamailio import Bed


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Any:
    outcome = yield
    report = outcome.get_result()
    if report.when == "call":
        item.stash[FAILED] = report.failed


FAILED = pytest.StashKey[bool]()
#: Lines that must not be in the log of a node that was not asked for them.
TROUBLE = ("Unhandled exception", "Traceback", "SystemError", "core was", "the engine failed")


@pytest.fixture(scope="session", autouse=True)
def own_loopback() -> None:
    """A network namespace of this test process's own, where it may make one: its loopback
    addresses are then free whatever else runs on this machine."""
    clone_newnet = 0x40000000
    if ctypes.CDLL(None, use_errno=True).unshare(clone_newnet) == 0:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


@pytest.fixture
def bed(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bed]:
    """A bed of nodes that ends with the test; fails it for trouble in a log."""
    if shutil.which("kamailio") is None:
        pytest.fail("kamailio is not installed; make test installs it")
    bed = Bed(tmp_path, native=getattr(request, "param", "kemi") == "native")
    yield bed
    failed = request.node.stash.get(FAILED, False)
    troubles = []
    allowed = [mark.args[0] for mark in request.node.iter_markers("allows")]
    for address, log in bed.close():
        if failed:
            print(f"--- log of {address}\n{log[-6000:]}")
        for word in TROUBLE:
            if word in log and word not in allowed:
                troubles.append(f"{address}: {word}\n{log[-3000:]}")
    assert not troubles, "\n".join(troubles)
