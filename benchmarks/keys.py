"""What a signature costs: processor time per message, with a key and without.

Received by a peer that answers at once, of 200 bytes and of 20,000; sent without a response
callback, of 200 bytes, with the answer.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path

from kemi_dmq.trust import Key, Keyring, Parts

from . import send
from .load import BODY, Responder, Sender, settle
from .modes import PLAIN
from .nodes import PythonSubject, Subject, running, wait_active
from .report import Options, Report
from .rounds import CPU, Candidate, Figures, alternate, cpu_table

TITLE = "Keys"
SECRET = "0123456789abcdef0123456789abcdef"
RING = Keyring([Key("k1", SECRET.encode())])
LARGE = "x" * 20_000
_numbers = itertools.count(1)


def measure(directory: Path, options: Options) -> Report:
    rounds, size = options.rounds, options.slice
    responder, sender = Responder("127.0.0.49"), Sender("127.0.0.49")
    uri = responder.uri
    plain = PythonSubject("127.0.0.40", directory / "plain", uri)
    keyed = PythonSubject(
        "127.0.0.41",
        directory / "keyed",
        uri,
        defines={"KEYS": f"k1:{SECRET}", "UNSIGNED_NETWORKS": "127.0.0.49"},
    )
    try:
        with running(plain, keyed):
            wait_active([plain, keyed], uri)
            settle()
            text = []
            for what, body in (("received, 200 bytes", BODY), ("received, 20,000 bytes", LARGE)):
                pair = [
                    Candidate(f"{what}, {how}", _receiving(sender, node, body, how, size))
                    for how, node in (("no key", plain), ("a key", keyed))
                ]
                alternate(pair, rounds, f"{TITLE}: {what}")
                text.append(pair)
            pair = [
                Candidate(
                    f"sent, 200 bytes, {how}",
                    send.slices(sender, responder, node, PLAIN, size),
                )
                for how, node in (("no key", plain), ("a key", keyed))
            ]
            alternate(pair, rounds, f"{TITLE}: sent")
            text.append(pair)
            tables = [cpu_table(pair, pair[0]).replace(f" to {pair[0].name}", "") for pair in text]
            return Report("\n".join(tables))
    finally:
        sender.close()
        responder.close()


def _receiving(
    sender: Sender, node: Subject, body: str, how: str, size: int
) -> Callable[[], Figures]:
    meter = node.meter()

    def message() -> bytes:
        data = sender.build("KDMQ", "silent", node.address, body)
        if how == "no key":
            return data
        parts = Parts(
            "KDMQ",
            f"sip:silent@{node.address}:5060",
            f"sip:silent@{sender.address}:5060",
            "silent",
            "text/plain",
            body.encode(),
        )
        line = RING.sign(parts, int(time.time() * 1000), f"bench.{next(_numbers)}")
        return data.replace(b"Max-Forwards", line.encode() + b"Max-Forwards", 1)

    def run() -> Figures:
        messages = [message() for _ in range(size)]
        before = meter.read()
        sender.run(messages, node.address, b"200", window=20 if body is BODY else 4)
        settle()
        return {CPU: (meter.read() - before) / size}

    return run
