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

#: Seconds until a request is sent again (RFC 3261, T1), and until it counts as unanswered.
AGAIN = 0.5
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
        self.sent_again = 0  # requests that were not answered in time
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
        again: float = AGAIN,
    ) -> list[bytes]:
        """Send all messages, at most window of them unanswered at any time, and give the reasons
        of the replies; LoadError unless each is answered by that code."""
        exchange = _Exchange(self, to, code, again)
        waiting = iter(messages)
        for message in itertools.islice(waiting, window):
            exchange.send(message)
        while exchange.open:
            if exchange.receive(again):
                message = next(waiting, b"")
                if message:
                    exchange.send(message)
        return exchange.reasons

    def pace(self, messages: Sequence[bytes], to: str, code: bytes, rate: float) -> list[float]:
        """Send so many messages a second, whether they are answered or not; the seconds from when
        each was due until it was answered.  LoadError unless all are, by that code."""
        exchange = _Exchange(self, to, code, AGAIN)
        number = 0
        begin = now = time.monotonic()
        while number < len(messages) or exchange.open:
            while number < len(messages) and now >= begin + number / rate:
                exchange.send(messages[number], begin + number / rate)
                number += 1
                now = time.monotonic()
            due = begin + number / rate if number < len(messages) else now + AGAIN
            exchange.receive(max(0.0, due - now))
            now = time.monotonic()
        return exchange.taken

    def close(self) -> None:
        self.socket.close()


class _Exchange:
    """Requests to one node that are not answered yet; each is sent again as a phone does it, since
    a full socket drops datagrams."""

    def __init__(self, sender: Sender, to: str, code: bytes, again: float) -> None:
        self._sender = sender
        self._target = (to, 5060)
        self._good = b"SIP/2.0 " + code + b" "
        self._again = again
        self._look_at = time.monotonic() + again
        #: branch -> the message, since when it is waited for, when it is sent again
        self.open: dict[bytes, tuple[bytes, float, float]] = {}
        self.reasons: list[bytes] = []
        self.taken: list[float] = []

    def send(self, message: bytes, due: float | None = None) -> None:
        now = time.monotonic()
        since = now if due is None else due
        self.open[_branch(message)] = (message, since, now + self._again)
        self._sender.socket.sendto(message, self._target)

    def receive(self, seconds: float) -> bool:
        """Whether one was answered within that time."""
        ready, _, _ = select.select([self._sender.socket], [], [], seconds)
        now = time.monotonic()
        if now >= self._look_at:
            self._send_again(now)
        if not ready:
            return False
        reply = self._sender.socket.recv(65535)
        if not reply.startswith(self._good):
            raise LoadError(f"{self._target[0]} answered {reply.splitlines()[0]!r}")
        found = self.open.pop(_branch(reply), None)
        if found is None:  # to one that was sent twice
            return False
        self.reasons.append(reply[len(self._good) : reply.index(b"\r")])
        self.taken.append(now - found[1])
        return True

    def _send_again(self, now: float) -> None:
        self._look_at = now + self._again / 10
        for branch, (message, since, again) in list(self.open.items()):
            if now > since + PATIENCE * max(1, self._again):
                raise LoadError(f"{self._target[0]} left {len(self.open)} requests without a reply")
            if now >= again:
                self._sender.sent_again += 1
                self.open[branch] = (message, since, now + self._again)
                self._sender.socket.sendto(message, self._target)


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
