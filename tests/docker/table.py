"""docs/versions.md from what the scenarios measured: python -m tests.docker.table IN OUT"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from pathlib import Path

VARIANTS = ("bookworm", "trixie", "forky", "mixed")
HEAD = """# Scenarios by version

Seconds, as the tests in `tests/docker` measured them, side by side on one machine with two
processors (median where a scenario ran more than once).  They count from the command that starts,
stops, kills or unpauses the container; so a join or a return includes the start of the container
and of Kamailio, some 0.5 to 1 s.  "Python nodes": until each of them lists what it should; "all
nodes": until the C nodes do as well, as `kamcmd dmq.list_nodes` shows it.

- bookworm: Kamailio 5.6, Python 3.11; trixie: 6.0, Python 3.13; forky: 6.1, Python 3.14
- mixed: Python nodes on all three, C nodes of 5.6 and 6.1

A C node asks a notification address that did not answer at its next ping again (here after 5 s),
and gives up a node that is dead when its transaction has timed out (30 s).

| scenario | seen by | bookworm | trixie | forky | mixed |
|---|---|---:|---:|---:|---:|
"""


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in source.read_text().splitlines():
        what, variant, seconds = line.split("\t")
        found[what][variant].append(float(seconds))
    rows = []
    for what in sorted(found):
        cells = [
            f"{statistics.median(found[what][v]):.2f}" if found[what][v] else "" for v in VARIANTS
        ]
        scenario, _, seen_by = what.partition(" | ")
        rows.append(f"| {scenario} | {seen_by} | {' | '.join(cells)} |\n")
    target.write_text(HEAD + "".join(rows))


if __name__ == "__main__":
    main()
