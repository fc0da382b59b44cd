"""SRV look-ups with /etc/resolv.conf's servers.  Waits for them: for the engine's threads only."""

from __future__ import annotations

import random
import socket
import time

from ..dns import DnsError, ResolvConf, Srv, SrvAnswer, build_query, parse_answer, parse_resolv_conf

RESOLV_CONF = "/etc/resolv.conf"
_random = random.SystemRandom()  # numbers that a stranger cannot guess


def lookup_srv(name: str) -> list[Srv]:
    """The SRV records of a name in the order in which they are to be tried; empty if there are
    none or nobody can say."""
    try:
        with open(RESOLV_CONF) as file:
            conf = parse_resolv_conf(file.read())
    except (OSError, UnicodeDecodeError):
        conf = ResolvConf()
    for candidate in conf.names(name):
        records = _lookup(candidate, conf)
        if records is None:
            return []
        if records:
            return list(records)
    return []


def _lookup(name: str, conf: ResolvConf) -> tuple[Srv, ...] | None:
    """None: no server could say."""
    for _ in range(conf.attempts):
        for server in conf.nameservers:
            try:
                query = build_query(_random.getrandbits(16), name)
            except DnsError:
                return ()
            try:
                answer = _ask_udp(server, query, conf.timeout)
                if answer.truncated:
                    answer = _ask_tcp(server, query, conf.timeout)
            except (OSError, DnsError):
                continue
            if not answer.failed:
                return answer.records
    return None


def _ask_udp(server: str, query: bytes, seconds: float) -> SrvAnswer:
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    end = time.monotonic() + seconds
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        # Connected: from a port of its own, and to nobody else's answer.
        sock.connect((server, 53))
        sock.send(query)
        while (left := end - time.monotonic()) > 0:
            sock.settimeout(left)
            try:
                return parse_answer(sock.recv(65535), query)
            except DnsError:
                continue
    raise TimeoutError


def _ask_tcp(server: str, query: bytes, seconds: float) -> SrvAnswer:
    with socket.create_connection((server, 53), seconds) as sock:
        sock.sendall(len(query).to_bytes(2) + query)
        with sock.makefile("rb") as stream:
            length = int.from_bytes(stream.read(2))
            return parse_answer(stream.read(length), query)
