"""C modules on kemi_dmq on Kamailio 6.0 and 6.1, with C nodes and with each other; and a bus of
both versions.  What is peculiar to no version is tested in tests/integration/test_native*.py."""

from __future__ import annotations

import functools
import re
import subprocess
import threading
from pathlib import Path

import pytest

from tests.support.c_modules import (
    DIALOG,
    HTABLE,
    HTABLE_SYNC,
    PRESENCE,
    ROUTES,
    USRLOC,
    call,
    contacts,
    dialogs,
    items,
    publish,
    published,
    put,
    register,
    remove,
    value,
)
from tests.support.kamailio import ROOT, wait_for
from tests.support.sip import SipSocket, request

from .containers import SCRIPT, Bus, CContainer, Container, PythonContainer, docker

SUITES = ("trixie", "forky")
C_SCRIPT = Path(__file__).resolve().parents[1] / "support" / "c_module_script.py"
#: What the Python nodes' script does (ROUTES), on a C node.
C_ROUTES = """
#!ifdef WITH_REGISTRAR
    if (is_method("REGISTER")) { save("location"); exit; }
#!endif
#!ifdef WITH_PRESENCE
    if (is_method("PUBLISH")) { handle_publish(); exit; }
#!endif
#!ifdef MOD_dialog
    if (is_method("INVITE|ACK|BYE")) { dlg_manage(); t_relay(); exit; }
#!endif
#!ifdef MOD_rtpengine
    if (is_method("INVITE")) { rtpengine_offer(); }
    if (is_method("BYE")) { rtpengine_delete(); }
#!endif
"""
RTPENGINE = """
loadmodule "rtpengine.so"
modparam("rtpengine", "rtpengine_sock", "udp:{}:{}")
modparam("rtpengine", "enable_dmq", 1)
"""
RTPENGINE_ROUTES = """

class WithRtpengine(Kamailio):
    def ksr_request_route(self, msg):
        if KSR.is_method("INVITE"):
            KSR.rtpengine.rtpengine_offer0()
        elif KSR.is_method("BYE"):
            KSR.rtpengine.rtpengine_delete0()
        else:
            return super().ksr_request_route(msg)
        KSR.sl.send_reply(200, "OK")
        return 1


def mod_init():
    return dmq.attach(WithRtpengine())
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
        self._start(node, suite, modules)
        return node

    def c(self, name: str, suite: str, modules: str, notify: str = "") -> CContainer:
        # It reads what C modules send in one piece.
        modules = f"msg_recv_max_size=65535\n{modules}"
        # By address: a name would be one more node to it.
        notify = next((n.address for n in self.bus.nodes if n.name == notify), notify)
        environment = self._environment(name, "c_node.cfg", "", notify)
        # What it routes by itself stands before what the image's file says.
        head, route = (ROOT / "docker/node/c_node.cfg").read_text().split("request_route {\n")
        text = f"{head}{modules}\nrequest_route {{\n{C_ROUTES}{route}"
        (self.cfgs / f"{name}.cfg").write_text(text)
        node = CContainer(self.bus, name, suite, environment)
        self._start(node, suite, modules)
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

    def _start(self, node: Container, suite: str, modules: str) -> None:
        if "presence.so" in modules:
            node.image = with_presence(suite)
        self.bus.nodes.append(node)
        node.start()
        node.wait_up()


@functools.cache
def with_presence(suite: str) -> str:
    """The node's image with Debian's presence modules, which nodes do without."""
    name = f"kemi-dmq-presence:{suite}"
    install = "apt-get install -y -qq --no-install-recommends kamailio-presence-modules"
    steps = (
        f"FROM kemi-dmq:{suite}\nUSER root\n"
        "RUN apt-get update -qq -o Acquire::Check-Valid-Until=false "
        f"&& DEBIAN_FRONTEND=noninteractive {install} >/dev/null "
        "&& apt-get clean && rm -rf /var/lib/apt/lists/*\nUSER kamailio\n"
    )
    identity = ("image", "inspect", "-f", "{{.Id}}", name)
    before = docker(*identity, check=False).strip()
    command = ["docker", "build", "-q", "--network", "host", "-t", name, "-"]
    done = subprocess.run(command, input=steps, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    if before.startswith("sha256:") and before != docker(*identity).strip():
        docker("rmi", before, check=False)  # it was made of another image of the node
    return name


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
    wait_for(lambda: items(b) == 20_000, 60, lambda: f"{items(b)} cells")
    assert value(b, "key19999") == f"v{19_999:0>150}"
    check(a, b)


@pytest.mark.parametrize("origin", ["python", "c"])
@pytest.mark.parametrize("suite", SUITES)
def test_registrations_and_calls(nodes: Nodes, suite: str, origin: str) -> None:
    modules = USRLOC + DIALOG
    a = nodes.python("a", suite, modules)
    b = nodes.python("b", suite, modules, "a")
    c = nodes.c("c", suite, modules, "a")
    wait_for(lambda: whole(a, b, c), 12)
    at, gateway = (a if origin == "python" else c).control, nodes.bus.gateway

    def all_have(user: str, *there: str) -> bool:
        return all(contacts(node, user) == [*there] for node in (a, b, c))

    with SipSocket(gateway) as sip:
        register(sip, at, "alice", 600)
        wait_for(lambda: all_have("alice", f"sip:alice@{sip.name}"))
        register(sip, at, "alice", 0)
        wait_for(lambda: all_have("alice"))
        register(sip, at, "bob", 600)
        late = nodes.python("late", suite, modules, origin[0] if origin == "c" else "a")
        wait_for(lambda: contacts(late, "bob") == [f"sip:bob@{sip.name}"], 12)
    with call(at, gateway, gateway) as call_id:
        for node in (a, b, c, late):
            wait_for(lambda node=node: dialogs(node) == {call_id: "4"})  # type: ignore[misc]
    for node in (a, b, c, late):
        wait_for(lambda node=node: dialogs(node).get(call_id) != "4")  # type: ignore[misc]
    check(a, b, late)


@pytest.mark.parametrize("suite", SUITES)
def test_presence_reaches_all_from_python_and_c_nodes(nodes: Nodes, suite: str) -> None:
    a = nodes.python("a", suite, PRESENCE)
    b = nodes.python("b", suite, PRESENCE, "a")
    c = nodes.c("c", suite, PRESENCE, "a")
    wait_for(lambda: whole(a, b, c), 12)
    with SipSocket(nodes.bus.gateway) as sip:
        for at, user in ((a, "alice"), (c, "carol")):
            publish(sip, at.control, user)
    for node in (a, b, c):
        wait_for(lambda n=node: {"alice", "carol"} <= published(n))  # type: ignore[misc]
    check(a, b)


def listed(node: Container) -> dict[str, dict[str, str]]:
    """What dmq.list_nodes shows, by host."""
    blocks = node.kamcmd("dmq.list_nodes").split("}")
    rows = [dict(re.findall(r"(\w+): (\S+)", block)) for block in blocks if "host" in block]
    return {row["host"]: row for row in rows}


@pytest.mark.parametrize("suite", SUITES)
def test_the_rpc_commands(nodes: Nodes, suite: str) -> None:
    a = nodes.python("a", suite, "")
    c = nodes.c("c", suite, "", "a")
    wait_for(lambda: whole(a, c), 12)
    ours, theirs = listed(a), listed(c)
    assert ours.keys() == theirs.keys() == {a.address, c.address}
    for host, row in ours.items():
        assert row.pop("kemi_dmq") == str(int(host == a.address))
        assert row["local"] == str(int(host == a.address))
        row["local"] = theirs[host]["local"]
        # C knows no transport of a URI that names none.
        row["proto"] = "*" if theirs[host]["proto"] == "*" else row["proto"].upper()
        theirs[host]["proto"] = theirs[host]["proto"].upper()
        if suite == "trixie":  # in C from 6.1 on
            assert row.pop("fail_count") == "0"
    assert ours == theirs
    assert "status changed." in a.kamcmd("dmq.change_status", c.uri, "disabled")
    wait_for(lambda: listed(a)[c.address]["status"] == "disabled")
    assert "is already disabled." in a.kamcmd("dmq.change_status", c.uri, "disabled")
    assert "node removed." in a.kamcmd("dmq.remove", c.uri)
    wait_for(lambda: c.address not in listed(a))
    assert f"500 - no node {c.uri} is on the list" in a.kamcmd("dmq.remove", c.uri)
    assert "node added." in a.kamcmd("dmq.add", c.uri) or c.address in listed(a)
    wait_for(lambda: whole(a, c), 12)
    check(a)


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


class Rtpengine:
    """Says to each command of Kamailio's module that it is done (rtpengine's ng protocol)."""

    def __init__(self, address: str) -> None:
        self.socket = SipSocket(address)
        self.place = (address, int(self.socket.name.rpartition(":")[2]))
        self.done: list[str] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Rtpengine:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.send(b"", *self.place)
        self._thread.join(5)
        self.socket.socket.close()

    def _run(self) -> None:
        self.socket.socket.settimeout(None)
        while True:
            data, client = self.socket.socket.recvfrom(65535)
            if not data:
                return
            cookie, _, text = data.partition(b" ")
            found = re.search(rb"7:command\d+:(ping|offer|delete)", text)
            command = found[1].decode() if found else ""
            self.done.append(command)
            result = b"4:pong" if command == "ping" else b"2:ok"
            sdp = f"3:sdp{len(SDP)}:{SDP}".encode() if command == "offer" else b""
            self.socket.socket.sendto(cookie + b" d6:result" + result + sdp + b"e", client)


SDP = (
    "v=0\r\no=- 1 1 IN IP4 10.0.0.1\r\ns=-\r\nc=IN IP4 10.0.0.1\r\nt=0 0\r\nm=audio 9 RTP/AVP 0\r\n"
)


@pytest.mark.parametrize("origin", ["python", "c"])
def test_who_has_the_media_of_a_call_all_nodes_know_on_6_1(nodes: Nodes, origin: str) -> None:
    """rtpengine's table of calls, which its module replicates from 6.1 on."""
    with Rtpengine(nodes.bus.gateway) as engine:
        modules = RTPENGINE.format(*engine.place)
        a = nodes.python("a", "forky", modules, more=RTPENGINE_ROUTES)
        b = nodes.python("b", "forky", modules, "a", more=RTPENGINE_ROUTES)
        c = nodes.c("c", "forky", modules, "a")
        wait_for(lambda: whole(a, b, c), 12)

        def calls() -> list[int]:
            shown = [node.kamcmd("rtpengine.get_hash_total") for node in (a, b, c)]
            return [int(re.findall(r"\d+", text)[-1]) for text in shown]

        at = (a if origin == "python" else c).control
        with SipSocket(nodes.bus.gateway) as sip:
            for method, count in (("INVITE", 1), ("BYE", 0)):
                headers: dict[str, str | None] = {
                    "Call-ID": "one",
                    "From": f"<sip:x@{sip.name}>;tag=a",
                    "To": "<sip:y@bus.test>" + (";tag=b" if method == "BYE" else ""),
                    "Content-Type": "application/sdp",
                }
                body = SDP.encode() if method == "INVITE" else b""
                data = request(at, method=method, body=body, via=sip.name, headers=headers)
                reply = sip.ask(data, at)
                assert reply is not None and reply.code == 200, reply
                wait_for(lambda count=count: calls() == [count] * 3, why=calls)  # type: ignore[misc]
        assert [command for command in engine.done if command != "ping"] == ["offer", "delete"]
        check(a, b)


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
        a.stop_under_load()
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
