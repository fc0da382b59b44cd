"""The benchmarks measure something, each section of them.  How much it is says nothing here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import SECTIONS
from benchmarks.modes import BROADCAST, LOAD, SEND
from tests.support.kamailio import ROOT

#: Sections without a plot.
PLAIN = {"workers", "storm", "keys", "ordered", "join", "membership"}


def sections(page: Path) -> dict[str, str]:
    """Title -> text."""
    found = re.split(r"^## ", page.read_text(), flags=re.M)[1:]
    return {section.partition("\n")[0]: section for section in found}


@pytest.mark.timeout(400)
def test_each_section_is_measured_and_written(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Old\n\n## Sending\n\nold figures\n")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--write", str(page)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=390,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = sections(page)
    assert list(found) == [module.TITLE for module in SECTIONS.values()]
    assert "old figures" not in page.read_text()
    for name, module in SECTIONS.items():
        text = found[module.TITLE]
        rows = [line for line in text.splitlines() if line.startswith("| ")]
        assert len(rows) > 3, f"{name} has a table"
        assert not re.search(r"\bnan\b|\binf\b", text), text
        images = re.findall(r"\]\((page/\S+\.png)\)", text)
        assert bool(images) != (name in PLAIN)
        for image in images:
            assert (tmp_path / image).read_bytes().startswith(b"\x89PNG")
    for title, modes in (
        ("Sending", SEND),
        ("Broadcasting", BROADCAST),
        ("Under load", LOAD),
        ("A registration storm", LOAD),
    ):
        for mode in modes:
            assert f"{mode.name} |" in found[title]
    # C runs what was sent again a second time.
    received = re.search(r"Received: kemi_dmq ([0-9,]+), C module ([0-9,]+)\.", found["Memory"])
    assert received and received[1] == "5,000" and int(received[2].replace(",", "")) >= 5000
