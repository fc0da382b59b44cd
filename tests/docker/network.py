"""The network between containers: cut, and losing packets.

What is dropped is dropped where it arrives, in the receiver's network namespace: a sender notices
nothing, as on a real network.  The images need no iptables for that: the host's runs in there.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from .containers import Container, docker

AS_ROOT: list[str] = [] if os.geteuid() == 0 else ["sudo", "-n"]


def cut(*sides: Sequence[Container]) -> None:
    """Let nothing pass from one side to another."""
    for side in sides:
        others = [node for other in sides if other is not side for node in other]
        addresses = ",".join(node.control for node in others)
        for node in side:
            _iptables(node, f"-A INPUT -s {addresses} -j DROP")


def lose(nodes: Iterable[Container], share: float) -> None:
    """Drop each packet with this probability; what the test itself sends arrives."""
    for node in nodes:
        network = f"{node.bus.gateway}/24"
        _iptables(node, "-F INPUT")
        _iptables(node, f"-A INPUT -s {node.bus.gateway} -j ACCEPT")
        random = f"-m statistic --mode random --probability {share}"
        _iptables(node, f"-A INPUT -s {network} {random} -j DROP")


def heal(nodes: Iterable[Container]) -> None:
    """Let everything pass again."""
    for node in nodes:
        _iptables(node, "-F INPUT")


def dropped(node: Container) -> int:
    """Packets that were to arrive at a node and did not, since the network was last changed."""
    rules = [line.split() for line in _iptables(node, "-L INPUT -v -x -n").splitlines()]
    return sum(int(rule[0]) for rule in rules if "DROP" in rule)


def start_quickly(nodes: Sequence[Container]) -> None:
    """Many containers: several at a time, and none is asked for its health, which would cost more
    than all that they do for the bus."""
    for node in nodes:
        node.options.append("--no-healthcheck")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda node: node.start(), nodes))
    for node in nodes:
        node.wait_up()


def _iptables(node: Container, rule: str) -> str:
    pid = docker("inspect", "-f", "{{.State.Pid}}", node.id).strip()
    command = [*AS_ROOT, "nsenter", "-t", pid, "-n", "iptables", "-w", *rule.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout
