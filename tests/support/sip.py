"""A SIP client on a loopback address, for what Kamailio itself would not send."""

from __future__ import annotations

import itertools
import os
import re
import socket
import time
from dataclasses import dataclass

_numbers = itertools.count(1)


@dataclass
class SipReply:
    code: int
    reason: str
    headers: dict[str, str]
    body: bytes


def parse_reply(data: bytes) -> SipReply:
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    match = re.fullmatch(r"SIP/2\.0 (\d{3}) ?(.*)", lines[0])
    assert match, lines[0]
    headers = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return SipReply(int(match[1]), match[2], headers, body)


def request(
    to: str,
    *,
    method: str = "KDMQ",
    user: str = "acme",
    body: bytes = b"",
    sender: str = "127.0.0.1:5060",
    via: str = "127.0.0.1:5060",
    port: int = 5060,
    headers: dict[str, str | None] | None = None,
) -> bytes:
    """A request to user at the address to; headers replaces headers, or with None leaves them
    out."""
    number = f"{os.getpid()}.{next(_numbers)}.{time.monotonic_ns()}"
    uri = f"sip:{user}@{to}:{port}" if user else f"sip:{to}:{port}"
    all_headers: dict[str, str | None] = {
        "Via": f"SIP/2.0/UDP {via};branch=z9hG4bK{number}",
        "To": f"<{uri}>",
        "From": f"<sip:{user or 'x'}@{sender}>;tag={number}",
        "CSeq": f"10 {method}",
        "Call-ID": f"{number}@test",
        "Max-Forwards": "1",
        "Content-Type": "text/plain" if body else None,
        "Content-Length": str(len(body)),
    }
    all_headers.update(headers or {})
    lines = [f"{method} {uri} SIP/2.0"]
    lines += [f"{name}: {value}" for name, value in all_headers.items() if value is not None]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def reply_to(data: bytes, code: int, reason: str) -> bytes:
    """The reply of a server without a mind of its own."""
    lines = data.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    names = ("via:", "from:", "to:", "call-id:", "cseq:", "v:", "f:", "t:", "i:")
    kept = [line for line in lines if line.lower().startswith(names)]
    return "\r\n".join([f"SIP/2.0 {code} {reason}", *kept, "Content-Length: 0", "", ""]).encode()


class SipSocket:
    """A UDP socket of its own address, IPv4 or IPv6; context manager."""

    def __init__(self, address: str = "127.0.0.1", port: int = 0) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.bind((address, port))
        host = f"[{address}]" if ":" in address else address
        self.name = f"{host}:{self.socket.getsockname()[1]}"

    def __enter__(self) -> SipSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes, to: str, port: int = 5060) -> None:
        self.socket.sendto(data, (to, port))

    def receive(self, seconds: float = 2.0) -> bytes | None:
        self.socket.settimeout(seconds)
        try:
            return self.socket.recv(65535)
        except TimeoutError:
            return None

    def reply(self, seconds: float = 2.0) -> SipReply:
        """The reply that arrives next; nothing else may come before it."""
        data = self.receive(seconds)
        assert data is not None, "no reply"
        return parse_reply(data)

    def ask(
        self,
        data: bytes,
        to: str,
        seconds: float = 2.0,
        port: int = 5060,
        again: float | None = None,
    ) -> SipReply | None:
        """Send a request (every again seconds) and give its reply; other requests that arrive are
        passed over."""
        self.send(data, to, port)
        now = time.monotonic()
        end, next_send = now + seconds, now + (again or seconds)
        while (now := time.monotonic()) < end:
            if now >= next_send and again:
                self.send(data, to, port)
                next_send = now + again
            answer = self.receive(max(0.001, min(next_send, end) - now))
            if answer is not None and answer.startswith(b"SIP/2.0"):
                return parse_reply(answer)
        return None
