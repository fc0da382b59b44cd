"""The bus for a kamailio.cfg that routes by itself, without a KEMI script of the user's.

kamailio-cfg/kemi_dmq_native.cfg calls the methods of Handler with python_exec().  Peers are written
in Python as ever, in the file that ``#!define DMQ_PEERS_FILE`` names.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from . import settings
from .bus import describe
from .dmq import DMQ


def load(script: dict[str, Any]) -> Callable[[], Any]:
    """Create the bus of the script whose globals() are given, and run the file that
    DMQ_PEERS_FILE names (if it is defined) within it: its peers and functions are the script's
    own.  Gives the script's mod_init().

    A relative name counts from the script's folder.  A file that fails stops Kamailio at start
    with one line; at a reload the line is logged, and what ran before goes on.
    """
    dmq = DMQ.from_defs()
    runtime = dmq._runtime
    name = settings.unquoted(runtime.host.define("DMQ_PEERS_FILE"))
    if name:
        path = os.path.join(os.path.dirname(script["__file__"]), name)
        if os.path.dirname(path) not in sys.path:
            sys.path.append(os.path.dirname(path))
        script.setdefault("dmq", dmq)
        try:
            with open(path, "rb") as file:
                source = file.read()
            if not source.strip():
                raise ValueError("it is empty")  # an editor that begins to write it, or a full disk
            exec(compile(source, path, "exec"), script)
        except BaseException as error:  # also sys.exit()
            if runtime.refused and runtime.handler is None:
                raise  # a wrong setting, at start: it has been told
            runtime.refuse(f"kemi_dmq: DMQ_PEERS_FILE {path} failed: {describe(error)}")

    def mod_init() -> Any:
        return dmq.attach(Handler(dmq, script))

    return mod_init


class Handler:
    """What python_exec() calls; the function of that name at the top level of the peers file if
    there is no such method here.

    In kamailio.cfg a result above 0 is true, one below 0 is false, and 0 ends the script, as with
    the functions of dmq.so.
    """

    def __init__(self, dmq: DMQ, script: dict[str, Any] | None = None) -> None:
        self._runtime = dmq._runtime
        self._script = script if script is not None else {}
        self._handle = self._runtime.bus.handle
        self._any_call = self._runtime.host.any_call

    def __getattr__(self, name: str) -> Any:
        value = None if name.startswith("_") else self._script.get(name)
        if not callable(value):
            raise AttributeError(name)
        return value

    def _clear(self) -> None:
        """A python_exec() whose argument is not UTF-8 leaves an error pending in its process, which
        whatever is called there next would raise."""
        try:
            self._any_call()
        except SystemError:
            pass

    # Requests ------------------------------------------------------------------------------

    def dmq_handle_message(self, msg: Any, rc: str = "0") -> int:
        """Work off a KDMQ request and reply to it: rc (1: the script goes on), or -1 as
        DMQ.handle_message() says."""
        self._clear()
        return self._handle(_return_code(rc))

    def dmq_process_message(self, msg: Any, rc: str = "0") -> int:
        """The same, at once and in this SIP worker, whatever num_workers is."""
        self._clear()
        return self._handle(_return_code(rc), at_once=True)

    def dmq_is_from_node(self, msg: Any) -> int:
        """Whether the request's source address is that of a node: 1 or -1."""
        self._clear()
        return self._runtime.drop_in.is_from_node()

    def dmq_t_replicate(self, msg: Any, skip_loop_test: str = "0") -> int:
        """Send the request to all active nodes, unless it came from one (or skip_loop_test is
        1): 1, or -1."""
        self._clear()
        done = self._runtime.drop_in.t_replicate_mode(int(skip_loop_test == "1"))
        return 1 if done == 0 else -1

    # Messages ------------------------------------------------------------------------------

    def dmq_bcast_message(self, msg: Any, what: str = "") -> int:
        """Send $var(dmq_body) to all active nodes: 1, or -1 with an error logged.

        what: ``PEER``, or ``PEER CONTENT-TYPE``.  The variable is empty afterwards.
        """
        self._clear()
        peer, content_type = _words(what, 2)
        if not peer:
            return self._incomplete("dmq_bcast_message", "PEER", "PEER CONTENT-TYPE")
        return self._runtime.drop_in.bcast_message(peer, self._body(), content_type)

    def dmq_send_message(self, msg: Any, what: str = "") -> int:
        """The same to one node: ``PEER NODE-URI``, or ``PEER NODE-URI CONTENT-TYPE``."""
        self._clear()
        peer, node, content_type = _words(what, 3)
        if not node:
            return self._incomplete("dmq_send_message", "PEER URI", "PEER URI CONTENT-TYPE")
        return self._runtime.drop_in.send_message(peer, node, self._body(), content_type)

    def dmq_process_custom(self, msg: Any, what: str = "") -> int:
        """Give $var(dmq_body) to a peer of this node as if another one had sent it: ``PEER
        FROM-URI``, or ``PEER FROM-URI CONTENT-TYPE``; 1, or -1 with an error logged."""
        call = self._runtime.drop_in.process_custom_message
        return self._custom("dmq_process_custom", call, what)

    def dmq_handle_custom(self, msg: Any, what: str = "") -> int:
        """The same; with num_workers above 0 a worker runs the peer."""
        call = self._runtime.drop_in.handle_custom_message
        return self._custom("dmq_handle_custom", call, what)

    def _custom(self, name: str, call: Callable[..., int], what: str) -> int:
        self._clear()
        peer, sender, content_type = _words(what, 3)
        if not sender:
            return self._incomplete(name, "PEER URI", "PEER URI CONTENT-TYPE")
        return call(peer, sender, self._body(), content_type or "text/plain")

    def _incomplete(self, name: str, *right: str) -> int:
        self._body()  # it does not go with the next message either
        wanted = " or ".join(f'"{words}"' for words in right)
        self._runtime.host.log(
            "err", f'kemi_dmq: python_exec("{name}") needs a second argument: {wanted}'
        )
        return -1

    def _body(self) -> Any:
        return self._runtime.host.take_variable("dmq_body")

    # Called by kemi_dmq_native.cfg ---------------------------------------------------------

    def child_init(self, rank: int) -> int:
        self._runtime.host.set_variable("dmq_body", "")  # Kamailio's default is the number 0
        users = self._script.get("child_init")
        return users(rank) if callable(users) else 0

    def dmq_reply(self, msg: Any) -> int:
        """Of a SIP reply: 1 if it was for us, and Kamailio has nothing more to do with it."""
        self._clear()
        return 1 if self._runtime.bus.on_reply() else -1

    def dmq_uac_reply(self, msg: Any) -> int:
        """The outcome of a request of uac's: 1 if it was one of our messages, else -1."""
        self._clear()
        return 1 if self._runtime.bus.on_outcome() else -1

    def ksr_dmq_event_route(self, msg: Any, name: str) -> int:
        """Run event_route[dmq:peer-up] and its like.  Callbacks process."""
        self._runtime.host.run_event_route(name)
        return 1


def _return_code(text: str) -> int:
    """As dmq.so takes it: 0 ends the script, 1 and more go on."""
    try:
        return min(int(text), 1)
    except ValueError:
        return 0


def _words(what: str, count: int) -> list[str]:
    """So many words, the last one with the spaces that it has; "" for those that are missing."""
    words = what.split(None, count - 1)
    return words + [""] * (count - len(words))
