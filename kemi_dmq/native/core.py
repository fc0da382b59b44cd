"""Kamailio's own functions, found in the process that is already running, after a self-check.

What is checked, before anything is called that could do harm or is bound:

- the version is one whose structures are known, and they have their sizes on this machine;
- the list of loaded modules can be walked, by pointers into memory that is there, and what the
  core keeps of each module agrees with what the module itself (its ``exports``, looked up by
  name) says: names, functions and parameter counts of all its commands;
- ``find_export`` finds app_python3's own command where the walk found it, and no bind_dmq;
- tm's ``request`` is the function that tm itself hands out as t_request;
- ``parse_uri`` writes the structure that we know, and not a byte more;
- ``build_sip_msg_from_buf`` writes no more than the room that it gets from us.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from . import layout

#: parse_headers(): all headers
ALL_HEADERS = (1 << 64) - 1
#: For a sip_msg, bytes: it has some 2 KB on 5.6 and little more later.
_MESSAGE_ROOM = 8192
_SAMPLE = (
    b"KDMQ sip:acme@127.0.0.1:5099 SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1;branch=z9hG4bK1\r\n"
    b"From: <sip:acme@127.0.0.1>;tag=1\r\nTo: <sip:acme@127.0.0.1>\r\nCSeq: 1 KDMQ\r\n"
    b"Call-ID: 1\r\nContent-Length: 0\r\n\r\n"
)


class UnfitError(Exception):
    """C modules cannot be bound; the text says what setting bind_c_modules must be, and why."""


class Core:
    """The functions and structures of this Kamailio; UnfitError if they are not as they must be.

    Made in the process that loads the script first, while it does so.
    """

    def __init__(self, version: str) -> None:
        if layout.branch(version) not in layout.VERSIONS:
            raise UnfitError(
                f"0 on Kamailio {version}: the C structures of {', '.join(layout.VERSIONS)} are "
                "known"
            )
        self.ffi = ffi = layout.declare(version)
        for name, size in layout.sizes(version).items():
            if ffi.sizeof(name) != size:
                raise _check_failed(f"{name} has {ffi.sizeof(name)} bytes here, not {size}")
        self._c = ffi.dlopen(None)
        self._messages = 0  # that were parsed
        try:
            self.find_export = self._c.find_export
            self.parse_headers = self._c.parse_headers
            self.parse_uri = self._c.parse_uri
            self._build_message = self._c.build_sip_msg_from_buf
            self._free_message = self._c.free_sip_msg
            self.calloc = self._c.calloc
            self.rpc_register_array = self._c.rpc_register_array
            modules = {}
            self._memory = _Memory()
            for module in self._modules():
                modules[self._check_module(module)] = module
            self._check_uri()
            self._check_message()
            if "app_python3" not in modules or "tm" not in modules:
                raise _check_failed(f"there are only the modules {', '.join(modules)}")
            self.app = modules["app_python3"]
            self._check_find_export()
            self._app_library = ffi.dlopen(self.app.handle)
            self._environment = self._app_library.sr_apy_env_get()
            tm = ffi.dlopen(modules["tm"].handle)
            self.request = tm.request
            self._check_request(ffi.addressof(tm, "request"))
        except AttributeError as error:  # cffi: no such symbol
            raise _check_failed(str(error)) from None
        if self.find_export(b"bind_dmq", 0, 0):
            raise UnfitError(
                "0 where dmq.so is loaded, which C modules then use; take it out of kamailio.cfg"
            )

    def message(self) -> Any:
        """The SIP message that is being handled (a sip_msg *); NULL outside of one."""
        return self._environment[0]

    @contextmanager
    def parsed(self, text: bytes) -> Iterator[Any]:
        """The SIP message (a sip_msg *) that a process received which is not this one; NULL if it
        is none.  It does not say where it came from."""
        buffer = self.ffi.new("char[]", text)
        message = self.ffi.new("char[]", _MESSAGE_ROOM)
        self._messages += 1
        built = self._build_message(message, buffer, len(text), self._messages & 0x7FFFFFFF)
        try:
            yield self.ffi.NULL if built < 0 else message
        finally:
            self._free_message(message)

    def text(self, string: Any) -> str:
        """A Python str of a C str (or of a pointer to one)."""
        return str(self.raw(string).decode("utf-8", "replace"))

    def raw(self, string: Any) -> bytes:
        if not string.s or string.len <= 0:
            return b""
        return bytes(self.ffi.buffer(string.s, string.len))

    def add_command(self, name: bytes, function: Any) -> None:
        """Let find_export() find one more function, as app_python3's; UnfitError if it does not.

        Its array of commands is replaced by a copy that is longer by one.  The old array stays:
        the parsed configuration points into it.
        """
        ffi, old = self.ffi, self.app.exports.cmds
        count = 0
        while old[count].name:
            count += 1
        size = ffi.sizeof("ksr_cmd_export_t")
        new = ffi.cast("ksr_cmd_export_t *", self.calloc(count + 2, size))
        if not new:
            raise _check_failed("no memory")
        ffi.memmove(new, old, count * size)
        self._name = ffi.new("char[]", name)
        new[count].name = self._name
        new[count].function = function
        new[count].module_exports = ffi.addressof(self.app, "exports")
        self.app.exports.cmds = new
        if self.find_export(name, 0, 0) != function:
            self.app.exports.cmds = old
            raise _check_failed(f"find_export does not find {name.decode()}")

    # The self-check -----------------------------------------------------------------------

    def _modules(self) -> Iterator[Any]:
        module = self._c.get_loaded_modules()
        for _ in range(1000):
            if not module:
                return
            self._see(module, "a module")
            yield module
            module = module.next
        raise _check_failed("the list of modules has no end")

    def _check_module(self, module: Any) -> str:
        ffi, kept = self.ffi, module.exports
        self._see(kept.name, "a module's name")
        self._see(module.path, "a module's path")
        self._see(module.handle, "a module's handle")
        name = str(ffi.string(kept.name, 64).decode("ascii", "replace"))
        path = str(ffi.string(module.path, 4096).decode("utf-8", "replace"))
        if not path.endswith(f"/{name}.so"):
            raise _check_failed(f"the module at {path} is called {name}")
        symbol = self._c.dlsym(module.handle, b"exports")
        symbol = symbol or self._c.dlsym(module.handle, f"_{name}_exports".encode())  # from 5.8 on
        if not symbol:
            raise _check_failed(f"module {name} has no exports")
        own = ffi.cast("module_exports_t *", symbol)
        for field in ("name", "params", "init_mod_f", "init_child_f", "destroy_mod_f"):
            if getattr(own, field) != getattr(kept, field):
                raise _check_failed(f"{field} of module {name} is not what its exports say")
        number = 0
        while own.cmds and own.cmds[number].name:
            self._see(kept.cmds + number, f"command {number} of module {name}")
            ours, theirs = own.cmds[number], kept.cmds[number]
            for field in ("name", "function", "param_no", "fixup", "flags"):
                if getattr(ours, field) != getattr(theirs, field):
                    raise _check_failed(f"{field} of command {number} of module {name}")
            number += 1
        if kept.cmds and kept.cmds[number].name:
            raise _check_failed(f"module {name} has more commands than its exports say")
        return name

    def _see(self, pointer: Any, what: str) -> None:
        """Whether there is memory where we are about to look."""
        kind = self.ffi.typeof(pointer).item
        size = 1 if kind.kind in ("void", "primitive") else self.ffi.sizeof(kind)
        if not self._memory.has(int(self.ffi.cast("uintptr_t", pointer)), size):
            raise _check_failed(f"{what} would be at {pointer}")

    def _check_find_export(self) -> None:
        commands = self.app.exports.cmds
        if self.ffi.string(commands[0].name, 64) != b"python_exec":
            raise _check_failed("the first command of app_python3 is not python_exec")
        found = self.find_export(commands[0].name, commands[0].param_no, 0)
        if found != commands[0].function:
            raise _check_failed("find_export does not find python_exec where it is")

    def _check_uri(self) -> None:
        ffi, size = self.ffi, self.ffi.sizeof("sip_uri_t")
        buffer = ffi.new("unsigned char[]", b"\xaa" * (size + 256))
        uri = ffi.cast("sip_uri_t *", buffer)
        text = ffi.new("char[]", b"sip:acme@127.0.0.1:5099")
        good = (
            self.parse_uri(text, 23, uri) == 0
            and (self.raw(uri.user), self.raw(uri.host)) == (b"acme", b"127.0.0.1")
            and (self.raw(uri.port), uri.port_no) == (b"5099", 5099)
            and bytes(ffi.buffer(buffer))[size - 16 : size] == bytes(16)
            and set(bytes(ffi.buffer(buffer))[size : size + 256]) == {0xAA}
        )
        if not good:
            raise _check_failed("parse_uri does not fill a sip_uri of 384 bytes")

    def _check_message(self) -> None:
        room = self.ffi.new("unsigned char[]", b"\xaa" * 2 * _MESSAGE_ROOM)
        text = self.ffi.new("char[]", _SAMPLE)
        if self._build_message(room, text, len(_SAMPLE), 0) < 0:
            raise _check_failed("build_sip_msg_from_buf does not parse a KDMQ")
        self._free_message(room)
        if set(bytes(self.ffi.buffer(room))[_MESSAGE_ROOM : 2 * _MESSAGE_ROOM]) != {0xAA}:
            raise _check_failed(f"a sip_msg has more than {_MESSAGE_ROOM} bytes")

    def _check_request(self, request: Any) -> None:
        """load_tm() fills tm's table of functions; ours must be among them."""
        ffi = self.ffi
        load = self.find_export(b"load_tm", -1, 0)  # NO_SCRIPT
        if not load:
            raise _check_failed("tm exports no load_tm")
        table = ffi.new("void *[512]")  # several times its size
        if ffi.cast("int (*)(void *)", load)(table) < 0:
            raise _check_failed("load_tm fails")
        if ffi.cast("void *", request) not in list(table):
            raise _check_failed("tm's request is not its t_request")


class _Memory:
    """The readable parts of this process's memory, as they are now."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            for line in maps:
                area, rights, _ = line.split(" ", 2)
                if rights.startswith("r"):
                    start, end = (int(text, 16) for text in area.split("-"))
                    if self._ends and start == self._ends[-1]:
                        self._ends[-1] = end
                    else:
                        self._starts.append(start)
                        self._ends.append(end)

    def has(self, address: int, size: int) -> bool:
        number = bisect.bisect_right(self._starts, address) - 1
        return number >= 0 and address + size <= self._ends[number]


def _check_failed(what: str) -> UnfitError:
    return UnfitError(f"0 here: the self-check of this Kamailio failed ({what})")
