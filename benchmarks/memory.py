"""Private memory of each process: fresh, and after many messages."""

from __future__ import annotations

import statistics
from pathlib import Path

from .cpu import private_kib, tree
from .load import Responder, Sender, build
from .nodes import CSubject, PythonSubject, Subject, running, wait_active
from .rounds import markdown

TITLE = "Memory"
MESSAGES = 20_000


def measure(directory: Path, rounds: int, size: int) -> str:
    responder, sender = Responder("127.0.0.49"), Sender("127.0.0.49")
    ours = PythonSubject("127.0.0.40", directory / "python", responder.uri)
    plain = PythonSubject("127.0.0.41", directory / "plain", script="floor.py")
    c_node = CSubject("127.0.0.42", directory / "c", responder.uri)
    subjects: dict[str, tuple[Subject, bytes]] = {
        "with kemi_dmq": (ours, b"200"),
        "Python script without it": (plain, b"200"),
        "C dmq.so": (c_node, b"202"),
    }
    rows = []
    try:
        with running(ours, plain, c_node):
            wait_active([ours, c_node], responder.uri)
            message = build("MESSAGE", "x", c_node.address, sender="127.0.0.49", via=sender.via)
            sender.run([message], c_node.address, b"200")
            for name, (subject, code) in subjects.items():
                fresh = [private_kib(pid) for pid in tree(subject.pid)]
                for _ in range(MESSAGES // 1000):
                    messages = [
                        build(
                            "KDMQ", "silent", subject.address, sender="127.0.0.49", via=sender.via
                        )
                        for _ in range(1000)
                    ]
                    sender.run(messages, subject.address, code)
                later = [private_kib(pid) for pid in tree(subject.pid)]
                cells = [name, str(len(later))]
                for kib in (fresh, later):
                    cells += [f"{statistics.median(kib):.0f}", f"{max(kib)}", f"{sum(kib)}"]
                rows.append(cells)
    finally:
        sender.close()
        responder.close()
    head = ["KiB private", "processes", "median, fresh", "largest", "all"]
    return markdown([*head, f"median, after {MESSAGES} messages", "largest", "all"], rows)
