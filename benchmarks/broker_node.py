"""node.py with a broker in the place of the bus: publishes to the channels silent and timed.

Speaks Redis' and NATS' own protocols over a socket: less than any client library costs.
"""

from __future__ import annotations

import mmap
import os
import socket
import time

import KSR

KIND, HOST, PORT = os.environ["BENCH_BROKER"].split()
REDIS = KIND == "redis"
#: How many messages came; made before the fork, one process writes it.
count = memoryview(mmap.mmap(-1, 8)).cast("Q")


def connect() -> socket.socket:
    connection = socket.create_connection((HOST, int(PORT)))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not REDIS:
        connection.recv(65536)  # INFO
        connection.sendall(b'CONNECT {"verbose":false,"pedantic":false}\r\nPING\r\n')
        while b"PONG" not in connection.recv(65536):
            pass
    return connection


class Publisher:
    def __init__(self) -> None:
        self._connection: socket.socket | None = None

    def __call__(self, channel: bytes, body: bytes) -> None:
        if self._connection is None:  # a process's own
            self._connection = connect()
        size = b"%d" % len(body)
        if REDIS:
            self._connection.sendall(
                b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%s\r\n$%s\r\n%s\r\n"
                % (len(channel), channel, size, body)
            )
            assert self._connection.recv(100)[:1] == b":"
        else:
            self._connection.sendall(b"PUB %s %s\r\n%s\r\n" % (channel, size, body))
            # PING from the server, when nothing was sent for two minutes: not within a benchmark


publish = Publisher()


class Reader:
    """What the broker sends, taken apart."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._data = b""
        self._at = 0

    def line(self) -> bytes:
        while (end := self._data.find(b"\r\n", self._at)) < 0:
            self._more()
        line, self._at = self._data[self._at : end], end + 2
        return line

    def take(self, size: int) -> bytes:
        while len(self._data) < self._at + size + 2:
            self._more()
        body, self._at = self._data[self._at : self._at + size], self._at + size + 2
        return body

    def _more(self) -> None:
        data = self._connection.recv(1 << 16)
        if not data:
            raise ConnectionError("the broker has ended")
        self._data, self._at = self._data[self._at :] + data, 0


def subscribe() -> None:
    """Take what comes, for ever."""
    connection = connect()
    if REDIS:
        connection.sendall(b"SUBSCRIBE silent timed\r\n")
    else:
        connection.sendall(b"SUB silent 1\r\nSUB timed 2\r\n")
    reader = Reader(connection)
    while True:
        line = reader.line()
        if REDIS:  # an array: "message" or "subscribe", channel, body or a number
            kind = reader.take(int(reader.line()[1:]))
            channel = reader.take(int(reader.line()[1:]))
            size = reader.line()
            if kind != b"message":
                continue
            body = reader.take(int(size[1:]))
        elif line.startswith(b"MSG "):
            _, channel, _, number = line.split()
            body = reader.take(int(number))
        else:
            if line == b"PING":
                connection.sendall(b"PONG\r\n")
            continue
        if channel == b"timed":
            os.write(2, b"T %s %.6f\n" % (body[:17], time.time()))
        count[0] += 1


class Kamailio:
    def child_init(self, rank: int) -> int:
        return 0

    def ksr_request_route(self, msg: object) -> int:
        if KSR.is_method("INFO"):
            peer, _, number, _, _ = str(KSR.pv.get("$hdr(X-What)")).split()
            begin = time.perf_counter()
            for _ in range(int(number)):
                self.send(peer.encode())
            each = (time.perf_counter() - begin) * 1_000_000 / int(number)
            KSR.sl.send_reply(200, str(int(each)))
        elif KSR.is_method("REGISTER"):
            KSR.registrar.save("location", 0)
            self.send(b"timed")
        elif KSR.is_method("MESSAGE"):
            KSR.sl.send_reply(200, str(count[0]))
        else:
            KSR.sl.send_reply(200, "OK")
        return 1

    def send(self, peer: bytes) -> None:
        publish(peer, (b"%.6f" % time.time()).ljust(200, b"x"))

    def ksr_reply_route(self, msg: object) -> int:
        return 1

    def ksr_uac_event(self, msg: object, event: str) -> int:
        return 1

    def ksr_dmq_engine(self, msg: object, event: str) -> int:
        if os.environ["BENCH_SUBSCRIBES"]:
            subscribe()
        return 1

    def ksr_dmq_callbacks(self, msg: object, event: str) -> int:
        return 1


def mod_init() -> Kamailio:
    return Kamailio()
