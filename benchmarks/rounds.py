"""Short alternating slices: the machine drifts, ratios within a round do not."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .report import markdown

#: What one slice gives: nanoseconds of processor time per message (CPU), and what else there is.
Figures = dict[str, float]
CPU = "cpu"


@dataclass
class Candidate:
    """Something that is measured: run() handles one slice."""

    name: str
    run: Callable[[], Figures]
    rounds: list[Figures] = field(default_factory=list)

    def median(self, figure: str = CPU) -> float:
        return statistics.median(figures[figure] for figures in self.rounds)

    def ratios(self, base: Candidate, figure: str = CPU) -> list[float]:
        """Round by round."""
        pairs = zip(self.rounds, base.rounds, strict=True)
        return [mine[figure] / its[figure] for mine, its in pairs]

    def ratio(self, base: Candidate, figure: str = CPU) -> float:
        return statistics.median(self.ratios(base, figure))

    def ratio_text(self, base: Candidate, figure: str = CPU) -> str:
        """The median of the ratios, and their quartiles."""
        ratios = self.ratios(base, figure)
        low = high = ratios[0]
        if len(ratios) > 1:
            low, _, high = statistics.quantiles(ratios, n=4)
        return f"{statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})"


def alternate(candidates: Sequence[Candidate], rounds: int, what: str) -> None:
    """Run all candidates in turn, in another order each round; the first round does not count."""
    for number in range(rounds + 1):
        turn = number % len(candidates)
        for candidate in [*candidates[turn:], *candidates[:turn]]:
            figures = candidate.run()
            if number:
                candidate.rounds.append(figures)
        if sys.stderr.isatty():
            print(f"\r{what}: round {number} of {rounds} ", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Column:
    """One figure of all candidates, divided by scale; with a base the ratios to it instead."""

    title: str
    figure: str = CPU
    scale: float = 1000
    digits: int = 1
    base: Candidate | None = None


def table(candidates: Sequence[Candidate], columns: Sequence[Column]) -> str:
    """In Markdown."""
    rows = []
    for candidate in candidates:
        row = [candidate.name]
        for column in columns:
            if column.base is not None:
                row.append(candidate.ratio_text(column.base, column.figure))
            else:
                value = candidate.median(column.figure) / column.scale
                row.append(f"{value:,.{column.digits}f}")
        rows.append(row)
    return markdown(["", *(column.title for column in columns)], rows)


def cpu_table(candidates: Sequence[Candidate], *bases: Candidate) -> str:
    """Processor time per message, and the ratio to each base."""
    ratios = [Column(f"ratio to {base.name}", base=base) for base in bases]
    return table(candidates, [Column("CPU µs per message"), *ratios])
