"""Measure kemi_dmq against Kamailio's own dmq.so, in the same run on this machine.

Nothing here passes or fails: it prints tables in Markdown, each with its ratios.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from . import join, keys, membership, memory, nodes, ordered, receive, send, workers
from .cpu import machine

Measure = Callable[[Path, int, int], str]
MEASUREMENTS: dict[str, tuple[str, Measure, str]] = {
    "receive": (receive.TITLE, receive.measure, receive.__doc__ or ""),
    "workers": (workers.TITLE, workers.measure, workers.__doc__ or ""),
    "send": (send.TITLE, send.measure, send.__doc__ or ""),
    "keys": (keys.TITLE, keys.measure, keys.__doc__ or ""),
    "ordered": (ordered.TITLE, ordered.measure, ordered.__doc__ or ""),
    "join": (join.TITLE, join.measure, join.__doc__ or ""),
    "membership": (membership.TITLE, membership.measure, membership.__doc__ or ""),
    "memory": (memory.TITLE, memory.measure, memory.__doc__ or ""),
}


def head(options: argparse.Namespace) -> str:
    """What was measured where, and how to read it."""
    version = subprocess.run(["kamailio", "-v"], capture_output=True, text=True).stdout
    kamailio = version.splitlines()[0].removeprefix("version: ").strip()
    return f"""# Performance

`make bench WRITE=docs/performance.md` wrote this on {datetime.date.today()}:
{options.rounds} rounds of {options.slice} messages for each row. Measured on
{", ".join(machine())}; {kamailio},
{nodes.CHILDREN} SIP workers, memory manager {options.manager or "as Kamailio chooses it"};
Python {platform.python_version()} runs the benchmark, Kamailio its own.

Processor time is that of all processes and threads of one Kamailio, system time included.
Kamailios take turns in short slices, because a machine's speed drifts: compare the ratios, which
are medians of the ratios round by round (in brackets the quartiles), not the microseconds.
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog=".venv/bin/python -m benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=MEASUREMENTS, help="may be repeated")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--slice", type=int, default=1000, help="messages per slice")
    parser.add_argument(
        "--manager", choices=("qm", "fm", "tlsf"), help="Kamailio's memory manager (its -x)"
    )
    parser.add_argument("--write", type=Path, help="write the result to this Markdown file")
    options = parser.parse_args()
    if options.rounds < 1 or options.slice < send.BATCH:
        parser.error(f"--rounds must be at least 1 and --slice at least {send.BATCH}")
    if shutil.which("kamailio") is None:
        parser.error("kamailio is not installed")
    if options.manager:
        nodes.EXTRA[:] = ["-x", options.manager]
    parts = [head(options)]
    for name in options.only or MEASUREMENTS:
        title, measure, about = MEASUREMENTS[name]
        print(f"{title} …", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="kemi_dmq_bench_") as directory:
            table = measure(Path(directory), options.rounds, options.slice)
        parts.append(f"## {title}\n\n{about.strip()}\n\n{table}")
    text = "\n".join(parts)
    print(text)
    if options.write:
        options.write.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
