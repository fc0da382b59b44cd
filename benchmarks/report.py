"""What a section gives back: tables in Markdown, and what to plot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Options:
    """How much is measured.  quick: as little as shows that a section works."""

    rounds: int = 25
    slice: int = 1000  # messages
    messages: int = 1_000_000  # of the section on memory
    quick: bool = False


@dataclass(frozen=True)
class Plot:
    """Points of each series: as bars if x is text, else as a line."""

    name: str  # of its file
    title: str
    x_label: str
    y_label: str
    series: Mapping[str, Sequence[tuple[float | str, float]]]
    log_x: bool = False
    log_y: bool = False


@dataclass
class Report:
    text: str
    plots: list[Plot] = field(default_factory=list)


Measure = Callable[[Path, Options], Report]


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"
