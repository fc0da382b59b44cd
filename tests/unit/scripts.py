"""Scripts as app_python3 runs them: no other Python code is below them on the stack."""

from __future__ import annotations

import _thread
import threading
from typing import Any

_WRAPPER = compile(
    "try:\n    exec(code, scope)\nexcept BaseException as error:\n    failed.append(error)\n"
    "finally:\n    done.set()\n",
    "script.py",
    "exec",
)


def run_script(text: str, **given: Any) -> dict[str, Any]:
    """Run text as the module ``script``, with given as its names; its names afterwards."""
    scope: dict[str, Any] = {"__name__": "script", **given}
    failed: list[BaseException] = []
    done = threading.Event()
    around = {
        "__name__": "script",
        "code": compile(text, "script.py", "exec"),
        "scope": scope,
        "failed": failed,
        "done": done,
    }
    # exec itself is the thread's function: it has no frame.
    _thread.start_new_thread(exec, (_WRAPPER, around))
    assert done.wait(20)
    if failed:
        raise failed[0]
    return scope
