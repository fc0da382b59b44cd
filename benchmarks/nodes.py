"""The Kamailios that are measured: with kemi_dmq, with dmq.so, with a broker, and with none."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.kamailio import ROOT, Kamailio, module_path
from tests.support.sip import SipSocket, request

from .cpu import Meter, tree

HERE = Path(__file__).resolve().parent
#: Each transaction keeps some 10 KB for 5 s after its reply.
SHARED_MB = 768
CHILDREN = 2
#: More arguments for all of them.
EXTRA: list[str] = []
#: What the peer timed notes in the log: when a message was sent, and when it came.
STAMP = re.compile(r"T (\d+\.\d{6}) (\d+\.\d{6})\n")

REGISTRAR = """
loadmodule "usrloc.so"
modparam("usrloc", "preload", "location")
loadmodule "registrar.so"
"""


def bus_uri(address: str, transport: str) -> str:
    """A node's address on its bus."""
    return f"sip:{address}:5060" + (f";transport={transport}" if transport != "udp" else "")


class Subject(Kamailio):
    """A Kamailio under measurement.  small: one of many, with one SIP worker and little memory."""

    def __init__(
        self,
        address: str,
        directory: Path,
        cfg: str,
        env: dict[str, str],
        small: bool,
        transport: str = "udp",
    ) -> None:
        tcp = f"listen=tcp:{address}:5060" if transport == "tcp" else ""
        if small and not tcp:
            tcp = "disable_tcp=yes"
        head = f"""
listen=udp:{address}:5060
{tcp}
auto_aliases=no
children={1 if small else CHILDREN}
dns_cache_init=off
dst_blocklist_init=off
log_stderror=yes
debug=1
mpath="{module_path()}"
loadmodule "ctl.so"
modparam("ctl", "binrpc", "unix:{directory}/ctl")
"""
        super().__init__(address, directory, head + cfg, env)
        self.shm_mb, self.pkg_mb = (16, 4 if transport == "udp" else 8) if small else (SHARED_MB, 8)
        self.bus_uri = bus_uri(address, transport)
        self._seen = 0  # bytes of its log

    def start(self, wait: bool = True) -> None:
        command = ["kamailio", "-DD", "-E", "-f", str(self.cfg)]
        command += ["-m", str(self.shm_mb), "-M", str(self.pkg_mb)]
        command += ["-P", f"{self.directory}/pid", "-Y", str(self.directory)]
        command += ["-w", str(self.directory), *EXTRA]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=self._env, start_new_session=True
            )
        if wait:
            self.wait_up()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def meter(self) -> Meter:
        return Meter(tree(self.pid))

    def workers_meter(self) -> Meter:
        """Of its SIP workers alone."""
        return Meter(pid for pid, what in self.children().items() if "udp receiver" in what)

    def active(self) -> set[str]:
        """The nodes that it lists as active, each as its uri."""
        raise NotImplementedError

    def delivered(self) -> int:
        """How many messages its peers got since it started."""
        raise NotImplementedError

    def forget_stamps(self) -> None:
        self._seen = self._log.stat().st_size

    def stamps(self) -> list[tuple[float, float]]:
        """When the messages that the peer timed got since forget_stamps() were sent, and when they
        came (seconds since 1970)."""
        with self._log.open("rb") as log:
            log.seek(self._seen)
            text = log.read().decode(errors="replace")
        return [(float(sent), float(came)) for sent, came in STAMP.findall(text)]


class PythonSubject(Subject):
    """Runs a KEMI script with the modules that kemi_dmq needs, whether it imports it or not."""

    def __init__(
        self,
        address: str,
        directory: Path,
        notification: str = "",
        *,
        script: str = "node.py",
        defines: Mapping[str, object] | None = None,
        more: str = "",
        small: bool = False,
        env: Mapping[str, str] | None = None,
        transport: str = "udp",
    ) -> None:
        settings: dict[str, object] = {"SERVER_ADDRESS": bus_uri(address, transport)}
        if notification:
            settings["NOTIFICATION_ADDRESS"] = notification
        if small:
            settings["ONCE_MEMORY"] = 1024 * 1024
        settings.update(defines or {})
        lines = [
            f"#!define DMQ_{name} " + (f'"{value}"' if isinstance(value, str) else f"{value}")
            for name, value in settings.items()
        ]
        if small and transport == "udp":
            lines.append("#!define DMQ_KEEP_BUFFERS")
        cfg = (
            "\n".join(lines)
            + f'\ninclude_file "{ROOT}/kamailio-cfg/kemi_dmq.cfg"\n'
            + more
            + f'\nmodparam("app_python3", "load", "{HERE / script}")\n'
            + 'cfgengine "python"\n'
        )
        paths = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        super().__init__(address, directory, cfg, {**paths, **(env or {})}, small, transport)

    def ask(self, method: str) -> str:
        """The reason of its reply; empty if there is none."""
        with SipSocket() as sip:
            data = request(self.address, method=method, user="", via=sip.name, sender=sip.name)
            reply = sip.ask(data, self.address, 1.0)
        return reply.reason if reply else ""

    def active(self) -> set[str]:
        return {uri.partition(";")[0] for uri in self.ask("OPTIONS").split()}

    def delivered(self) -> int:
        return int(self.ask("MESSAGE") or -1)


