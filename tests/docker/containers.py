"""Nodes in containers, on an internal network of the test's own; ended by their ids."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.kamailio import READS, wait_for
from tests.support.sip import SipSocket, request

SCRIPT = Path(__file__).resolve().parents[1] / "support" / "node_script.py"
SUITES = {"bookworm": (5, 6), "trixie": (6, 0), "forky": (6, 1)}
#: Everything that these tests make bears it.
LABEL = "kemi-dmq-test"
#: The port where tests drive a node, over IPv4 and UDP, whatever the bus itself speaks.
CONTROL = 5080


def docker(*arguments: str, check: bool = True, timeout: float = 120) -> str:
    done = subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )
    if check and done.returncode != 0:
        raise AssertionError(f"docker {' '.join(arguments)}: {done.stderr}")
    return done.stdout + ("" if check else done.stderr)


def squeezed(log: str) -> str:
    """The log with no more than the first and the last of many messages in a row that a node got:
    what else it says is what tells why a test failed."""
    out: list[str] = []
    run: list[str] = []
    for line in [*log.splitlines(), ""]:
        if "GOT callid=" in line or "SUM callid=" in line:
            run.append(line[:300])
            continue
        if len(run) > 4:
            run[1:-1] = [f"... {len(run) - 2} more messages ..."]
        out += [*run, line]
        run = []
    return "\n".join(out[:-1])


class Container:
    """One node on the bus, in a container of its own."""

    def __init__(self, bus: Bus, name: str, suite: str, environment: dict[str, str]) -> None:
        self.bus = bus
        self.name = name
        self.suite = suite
        self.image = f"kemi-dmq:{suite}"
        self.environment = environment
        self.id = ""
        self.options: list[str] = []  # more for docker create
        self.directory = bus.directory / f"{name}-{uuid.uuid4().hex[:6]}"
        self.transport = environment.get("DMQ_TRANSPORT", "udp")
        self.move()

    def move(self) -> None:
        """Another address from the next container on; the name stays."""
        self.control, self.address = self.bus.free_addresses()

    @property
    def uri(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        if self.transport == "udp":
            return f"sip:{host}:5060"
        return f"sip:{host}:{5061 if self.transport == 'tls' else 5060};transport={self.transport}"

    def create(self) -> None:
        """Make the container; it does not run yet."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o777)
        arguments = ["create", "--label", LABEL, "--network", self.bus.network]
        arguments += ["--network-alias", self.name, "--hostname", self.name, "--ip", self.control]
        if self.address != self.control:
            arguments += ["--ip6", self.address]
        volumes = [f"{self.directory}:/events", f"{self.script()}:/script/node_script.py:ro"]
        for volume in (*volumes, *self.bus.volumes):
            arguments += ["-v", volume]
        environment = {"KAMAILIO_LISTEN": f"udp:{self.control}:{CONTROL}", **self.environment}
        for name, value in environment.items():
            arguments += ["-e", f"{name}={value}"]
        arguments += self.options
        self.id = docker(*arguments, self.image).strip()

    def start(self) -> None:
        if not self.id:
            self.create()
        docker("start", self.id)

    def script(self) -> Path:
        return SCRIPT

    def wait_up(self) -> None:
        wait_for(self.answers, 20, lambda: f"{self.name} answers; log:\n{self.log()[-3000:]}")

    def answers(self) -> bool:
        return self.ask("OPTIONS", "", b"", 0.2) is not None

    def ask(
        self,
        method: str,
        user: str,
        body: bytes,
        seconds: float = 3.0,
        again: float | None = None,
    ) -> Any:
        with SipSocket(self.bus.gateway) as sip:
            data = request(
                self.control, method=method, user=user, body=body, via=sip.name, sender=sip.name
            )
            return sip.ask(data, self.control, seconds, CONTROL, again)

    def stop(self) -> None:
        """SIGTERM; it has to end with exit status 0, within 2 s as the engine saw it."""
        before = time.time()
        docker("stop", "-t", "30", self.id)
        self.check_stop(self.moments(before))

    def stop_under_load(self) -> None:
        """The same while transactions come and go: all processes but the first have to end.  That
        one may hang or fail then, see tests/support/kamailio.py."""
        before = time.time()
        docker("kill", "--signal", "TERM", self.id)
        wait_for(self.alone, 2, lambda: f"those of {self.name} end; log:\n{self.log()[-2000:]}")
        docker("stop", "-t", "3", self.id)
        code = self.moments(before)["die"][0][1]
        assert code in ("0", "134", "137", "139"), f"{self.name} ended with {code}"

    def alone(self) -> bool:
        """Whether it has one process at most."""
        seen = subprocess.run(
            ["docker", "top", self.id, "-o", "pid"], capture_output=True, text=True
        )
        return len(seen.stdout.splitlines()) <= 2

    def check_stop(self, happened: dict[str, list[tuple[float, str]]]) -> None:
        """That it ended well at the first SIGTERM among what happened."""
        (code,) = happened["die"][0][1:]
        assert code == "0", f"{self.name} ended with {code}; log:\n{self.log()[-2000:]}"
        seconds = happened["die"][0][0] - happened["kill"][0][0]
        assert seconds < 2, f"{self.name} took {seconds:.2f} s to end; log:\n{self.log()[-2000:]}"

    def moments(self, since: float) -> dict[str, list[tuple[float, str]]]:
        """What happened to the container, as the engine saw it: action -> times and exit codes."""
        seen = docker(
            "events", "--since", f"{since - 0.1:.3f}", "--until", f"{time.time() + 0.1:.3f}",
            "--filter", f"container={self.id}",
            "--format", '{{.Action}}|{{.TimeNano}}|{{index .Actor.Attributes "exitCode"}}',
        )  # fmt: skip
        happened: dict[str, list[tuple[float, str]]] = {}
        for line in seen.splitlines():
            action, nanoseconds, code = line.split("|")
            happened.setdefault(action, []).append((int(nanoseconds) / 1e9, code))
        return happened

    def kill(self) -> None:
        docker("kill", "-s", "KILL", self.id)

    def pause(self) -> None:
        def paused() -> bool:
            # On a busy machine the engine now and then cannot freeze a container at once.
            docker("pause", self.id, check=False)
            state = docker("inspect", "-f", "{{.State.Paused}}", self.id)
            return state.strip() == "true"

        wait_for(paused, 20, f"{self.name} is paused")

    def unpause(self) -> None:
        docker("unpause", self.id)

    def remove(self) -> None:
        if self.id:
            self.bus.keep_log(self)
            docker("rm", "-f", "-v", self.id)
            self.id = ""

    def log(self) -> str:
        return docker("logs", self.id, check=False) if self.id else ""

    def kamcmd(self, *command: str) -> str:
        return docker("exec", self.id, "kamcmd", *command, check=False)

    def active(self) -> set[str]:
        raise NotImplementedError

    def sent_twice(self) -> list[str]:
        """The bodies of messages to peer acme that its script got twice."""
        raise NotImplementedError


