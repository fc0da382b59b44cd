"""What a Kamailio costs: processor time and memory of all its processes, from /proc."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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

    def __init__(self, pids: Iterable[int]) -> None:
        self._files = [f for pid in pids for f in PROC.glob(f"{pid}/task/*/schedstat")]

    def read(self) -> int:
        return sum(int(file.read_text().split()[0]) for file in self._files)


@dataclass
class Memory:
    """KiB of one process: what is its own, and its part of what it shares (1/n with n users)."""

    private: int = 0
    shared: int = 0


def memory(pid: int) -> Memory:
    """Mappings count, and not pages: one of shared memory that only one process has touched yet is
    shared all the same."""
    found = Memory()
    shared = False
    for line in (PROC / str(pid) / "smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            shared = rest[0].endswith("s")
        elif shared and name == "Pss:":
            found.shared += int(rest[0])
        elif not shared and name in ("Private_Clean:", "Private_Dirty:"):
            found.private += int(rest[0])
    return found


def machine() -> Iterator[str]:
    """The lines that describe this machine."""
    cpu = re.findall(r"^model name\s*:\s*(.*)$", (PROC / "cpuinfo").read_text(), re.M)
    memory = re.search(r"MemTotal:\s*(\d+)", (PROC / "meminfo").read_text())
    kernel = (PROC / "version").read_text().split()[2]
    yield f"{len(cpu)} x {cpu[0] if cpu else 'unknown processor'}"
    yield f"{int(memory[1]) // 1024 if memory else 0} MiB of memory"
    yield f"Linux {kernel}"
