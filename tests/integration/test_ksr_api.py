"""KSR as the stub and the fake have it is KSR as the installed Kamailio exports it."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from kemi_dmq.testing.fake_ksr import FakeKSR

MAKE_STUBS = Path(__file__).parents[2] / "tools" / "make_stubs.py"
MOST_PARAMETERS = 6


def make_stubs(option: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(MAKE_STUBS), option], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def parameter_counts() -> dict[str, int]:
    """The number of parameters of each function, by its path such as KSR.pv.get."""
    listed = make_stubs("--list")
    assert listed.returncode == 0, listed.stderr
    lines = re.findall(r"^(\S+)\((.*)\) -> ", listed.stdout, re.MULTILINE)
    return {path: 0 if types == "none" else len(types.split(", ")) for path, types in lines}


def public_functions(
    namespace: object, path: str = "KSR"
) -> Iterator[tuple[str, Callable[..., object]]]:
    """The functions of the fake and of its modules, but not the methods of its data."""
    # dir() of a module leaves out the methods of its class.
    for name in sorted({*dir(namespace), *dir(type(namespace))}):
        if name.startswith("_"):
            continue
        value = getattr(namespace, name)
        if callable(value):
            yield f"{path}.{name}", value
        elif isinstance(value, SimpleNamespace) or type(value).__module__.startswith("kemi_dmq"):
            yield from public_functions(value, f"{path}.{name}")


def accepted_counts(function: Callable[..., object]) -> list[int]:
    """With how many positional arguments the function can be called."""
    signature = inspect.signature(function)
    counts = []
    for count in range(MOST_PARAMETERS + 2):
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        counts.append(count)
    return counts


def test_the_stub_agrees_with_the_installed_kamailio() -> None:
    checked = make_stubs("--check")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_each_function_of_the_fake_exists_with_as_many_parameters(
    parameter_counts: dict[str, int],
) -> None:
    wrong = []
    for path, function in public_functions(FakeKSR()):
        real, accepted = parameter_counts.get(path), accepted_counts(function)
        if real is None:
            wrong.append(f"{path} does not exist in Kamailio")
        elif accepted != [real]:
            wrong.append(f"{path} takes {accepted} arguments, in Kamailio {real}")
    assert not wrong, "\n".join(wrong)


def test_the_walk_through_the_fake_finds_its_functions() -> None:
    assert {"KSR.info", "KSR.pv.get"} <= {path for path, _ in public_functions(FakeKSR())}
