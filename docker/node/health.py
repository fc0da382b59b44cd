"""Ask the node itself, over SIP; exit status 0 when it answers.  With --show, print its view."""

import json
import socket
import sys
import time

from configure import HEALTH


def ask(method: str = "INFO", user: str = "nodes", body: str = "") -> bytes:
    """The body of this node's answer; raises OSError when there is none, or no 200."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((HEALTH[0], 0))
        sock.settimeout(1.5)
        me = "{}:{}".format(*sock.getsockname())
        unique = f"{time.time_ns()}"
        uri = "sip:{}@{}:{}".format(user, *HEALTH)
        data = (
            f"{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {me};branch=z9hG4bK{unique}\r\n"
            f"To: <{uri}>\r\nFrom: <sip:health@{me}>;tag=1\r\nCSeq: 1 {method}\r\n"
            f"Call-ID: {unique}\r\nMax-Forwards: 1\r\nContent-Type: text/plain\r\n"
            f"Content-Length: {len(body.encode())}\r\n\r\n{body}"
        )
        sock.sendto(data.encode(), HEALTH)
        answer = sock.recv(65535)
    if not answer.startswith(b"SIP/2.0 200"):
        raise OSError(answer.split(b"\r\n")[0].decode())
    return answer.partition(b"\r\n\r\n")[2]


if __name__ == "__main__":
    try:
        answer = ask()
    except OSError as error:
        sys.exit(f"no answer: {error}")
    if "--show" in sys.argv:  # needs the image's own script
        print(json.dumps(json.loads(answer), indent=1))
