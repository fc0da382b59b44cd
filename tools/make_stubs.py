#!/usr/bin/env python3
"""Write the type stubs of KSR from what the installed Kamailio says that it exports.

Kamailio runs for a moment, with the modules that kemi_dmq and its users' scripts call, and answers
`app_python.api_list`. A module that is not installed or does not start is left out, and said so.

    tools/make_stubs.py            write typings/KSR
    tools/make_stubs.py --check    compare typings/KSR with this Kamailio; 1 if a script could break
    tools/make_stubs.py --list     print lines such as KSR.pv.get(str) -> xval
"""

from __future__ import annotations

import argparse
import ast
import keyword
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

# In load order. app_python3 keeps room for 1,024 functions, so this cannot be every module.
MODULES = """
    tm sl pv rr maxfwd textops textopsx siputils xlog sanity tmx kex corex kemix cfgutils ipops
    uac statistics counters htable mqueue async jsonrpcs jansson xhttp xhttp_prom tls usrloc
    registrar nathelper path dialog presence dmq auth permissions pike dispatcher rtpengine sdpops
    http_client
"""

# What these need to start; nothing is ever routed through this Kamailio.
MODPARAMS = """
    modparam("dispatcher", "list_file", "/dev/null")
    modparam("dmq", "server_address", "sip:127.0.0.1:{port}")
    modparam("tls", "tls_method", "TLSv1.2+")
    modparam("tls", "certificate", "")
    modparam("tls", "private_key", "")
    modparam("xhttp", "event_callback", "ksr_xhttp_event")
"""

CFG = """\
#!KAMAILIO
children=1
listen=udp:127.0.0.1:{port}
enable_tls=yes
loadmodule "ctl"
{loadmodules}
loadmodule "app_python3"
modparam("ctl", "binrpc", "unix:{rundir}/ctl")
modparam("app_python3", "load", "{rundir}/script.py")
{modparams}
cfgengine "python"
"""

# api_list tells types, dir() tells what is really there: only together do they tell it all.
SCRIPT = """\
import KSR

def mod_init():
    modules = [KSR, *(value for value in vars(KSR).values() if type(value) is type(KSR))]
    with open("{rundir}/names", "w") as names:
        for module in modules:
            for name, value in vars(module).items():
                if callable(value) and not name.startswith("_"):
                    print(module.__name__ + "." + name, file=names)
    return Handler()

class Handler:
    def child_init(self, rank):
        return 0
"""

FAILED_MODULE = re.compile(
    r"could not find module <(\w+)"
    r"|could not open module <\S*?(\w+)\.so>"
    r"|(\w+)\.so: mod_register failed"
    r"|initializing module (\w+) \("
)
API_LIST_ENTRY = re.compile(r"ret: (.*)\s+module: ?(.*)\s+name: (.*)\s+params: (.*)")

PARAMETER_TYPES = {"int": "int", "str": "str"}
RETURN_TYPES = {
    "none": "None",
    "bool": "bool",
    "int": "int",
    "str": "str",
    "xval": "str | int | None",
}

HEADER = """\
# Written by tools/make_stubs.py from Kamailio {version}: do not edit.
#
# What api_list does not say (seen on 5.6.3):
# - What is None here returns the int 0.
# - A wrong type or number of arguments raises SystemError, whose __cause__ says what was wrong. A
#   function without parameters takes any arguments and ignores them.
# - A str goes through a C string: a NUL or a surrogate in it raises SystemError.
# - An int has 32 bits: a larger one raises SystemError or, where a function has four parameters or
#   more, is cut to its low 32 bits.
# - In mod_init there is no real message: a reply or a transaction there (KSR.sl, KSR.tm.t_newtran)
#   is a segmentation fault.
# - KSR is not a package: `from KSR import tm` works, `import KSR.tm` does not.
"""


class StubsError(Exception):
    """What the user is to read instead of a traceback."""


