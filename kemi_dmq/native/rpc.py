"""The RPC commands of dmq.so (kamcmd dmq.list_nodes …), registered with Kamailio's core.

They run in whichever process serves the RPC: ctl's, jsonrpcs's, a SIP worker's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..bus import Bus
from ..commands import Commands, Refused
from .core import Core, UnfitError

RET_ARRAY = 1  # the answer is a list, whatever its length


class Rpc:
    """Made once, before the fork; everything that C holds on to is kept here."""

    def __init__(
        self, core: Core, bus: Bus, commands: Commands, failed: Callable[..., object]
    ) -> None:
        self._core = core
        self._bus = bus
        self._commands = commands
        methods = {
            "list_nodes": (self._list_nodes, RET_ARRAY, "Print all nodes"),
            "add": (self._add, 0, "Add a node: its SIP URI"),
            "remove": (self._remove, 0, "Remove a node: its SIP URI"),
            "change_status": (
                self._change_status,
                0,
                "Change the status of a node: its SIP URI, and active, not_active or disabled",
            ),
        }
        ffi = core.ffi
        self._kept: list[Any] = []
        exports = ffi.new("rpc_export_t[]", len(methods) + 1)  # the last one is zero
        for export, (name, (method, flags, text)) in zip(exports, methods.items(), strict=False):
            export.name = self._keep(ffi.new("char[]", f"dmq.{name}".encode()))
            export.function = self._keep(
                ffi.callback("rpc_function_t", self._guarded(method, failed), onerror=failed)
            )
            doc = self._keep(ffi.new("char[]", text.encode()))
            export.doc_str = self._keep(ffi.new("char *[]", [doc, ffi.NULL]))
            export.flags = flags
        if core.rpc_register_array(self._keep(exports)) != 0:
            raise UnfitError("0 where something else has RPC commands dmq.*")

    def _keep(self, value: Any) -> Any:
        self._kept.append(value)
        return value

    def _guarded(
        self, method: Callable[[Any, Any], None], failed: Callable[..., object]
    ) -> Callable[[Any, Any], None]:
        def call(rpc: Any, ctx: Any) -> None:
            try:
                method(rpc, ctx)
            except Refused as error:
                self._fault(rpc, ctx, str(error))
            except Exception as error:  # whoever has asked gets an answer in any case
                self._fault(rpc, ctx, "Server failure")
                failed(type(error), error, error.__traceback__)

        return call

    def _fault(self, rpc: Any, ctx: Any, text: str) -> None:
        new = self._core.ffi.new
        rpc.fault(ctx, self._core.ffi.cast("int", 500), new("char[]", b"%s"), self._text(text))

    def _text(self, text: str) -> Any:
        return self._core.ffi.new("char[]", text.encode().replace(b"\0", b""))

    def _list_nodes(self, rpc: Any, ctx: Any) -> None:
        """As dmq.so shows them (what it calls last_notification is 0 there as well)."""
        ffi = self._core.ffi
        for node in self._bus.node_list().nodes:
            row = ffi.new("void **")
            if rpc.add(ctx, self._text("{"), row) < 0:
                raise RuntimeError("the RPC interface takes no more")
            texts = {
                "host": node.host,
                "port": str(node.port),
                "proto": node.transport,
                "resolved_ip": node.address,
                "status": node.status.value,
            }
            numbers = {
                "last_notification": 0,
                "local": int(node.local),
                "fail_count": node.fail_count,  # in dmq.so from 6.1 on
                "kemi_dmq": int(node.python),
            }
            for name, text in texts.items():
                done = rpc.struct_add(
                    row[0], self._text("s"), self._text(name), self._text(text)
                )  # fmt: skip
                if done < 0:
                    raise RuntimeError("the RPC interface takes no more")
            for name, number in numbers.items():
                rpc.struct_add(
                    row[0], self._text("d"), self._text(name), ffi.cast("int", number)
                )  # fmt: skip

    def _arguments(self, rpc: Any, ctx: Any, count: int, what: str) -> list[str]:
        found = []
        for _ in range(count):
            string = self._core.ffi.new("str *")
            if rpc.scan(ctx, self._text(".S"), string) < 1:
                raise Refused(what)
            found.append(self._core.text(string))
        return found

    def _add(self, rpc: Any, ctx: Any) -> None:
        (uri,) = self._arguments(rpc, ctx, 1, "it needs the SIP URI of a node")
        self._commands.add(uri)
        rpc.rpl_printf(ctx, self._text("Ok. DMQ node added."))

    def _remove(self, rpc: Any, ctx: Any) -> None:
        (uri,) = self._arguments(rpc, ctx, 1, "it needs the SIP URI of a node")
        self._commands.remove(uri)
        rpc.rpl_printf(ctx, self._text("Ok. DMQ node removed."))

    def _change_status(self, rpc: Any, ctx: Any) -> None:
        words = self._arguments(rpc, ctx, 2, "it needs the SIP URI of a node and a status")
        changed = self._commands.change_status(" ".join(words))
        said = "changed" if changed else f"is already {words[1]}"
        rpc.rpl_printf(ctx, self._text(f"Ok. DMQ node status {said}."))