class PythonContainer(Container):
    def __init__(self, bus: Bus, name: str, suite: str, environment: dict[str, str]) -> None:
        environment = {
            "NODE_SCRIPT": "/script/node_script.py",
            "NODE_EVENTS": "/events/events.jsonl",
            "DMQ_EVENT_CALLBACK": "on_event",
            **environment,
        }
        super().__init__(bus, name, suite, environment)
        self.own_script = self.directory.parent / f"{self.directory.name}.py"

    def script(self) -> Path:
        if not self.own_script.exists():
            shutil.copy(SCRIPT, self.own_script)
            self.own_script.chmod(0o644)
        return self.own_script

    def answers(self) -> bool:
        try:
            return bool(self.command("nodes", 0.3))
        except TimeoutError:
            return False

    def command(self, name: str, seconds: float = 5.0, **args: object) -> Any:
        again = 0.5 if name in READS else None
        reply = self.ask("INFO", name, json.dumps(args).encode(), seconds, again)
        if reply is None:
            raise TimeoutError(f"{self.name} does not answer {name}")
        return json.loads(reply.body)

    def bcast(self, body: str) -> bool:
        try:
            return bool(self.command("bcast", 1.0, body=body) == 0)
        except TimeoutError:
            return False

    def active(self) -> set[str]:
        try:
            nodes = self.command("nodes", 1.0)["nodes"]
        except TimeoutError:
            return set()
        return {uri for uri, status, _, _ in nodes if status == "active"}

    def events(self, kind: str, **match: object) -> list[dict[str, Any]]:
        file = self.directory / "events.jsonl"
        if not file.exists():
            return []
        # A line that is being written now has no end yet.
        lines = file.read_text().splitlines(keepends=True)
        found = (json.loads(line) for line in lines if line.endswith("\n"))
        return [
            event
            for event in found
            if event["kind"] == kind and all(event.get(k) == v for k, v in match.items())
        ]

    def heard(self) -> list[str]:
        """The bodies that peer acme got, in order."""
        return [
            bytes.fromhex(event["body"]).decode()
            for event in self.events("message")
            if event["body"]
        ]

    def digests(self) -> list[str]:
        """The MD5 of each body that peer acme got."""
        return [
            hashlib.md5(bytes.fromhex(event["body"])).hexdigest()
            for event in self.events("message")
        ]

    def sent_twice(self) -> list[str]:
        heard = self.heard()
        return sorted(body for body in set(heard) if heard.count(body) > 1)


