"""The network between containers: cut, and losing packets.

What is dropped is dropped where it arrives, in the receiver's network namespace: a sender notices
nothing, as on a real network.  The images need no iptables for that: the host's runs in there.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from .containers import Container, docker

AS_ROOT: list[str] = [] if os.geteuid() == 0 else ["sudo", "-n"]


def cut(*sides: Sequence[Container]) -> None:
    """Let nothing pass from one side to another."""
    for side in sides:
        others = [node for other in sides if other is not side for node in other]
        addresses = ",".join(node.control for node in others)
        for _, iptables in _firewalls(side):
            iptables(f"-A INPUT -s {addresses} -j DROP")


def lose(nodes: Sequence[Container], share: float) -> None:
    """Drop each packet with this probability; what the test itself sends arrives."""
    for node, iptables in _firewalls(nodes):
        iptables("-F INPUT")
        iptables(f"-A INPUT -s {node.bus.gateway} -j ACCEPT")
        random = f"-m statistic --mode random --probability {share}"
        iptables(f"-A INPUT -s {node.bus.gateway}/24 {random} -j DROP")


def heal(nodes: Sequence[Container]) -> None:
    """Let everything pass again."""
    for _, iptables in _firewalls(nodes):
        iptables("-F INPUT")


def spared(nodes: Sequence[Container]) -> list[str]:
    """The names of nodes to which everything has arrived since the network was last changed."""
    found = []
    for node, iptables in _firewalls(nodes):
        rules = [line.split() for line in iptables("-L INPUT -v -x -n").splitlines()]
        if not any(int(rule[0]) for rule in rules if "DROP" in rule):
            found.append(node.name)
    return found


def start_quickly(nodes: Sequence[Container]) -> None:
    """Many containers: several at a time, and none is asked for its health, which would cost more
    than all that they do for the bus."""
    for node in nodes:
        node.options.append("--no-healthcheck")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda node: node.start(), nodes))
    for node in nodes:
        node.wait_up()


class _Firewall:
    """iptables in a network namespace; called with arguments, it gives what they print."""

    def __init__(self, pid: str) -> None:
        self._command = [*AS_ROOT, "nsenter", "-t", pid, "-n", "iptables", "-w"]

    def __call__(self, arguments: str) -> str:
        command = [*self._command, *arguments.split()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout


def _firewalls(nodes: Sequence[Container]) -> Iterator[tuple[Container, _Firewall]]:
    pids = docker("inspect", "-f", "{{.State.Pid}}", *(node.id for node in nodes)).split()
    for node, pid in zip(nodes, pids, strict=True):
        yield node, _Firewall(pid)
