"""docs/versions.md from what the scenarios measured: python -m tests.docker.table IN OUT"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from pathlib import Path

VARIANTS = ("bookworm", "trixie", "forky", "mixed")
HEAD = """# Scenarios by version

Seconds, as the tests in `tests/docker` measured them on containers of one machine (median where a
scenario ran more than once).  Each scenario ends with every node listing every other one.  Times
count from the moment when the node that starts last first answers, and hold for all nodes of the
bus, C nodes included, unless the row says otherwise.

- bookworm: Kamailio 5.6, Python 3.11; trixie: 6.0, Python 3.13; forky: 6.1, Python 3.14
- mixed: Python nodes on all three, C nodes of 5.6 and 6.1

| scenario | bookworm | trixie | forky | mixed |
|---|---:|---:|---:|---:|
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
        rows.append(f"| {what} | {' | '.join(cells)} |\n")
    target.write_text(HEAD + "".join(rows))


if __name__ == "__main__":
    main()
