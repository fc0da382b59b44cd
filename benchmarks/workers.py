"""Processor time per received message of 200 bytes that another process than the SIP worker runs.

C's dmq_handle_message hands over to its two dmq workers.  kemi_dmq does so with num_workers 2.  The
other way there is, a transaction that Kamailio's own async workers go on with, is measured beside
it (two workers as well), and kemi_dmq without workers.
"""

from __future__ import annotations

from pathlib import Path

from .load import Responder, Sender, settle
from .nodes import CSubject, PythonSubject, running, wait_active
from .receive import slices
from .report import Options, Report
from .rounds import Candidate, alternate, cpu_table

TITLE = "Handing over to workers"
ASYNC = 'loadmodule "async.so"\nasync_workers_group="name=dmq;workers=2;nonblock=0;usleep=0"\n'


def measure(directory: Path, options: Options) -> Report:
    size = options.slice
    responder, sender = Responder("127.0.0.49"), Sender("127.0.0.49")
    uri = responder.uri
    in_place = PythonSubject("127.0.0.40", directory / "python", uri)
    ours = PythonSubject("127.0.0.41", directory / "workers", uri, defines={"NUM_WORKERS": 2})
    tm = PythonSubject("127.0.0.42", directory / "async", uri, script="async_node.py", more=ASYNC)
    theirs = CSubject("127.0.0.43", directory / "c", uri)
    try:
        with running(in_place, ours, tm, theirs):
            wait_active([in_place, ours, tm, theirs], uri)
            theirs.learn()
            settle()
            reference = Candidate(
                "C dmq_handle_message, num_workers 2", slices(sender, theirs, b"202", size)
            )
            candidates = [
                Candidate("kemi_dmq, num_workers 0", slices(sender, in_place, b"200", size)),
                Candidate("kemi_dmq, num_workers 2", slices(sender, ours, b"200", size)),
                Candidate(
                    "kemi_dmq in async workers (tm.t_newtran, async.task_group_route)",
                    slices(sender, tm, b"200", size),
                ),
                reference,
            ]
            alternate(candidates, options.rounds, TITLE)
            return Report(cpu_table(candidates, reference))
    finally:
        sender.close()
        responder.close()
