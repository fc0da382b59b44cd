"""What fixtures need to know of their test when it has ended."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

#: Whether the test's own part failed.
FAILED = pytest.StashKey[bool]()
#: Lines that must not be in the log of a node that was not asked for them.
TROUBLE = ("Unhandled exception", "Traceback", "SystemError", "core was", "the engine failed")


def look_at(item: pytest.Item, logs: Iterable[tuple[str, str]]) -> None:
    """Print the nodes' logs if the test failed, and fail it for trouble in one of them."""
    allowed = [mark.args[0] for mark in item.iter_markers("allows")]
    troubles = []
    for name, log in logs:
        if item.stash.get(FAILED, False):
            print(f"--- log of {name}\n{log[-6000:]}")
        troubles += [
            f"{name}: {word}\n{log[-3000:]}"
            for word in TROUBLE
            if word in log and word not in allowed
        ]
    assert not troubles, "\n".join(troubles)
