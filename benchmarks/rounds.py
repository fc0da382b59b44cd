"""Short alternating slices: the machine drifts, ratios within a round do not."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Candidate:
    """Something that is measured: run() handles one slice and gives nanoseconds per message."""

    name: str
    run: Callable[[], float]
    figures: list[float] = field(default_factory=list)

    def microseconds(self) -> float:
        return statistics.median(self.figures) / 1000

    def ratio(self, base: Candidate) -> float:
        """The median of the ratios round by round."""
        pairs = zip(self.figures, base.figures, strict=True)
        return statistics.median(mine / its for mine, its in pairs)

    def spread(self, base: Candidate) -> tuple[float, float]:
        """The quartiles of these ratios."""
        ratios = [m / b for m, b in zip(self.figures, base.figures, strict=True)]
        if len(ratios) < 2:
            return ratios[0], ratios[0]
        low, _, high = statistics.quantiles(ratios, n=4)
        return low, high


def alternate(candidates: list[Candidate], rounds: int, what: str) -> None:
    """Run all candidates in turn, in another order each round; the first round does not count."""
    for number in range(rounds + 1):
        turn = number % len(candidates)
        for candidate in candidates[turn:] + candidates[:turn]:
            figure = candidate.run()
            if number:
                candidate.figures.append(figure)
        if sys.stderr.isatty():
            print(f"\r{what}: round {number} of {rounds} ", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def table(candidates: list[Candidate], bases: list[Candidate], unit: str) -> str:
    """A Markdown table: microseconds, and the ratio to each base with its quartiles."""
    head = ["", unit, *(f"ratio to {base.name}" for base in bases)]
    rows = []
    for candidate in candidates:
        row = [candidate.name, f"{candidate.microseconds():.1f}"]
        for base in bases:
            low, high = candidate.spread(base)
            row.append(f"{candidate.ratio(base):.2f} ({low:.2f} to {high:.2f})")
        rows.append(row)
    return markdown(head, rows)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"
