#!/usr/bin/env python3
"""Write what docs/membership.md shows of the code: the state diagram, its table, a transcript.

    python -m tools.membership_page            write it
    python -m tools.membership_page --check    1 if the page shows something else

Each part stands between two comments, ``<!-- states -->`` and ``<!-- end of states -->``.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from kemi_dmq.swim import TRANSITIONS, Cause, State

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "membership.md"
GOLDEN = ROOT / "tests" / "simulation" / "golden"

#: Of the transcript of a death the first line that holds each of these, in this order.
SHOWN_OF_A_DEATH = (
    "  is killed",
    "-> 10.0.0.3  KDMQ",
    " probe=",
    " -> 10.0.0.3  KDMQ",
    " missed=",
    "-> 10.0.0.3  KDMQ mf 1 [10.0.0.1",
    "-> 10.0.0.2  KDMQ mf 1 [10.0.0.1",
    "dmq:peer-",
    "state=down",
    "dmq:peer-",
)


def short(cause: Cause) -> str:
    return cause.name.lower().replace("_", " ")


def states() -> str:
    """The diagram in Mermaid's words, and the same as a table."""
    arrows: dict[tuple[State, State], list[str]] = defaultdict(list)
    rows = []
    for (old, cause), new in TRANSITIONS.items():
        arrows[old, new].append(short(cause))
        rows.append(f"| {old.value} | {short(cause)}: {cause.value} | {new.value} |")
    diagram = ["```mermaid", "stateDiagram-v2", "    [*] --> alive: becomes known"]
    for (old, new), causes in arrows.items():
        diagram.append(f"    {old.value} --> {new.value}: {', '.join(causes)}")
    return "\n".join(
        [*diagram, "```", "", "| State | Cause | New state |", "|---|---|---|", *rows, ""]
    )


def death() -> str:
    """A death as tests/simulation/golden tells it, shortened."""
    lines = iter((GOLDEN / "death.txt").read_text().splitlines())
    shown: list[str] = []
    for part in SHOWN_OF_A_DEATH:
        line = next((line for line in lines if part in line), None)
        if line is None:
            raise ValueError(f"no {part!r} in death.txt after {shown[-1:]}")
        shown.append(line.strip())
    return "\n".join(["```", *shown, "```", ""])


PARTS: dict[str, Callable[[], str]] = {"states": states, "death": death}


def page(text: str) -> str:
    """The page with all parts as they are now."""
    for name, part in PARTS.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
        before, found, rest = text.partition(begin)
        _, ended, after = rest.partition(end)
        if not (found and ended):
            raise ValueError(f"no {begin.strip()} … {end.strip()} in the page")
        text = f"{before}{begin}{part()}{end}{after}"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    old = PAGE.read_text()
    new = page(old)
    if options.check:
        return 0 if new == old else 1
    PAGE.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
