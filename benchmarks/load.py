"""The other end of the wire: a sender with a fixed window, and a node that answers 200.

Both run in the benchmark's own process, whose processor time is not counted.
"""

from __future__ import annotations

import itertools
import os
import re
import select
import socket
import threading
import time
from collections.abc import Sequence

#: Seconds until a request counts as left without a reply.
PATIENCE = 5
BODY = "x" * 200
_numbers = itertools.count(1)
_BRANCH = re.compile(rb"branch=([^;\r]+)")
_REPLY_HEADERS = re.compile(rb"^(?:Via|From|To|Call-ID|CSeq):.*\r\n", re.M | re.I)


class LoadError(RuntimeError):
    """The node under test did not answer as it should: the figures would mean nothing."""


def build(
    method: str,
    user: str,
    to: str,
    *,
    sender: str,
    via: str,
    body: str | bytes = BODY,
    headers: str = "",
) -> bytes:
    """A request with the headers of a DMQ node's, and a Via branch and Call-ID of its own; headers
    are more of them, each with its CRLF."""
    number = f"{os.getpid():x}.{next(_numbers):x}"
    raw = body.encode() if isinstance(body, str) else body
    return (
        f"{method} sip:{user}@{to}:5060 SIP/2.0\r\n"
        f"Via: SIP/2.0/UDP {via};branch=z9hG4bK{number}.3e872f46000000000000000\r\n"
        f"To: <sip:{user}@{to}:5060>\r\n"
        f"From: <sip:{user}@{sender}:5060>;tag=80fd6f2ce9ed3f63f1d0c25a81b72b7d-{number}\r\n"
        f"CSeq: 10 {method}\r\n"
        f"Call-ID: {number}-55d5bb6ae98c0f73@{sender}\r\n"
        f"Content-Length: {len(raw)}\r\n"
        "User-Agent: kamailio (5.6.3 (x86_64/linux))\r\n"
        "Max-Forwards: 1\r\n"
        f"Content-Type: text/plain\r\n{headers}\r\n"
    ).encode() + raw


class Sender:
    """Sends requests and waits for their replies."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((address, 0))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self.address = address
        self.via = "{}:{}".format(*self.socket.getsockname())

    def build(
        self, method: str, user: str, to: str, body: str | bytes = BODY, headers: str = ""
    ) -> bytes:
        """A request of ours."""
        return build(
            method, user, to, sender=self.address, via=self.via, body=body, headers=headers
        )

    def run(
        self,
        messages: Sequence[bytes],
        to: str,
        code: bytes,
        window: int = 20,
        patience: float = PATIENCE,
    ) -> list[bytes]:
        """Send all messages, at most window of them unanswered at any time, and give the reasons
        of the replies; LoadError unless each is answered by that code."""
        sock, target = self.socket, (to, 5060)
        sock.settimeout(patience)
        good = b"SIP/2.0 " + code + b" "
        reasons = []
        waiting = iter(messages)
        for message in itertools.islice(waiting, window):
            sock.sendto(message, target)
        for _ in messages:
            try:
                reply = sock.recv(65535)
            except TimeoutError:
                raise LoadError(f"{to} left a request without a reply for {patience} s") from None
            if not reply.startswith(good):
                raise LoadError(f"{to} answered {reply.splitlines()[0]!r}, not {code!r}")
            reasons.append(reply[len(good) : reply.index(b"\r")])
            message = next(waiting, b"")
            if message:
                sock.sendto(message, target)
        return reasons

    def pace(self, messages: Sequence[bytes], to: str, code: bytes, rate: float) -> list[float]:
        """Send so many messages a second, whether they are answered or not; the seconds until
        each one was answered.  LoadError unless all are, by that code."""
        sock, target = self.socket, (to, 5060)
        good = b"SIP/2.0 " + code + b" "
        sent: dict[bytes, float] = {}
        taken: list[float] = []
        number = 0
        begin = now = time.monotonic()
        while len(taken) < len(messages):
            while number < len(messages) and now >= begin + number / rate:
                # From when it was due: what made us late made it wait.
                sent[_branch(messages[number])] = begin + number / rate
                sock.sendto(messages[number], target)
                number += 1
                now = time.monotonic()
            more = number < len(messages)
            due = begin + number / rate if more else now + PATIENCE
            ready, _, _ = select.select([sock], [], [], max(0.0, due - now))
            now = time.monotonic()
            if not ready:
                if not more:
                    raise LoadError(f"{to} left {len(sent)} requests without a reply")
                continue
            reply = sock.recv(65535)
            if not reply.startswith(good):
                raise LoadError(f"{to} answered {reply.splitlines()[0]!r}, not {code!r}")
            taken.append(now - sent.pop(_branch(reply)))
        return taken

    def close(self) -> None:
        self.socket.close()


def _branch(message: bytes) -> bytes:
    found = _BRANCH.search(message)
    assert found is not None
    return found[1]


class Responder:
    """A node of the bus that answers 200 to everything and keeps nothing; a thread.

    Between hold() and release() it keeps its answers to messages back.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.uri = f"sip:{address}:5060"
        self.count = 0  # of messages; notifications are not counted
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self._socket.bind((address, 5060))
        self._list = f"{self.uri};status=active\r\n".encode()
        self._held: list[tuple[bytes, tuple[str, int]]] | None = None
        self._lock = threading.Lock()
        self._wanted = 0
        self._reached = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        sock = self._socket
        while True:
            data, source = sock.recvfrom(65535)
            if not data:  # from close()
                return
            if data.startswith(b"SIP/2.0"):
                continue
            head, _, _ = data.partition(b"\r\n\r\n")
            body, typed = b"", b""
            notification = b"notification_peer@" in head[:60]
            if notification:
                body, typed = self._list, b"Content-Type: text/plain\r\n"
            headers = b"".join(_REPLY_HEADERS.findall(head + b"\r\n"))
            length = b"Content-Length: %d\r\n\r\n" % len(body)
            answer = b"SIP/2.0 200 OK\r\n" + headers + typed + length + body
            with self._lock:
                if self._held is None or notification:
                    sock.sendto(answer, source)
                else:
                    self._held.append((answer, source))
            if not notification:
                self.count += 1
                if self.count == self._wanted:
                    self._reached.set()

    def hold(self) -> None:
        with self._lock:
            self._held = []

    def release(self) -> None:
        with self._lock:
            held, self._held = self._held or [], None
            for answer, source in held:
                self._socket.sendto(answer, source)

    def expect(self, messages: int) -> None:
        """Count from now on; then wait()."""
        self._reached.clear()
        self._wanted = self.count + messages

    def wait(self, seconds: float = 5.0) -> None:
        if not self._reached.wait(seconds):
            raise LoadError(f"{self._wanted - self.count} messages to {self.uri} did not arrive")

    def close(self) -> None:
        self._socket.sendto(b"", (self.address, 5060))
        self._thread.join()
        self._socket.close()


def settle() -> None:
    """Let the nodes work off what was sent to them last."""
    time.sleep(0.01)
