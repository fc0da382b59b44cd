"""Processor time per sent message of 200 bytes and its answer.

One request makes the node send 50 messages to a node that is no Kamailio and not counted; the
next one leaves when they have all arrived there and the request is answered.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .load import Responder, Sender, build, settle
from .nodes import CSubject, PythonSubject, Subject, running, wait_active
from .rounds import Candidate, alternate, table

TITLE = "Sending"
BATCH = 50


def measure(directory: Path, rounds: int, size: int) -> str:
    responder, sender = Responder("127.0.0.49"), Sender("127.0.0.48")
    uri = responder.uri
    ours = PythonSubject("127.0.0.40", directory / "python", uri)
    stateless = PythonSubject("127.0.0.41", directory / "stateless", uri, sl_send=1)
    c_node = CSubject("127.0.0.42", directory / "c", uri, batch=BATCH)
    try:
        with running(ours, stateless, c_node):
            wait_active([ours, stateless, c_node], uri)
            settle()

            def candidate(name: str, node: Subject, how: str) -> Candidate:
                return Candidate(name, slices(sender, responder, node, how, size))

            c_send = candidate("C dmq_send_message", c_node, "c")
            all_of_them = [
                candidate("kemi_dmq, response callback", ours, "callback"),
                candidate("kemi_dmq, no callback", ours, "plain"),
                candidate("kemi_dmq, no callback, sl_send=1", stateless, "plain"),
                c_send,
            ]
            alternate(all_of_them, rounds, TITLE)
            return table(all_of_them, [c_send], "CPU µs per message")
    finally:
        sender.close()
        responder.close()


def slices(
    sender: Sender, responder: Responder, node: Subject, how: str, size: int
) -> Callable[[], float]:
    meter = node.meter()
    times = max(1, size // BATCH)

    def run() -> float:
        body = f"{BATCH} {responder.uri}"
        triggers = [
            build(
                "INFO", how, node.address, sender=sender.address, via=sender.via, body=body
            ).replace(b"Max-Forwards", f"X-Node: {responder.uri}\r\nMax-Forwards".encode())
            for _ in range(times)
        ]
        before = meter.read()
        for trigger in triggers:
            responder.expect(BATCH)
            sender.run([trigger], node.address, b"200")
            responder.wait()
        settle()
        return (meter.read() - before) / (times * BATCH)

    return run
