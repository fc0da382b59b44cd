"""A DNS server for tests: a few records, over UDP and TCP, in threads of the test."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

A, CNAME, AAAA, SRV = 1, 5, 28, 33
Records = Mapping[tuple[str, int], list[bytes]]


def name(text: str) -> bytes:
    labels = [label.encode() for label in text.split(".") if label]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def a(address: str) -> bytes:
    return socket.inet_aton(address)


def aaaa(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6, address)


def srv(priority: int, weight: int, port: int, target: str) -> bytes:
    return b"".join(n.to_bytes(2) for n in (priority, weight, port)) + name(target)


@dataclass
class DnsServer:
    """Context manager.  truncate: over UDP SRV answers say that they are not whole."""

    records: Records
    address: str = "127.0.0.53"
    truncate: bool = False
    silent: bool = False  # no answer at all
    #: (transport, name, type) of each question
    asked: list[tuple[str, str, int]] = field(default_factory=list)

    def __enter__(self) -> DnsServer:
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind((self.address, 53))
        self._tcp = socket.create_server((self.address, 53))
        self._threads = [threading.Thread(target=run) for run in (self._run_udp, self._run_tcp)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._udp.sendto(b"", (self.address, 53))
        self._tcp.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        self._udp.close()
        self._tcp.close()

    def _run_udp(self) -> None:
        while True:
            data, client = self._udp.recvfrom(4096)
            if not data:
                return  # __exit__'s
            if answer := self._answer(data, "udp"):
                self._udp.sendto(answer, client)

    def _run_tcp(self) -> None:
        while True:
            try:
                client, _ = self._tcp.accept()
            except OSError:
                return
            with client, client.makefile("rb") as stream:
                length = int.from_bytes(stream.read(2))
                answer = self._answer(stream.read(length), "tcp")
                client.sendall(len(answer).to_bytes(2) + answer)

    def _answer(self, query: bytes, transport: str) -> bytes:
        place, labels = 12, []
        while query[place]:
            labels.append(query[place + 1 : place + 1 + query[place]].decode())
            place += 1 + query[place]
        kind = int.from_bytes(query[place + 1 : place + 3])
        text = ".".join(labels).lower()
        self.asked.append((transport, text, kind))
        if self.silent:
            return b""
        found = self.records.get((text, kind), [])
        known = any(owner == text for owner, _ in self.records)
        short = self.truncate and transport == "udp" and kind == SRV
        flags = 0x8180 | (0x0200 if short else 0) | (0 if known else 3)
        answers = b""
        for data in [] if short else found:
            answers += b"\xc0\x0c" + kind.to_bytes(2) + (1).to_bytes(2) + (60).to_bytes(4)
            answers += len(data).to_bytes(2) + data
        count = 0 if short else len(found)
        head = query[:2] + b"".join(n.to_bytes(2) for n in (flags, 1, count, 0, 0))
        return head + query[12 : place + 5] + answers
