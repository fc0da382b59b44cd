"""Processor time per received message of 200 bytes to a peer that answers at once.

For dmq.so that is a peer which a script has sent to before: its built-in callback sets 202 and
returns, as ours sets 200 and returns.  (The other peers there are, notification_peer and htable,
parse a body.)  The sender is a node on the list of both.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .load import BODY, Responder, Sender, build, settle
from .nodes import CSubject, NativeFloor, PythonSubject, Subject, running, wait_active
from .rounds import Candidate, alternate, table

TITLE = "Receiving"


def measure(directory: Path, rounds: int, size: int) -> str:
    responder, sender = Responder("127.0.0.49"), Sender("127.0.0.49")
    uri = responder.uri
    ours = PythonSubject("127.0.0.40", directory / "python", uri)
    handle = CSubject("127.0.0.41", directory / "handle", uri)
    process = CSubject("127.0.0.42", directory / "process", uri, function="dmq_process_message")
    native = NativeFloor("127.0.0.43", directory / "native")
    floor = PythonSubject("127.0.0.44", directory / "floor", script="floor.py")
    try:
        with running(ours, handle, process, native, floor):
            wait_active([ours, handle, process], uri)
            for node in (handle, process):
                message = build("MESSAGE", "x", node.address, sender="127.0.0.49", via=sender.via)
                sender.run([message], node.address, b"200")
            settle()

            def candidate(name: str, node: Subject, code: bytes) -> Candidate:
                return Candidate(name, slices(sender, node, code, size))

            handled = candidate("C dmq_handle_message", handle, b"202")
            processed = candidate("C dmq_process_message", process, b"202")
            all_of_them = [
                candidate("kemi_dmq handle_message", ours, b"200"),
                handled,
                processed,
                candidate("only an answer, native script", native, b"200"),
                candidate("only an answer, Python script", floor, b"200"),
            ]
            alternate(all_of_them, rounds, TITLE)
            return table(all_of_them, [handled, processed], "CPU µs per message")
    finally:
        sender.close()
        responder.close()


def slices(sender: Sender, node: Subject, code: bytes, size: int) -> Callable[[], float]:
    """One slice for a node: size messages, each with a branch and Call-ID of its own."""
    meter = node.meter()

    def run() -> float:
        messages = [
            build("KDMQ", "silent", node.address, sender=sender.address, via=sender.via, body=BODY)
            for _ in range(size)
        ]
        before = meter.read()
        sender.run(messages, node.address, code)
        settle()
        return (meter.read() - before) / size

    return run
