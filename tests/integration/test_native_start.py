"""When C modules cannot be bound, Kamailio does not start, and says why in one line."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.c_modules import BIND, HTABLE
from tests.support.kamailio import SCRIPT, Bed, PythonNode

A = "127.0.0.2"
LAYOUT = "import kemi_dmq.native.layout as layout\n"


def refused(node: PythonNode, said: str) -> None:
    node.start(wait=False)
    assert node.process is not None
    assert node.process.wait(10) > 0, "it has exited, and not of a signal"
    lines = [line for line in node.log().splitlines() if "kemi_dmq: setting" in line]
    assert len(lines) == 1 and said in lines[0], node.log()[-2000:]
    assert "Traceback" not in node.log()


def test_dmq_so_is_loaded(bed: Bed) -> None:
    after = f'loadmodule "dmq.so"\nmodparam("dmq", "server_address", "sip:{A}:5060")'
    refused(
        bed.python(A, defines=BIND, after=after),
        "bind_c_modules is 1; it must be 0 where dmq.so is loaded",
    )


def test_cffi_is_missing(bed: Bed) -> None:
    script = "import sys\nsys.modules['cffi'] = None\n" + SCRIPT.read_text()
    refused(bed.python(A, defines=BIND, script=script), "it must be 0 without cffi")


#: Memory that is writable, or was, does not become executable: PR_SET_MDWE, as systemd's
#: MemoryDenyWriteExecute has it.
DENY = """
import ctypes, os, sys
pr_set_mdwe, refuse_exec_gain = 65, 1
if ctypes.CDLL(None).prctl(pr_set_mdwe, refuse_exec_gain, 0, 0, 0) != 0:
    sys.exit("the kernel has no PR_SET_MDWE")
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def deny() -> list[str]:
    command = [sys.executable, "-c", DENY]
    if subprocess.run([*command, "true"], check=False, capture_output=True).returncode:
        pytest.skip("the kernel has no PR_SET_MDWE (Linux 6.3)")
    return command


def test_memory_cannot_be_made_executable(bed: Bed, deny: list[str]) -> None:
    node = bed.python(A, defines=BIND, after=HTABLE)
    node.prefix = deny
    refused(node, "it must be 0 where memory cannot be made executable")


def test_without_c_modules_memory_need_not_be_made_executable(bed: Bed, deny: list[str]) -> None:
    node = bed.python(A)
    node.prefix = deny
    node.start()
    assert node.command("bcast", body="x") == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("version = '6.9.1'", "it must be 0 on Kamailio 6.9.1: the C structures of 5.6, 5.7"),
        ("layout._SIZES['str'] = 12", "(str has 16 bytes here, not 12)"),
        # Structures that are not Kamailio's, as if it had changed them: seen where they are read.
        ("larger('sr_module_t', 'char *path;', 'void *new; char *path;')", "self-check"),
        ("larger('sr_module_t', 'unsigned int modflags;', 'void *new[2]; int modflags;')", "self"),
        ("larger('ksr_cmd_export_t', 'int param_no;', 'void *new; int param_no;')", "self-check"),
        ("larger('ksr_cmd_export_t', 'unsigned int fixup_flags;', 'void *new;')", "command 1 of"),
        ("larger('sip_uri_t', 'char rest[268];', 'char rest[276];')", "parse_uri does not fill"),
        ("larger('sip_uri_t', 'char rest[268];', 'char rest[260];')", "parse_uri does not fill"),
        (
            "layout._REQUEST = layout._REQUEST.replace('int request(', 'int request_x(')",
            "request",
        ),
        (
            "layout._COMMON = layout._COMMON.replace('get_loaded_modules', 'no_such_function')",
            "get_loaded_modules",
        ),
    ],
)
def test_the_self_check_fails(bed: Bed, change: str, said: str) -> None:
    script = (
        LAYOUT
        + "def larger(name, old, new):\n"
        + "    begin = layout._COMMON.rindex('typedef', 0, layout._COMMON.index('} ' + name))\n"
        + "    head, tail = layout._COMMON[:begin], layout._COMMON[begin:]\n"
        + "    assert old in tail\n"
        + "    layout._COMMON = head + tail.replace(old, new, 1)\n"
        + "    import cffi\n"
        + "    ffi = cffi.FFI()\n"
        + "    ffi.cdef(layout._COMMON)\n"
        + "    for other in layout._SIZES:\n"
        + "        if other != 'dmq_node_t':\n"
        + "            layout._SIZES[other] = ffi.sizeof(other)\n"
        + "    layout._SIZES['dmq_node_t'] += ffi.sizeof('sip_uri_t') - 384\n"
    )
    if change.startswith("version"):
        script += "import kemi_dmq.host.kamailio as host\n"
        script += f"{change}\nhost.KamailioHost.version = lambda self: version\n"
    else:
        script += f"{change}\n"
    refused(bed.python(A, defines=BIND, script=script + SCRIPT.read_text()), said)


def test_it_is_off_unless_set(bed: Bed) -> None:
    node = bed.python(A, after=HTABLE)
    node.start(wait=False)
    assert node.process is not None and node.process.wait(10) > 0
    assert "cannot find bind_dmq" in node.log()


def test_a_c_module_before_app_python3_finds_nothing(bed: Bed) -> None:
    node = bed.python(A, defines=BIND, before=HTABLE)
    node.start(wait=False)
    assert node.process is not None and node.process.wait(10) > 0
    assert "cannot find bind_dmq" in node.log()