class CContainer(Container):
    def __init__(self, bus: Bus, name: str, suite: str, environment: dict[str, str]) -> None:
        super().__init__(bus, name, suite, {"KAMAILIO_CFG": "/opt/node/c_node.cfg", **environment})

    def active(self) -> set[str]:
        found = set()
        for block in self.kamcmd("dmq.list_nodes").split("}"):
            fields = dict(re.findall(r"(\w+): (\S+)", block))
            if fields.get("status") == "active":
                proto = fields.get("proto", "udp").lower()
                transport = "" if proto in ("udp", "any", "none", "*") else f";transport={proto}"
                found.add(f"sip:{fields['host']}:{fields['port']}{transport}")
        return found

    def bcast(self, body: str) -> bool:
        reply = self.ask("MESSAGE", "acme", body.encode(), 1.0)
        return reply is not None and reply.code == 200

    def _got(self) -> list[tuple[str, str]]:
        """Call-ID and (short) body of each; its script also gets a retransmission."""
        return re.findall(r"GOT callid=(\S+) size=\d+ body=(.*)", self.log())

    def heard(self) -> list[str]:
        return [body for _, body in self._got()]

    def digests(self) -> list[str]:
        found = re.findall(r"SUM callid=(\S+) md5=(\w+)", self.log())
        return [digest for _, digest in set(found)]

    def sent_twice(self) -> list[str]:
        """A retransmission (its Call-ID is the same) is not counted."""
        requests = [body for _, body in set(self._got())]
        return sorted(body for body in set(requests) if requests.count(body) > 1)


AnyNode = PythonContainer | CContainer


class Bus:
    """An internal network and the nodes on it."""

    def __init__(self, directory: Path, ipv6: bool = False) -> None:
        self.directory = directory
        directory.chmod(0o755)
        self.ipv6 = ipv6
        self.volumes: list[str] = []
        self.nodes: list[Container] = []
        #: Of containers that the test itself has removed.
        self.logs: list[tuple[str, str]] = []
        self.network = ""
        self._given = 9
        name = f"kemi-dmq-test-{uuid.uuid4().hex[:8]}"

        def made() -> bool:
            """A network of which this machine has none yet."""
            number = uuid.uuid4().int
            self._prefix = f"10.{200 + number % 50}.{number // 50 % 256}."
            self._prefix6 = f"fd00:{number % 65536:x}:{number // 65536 % 65536:x}::"
            arguments = ["network", "create", "--internal", "--label", LABEL]
            arguments += ["--subnet", f"{self._prefix}0/24", "--gateway", f"{self._prefix}1"]
            if ipv6:
                arguments += ["--ipv6", "--subnet", f"{self._prefix6}/64"]
                arguments += ["--gateway", f"{self._prefix6}1"]
            done = docker(*arguments, name, check=False).strip()
            if re.fullmatch(r"[0-9a-f]{64}", done):
                self.network = done
            else:
                assert "overlap" in done, done
            return bool(self.network)

        wait_for(made, 30, "a network")
        self.gateway = f"{self._prefix}1"

    def free_addresses(self) -> tuple[str, str]:
        """An IPv4 address for a node, and the one with which it is on the bus."""
        self._given += 1
        address = f"{self._prefix}{self._given}"
        return address, f"{self._prefix6}{self._given:x}" if self.ipv6 else address

    def python(self, name: str, suite: str, **environment: str) -> PythonContainer:
        node = PythonContainer(self, name, suite, {"DMQ_PING_INTERVAL": "5", **environment})
        self.nodes.append(node)
        return node

    def c(self, name: str, suite: str, **environment: str) -> CContainer:
        node = CContainer(self, name, suite, {"DMQ_PING_INTERVAL": "5", **environment})
        self.nodes.append(node)
        return node

    def keep_log(self, node: Container) -> None:
        try:
            log = squeezed(node.log())
        except (AssertionError, OSError, subprocess.SubprocessError) as error:
            log = f"no log: {error}"
        self.logs.append((f"{node.name} ({node.suite})", log))

    def close(self) -> Sequence[tuple[str, str]]:
        """Remove everything; gives the log of each container that there was."""
        try:
            for node in self.nodes:
                self.keep_log(node)
        finally:
            # Also what a `docker create` that failed half-way has left.
            left = docker("ps", "-aq", "--no-trunc", "--filter", f"network={self.network}").split()
            made = [node.id for node in self.nodes if node.id]
            if everything := {*left, *made}:
                docker("rm", "-f", "-v", *everything)
            docker("network", "rm", self.network)
        return self.logs
