"""C modules on kemi_dmq on Kamailio 6.0 and 6.1, with C nodes and with each other; and a bus of
both versions.  What is peculiar to no version is tested in tests/integration/test_native*.py."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest

from tests.support.c_modules import (
    DIALOG,
    HTABLE,
    HTABLE_SYNC,
    ROUTES,
    USRLOC,
    call,
    contacts,
    dialogs,
    items,
    put,
    register,
    remove,
    value,
)
from tests.support.kamailio import wait_for
from tests.support.sip import SipSocket

from .containers import SCRIPT, Bus, CContainer, Container, PythonContainer

SUITES = ("trixie", "forky")
C_SCRIPT = Path(__file__).resolve().parents[1] / "support" / "c_module_script.py"
RTPENGINE = """
loadmodule "rtpengine.so"
modparam("rtpengine", "rtpengine_sock", "udp:127.0.0.1:2223")
modparam("rtpengine", "rtpengine_disable_tout", 3600)
modparam("rtpengine", "enable_dmq", 1)
"""


class NativePython(PythonContainer):
    """A Python node with C modules and more of a script; see Nodes.python()."""

    more = ROUTES

    def script(self) -> Path:
        if not self.own_script.exists():
            self.own_script.write_text(SCRIPT.read_text() + self.more)
            self.own_script.chmod(0o644)
        return self.own_script


class Nodes:
    """Nodes with C modules on one bus."""

    def __init__(self, bus: Bus, directory: Path) -> None:
        self.bus = bus
        self.cfgs = directory / "cfg"
        self.cfgs.mkdir()
        bus.volumes.append(f"{self.cfgs}:/cfg:ro")

    def python(
        self, name: str, suite: str, modules: str, notify: str = "", more: str = ROUTES
    ) -> NativePython:
        environment = self._environment(name, "kamailio.cfg", modules, notify)
        environment["DMQ_BIND_C_MODULES"] = "1"
        node = NativePython(self.bus, name, suite, environment)
        node.more = more
        self._start(node)
        return node

    def c(self, name: str, suite: str, modules: str, notify: str = "") -> CContainer:
        # It reads what C modules send in one piece.
        modules = f"msg_recv_max_size=65535\n{modules}"
        # By address: a name would be one more node to it.
        notify = next((n.address for n in self.bus.nodes if n.name == notify), notify)
        environment = self._environment(name, "c_node.cfg", modules, notify)
        node = CContainer(self.bus, name, suite, environment)
        self._start(node)
        return node

    def _environment(self, name: str, cfg: str, modules: str, notify: str) -> dict[str, str]:
        text = f'#!KAMAILIO\ninclude_file "/opt/node/{cfg}"\n{modules}'
        (self.cfgs / f"{name}.cfg").write_text(text)
        environment = {
            "KAMAILIO_CFG": f"/cfg/{name}.cfg",
            "KAMAILIO_SHM_MB": "256",
            "DMQ_PING_INTERVAL": "5",
        }
        if notify:
            environment["DMQ_NOTIFICATION_ADDRESS"] = f"sip:{notify}:5060"
        return environment

    def _start(self, node: Container) -> None:
        self.bus.nodes.append(node)
        node.start()
        node.wait_up()


@pytest.fixture
def nodes(bus: Bus, tmp_path: Path) -> Nodes:
    return Nodes(bus, tmp_path)


def whole(*nodes: Container) -> bool:
    everyone = {node.uri for node in nodes}
    return all(node.active() == everyone for node in nodes)


def kamcmds(node: Container, lines: list[str]) -> None:
    subprocess.run(
        ["docker", "exec", "-i", node.id, "kamcmd"],
        input="\n".join([*lines, "quit", ""]),
        text=True,
        check=True,
        capture_output=True,
        timeout=100,
    )


def check(*nodes: Container) -> None:
    for node in nodes:
        if isinstance(node, PythonContainer):
            counters = node.command("counters")
            assert counters["native_errors"] == counters["callback_errors"] == 0
            assert counters["send_failures"] == counters["user_errors"] == 0
            node.stop()


@pytest.mark.parametrize(("suite", "other"), [*zip(SUITES, SUITES, strict=True), SUITES[::-1]])
def test_htable_replicates_both_ways(nodes: Nodes, suite: str, other: str) -> None:
    a = nodes.python("a", suite, HTABLE)
    b = nodes.python("b", suite, HTABLE, "a")
    c = nodes.c("c", other, HTABLE, "a")
    wait_for(lambda: whole(a, b, c), 12)
    put(a, "from-a", "one")
    put(c, "from-c", "two")
    wait_for(lambda: value(b, "from-a") == value(c, "from-a") == "one")
    wait_for(lambda: value(a, "from-c") == value(b, "from-c") == "two")
    remove(a, "from-c")
    remove(c, "from-a")
    wait_for(lambda: not any(items(node) for node in (a, b, c)))
    for begin in range(0, 10_000, 500):
        kamcmds(a, [f"htable.sets t key{n} v{n}" for n in range(begin, begin + 500)])
    wait_for(lambda: [items(node) for node in (a, b, c)] == [10_000] * 3, 20)
    check(a, b)


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize(
    ("first", "second"), [("python", "c"), ("c", "python"), ("python", "python")]
)
def test_20_000_cells_are_synced_in_messages_of_60_kb(
    nodes: Nodes, suite: str, first: str, second: str
) -> None:
    a = getattr(nodes, first)("a", suite, HTABLE_SYNC)
    for begin in range(0, 20_000, 5000):
        kamcmds(a, [f"htable.sets t key{n} v{n:0>150}" for n in range(begin, begin + 5000)])
    assert items(a) == 20_000
    b = getattr(nodes, second)("b", suite, HTABLE_SYNC, "a")
    wait_for(lambda: items(b) == 20_000, 60)
    assert value(b, "key19999") == f"v{19_999:0>150}"
    check(a, b)


@pytest.mark.parametrize("suite", SUITES)
def test_registrations_and_calls(nodes: Nodes, suite: str) -> None:
    modules = USRLOC + DIALOG
    a = nodes.python("a", suite, modules)
    b = nodes.python("b", suite, modules, "a")
    c = nodes.c("c", suite, modules, "a")
    wait_for(lambda: whole(a, b, c), 12)
    gateway = nodes.bus.gateway
    with SipSocket(gateway) as sip:
        register(sip, a.control, "alice", 600)
        wait_for(lambda: contacts(b, "alice") == contacts(c, "alice") == [f"sip:alice@{sip.name}"])
        register(sip, a.control, "alice", 0)
        wait_for(lambda: not contacts(b, "alice") and not contacts(c, "alice"))
        register(sip, a.control, "bob", 600)
        late = nodes.python("late", suite, modules, "a")
        wait_for(lambda: contacts(late, "bob") == [f"sip:bob@{sip.name}"], 12)
    with call(a.control, gateway, gateway) as call_id:
        for node in (a, b, c, late):
            wait_for(lambda node=node: dialogs(node) == {call_id: "4"})  # type: ignore[misc]
    for node in (a, b, c, late):
        wait_for(lambda node=node: dialogs(node).get(call_id) != "4")  # type: ignore[misc]
    check(a, b, late)


@pytest.mark.parametrize("suite", SUITES)
def test_dmq_api_t(nodes: Nodes, suite: str) -> None:
    more = C_SCRIPT.read_text()
    a = nodes.python("a", suite, 'modparam("tm", "fr_timer", 1000)', more=more)
    b = nodes.python("b", suite, "", "a", more=more)
    wait_for(lambda: whole(a, b), 12)
    if suite == "forky":
        assert a.command("c_socket") == f"udp:{a.address}:5060"
    assert a.command("c_bcast", body="0123456789", times=6400, param=7) == 0
    wait_for(lambda: a.events("c_reply"))
    (got,) = b.events("c_peer")
    assert (got["node"][0], got["size"]) == (a.uri, 64_000)
    assert a.command("c_bcast", body="answer 406 Not-So", param=8) == 0
    wait_for(lambda: len(a.events("c_reply")) == 2)
    wait_for(lambda: a.events("c_init"))
    b.kill()
    assert a.command("c_send", body="hello", to=b.uri, param=9) == 0
    wait_for(lambda: len(a.events("c_reply")) == 3)
    replies = [(e["code"], e["message"], e["param"], e["node"][0]) for e in a.events("c_reply")]
    assert replies == [
        (200, "real", 7, b.uri),
        (406, "real", 8, b.uri),
        (408, "none", 9, b.uri),
    ]
    check(a)


def test_rtpengine_binds_on_6_1(nodes: Nodes) -> None:
    a = nodes.python("a", "forky", RTPENGINE)
    c = nodes.c("c", "forky", RTPENGINE, "a")
    wait_for(lambda: whole(a, c), 12)
    assert "cannot find bind_dmq" not in a.log()
    # The peer is there: it refuses what is no JSON, where a peer that is not there is 404.
    reply = a.ask("KDMQ", "rtpengine", b"no JSON")
    assert reply is not None and reply.code != 404, reply
    assert (reply.code, reply.reason) == _c_answer(c)
    check_started(a)


def _c_answer(node: CContainer) -> tuple[int, str]:
    reply = node.ask("KDMQ", "rtpengine", b"no JSON")
    assert reply is not None
    return reply.code, reply.reason


def check_started(node: PythonContainer) -> None:
    assert node.command("counters")["native_errors"] == 0
    node.stop()


@pytest.mark.parametrize("suite", SUITES)
def test_reloads_and_a_stop_under_load(nodes: Nodes, suite: str) -> None:
    a = nodes.python("a", suite, HTABLE)
    b = nodes.python("b", suite, HTABLE, "a")
    c = nodes.c("c", suite, HTABLE, "a")
    wait_for(lambda: whole(a, b, c), 12)
    done = threading.Event()
    answered = 0

    def run() -> None:
        nonlocal answered
        while not done.is_set():
            try:
                a.command("set", 1.0, key=f"k{answered}", count=5)
            except TimeoutError:
                return
            answered += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        for version in (2, 3):
            text = SCRIPT.read_text().replace("VERSION = 1 ", f"VERSION = {version} ") + ROUTES
            a.own_script.write_text(text)
            a.kamcmd("app_python.reload")
            wait_for(lambda version=version: a.command("nodes")["version"] == version)  # type: ignore[misc]
            before = answered
            wait_for(lambda before=before: answered > before + 50)  # type: ignore[misc]
    finally:
        done.set()
        thread.join()
    wait_for(lambda: [items(node) for node in (a, b, c)] == [5 * answered] * 3, 10)
    done.clear()
    thread = threading.Thread(target=run)
    thread.start()
    try:
        before = answered
        wait_for(lambda: answered > before + 20)
        a.stop()
        wait_for(lambda: a.uri not in b.active() | c.active(), 3)
    finally:
        done.set()
        thread.join()
    check(b)


@pytest.mark.parametrize("suite", SUITES)
def test_it_refuses_to_start_beside_dmq_so(nodes: Nodes, suite: str) -> None:
    modules = 'loadmodule "dmq.so"\nmodparam("dmq", "server_address", DMQ_SERVER_ADDRESS)\n'
    with pytest.raises(AssertionError):
        nodes.python("a", suite, modules)
    log = nodes.bus.nodes[-1].log()
    assert log.count("bind_c_modules is 1; it must be 0 where dmq.so is loaded") == 1
