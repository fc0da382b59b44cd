"""Ask the node itself, over SIP at the bus's own socket; exit status 0 when it answers, with
whatever.  Where the answer has dmq.health(), as that of the image's own script has, its engine must
move as well.  With --show, print the answer: this node's view of the bus."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
from pathlib import Path

#: Seconds without a sign of the engine (it gives one every 5).
ENGINE_STILL = 15.0


def connect(bus: str) -> tuple[socket.socket, str]:
    """A connected socket to the node, and its transport; bus: udp:10.0.0.20:5060."""
    transport, _, address = bus.partition(":")
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    kind = socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, kind)
    sock.settimeout(1.5)
    sock.connect((host, int(port)))
    if transport == "tls":
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(os.environ["TLS_CA"])
        context.load_cert_chain(os.environ["TLS_CERTIFICATE"], os.environ["TLS_KEY"])
        sock = context.wrap_socket(sock)
    return sock, transport


def ask(bus: str) -> tuple[str, bytes]:
    """Status line and body of this node's final answer to INFO; OSError when there is none."""
    sock, transport = connect(bus)
    with sock:
        host, port = sock.getsockname()[:2]
        me = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        unique = f"{time.time_ns()}"
        uri = f"sip:nodes@{bus.partition(':')[2]}"
        data = (
            f"INFO {uri} SIP/2.0\r\n"
            f"Via: SIP/2.0/{transport.upper()} {me};rport;branch=z9hG4bK{unique}\r\n"
            f"To: <{uri}>\r\nFrom: <sip:health@{me}>;tag=1\r\nCSeq: 1 INFO\r\n"
            f"Call-ID: {unique}\r\nMax-Forwards: 1\r\nContent-Length: 0\r\n\r\n"
        )
        sock.sendall(data.encode())
        received = b""
        while True:
            more = sock.recv(65535)
            if not more:
                raise OSError("the connection was closed")
            received += more
            head, complete, body = received.partition(b"\r\n\r\n")
            found = re.search(rb"(?im)^content-length\s*:\s*(\d+)", head)
            length = int(found[1]) if found else len(body)
            if not complete or len(body) < length:
                continue
            if head.startswith(b"SIP/2.0 1"):
                received = body[length:]
                continue
            return head.partition(b"\r\n")[0].decode(), body[:length]


def still(answer: bytes) -> str:
    """What is wrong with the engine, if the answer tells of it."""
    try:
        moved = float(json.loads(answer)["health"]["engine_moved"])
    except (ValueError, TypeError, KeyError):
        return ""  # a script that answers something else
    if moved < 0:
        return "the engine has not started"
    return f"the engine has not moved for {moved:.0f} s" if moved > ENGINE_STILL else ""


def main() -> None:
    try:
        bus = (Path(os.environ.get("RUN_DIR", "/run/node")) / "bus").read_text()
        status, answer = ask(bus)
    except OSError as error:
        sys.exit(f"no answer: {error}")
    if "--show" in sys.argv:
        if not status.startswith("SIP/2.0 200"):
            sys.exit(f"--show needs a script that answers INFO: {status}")
        print(json.dumps(json.loads(answer), indent=1))
    elif trouble := still(answer):
        sys.exit(trouble)


if __name__ == "__main__":
    main()