@dataclass(frozen=True, order=True)
class Function:
    """One exported function, in the words of api_list."""

    module: str
    name: str
    parameters: tuple[str, ...]
    returns: str

    @property
    def path(self) -> str:
        return ".".join(filter(None, ("KSR", self.module, self.name)))

    def __str__(self) -> str:
        return f"{self.path}({', '.join(self.parameters) or 'none'}) -> {self.returns}"

    def has_known_types(self) -> bool:
        return self.returns in RETURN_TYPES and all(p in PARAMETER_TYPES for p in self.parameters)


# What KSR has and api_list does not tell, with its text in the stub.
EXTRA = {
    Function("x", "modf", ("str", "str", "str"), "int"): """\
# Never call it: the module object is taken for the SIP message, and as soon as the function
# that it calls looks at the message (sl_send_reply, xlog with $ci), Kamailio dies of a
# segmentation fault.
def modf(self, function: str, a: str = ..., b: str = ..., /) -> int: ..."""
}


def note(text: str) -> None:
    print(f"make_stubs: {text}", file=sys.stderr)


# --- Asking Kamailio ---


def program(name: str) -> str:
    """Its path; Debian puts Kamailio where only root's PATH looks."""
    search = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin"
    path = shutil.which(name, path=search)
    if path is None:
        raise StubsError(f"{name} is not installed")
    return path


def kamailio_version() -> str:
    output = subprocess.run([program("kamailio"), "-v"], capture_output=True, text=True, check=True)
    return output.stdout.split()[2]


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def write_cfg(rundir: Path, modules: Iterable[str]) -> Path:
    port = free_port()
    modparams = MODPARAMS.format(port=port).splitlines()
    cfg = CFG.format(
        port=port,
        rundir=rundir,
        loadmodules="\n".join(f'loadmodule "{m}"' for m in modules),
        modparams="\n".join(p for p in modparams if any(f'("{m}"' in p for m in modules)),
    )
    path = rundir / "kamailio.cfg"
    path.write_text(cfg)
    (rundir / "script.py").write_text(SCRIPT.format(rundir=rundir))
    return path


@contextmanager
def running_kamailio(rundir: Path, cfg: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [program("kamailio"), "-DD", "-E", "-f", str(cfg), "-m", "64", "-M", "8"]
    command += ["-P", str(rundir / "pid"), "-Y", str(rundir), "-w", str(rundir)]
    with (rundir / "log").open("wb") as log:
        # The embedded interpreter finds its library through PATH: a virtual environment there
        # would give it that of another Python.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            start_new_session=True,
        )
    try:
        yield process
    finally:
        # SIGTERM while it still forks now and then makes it wait a minute for its last child.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ask_api_list(rundir: Path, process: subprocess.Popen[bytes]) -> str | None:
    """What kamcmd prints, or None if Kamailio ended before it answered."""
    command = [program("kamcmd"), "-s", f"unix:{rundir}/ctl", "app_python.api_list"]
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        answer = subprocess.run(command, capture_output=True, text=True)
        if "msize" in answer.stdout:
            return answer.stdout
        time.sleep(0.05)
    return None


def parse_api_list(text: str) -> list[Function]:
    return [
        Function(module, name, tuple(p for p in parameters.split(", ") if p != "none"), returns)
        for returns, module, name, parameters in API_LIST_ENTRY.findall(text)
    ]


def exported_functions() -> list[Function]:
    """Start Kamailio until only modules that work are left; everything it then exports."""
    modules = MODULES.split()
    while True:
        with tempfile.TemporaryDirectory(prefix="ksr") as name:
            rundir = Path(name)
            with running_kamailio(rundir, write_cfg(rundir, modules)) as process:
                answer = ask_api_list(rundir, process)
            log = (rundir / "log").read_text(errors="replace")
            if answer is not None:
                there = (rundir / "names").read_text().split()
                break
        failed = {m for match in FAILED_MODULE.finditer(log) for m in match.groups() if m}
        if not failed & set(modules):
            raise StubsError(f"Kamailio does not start or answer:\n{log[-3000:]}")
        note(f"left out: {', '.join(sorted(failed))}")
        modules = [m for m in modules if m not in failed]
    functions = [f for f in (*parse_api_list(answer), *EXTRA) if f.path in there]
    unlisted = sorted(set(there) - {f.path for f in functions})
    if unlisted:
        note(f"neither in api_list nor in EXTRA: {', '.join(unlisted)}")
    return sorted(functions)


