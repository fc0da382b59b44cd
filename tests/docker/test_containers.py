"""What the tests of this folder say of a test that failed."""

from __future__ import annotations

from .containers import squeezed


def test_many_messages_do_not_hide_the_rest_of_a_log() -> None:
    got = [f"GOT callid={number} size=1 body=b" for number in range(100)]
    log = "\n".join(["started", *got, "something is wrong", *got[:3]])
    assert squeezed(log).splitlines() == [
        "started",
        got[0],
        "... 98 more messages ...",
        got[-1],
        "something is wrong",
        *got[:3],
    ]
