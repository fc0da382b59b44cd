"""The demo's Kamailios: start one, ask it, stop it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_numbers = itertools.count(1)


class DemoError(Exception):
    """The demo cannot go on; the text says why."""


@dataclass
class Seen:
    """What a node says: whom it lists, and the broadcasts that it got."""

    nodes: dict[str, str] = field(default_factory=dict)  # address -> status
    got: dict[str, tuple[int, float]] = field(default_factory=dict)  # sender -> number, time


def modules() -> str:
    for path in Path("/usr/lib").glob("*/kamailio/modules"):
        return f"{path}/"
    raise DemoError("no Kamailio modules under /usr/lib; make setup installs them")


class Node:
    """One Kamailio.  kind is "kemi_dmq" or "dmq.so"."""

    def __init__(self, name: str, address: str, kind: str, notify: str, directory: Path) -> None:
        self.name = name
        self.address = address
        self.kind = kind
        self.directory = directory / name
        self.directory.mkdir()
        self.process: subprocess.Popen[bytes] | None = None
        template = ROOT / "demo" / ("python.cfg" if kind == "kemi_dmq" else "c.cfg")
        cfg = template.read_text()
        values = {
            "ADDRESS": address,
            "NOTIFY": f"sip:{notify}:5060",
            "MODULES": modules(),
            "DIRECTORY": str(self.directory),
            "ROOT": str(ROOT),
        }
        for key, value in values.items():
            cfg = cfg.replace(f"@{key}@", value)
        (self.directory / "kamailio.cfg").write_text(cfg)

    # Life ----------------------------------------------------------------------------------

    def start(self) -> None:
        self._check_free()
        own = str(self.directory)
        command = ["kamailio", "-DD", "-E", "-f", f"{own}/kamailio.cfg", "-m", "16", "-M", "8"]
        command += ["-P", f"{own}/pid", "-Y", own, "-w", own]
        # Should the demo itself be killed, its Kamailios are told to end.
        command = ["setpriv", "--pdeathsig", "TERM", *command]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                start_new_session=True,
            )

    def _check_free(self) -> None:
        """Two Kamailios may share an address, which would confuse everybody."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            try:
                sock.bind((self.address, 5060))
            except OSError as error:
                raise DemoError(
                    f"{self.address}:5060 cannot be used: {error.strerror}; does another demo run?"
                ) from None

    def stop(self) -> None:
        """SIGTERM, as an init system stops it."""
        if self.process is not None:
            self.process.terminate()
            self._end(5.0)

    def kill(self) -> None:
        """End all its processes; only these, and in any case."""
        if self.process is not None:
            self.process.terminate()
            self._end(2.0)

    def _end(self, seconds: float) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the session that start() made
        process.wait()

    @property
    def running(self) -> bool:
        return self.process is not None

    def check(self) -> None:
        if self.process is not None and self.process.poll() is not None:
            status = self.process.returncode
            self._end(0.0)
            raise DemoError(f"{self.name} has ended with status {status}; {self.why()}")

    def why(self) -> str:
        log = (self.directory / "log").read_text(errors="replace").splitlines()
        errors = [line for line in log if re.search(r"CRITICAL|ERROR", line)]
        return "its log ends with:\n" + "\n".join((errors or log)[-5:])

    # Questions -----------------------------------------------------------------------------

    def ask(self) -> Seen | None:
        """What it lists and got; None if it does not answer (yet)."""
        body = self._request("INFO", "state")
        if body is None:
            return None
        if self.kind == "kemi_dmq":
            state = json.loads(body)
            nodes = {_host(uri): status for uri, status in state["nodes"].items()}
            got = state["got"]
        else:
            nodes = self._list_nodes()
            got = dict(line.split(" ", 1) for line in body.splitlines() if "null" not in line)
        seen = Seen(nodes)
        for sender, text in got.items():
            number, _, when = text.partition(" ")
            seen.got[sender] = (int(number), float(when))
        return seen

    def _list_nodes(self) -> dict[str, str]:
        done = subprocess.run(
            ["kamcmd", "-s", f"unix:{self.directory}/ctl", "dmq.list_nodes"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
        nodes = {}
        for block in done.stdout.split("}"):
            fields = dict(re.findall(r"(\w+): (\S+)", block))
            if "host" in fields:
                nodes[fields["host"]] = fields["status"]
        return nodes

    def broadcast(self, number: int) -> float:
        """Have it broadcast; when that began."""
        now = time.time()
        self._request("MESSAGE", "say", f"{self.name} {number} {now:.6f}")
        return now

    def _request(self, method: str, user: str, body: str = "") -> str | None:
        """Send it a SIP request; the body of its 200, or None."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            sock.connect((self.address, 5060))
            here = "{}:{}".format(*sock.getsockname())
            unique = f"{os.getpid()}.{next(_numbers)}.{time.time_ns()}"
            typed = "Content-Type: text/plain\r\n" if body else ""
            text = (
                f"{method} sip:{user}@{self.address}:5060 SIP/2.0\r\n"
                f"Via: SIP/2.0/UDP {here};branch=z9hG4bK{unique}\r\n"
                f"To: <sip:{user}@{self.address}:5060>\r\n"
                f"From: <sip:demo@{here}>;tag={unique}\r\n"
                f"CSeq: 1 {method}\r\nCall-ID: {unique}@demo\r\nMax-Forwards: 10\r\n"
                f"{typed}Content-Length: {len(body)}\r\n\r\n{body}"
            )
            try:
                sock.settimeout(0.5)
                sock.send(text.encode())
                data = sock.recv(65535).decode(errors="replace")
            except OSError:  # nobody there yet, or busy
                return None
        head, _, answer = data.partition("\r\n\r\n")
        return answer if head.startswith("SIP/2.0 200 ") else None


def _host(uri: str) -> str:
    return uri.removeprefix("sip:").partition(":")[0]
