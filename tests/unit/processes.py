"""Real processes for tests of shared memory."""

from __future__ import annotations

import marshal
import os
import signal
from collections.abc import Callable
from typing import Any


class Child:
    """A forked process that runs a function; its result comes back through a pipe."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                signal.alarm(20)  # a test that hangs ends all the same
                os.write(write, marshal.dumps(function()))
                code = 0
            finally:
                os._exit(code)
        os.close(write)

    def result(self) -> Any:
        data = b""
        while piece := os.read(self._read, 65536):
            data += piece
        os.close(self._read)
        _, status = os.waitpid(self.pid, 0)
        assert status == 0, f"the child ended with {status}"
        return marshal.loads(data)


def together(function: Callable[[int], Any], count: int) -> list[Any]:
    """Run function(number) in so many processes, all beginning at the same moment."""
    gate_read, gate_write = os.pipe()

    def waiting(number: int) -> Callable[[], Any]:
        def run() -> Any:
            os.close(gate_write)
            os.read(gate_read, 1)  # ends when the gate is closed everywhere
            return function(number)

        return run

    children = [Child(waiting(number)) for number in range(count)]
    os.close(gate_read)
    os.close(gate_write)
    return [child.result() for child in children]
