"""Measure kemi_dmq against Kamailio's own dmq.so, in the same run on this machine.

Nothing here passes or fails: it prints tables in Markdown, each with its ratios.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

from . import (
    bodies,
    broadcast,
    idle,
    join,
    keys,
    membership,
    memory,
    nodes,
    ordered,
    page,
    receive,
    send,
    storm,
    tcp,
    traffic,
    workers,
)
from .cpu import machine
from .report import Options

#: In the order of the page.  Each has a TITLE, a docstring, and measure(directory, options).
SECTIONS: dict[str, ModuleType] = {
    "receive": receive,
    "workers": workers,
    "send": send,
    "bodies": bodies,
    "broadcast": broadcast,
    "traffic": traffic,
    "tcp": tcp,
    "storm": storm,
    "keys": keys,
    "ordered": ordered,
    "join": join,
    "membership": membership,
    "idle": idle,
    "memory": memory,
}


def head() -> str:
    """How to read the page."""
    return f"""# Performance

`make bench WRITE=docs/performance.md` writes this page: kemi_dmq beside Kamailio's own dmq.so on
real Kamailios, all on one machine, over loopback. The last line of each section says when and
where it was measured. {nodes.CHILDREN} SIP workers unless a section says otherwise, settings as by
default.

Processor time is that of all processes and threads of the Kamailios concerned, system time
included. They take turns in short slices, because a machine's speed drifts: compare the ratios,
which are medians of the ratios round by round (in brackets the quartiles), not the microseconds.
"""


def conditions(options: Options, manager: str | None) -> str:
    version = subprocess.run(["kamailio", "-v"], capture_output=True, text=True).stdout
    kamailio = version.splitlines()[0].removeprefix("version: ").strip()
    return (
        f"*{datetime.date.today()}: {options.rounds} rounds of {options.slice} messages for each "
        f"row; {', '.join(machine())}; {kamailio}, memory manager "
        f"{manager or 'as Kamailio chooses it'}; Python {platform.python_version()}.*"
    )


def own_loopback() -> None:
    """A network namespace of our own, where we may make one: whatever else runs on this machine,
    our addresses are free."""
    clone_newnet = 0x40000000
    if ctypes.CDLL(None, use_errno=True).unshare(clone_newnet) == 0:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog=".venv/bin/python -m benchmarks", description=__doc__)
    names = ", ".join(SECTIONS)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"all if none; {names}")
    parser.add_argument("--quick", action="store_true", help="show that each section works")
    parser.add_argument("--rounds", type=int, help=f"by default {Options.rounds}")
    parser.add_argument("--slice", type=int, help=f"messages; by default {Options.slice}")
    parser.add_argument(
        "--messages", type=int, help=f"of the section memory; by default {Options.messages:,}"
    )
    parser.add_argument(
        "--manager", choices=("qm", "fm", "tlsf"), help="Kamailio's memory manager (its -x)"
    )
    parser.add_argument(
        "--write", type=Path, help="write the result into this Markdown file, plots beside it"
    )
    arguments = parser.parse_args()
    wrong = [name for name in arguments.sections if name not in SECTIONS]
    if wrong:
        parser.error(f"there is no section {wrong[0]}; there are {names}")
    quick = Options(rounds=1, slice=100, messages=5000, quick=True)
    given = quick if arguments.quick else Options()
    options = Options(
        rounds=arguments.rounds or given.rounds,
        slice=arguments.slice or given.slice,
        messages=arguments.messages or given.messages,
        quick=arguments.quick,
    )
    if options.rounds < 1 or options.slice < send.BATCH:
        parser.error(f"--rounds must be at least 1 and --slice at least {send.BATCH}")
    if shutil.which("kamailio") is None:
        parser.error("kamailio is not installed")
    if arguments.manager:
        nodes.EXTRA[:] = ["-x", arguments.manager]
    own_loopback()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    found = []
    print(head())
    for name in arguments.sections or SECTIONS:
        module = SECTIONS[name]
        print(f"{module.TITLE} …", end=" ", file=sys.stderr, flush=True)
        begin = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="kemi_dmq_bench_") as directory:
            report = module.measure(Path(directory), options)
        print(f"{time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
        section = page.Section(
            module.TITLE, module.__doc__ or "", conditions(options, arguments.manager), report
        )
        print(section.text("performance"), flush=True)
        found.append(section)
        if arguments.write:  # what there is so far
            page.write(arguments.write, head(), found, [m.TITLE for m in SECTIONS.values()])
    return 0


if __name__ == "__main__":
    sys.exit(main())
