"""Processor time per message by the size and kind of its body.

Received and sent as in the two sections before, by kemi_dmq without a response callback.  Binary
bodies have all byte values, NUL among them; C's script sends what the request that makes it send
has as its body, and dmq.so never looks into a body.
"""

from __future__ import annotations

from pathlib import Path

from . import receive, send
from .load import Responder, Sender
from .modes import PLAIN, THE_C_MODULE
from .nodes import CSubject, PythonSubject, running, wait_active
from .report import Options, Plot, Report, markdown
from .rounds import Candidate, alternate

TITLE = "Bodies"
SIZES = {200: "200 bytes", 4096: "4 KB", 30_000: "30 KB"}
KINDS = ("text", "binary")
#: Bytes that may wait in a socket: at most so many messages are on their way.
IN_FLIGHT = 100_000


def content(kind: str, size: int) -> bytes:
    pattern = b"x" * 256 if kind == "text" else bytes(range(256))
    return (pattern * (size // 256 + 1))[:size]


def measure(directory: Path, options: Options) -> Report:
    responder, sender = Responder("127.0.0.49"), Sender("127.0.0.49")
    uri = responder.uri
    ours = PythonSubject("127.0.0.40", directory / "python", uri)
    theirs = CSubject("127.0.0.41", directory / "c", uri)
    pairs: dict[tuple[str, str, int], tuple[Candidate, Candidate]] = {}
    try:
        with running(ours, theirs):
            wait_active([ours, theirs], uri)
            theirs.learn()
            for node in (ours, theirs):
                node.wait_settled()
            for size in SIZES:
                many = min(20, IN_FLIGHT // size)
                # Fewer of the large ones, which leave in batches of a few.
                count = max(send.BATCH, options.slice * 200 // size)
                for kind in KINDS:
                    body, name = content(kind, size), f"{kind}-{size}"
                    pairs["received", kind, size] = (
                        Candidate(name, receive.slices(sender, ours, b"200", count, body, many)),
                        Candidate(name, receive.slices(sender, theirs, b"202", count, body, many)),
                    )
                    batch = min(send.BATCH, many)
                    pairs["sent", kind, size] = (
                        Candidate(
                            name,
                            send.slices(sender, responder, ours, PLAIN, count, name, body, batch),
                        ),
                        Candidate(
                            name,
                            send.slices(
                                sender, responder, theirs, THE_C_MODULE, count, name, body, batch
                            ),
                        ),
                    )
            alternate([c for pair in pairs.values() for c in pair], options.rounds, TITLE)
    finally:
        sender.close()
        responder.close()
    rows = []
    series: dict[str, list[tuple[float | str, float]]] = {}
    for (what, kind, size), (mine, its) in pairs.items():
        rows.append(
            [
                f"{what}, {kind}, {SIZES[size]}",
                f"{mine.median() / 1000:.1f}",
                f"{its.median() / 1000:.1f}",
                mine.ratio_text(its),
            ]
        )
        series.setdefault(f"kemi_dmq, {what}, {kind}", []).append((SIZES[size], mine.ratio(its)))
    rows.sort(key=lambda row: row[0].split(",")[0])
    head = ["", "kemi_dmq, CPU µs per message", "C module", "ratio"]
    plot = Plot(
        "bodies", "Processor time per message by size, C module = 1", "body", "ratio", series
    )
    return Report(markdown(head, rows), [plot])
