"""docs/testing.md shows the example as it is, and the example's tests run."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from kemi_dmq.testing import __main__ as command

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "testing.md"
EXAMPLES = ROOT / "docs" / "examples"
TESTS = re.findall(r"^def (test_\w+)", (EXAMPLES / "test_counter.py").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    sys.path.insert(0, str(EXAMPLES))
    yield importlib.import_module("test_counter")
    sys.path.remove(str(EXAMPLES))


@pytest.mark.parametrize("name", TESTS)
def test_example(example: ModuleType, name: str) -> None:
    getattr(example, name)()


def test_the_page_shows_the_files() -> None:
    shown = re.findall(r"<!-- (\S+) -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert [path for path, _ in shown] == [
        "docs/examples/counter.py",
        "docs/examples/test_counter.py",
    ]
    for path, text in shown:
        assert text == (ROOT / path).read_text(), f"{path} is not what docs/testing.md shows"


def test_the_commands_on_the_page_run(capsys: pytest.CaptureFixture[str]) -> None:
    page = PAGE.read_text().replace("\\\n", "")
    lines = re.findall(r"^    python3 -m kemi_dmq.testing (.*)$", page, re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        assert command.main(shlex.split(line.replace("--runs 100", "--runs 3"))) == 0
        assert capsys.readouterr().out.endswith(", 0 failed\n")


def test_the_simulator_needs_nothing_but_the_package() -> None:
    modules = "simulator", "schedule", "__main__"
    program = "import sys\n" + "".join(f"import kemi_dmq.testing.{name}\n" for name in modules)
    program += "print(sorted({'pytest', 'hypothesis', 'KSR', '_pytest'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
