"""What a Kamailio costs: processor time and memory of all its processes, from /proc."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")


def tree(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for process in found:  # grows while it is walked
        for children in PROC.glob(f"{process}/task/*/children"):
            found += [int(child) for child in children.read_text().split()]
    return found


class Meter:
    """Nanoseconds that a fixed set of processes spent on a processor, all threads."""

    def __init__(self, pid: int) -> None:
        self._files = [f for process in tree(pid) for f in PROC.glob(f"{process}/task/*/schedstat")]

    def read(self) -> int:
        return sum(int(file.read_text().split()[0]) for file in self._files)


def private_kib(pid: int) -> int:
    """Memory that no other process shares with this one."""
    text = (PROC / str(pid) / "smaps_rollup").read_text()
    return sum(int(kib) for kib in re.findall(r"^Private_(?:Clean|Dirty):\s+(\d+)", text, re.M))


def machine() -> Iterator[str]:
    """The lines that describe this machine."""
    cpu = re.findall(r"^model name\s*:\s*(.*)$", (PROC / "cpuinfo").read_text(), re.M)
    memory = re.search(r"MemTotal:\s*(\d+)", (PROC / "meminfo").read_text())
    kernel = (PROC / "version").read_text().split()[2]
    yield f"{len(cpu)} x {cpu[0] if cpu else 'unknown processor'}"
    yield f"{int(memory[1]) // 1024 if memory else 0} MiB of memory"
    yield f"Linux {kernel}"
