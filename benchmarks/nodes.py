"""The Kamailios that are measured: with kemi_dmq, with dmq.so, and with neither.

All have the same number of SIP workers; dmq.so has its two dmq workers beside them.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.kamailio import ROOT, Kamailio, module_path
from tests.support.sip import SipSocket, request

from .cpu import Meter

HERE = Path(__file__).resolve().parent
#: Each transaction keeps some 10 KB for 5 s after its reply.
SHARED_MB = 768
CHILDREN = 2
#: More arguments for all of them.
EXTRA: list[str] = []


class Subject(Kamailio):
    """A Kamailio under measurement."""

    def start(self, wait: bool = True) -> None:
        command = ["kamailio", "-DD", "-E", "-f", str(self.cfg), "-m", str(SHARED_MB), "-M", "8"]
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
        return Meter(self.pid)

    def active(self) -> set[str]:
        """The nodes that it lists as active."""
        raise NotImplementedError


def _head(address: str, directory: Path) -> str:
    return f"""
listen=udp:{address}:5060
auto_aliases=no
children={CHILDREN}
log_stderror=yes
debug=1
mpath="{module_path()}"
loadmodule "ctl.so"
modparam("ctl", "binrpc", "unix:{directory}/ctl")
"""


class PythonSubject(Subject):
    """Runs a KEMI script with the modules that kemi_dmq needs, whether it imports it or not."""

    def __init__(
        self,
        address: str,
        directory: Path,
        notification: str = "",
        *,
        script: str = "node.py",
        sl_send: int = 0,
        num_workers: int = 0,
        ping_interval: int = 0,
        more: str = "",
        before: str = "",
    ) -> None:
        lines = [f'{before}#!define DMQ_SERVER_ADDRESS "sip:{address}:5060"']
        if notification:
            lines.append(f'#!define DMQ_NOTIFICATION_ADDRESS "{notification}"')
        lines.append(f"#!define DMQ_SL_SEND {sl_send}")
        if num_workers:
            lines.append(f"#!define DMQ_NUM_WORKERS {num_workers}")
        if ping_interval:
            lines.append(f"#!define DMQ_PING_INTERVAL {ping_interval}")
        cfg = (
            "\n".join(lines)
            + _head(address, directory)
            + f'include_file "{ROOT}/kamailio-cfg/kemi_dmq.cfg"\n'
            + more
            + f'modparam("app_python3", "load", "{HERE / script}")\n'
            + 'cfgengine "python"\n'
        )
        env = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        super().__init__(address, directory, cfg, env)

    def active(self) -> set[str]:
        with SipSocket() as sip:
            data = request(self.address, method="OPTIONS", user="", via=sip.name, sender=sip.name)
            reply = sip.ask(data, self.address, 1.0)
        return set(reply.reason.split()) if reply else set()


class CSubject(Subject):
    """Runs dmq.so; KDMQ goes to dmq_handle_message() or dmq_process_message().

    A MESSAGE broadcasts to peer silent, which dmq.so then knows as a peer with the callback that
    answers 202 at once.  An INFO sends 50 messages to the node in its X-Node header.
    """

    def __init__(
        self,
        address: str,
        directory: Path,
        notification: str = "",
        *,
        function: str = "dmq_handle_message",
        batch: int = 50,
        sl_send: int = 0,
        ping_interval: int = 0,
    ) -> None:
        notified = f'modparam("dmq", "notification_address", "{notification}")'
        cfg = f"""{_head(address, directory)}
loadmodule "tm.so"
loadmodule "sl.so"
loadmodule "pv.so"
loadmodule "textops.so"
loadmodule "dmq.so"
modparam("dmq", "server_address", "sip:{address}:5060")
{notified if notification else ""}
modparam("dmq", "num_workers", 2)
{f'modparam("dmq", "sl_send", {sl_send})' if sl_send else ""}
{f'modparam("dmq", "ping_interval", {ping_interval})' if ping_interval else ""}
request_route {{
    if (is_method("KDMQ")) {{ {function}(); exit; }}
    if (is_method("OPTIONS")) {{ sl_send_reply("200", "OK"); exit; }}
    if (is_method("MESSAGE")) {{
        dmq_bcast_message("silent", "hello", "text/plain");
        sl_send_reply("200", "OK");
        exit;
    }}
    if (is_method("INFO")) {{
        $var(i) = 0;
        while ($var(i) < {batch}) {{
            dmq_send_message("silent", "$hdr(X-Node)", "{"x" * 200}", "text/plain");
            $var(i) = $var(i) + 1;
        }}
        sl_send_reply("200", "OK");
        exit;
    }}
}}
"""
        super().__init__(address, directory, cfg, {})

    def active(self) -> set[str]:
        found = set()
        for block in self.kamcmd("dmq.list_nodes").split("}"):
            fields = dict(re.findall(r"(\w+): (\S+)", block))
            if fields.get("status") == "active":
                found.add(f"sip:{fields['host']}:{fields['port']}")
        return found


class NativeFloor(Subject):
    """Answers every request with 200 from its native script and does nothing else."""

    def __init__(self, address: str, directory: Path) -> None:
        cfg = f"""{_head(address, directory)}
loadmodule "tm.so"
loadmodule "sl.so"
loadmodule "textops.so"
request_route {{
    if (is_method("KDMQ")) {{ sl_send_reply("200", "OK"); exit; }}
    sl_send_reply("200", "OK");
}}
"""
        super().__init__(address, directory, cfg, {})


@contextlib.contextmanager
def running(*subjects: Subject) -> Iterator[None]:
    """Start all of them, and end them in any case."""
    try:
        for subject in subjects:
            subject.start()
        yield
    finally:
        for subject in subjects:
            end(subject)


def end(subject: Subject) -> None:
    process = subject.process
    if process is None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(5)
    subject.process = None


def wait_active(subjects: list[Subject], uri: str, seconds: float = 20.0) -> None:
    """Wait until each of them lists uri as active."""
    limit = time.monotonic() + seconds
    for subject in subjects:
        while uri not in subject.active():
            if time.monotonic() > limit:
                raise RuntimeError(
                    f"{subject.address} does not list {uri}\n{subject.log()[-2000:]}"
                )
            time.sleep(0.05)
