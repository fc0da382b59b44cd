"""Processor time per received message of 200 bytes to a peer that answers at once.

For dmq.so that is a peer which a script has sent to before: its built-in callback sets 202 and
returns, as ours sets 200 and returns.  (The other peers there are, notification_peer and htable,
parse a body.)  The sender is a node on the list of both.  The last two rows are floors: Kamailios
that answer the request and do nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .load import Responder, Sender, settle
from .nodes import CSubject, NativeFloor, PythonSubject, Subject, running, wait_active
from .report import Options, Plot, Report
from .rounds import CPU, Candidate, Figures, alternate, cpu_table

TITLE = "Receiving"


def measure(directory: Path, options: Options) -> Report:
    size = options.slice
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
            handle.learn()
            process.learn()
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
            alternate(all_of_them, options.rounds, TITLE)
            series = {c.name: [("", c.ratio(handled))] for c in all_of_them}
            plot = Plot(
                "receive",
                "Processor time per received message, C dmq_handle_message = 1",
                "",
                "ratio",
                series,
            )
            return Report(cpu_table(all_of_them, handled, processed), [plot])
    finally:
        sender.close()
        responder.close()


def slices(
    sender: Sender,
    node: Subject,
    code: bytes,
    size: int,
    body: str | bytes = "x" * 200,
    window: int = 20,
) -> Callable[[], Figures]:
    """One slice for a node: size messages, each with a branch and Call-ID of its own."""
    meter = node.meter()

    def run() -> Figures:
        messages = [sender.build("KDMQ", "silent", node.address, body) for _ in range(size)]
        before = meter.read()
        sender.run(messages, node.address, code, window)
        settle()
        return {CPU: (meter.read() - before) / size}

    return run
