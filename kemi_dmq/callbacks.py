"""What the callbacks process does with an event: it calls the script's code, and logs what that
raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .bus import Bus, describe
from .engine import unpack_node
from .message import Reply
from .node import Node


def run_callback(
    bus: Bus, event: tuple[Any, ...], run_event: Callable[[str, Node], object]
) -> None:
    """run_event(name, node) runs the script's event callback; it is not called for other kinds of
    events."""
    kind = event[0]
    if kind == "timeout":
        bus.run_response(event[1], Reply(408, "Request Timeout", "", "", timed_out=True))
    elif kind == "outcome":
        bus.run_outcome(event)
    elif kind == "init":
        node = unpack_node(event[1]) if event[1] else None
        for peer in bus.registry.peers():
            if peer.init_callback is not None:
                try:
                    peer.init_callback(node)
                except BaseException as error:  # also sys.exit(): it is the user's code
                    _user_error(bus, f"init_callback of peer {peer.peer_id}", error)
    elif kind == "warn":
        bus.host.log("warn", f"kemi_dmq: {event[1]}")
    elif kind == "event":
        try:
            run_event(event[1], unpack_node(event[2]))
        except BaseException as error:
            _user_error(bus, f"event_callback for {event[1]}", error)


def _user_error(bus: Bus, what: str, error: BaseException) -> None:
    bus.shared.counters.add("user_errors")
    bus.host.log("err", f"kemi_dmq: {what} raised: {describe(error)}")
