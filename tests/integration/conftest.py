from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kamailio import Bed
from tests.support.outcome import look_at


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
    look_at(request.node, bed.close())
