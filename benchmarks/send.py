"""Processor time per sent message of 200 bytes and its answer, and what of it a SIP worker pays.

One request makes the node send 50 messages to a node that is no Kamailio and not counted.  That
one keeps its answers back until the request is answered.  What the node's SIP workers have spent
until then is the cost of the calls (with what the request itself costs, spread over 50 messages);
the whole is read when all answers are in.  The next request leaves after that.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .load import Responder, Sender, settle
from .modes import PYTHON, SEND, C, Mode
from .nodes import CSubject, PythonSubject, Subject, running, wait_active
from .report import Options, Plot, Report
from .rounds import CPU, Candidate, Column, Figures, alternate, table

TITLE = "Sending"
BATCH = 50
CALL = "call"


def measure(directory: Path, options: Options) -> Report:
    responder, sender = Responder("127.0.0.49"), Sender("127.0.0.48")
    nodes = [
        subject(mode, f"127.0.0.{number}", directory / str(number), responder.uri)
        for number, mode in enumerate(SEND, 30)
    ]
    try:
        with running(*nodes):
            wait_active(nodes, responder.uri)
            for node in nodes:
                node.wait_settled()
            candidates = [
                Candidate(mode.name, slices(sender, responder, node, mode, options.slice))
                for mode, node in zip(SEND, nodes, strict=True)
            ]
            alternate(candidates, options.rounds, TITLE)
    finally:
        sender.close()
        responder.close()
    base = next(c for c, mode in zip(candidates, SEND, strict=True) if mode.kind == C)
    columns = [
        Column("CPU µs per message"),
        Column("ratio to C", base=base),
        Column("in the calling SIP worker, CPU µs", CALL),
        Column("ratio to C", CALL, base=base),
    ]
    groups = {"with its answer": CPU, "in the calling SIP worker": CALL}
    series = {
        c.name: [(g, c.ratio(base, figure)) for g, figure in groups.items()] for c in candidates
    }
    plot = Plot("send", "Processor time per sent message, C module = 1", "", "ratio", series)
    return Report(table(candidates, columns), [plot])


def subject(mode: Mode, address: str, directory: Path, notification: str) -> Subject:
    if mode.kind == PYTHON:
        return PythonSubject(address, directory, notification, defines=mode.defines)
    return CSubject(address, directory, notification)


def slices(
    sender: Sender,
    responder: Responder,
    node: Subject,
    mode: Mode,
    size: int,
    body: str = "text-200",
    content: str | bytes = "x" * 200,
    batch: int = BATCH,
) -> Callable[[], Figures]:
    """content: the body itself, which C takes from the request; body: its name for node.py."""
    meter, workers = node.meter(), node.workers_meter()
    times = max(1, size // batch)
    headers = (
        f"X-What: silent {mode.how} {batch} {body} 0\r\n"
        f"X-Count: {batch}\r\nX-Node: {responder.uri}\r\n"
    )

    def run() -> Figures:
        triggers = [
            sender.build("INFO", "send", node.address, content, headers) for _ in range(times)
        ]
        before = meter.read()
        calls = 0
        for trigger in triggers:
            responder.expect(batch)
            responder.hold()
            begin = workers.read()
            sender.run([trigger], node.address, b"200")
            settle()
            calls += workers.read() - begin
            responder.release()
            responder.wait()
            settle()
        messages = times * batch
        return {CPU: (meter.read() - before) / messages, CALL: calls / messages}

    return run
