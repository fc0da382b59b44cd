"""Real Kamailios on loopback addresses, started and ended by the test that needs them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from .sip import SipSocket, request

ROOT = Path(__file__).resolve().parents[2]
#: For a test that is run on nodes with a KEMI script and on nodes that route in kamailio.cfg.
ROUTINGS = ("kemi", "native")
BOTH_ROUTINGS = pytest.mark.parametrize("bed", ROUTINGS, indirect=True)
SCRIPT = Path(__file__).with_name("node_script.py")
#: Code for a script: the engine fails at an event that names nobody.invalid.
FAILING_ENGINE = """\
import kemi_dmq.engine as e
handle = e.Engine.handle
def fail(self, event, now):
    if 'nobody.invalid' in str(event):
        raise RuntimeError('as the test asked for')
    handle(self, event, now)
e.Engine.handle = fail
"""
T = TypeVar("T")


def module_path() -> str:
    """Where Debian's package puts Kamailio's modules."""
    for path in Path("/usr/lib").glob("*/kamailio/modules"):
        return f"{path}/"
    raise RuntimeError("no Kamailio modules under /usr/lib; apt-get install kamailio")


def wait_for(
    what: Callable[[], T], seconds: float = 5.0, why: str | Callable[[], object] = ""
) -> T:
    """Wait until what() is true and give its value; why() is asked only when it is too late.
    What it looks up may still be missing: the list is published before the callback has run."""
    end = time.monotonic() + seconds
    while True:
        value: T | None = None
        missing: LookupError | None = None
        try:
            value = what()
        except LookupError as error:
            missing = error
        if value:
            return value
        if time.monotonic() > end:
            reason = why() if callable(why) else why or what
            last = repr(missing or value)
            raise AssertionError(f"not within {seconds} s: {reason} (last: {last})") from missing
        time.sleep(0.01)


#: Commands of the test script that change nothing: they are sent again, as a client of SIP does
#: over UDP.  A node under load drops datagrams while its workers load the script anew.
READS = {"nodes", "counters"}


def dropped(address: str) -> int:
    """Datagrams that found the receive buffer at address full, since its sockets were opened."""
    local = "".join(f"{int(part):02X}" for part in reversed(address.split(".")))
    lines = Path("/proc/thread-self/net/udp").read_text().splitlines()[1:]
    return sum(int(line.split()[-1]) for line in lines if line.split()[1].startswith(local))


#: Without what may let a stop wait for a lock (docs/kamailio.md, "Stopping").
UDP_ONLY = "listen=udp:{}:5060\ndisable_tcp=yes\ndns_cache_init=off\ndst_blocklist_init=off"


class Kamailio:
    """One Kamailio process tree at one loopback address."""

    def __init__(self, address: str, directory: Path, cfg: str, env: dict[str, str]) -> None:
        self.address = address
        self.uri = f"sip:{address}:5060"
        self.prefix: list[str] = []  # a command to run Kamailio in
        self.shm_mb, self.pkg_mb = 32, 8
        self.directory = directory
        self.process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self.ctl = f"unix:{directory}/ctl"
        self.cfg = directory / "kamailio.cfg"
        self.cfg.write_text(cfg)
        self._env = {**os.environ, **env}
        self._log = directory / "log"

    def start(self, wait: bool = True) -> None:
        command = [*self.prefix, "kamailio", "-DD", "-E", "-f", str(self.cfg)]
        command += [
            "-m",
            str(self.shm_mb),
            "-M",
            str(self.pkg_mb),
            "-P",
            f"{self.directory}/pid",
            "-Y",
            str(self.directory),
        ]
        command += ["-w", str(self.directory)]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=self._env, start_new_session=True
            )
        if wait:
            self.wait_up()

    def wait_up(self) -> None:
        wait_for(self.answers, 10, lambda: f"{self.address} answers; log:\n{self.log()[-3000:]}")

    def answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"{self.address} has ended; log:\n{self.log()[-3000:]}")
        with SipSocket() as sip:
            data = request(self.address, method="OPTIONS", user="", via=sip.name, sender=sip.name)
            return sip.ask(data, self.address, 0.1) is not None

    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def stop(self) -> float:
        """SIGTERM, as an init system stops it; the seconds until it has ended with status 0."""
        assert self.process is not None
        before = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(70)
        seconds = time.monotonic() - before
        assert code == 0, f"{self.address} ended with status {code}"
        self.process = None
        return seconds

    def stop_under_load(self) -> float:
        """The same while transactions come and go; the seconds until all processes but the first
        have ended.

        One of them now and then dies with the core's timer lock in its hand, or in the middle of a
        change of shared memory: then the first process hangs or fails in its last work, taking
        down tm, whatever modules there are (docs/kamailio.md).
        """
        assert self.process is not None
        process, before = self.process, time.monotonic()
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: alone(process), 70, lambda: f"those of {self.address} end")
        seconds = time.monotonic() - before
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(5)
            assert code in (0, -signal.SIGSEGV), f"{self.address} ended with status {code}"
            self.process = None
        self.kill()
        return seconds

    def kill(self) -> None:
        """End all its processes without a chance to say goodbye."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)
            self.process = None

    def kamcmds(self, lines: list[str]) -> str:
        """Many commands, one after the other."""
        done = subprocess.run(
            ["kamcmd", "-s", self.ctl],
            input="\n".join([*lines, "quit", ""]),
            capture_output=True,
            text=True,
            timeout=100,
        )
        return done.stdout + done.stderr

    def kamcmd(self, *command: str) -> str:
        done = subprocess.run(
            ["kamcmd", "-s", self.ctl, *command], capture_output=True, text=True, timeout=10
        )
        return done.stdout + done.stderr

    def children(self) -> dict[int, str]:
        """The pids of its processes and what each is, as Kamailio says."""
        found = re.findall(r"PID: (\d+)\s+DSC: (.*)", self.kamcmd("core.psx"))
        return {int(pid): what.strip() for pid, what in found}

    def wait_settled(self) -> None:
        """Wait until all processes are there and each has once been seen waiting for work.

        A process that was forked but has not run yet loses a SIGTERM (Kamailio's own handler
        still takes it for the main process), and the shutdown then takes 60 s.
        """
        waiting: set[int] = set()
        before: dict[int, str] = {}

        def settled() -> bool:
            nonlocal before
            children = self.children()
            for pid in children:
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
                if state == "S":
                    waiting.add(pid)
            same, before = children == before, children
            return same and children.keys() <= waiting

        wait_for(settled, 10, f"all processes of {self.address} wait for work")