# --- The stub ---


def stub_text(functions: Iterable[Function]) -> str:
    blocks = []
    attributes = []
    for module, members in groupby(sorted(functions), key=lambda f: f.module):
        lines = [text for f in members for text in definition(f).splitlines()]
        if not module:
            blocks.append("\n".join(["__version__: int", "", *lines]))
            continue
        blocks.append("\n".join([f"class _{module}:", *(f"    {line}" for line in lines)]))
        if keyword.iskeyword(module):
            attributes.append(f'# getattr(KSR, "{module}") is a _{module}.')
        else:
            attributes.append(f"{module}: _{module}")
    blocks.append("\n".join(attributes))
    return HEADER.format(version=kamailio_version()) + "\n" + "\n\n".join(blocks) + "\n"


def definition(function: Function) -> str:
    if function in EXTRA:
        return EXTRA[function]
    if not function.has_known_types() or keyword.iskeyword(function.name):
        return f"# {function}"
    parameters = ["self"] if function.module else []
    parameters += [
        f"{x}: {PARAMETER_TYPES[p]}" for x, p in zip("abcdef", function.parameters, strict=False)
    ]
    if function.parameters:
        parameters.append("/")
    returns = RETURN_TYPES[function.returns]
    return f"def {function.name}({', '.join(parameters)}) -> {returns}: ..."


def read_stub(path: Path) -> list[Function]:
    if not path.exists():
        raise StubsError(f"there is no {path}")
    words = {python: kemi for kemi, python in RETURN_TYPES.items()}
    functions = []
    for outer in ast.parse(path.read_text()).body:
        if isinstance(outer, ast.ClassDef):
            module, body = outer.name.removeprefix("_"), outer.body
        else:
            module, body = "", [outer]
        for node in body:
            if isinstance(node, ast.FunctionDef):
                annotated = [a.annotation for a in node.args.posonlyargs if a.annotation]
                parameters = tuple(ast.unparse(annotation) for annotation in annotated)
                returns = ast.unparse(node.returns) if node.returns else ""
                functions.append(
                    Function(module, node.name, parameters, words.get(returns, returns))
                )
    return functions


def check(stub: list[Function], running: list[Function]) -> int:
    """Print what a script that type-checks would trip over; the exit status."""
    real = {f.path: f for f in running}
    missing = [f for f in stub if f.path not in real]
    changed = [f for f in stub if f.path in real and f != real[f.path]]
    for function in missing:
        print(f"not in this Kamailio: {function}")
    for function in changed:
        print(f"other types: {function} in the stub, {real[function.path]} in this Kamailio")
    unknown = sorted(set(real) - {f.path for f in stub})
    if unknown:
        note(f"not in the stub: {', '.join(unknown)}")
    note(
        f"Kamailio {kamailio_version()}: of {len(stub)} functions in the stub"
        f" {len(missing)} are missing, {len(changed)} have other types"
    )
    return 1 if missing or changed else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).resolve().parent.parent / "typings" / "KSR"
    parser.add_argument("--output", type=Path, default=default, help="the stub's directory")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--list", action="store_true", help="print what Kamailio exports")
    action.add_argument("--check", action="store_true", help="compare the stub with Kamailio")
    arguments = parser.parse_args()
    stub_path: Path = arguments.output / "__init__.pyi"
    try:
        functions = exported_functions()
        if arguments.list:
            print(*functions, sep="\n")
        elif arguments.check:
            return check(read_stub(stub_path), functions)
        else:
            stub_path.parent.mkdir(parents=True, exist_ok=True)
            stub_path.write_text(stub_text(functions))
            note(f"{len(functions)} functions written to {stub_path}")
    except StubsError as error:
        note(str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
