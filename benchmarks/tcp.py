"""The section before, on buses that speak TCP."""

from __future__ import annotations

from pathlib import Path

from .modes import LOAD_TCP
from .report import Options, Report
from .traffic import compare

TITLE = "Under load, over TCP"


def measure(directory: Path, options: Options) -> Report:
    return compare(directory, options, LOAD_TCP, "tcp")