def alone(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process has no children, or has ended."""
    if process.poll() is not None:
        return True
    return not Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()


KEMI_CFG = """
include_file "{root}/kamailio-cfg/kemi_dmq.cfg"
modparam("app_python3", "load", "{script}")
{after}
cfgengine "python"
"""
NATIVE_CFG = """
#!define DMQ_SCRIPT "{root}/kamailio-cfg/kemi_dmq_native.py"
#!define DMQ_PEERS_FILE "{script}"
include_file "{root}/kamailio-cfg/kemi_dmq_native.cfg"
{after}
request_route {{
    if (is_method("KDMQ")) {{ python_exec("dmq_handle_message"); exit; }}
    if (is_method("INFO|REGISTER")) {{ python_exec("route"); exit; }}
    {routes}
}}
"""


class PythonNode(Kamailio):
    """A node with kemi_dmq and the tests' script; native: kamailio.cfg routes by itself, and the
    script is its peers file."""

    def __init__(
        self,
        address: str,
        directory: Path,
        notification: str = "",
        *,
        defines: dict[str, object] | None = None,
        listen: str = "",
        before: str = "",
        after: str = "",
        script: str | None = None,
        children: int = 2,
        native: bool = False,
        routes: str = "",
    ) -> None:
        self.events_file = directory / "events.jsonl"
        self.script = directory / "node_script.py"
        directory.mkdir(parents=True, exist_ok=True)
        self.script.write_text(SCRIPT.read_text() if script is None else script)
        settings: dict[str, object] = {
            "server_address": f"sip:{address}:5060",
            "ping_interval": 5,
            "event_callback": "on_event",
        }
        if notification:
            settings["notification_address"] = notification
        settings.update(defines or {})
        lines = [
            f"#!define DMQ_{name.upper()} "
            + (f'"{value}"' if isinstance(value, str) else f"{value}")
            for name, value in settings.items()
            if value is not None
        ]
        cfg = "\n".join(
            [
                *lines,
                listen or UDP_ONLY.format(address),
                "auto_aliases=no",
                f"children={children}",
                "log_stderror=yes",
                "debug=2",
                f'mpath="{module_path()}"',
                'loadmodule "ctl.so"',
                f'modparam("ctl", "binrpc", "unix:{directory}/ctl")',
                before,
                (NATIVE_CFG if native else KEMI_CFG).format(
                    root=ROOT, script=self.script, after=after, routes=routes
                ),
            ]
        )
        env = {"PYTHONPATH": str(ROOT), "NODE_EVENTS": str(self.events_file)}
        env["PYTHONDONTWRITEBYTECODE"] = "1"
        super().__init__(address, directory, cfg, env)

    def peer_is_a_route(self, peer: str, does: str) -> None:
        """Before the start of a native one: its request_route answers the peer's messages with
        "200 Heard", after what it does."""
        first = "request_route {\n"
        text = self.cfg.read_text()
        assert first in text
        what = f'{does} sl_send_reply("200", "Heard"); exit;'
        rule = f'if (is_method("KDMQ") && $rU == "{peer}") {{ {what} }}\n'
        self.cfg.write_text(text.replace(first, first + rule))

    def answers(self) -> bool:
        try:
            return bool(self.command("nodes", _wait=0.1))
        except TimeoutError:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(
                    f"{self.address} has ended; log:\n{self.log()[-3000:]}"
                ) from None
            return False

    def command(self, name: str, _wait: float = 5.0, **args: object) -> Any:
        """Run a command of the test script in one of the SIP workers; its result."""
        with SipSocket() as sip:
            data = request(
                self.address,
                method="INFO",
                user=name,
                body=json.dumps(args).encode(),
                via=sip.name,
                sender=sip.name,
            )
            reply = sip.ask(data, self.address, _wait, again=0.5 if name in READS else None)
        if reply is None:
            raise TimeoutError(
                f"{self.address} does not answer {name}; "
                f"its sockets have dropped {dropped(self.address)} datagrams"
            )
        return json.loads(reply.body)

    def nodes(self) -> dict[str, str]:
        """uri -> status, as one of the workers sees it."""
        return {uri: status for uri, status, _, _ in self.command("nodes")["nodes"]}

    def active(self) -> set[str]:
        return {uri for uri, status in self.nodes().items() if status == "active"}

    def counters(self) -> dict[str, int]:
        return self.command("counters")  # type: ignore[no-any-return]

    def events(self, kind: str, **match: object) -> list[dict[str, Any]]:
        """What the script noted."""
        if not self.events_file.exists():
            return []
        # A line that is being written now has no end yet.
        lines = self.events_file.read_text().splitlines(keepends=True)
        all_events = [json.loads(line) for line in lines if line.endswith("\n")]
        return [
            event
            for event in all_events
            if event["kind"] == kind and all(event.get(k) == v for k, v in match.items())
        ]


C_CFG = """
{listen}
auto_aliases=no
children=2
log_stderror=yes
debug=2
mpath="{mpath}"
loadmodule "tm.so"
loadmodule "sl.so"
loadmodule "pv.so"
loadmodule "textops.so"
loadmodule "corex.so"
loadmodule "xlog.so"
modparam("xlog", "buf_size", 65536)
loadmodule "ctl.so"
modparam("ctl", "binrpc", "unix:{directory}/ctl")
loadmodule "dmq.so"
modparam("dmq", "server_address", "{server_address}")
{notification}
modparam("dmq", "ping_interval", {ping_interval})
modparam("dmq", "num_workers", 2)
{before}
request_route {{
    if (is_method("KDMQ")) {{
        if ($rU == "acme") {{
            xlog("L_ERR", "GOT from=$fu size=$bs body=$rb\\n");
            sl_send_reply("200", "OK");
            exit;
        }}
        dmq_handle_message();
    }}
    if (is_method("OPTIONS")) {{ sl_send_reply("200", "OK"); exit; }}
    if (is_method("MESSAGE")) {{
        if (dmq_bcast_message("acme", "$rb", "text/plain")) {{ sl_send_reply("200", "sent"); }}
        else {{ sl_send_reply("500", "not sent"); }}
        exit;
    }}
    if (is_method("INFO")) {{
        if (dmq_send_message("acme", "$hdr(X-Node)", "$rb", "text/plain")) {{
            sl_send_reply("200", "sent");
        }} else {{ sl_send_reply("500", "not sent"); }}
        exit;
    }}
#!ifdef WITH_REGISTRAR
    if (is_method("REGISTER")) {{ save("location"); exit; }}
#!endif
#!ifdef WITH_PRESENCE
    if (is_method("PUBLISH")) {{ handle_publish(); exit; }}
#!endif
#!ifdef MOD_dialog
    if (is_method("INVITE|ACK|BYE")) {{ dlg_manage(); t_relay(); exit; }}
#!endif
    if (is_method("REGISTER")) {{
        xlog("L_ERR", "REGISTERED from=$si callid=$ci\\n");
        sl_send_reply("200", "OK");
        exit;
    }}
}}
"""


class CNode(Kamailio):
    """A node with Kamailio's own dmq.so."""

    def __init__(
        self,
        address: str,
        directory: Path,
        notification: str = "",
        *,
        ping_interval: int = 5,
        listen: str = "",
        before: str = "",
        server_address: str = "",
    ) -> None:
        notified = (
            f'modparam("dmq", "notification_address", "{notification}")' if notification else ""
        )
        cfg = C_CFG.format(
            address=address,
            directory=directory,
            mpath=module_path(),
            notification=notified,
            ping_interval=ping_interval,
            listen=f"listen=udp:{address}:5060\n{listen}" if listen else UDP_ONLY.format(address),
            before=before,
            server_address=server_address or f"sip:{address}:5060",
        )
        super().__init__(address, directory, cfg, {})

    def nodes(self) -> dict[str, str]:
        """uri -> status, as kamcmd dmq.list_nodes shows it."""
        found = {}
        for block in self.kamcmd("dmq.list_nodes").split("}"):
            fields = dict(re.findall(r"(\w+): (\S+)", block))
            if "host" in fields:
                found[f"sip:{fields['host']}:{fields['port']}"] = fields["status"]
        return found

    def active(self) -> set[str]:
        return {uri for uri, status in self.nodes().items() if status == "active"}

    def bcast(self, body: bytes) -> int:
        """Broadcast to peer acme; the code with which its script answers."""
        with SipSocket() as sip:
            data = request(self.address, method="MESSAGE", body=body, via=sip.name, sender=sip.name)
            reply = sip.ask(data, self.address)
        return reply.code if reply else 0

    def send(self, body: bytes, to: str) -> int:
        with SipSocket() as sip:
            data = request(
                self.address,
                method="INFO",
                body=body,
                via=sip.name,
                sender=sip.name,
                headers={"X-Node": to},
            )
            reply = sip.ask(data, self.address)
        return reply.code if reply else 0

    def got(self) -> list[str]:
        """The bodies that peer acme got."""
        return re.findall(r"GOT from=\S+ size=\d+ body=(.*)", self.log())


class Bed:
    """Nodes of one test; ends them all."""

    def __init__(self, directory: Path, native: bool = False) -> None:
        self.directory = directory
        self.native = native  # of Python nodes, unless a test says otherwise
        self.nodes: list[Kamailio] = []

    def python(self, address: str, notification: str = "", **more: Any) -> PythonNode:
        directory = self.directory / address
        shutil.rmtree(directory, ignore_errors=True)
        node = PythonNode(address, directory, notification, **{"native": self.native, **more})
        self.nodes.append(node)
        return node

    def c(self, address: str, notification: str = "", **more: Any) -> CNode:
        directory = self.directory / address
        shutil.rmtree(directory, ignore_errors=True)
        node = CNode(address, directory, notification, **more)
        self.nodes.append(node)
        return node

    def close(self) -> Iterator[tuple[str, str]]:
        """End what still runs; gives each node's address and log."""
        for node in self.nodes:
            node.kill()
        for node in self.nodes:
            yield node.address, node.log()


def whole(*nodes: PythonNode | CNode) -> Callable[[], bool]:
    """Whether each of nodes lists exactly all of them as active."""
    everyone = {node.uri for node in nodes}
    return lambda: all(node.active() == everyone for node in nodes)


def start(*nodes: PythonNode | CNode) -> None:
    """Start nodes one after the other; they all list each other."""
    for node in nodes:
        node.start()
    wait_for(whole(*nodes), 3, "all list all")