class CSubject(Subject):
    """Runs dmq.so; KDMQ goes to dmq_handle_message() or dmq_process_message().

    INFO and REGISTER as in node.py.  A peer that its script has sent to has a callback that answers
    202 at once, so each node broadcasts once before it counts as one that can receive: learn().
    """

    def __init__(
        self,
        address: str,
        directory: Path,
        notification: str = "",
        *,
        function: str = "dmq_handle_message",
        ping_interval: int = 0,
        more: str = "",
        small: bool = False,
        transport: str = "udp",
    ) -> None:
        parameters = {
            "server_address": bus_uri(address, transport),
            "notification_address": notification,
        }
        lines = [f'modparam("dmq", "{k}", "{v}")' for k, v in parameters.items() if v]
        if ping_interval:
            lines.append(f'modparam("dmq", "ping_interval", {ping_interval})')
        # The time that one call took, and the calls: to a peer on all nodes, or on one.
        calls = {
            "bcast": 'dmq_bcast_message("silent", "$rb", "text/plain")',
            "bcast_timed": f'dmq_bcast_message("timed", "$TV(Sn)-{"x" * 182}", "text/plain")',
            "send": 'dmq_send_message("silent", "$hdr(X-Node)", "$rb", "text/plain")',
        }
        loops = "".join(
            f"""
        if ($rU == "{name}") {{
            while ($var(i) < $var(n)) {{ {call}; $var(i) = $var(i) + 1; }}
        }}"""
            for name, call in calls.items()
        )
        save = 'save("location")' if "registrar" in more else "exit"
        cfg = f"""
loadmodule "tm.so"
loadmodule "sl.so"
loadmodule "pv.so"
loadmodule "xlog.so"
loadmodule "textops.so"
loadmodule "dmq.so"
pv_buffer_size=40960
modparam("dmq", "num_workers", {1 if small else 2})
{chr(10).join(lines)}
{more}
request_route {{
    if (is_method("KDMQ")) {{
        if ($rU == "timed") {{ xlog("L_ERR", "T $(rb{{s.substr,0,17}}) $TV(Sn)\\n"); }}
        {function}();
        exit;
    }}
    if (is_method("OPTIONS")) {{ sl_send_reply("200", "OK"); exit; }}
    if (is_method("REGISTER")) {{
        {save};
        dmq_bcast_message("timed", "$TV(Sn) $tu $ct {"x" * 100}", "text/plain");
        exit;
    }}
    if (is_method("INFO")) {{
        $var(n) = $(hdr(X-Count){{s.int}});
        $var(i) = 0;
        $var(now) = $TV(sn);  # which reads the clock for un
        $var(begin) = $TV(un);
        {loops}
        $var(now) = $TV(sn);
        $var(us) = ($TV(un) - $var(begin) + 1000000) mod 1000000;
        $var(us) = $var(us) / $var(n);
        sl_send_reply("200", "$var(us)");
        exit;
    }}
}}
"""
        super().__init__(address, directory, cfg, {}, small, transport)

    def active(self) -> set[str]:
        found = set()
        for block in self.kamcmd("dmq.list_nodes").split("}"):
            fields = dict(re.findall(r"(\w+): (\S+)", block))
            if fields.get("status") == "active":
                found.add(f"sip:{fields['host']}:{fields['port']}")
        return found

    def delivered(self) -> int:
        found = re.search(r"\b202: (\d+)", self.kamcmd("sl.stats"))
        assert found is not None
        return int(found[1])

    def learn(self) -> None:
        """Know the peers silent and timed."""
        for action in ("bcast", "bcast_timed"):
            with SipSocket() as sip:
                data = request(
                    self.address,
                    method="INFO",
                    user=action,
                    body=b"x",
                    via=sip.name,
                    sender=sip.name,
                    headers={"X-Count": "1"},
                )
                reply = sip.ask(data, self.address)
            assert reply is not None and reply.code == 200, self.log()[-2000:]


class NativeFloor(Subject):
    """Answers every request with 200 from its native script and does nothing else."""

    def __init__(self, address: str, directory: Path, small: bool = False) -> None:
        cfg = """
loadmodule "tm.so"
loadmodule "sl.so"
loadmodule "textops.so"
request_route {
    if (is_method("KDMQ")) { sl_send_reply("200", "OK"); exit; }
    sl_send_reply("200", "OK");
}
"""
        super().__init__(address, directory, cfg, {}, small)


@contextlib.contextmanager
def running(*subjects: Subject) -> Iterator[None]:
    """Start all of them, the first one first, and end them in any case."""
    try:
        for subject in subjects[:1]:
            subject.start()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(Subject.start, subjects[1:]))
        yield
    finally:
        end(subjects)


def end(subjects: Sequence[Subject]) -> None:
    started = [subject for subject in subjects if subject.process is not None]
    for subject in started:
        assert subject.process is not None
        subject.process.send_signal(signal.SIGTERM)
    limit = time.monotonic() + 5
    for subject in started:
        assert subject.process is not None
        try:
            subject.process.wait(max(0.1, limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass
        # What its processes have left behind, too.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(subject.process.pid, signal.SIGKILL)
        subject.process.wait(5)
        subject.process = None


def wait_until(what: Callable[[], bool], seconds: float, why: Callable[[], str]) -> None:
    limit = time.monotonic() + seconds
    while not what():
        if time.monotonic() > limit:
            raise RuntimeError(f"not within {seconds} s: {why()}")
        time.sleep(0.005)


def wait_active(subjects: Sequence[Subject], uri: str, seconds: float = 20.0) -> None:
    """Wait until each of them lists uri as active."""
    limit = time.monotonic() + seconds
    for subject in subjects:
        while uri not in subject.active():
            if time.monotonic() > limit:
                raise RuntimeError(
                    f"{subject.address} does not list {uri}\n{subject.log()[-2000:]}"
                )
            time.sleep(0.05)
