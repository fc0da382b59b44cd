"""The operator's commands, where dmq.so has its RPC commands dmq.add, dmq.remove and
dmq.change_status: ``kamcmd evrexec.run dmq:add sip:10.0.0.21:5060``.

They run in the process that serves the RPC, check what they are given and post it to the engine,
which alone changes the list.  evrexec tells kamcmd nothing, so each one leaves a log line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .bus import Bus
from .engine import command_event
from .node import Status
from .wire import SipUri, WireError, is_address, parse_uri


class Refused(ValueError):
    """What was given makes no sense; nothing was changed."""


class Commands:
    """resolve(host) gives the addresses of a name; it may wait for the DNS, as dmq.add does."""

    def __init__(self, bus: Bus, resolve: Callable[[str], list[str]]) -> None:
        self._bus = bus
        self._resolve = resolve

    def methods(self) -> dict[str, Callable[..., int]]:
        """The methods of the handler that evrexec calls (under native routing, python_exec)."""
        commands: tuple[Any, ...] = (self.add, self.remove, self.change_status)
        return {f"dmq:{command.__name__}": self._method(command) for command in commands}

    def add(self, argument: str) -> None:
        """URI: list a node as active and ping it."""
        uri = self._uri(argument)
        node = self._bus.node_list().by_key.get(uri.key)
        if node is not None:
            raise Refused(f"{node.uri} is on the list already")
        socket = self._bus.settings.server_socket
        if uri.key == (socket.host, socket.port):
            raise Refused("that is the local node")
        if not is_address(uri.host) and not self._resolve(uri.host):
            raise Refused(f"the name {uri.host} has no address")
        self._post("add", uri)

    def remove(self, argument: str) -> None:
        """URI: take a node from the list.  One that lives is back when it next speaks."""
        self._post("remove", self._listed(argument))

    def change_status(self, argument: str) -> bool:
        """URI and status, until the node next speaks or answers a ping; False if it has it."""
        text, _, status = argument.strip().rpartition(" ")
        known = [status.value for status in Status]
        if status not in known:
            raise Refused(f"the status must be one of {', '.join(known)}, after the node's URI")
        uri = self._listed(text)
        if self._bus.node_list().by_key[uri.key].status.value == status:
            return False
        self._post("change_status", uri, status)
        return True

    def _uri(self, text: str) -> SipUri:
        try:
            return parse_uri(text.strip()).with_user("")
        except WireError:
            raise Refused("it needs the SIP URI of a node") from None

    def _listed(self, text: str) -> SipUri:
        uri = self._uri(text)
        node = self._bus.node_list().by_key.get(uri.key)
        if node is None:
            raise Refused(f"no node {uri} is on the list")
        if node.local:
            raise Refused(f"{node.uri} is the local node")
        return uri

    def _post(self, command: str, uri: SipUri, status: str = "") -> None:
        if not self._bus.shared.engine_inbox.put(command_event(command, str(uri), status)):
            self._bus.shared.counters.add("inbox_full")
            raise Refused("the inbox of the engine is full")

    def _method(self, command: Callable[[str], object]) -> Callable[..., int]:
        def method(msg: Any, argument: str = "") -> int:
            said = f"kemi_dmq: command dmq:{command.__name__} {argument!r}"
            try:
                command(argument)
            except Refused as error:
                self._bus.host.log("err", f"{said} refused: {error}")
                return -1
            self._bus.host.log("info", said)
            return 1

        return method
