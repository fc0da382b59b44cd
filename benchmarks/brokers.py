"""Redis and NATS in the place of a bus: a Kamailio publishes, others have subscribed.

The script of these Kamailios (broker_node.py) publishes from the SIP worker over a connection of
its own, and reads what it has subscribed to in a process of its own, as users do.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from .modes import NATS, REDIS
from .nodes import PythonSubject

PROGRAMS = {REDIS: "redis-server", NATS: "nats-server"}
PORTS = {REDIS: 6379, NATS: 4222}


def installed(kind: str) -> bool:
    return shutil.which(PROGRAMS[kind]) is not None


class Broker:
    """A server that keeps nothing on a disk."""

    def __init__(self, kind: str, directory: Path, network: int) -> None:
        self.kind = kind
        self.address = f"127.0.{network}.250"
        self.port = PORTS[kind]
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        command = [PROGRAMS[self.kind]]
        if self.kind == REDIS:
            command += ["--bind", self.address, "--save", "", "--appendonly", "no"]
            command += ["--dir", str(self._directory)]
        else:
            command += ["-a", self.address, "-p", str(self.port)]
        with (self._directory / f"{self.kind}.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            limit = time.monotonic() + 10
            while True:
                with contextlib.suppress(ConnectionRefusedError):
                    socket.create_connection((self.address, self.port), 1).close()
                    break
                if self._process.poll() is not None or time.monotonic() > limit:
                    raise RuntimeError(f"{command[0]} does not run; see {log.name}")
                time.sleep(0.02)
            yield
        finally:
            self._process.terminate()
            self._process.wait(10)


class BrokerSubject(PythonSubject):
    """A Kamailio that publishes, or has subscribed."""

    def __init__(
        self,
        address: str,
        directory: Path,
        broker: Broker,
        subscribes: bool,
        more: str,
        small: bool,
    ) -> None:
        super().__init__(
            address,
            directory,
            script="broker_node.py",
            more=more,
            small=small,
            env={
                "BENCH_BROKER": f"{broker.kind} {broker.address} {broker.port}",
                "BENCH_SUBSCRIBES": "1" if subscribes else "",
            },
        )
