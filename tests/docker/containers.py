"""Nodes in containers, on an internal network of the test's own; ended by their ids."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.kamailio import wait_for
from tests.support.sip import SipSocket, request

SCRIPT = Path(__file__).resolve().parents[1] / "support" / "node_script.py"
SUITES = {"bookworm": (5, 6), "trixie": (6, 0), "forky": (6, 1)}


def docker(*arguments: str, check: bool = True, timeout: float = 120) -> str:
    done = subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )
    if check and done.returncode != 0:
        raise AssertionError(f"docker {' '.join(arguments)}: {done.stderr}")
    return done.stdout + ("" if check else done.stderr)


class Container:
    """One node; kind is a suite, and ``c`` tells whether it runs the C module."""

    def __init__(self, bus: Bus, name: str, suite: str, environment: dict[str, str]) -> None:
        self.bus = bus
        self.name = name
        self.suite = suite
        self.environment = environment
        self.id = ""
        self.address = ""
        self.control = ""  # its IPv4 address, on which it also listens: tests drive it there
        self.directory = bus.directory / f"{name}-{uuid.uuid4().hex[:6]}"
        self.transport = environment.get("DMQ_TRANSPORT", "udp")

    @property
    def uri(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        if self.transport == "udp":
            return f"sip:{host}:5060"
        return f"sip:{host}:{5061 if self.transport == 'tls' else 5060};transport={self.transport}"

    def start(self) -> None:
        """Make the container, or start it again with the address that it had."""
        if not self.id:
            self.directory.mkdir(parents=True, exist_ok=True)
            self.directory.chmod(0o777)
            arguments = ["run", "-d", "--network", self.bus.network, "--network-alias", self.name]
            arguments += ["--hostname", self.name, "-v", f"{self.directory}:/events"]
            arguments += ["-v", f"{self.script()}:/script/node_script.py:ro"]
            for name, value in self.environment.items():
                arguments += ["-e", f"{name}={value}"]
            for volume in self.bus.volumes:
                arguments += ["-v", volume]
            self.id = docker(*arguments, f"kemi-dmq:{self.suite}").strip()
        else:
            docker("start", self.id)
        self.address = self.bus.address_of(self.id, self.bus.ipv6)
        self.control = self.bus.address_of(self.id, False)

    def script(self) -> Path:
        return SCRIPT

    def wait_up(self) -> None:
        wait_for(self.answers, 20, f"{self.name} answers; log:\n{self.log()[-3000:]}")

    def answers(self) -> bool:
        return self.ask("OPTIONS", "", b"", 0.2) is not None

    def ask(self, method: str, user: str, body: bytes, seconds: float = 3.0) -> Any:
        with SipSocket(self.bus.gateway) as sip:
            data = request(
                self.control, method=method, user=user, body=body, via=sip.name, sender=sip.name
            )
            return sip.ask(data, self.control, seconds)

    def stop(self) -> float:
        """SIGTERM; the seconds until it has ended, with exit status 0."""
        before = time.monotonic()
        docker("stop", "-t", "30", self.id)
        seconds = time.monotonic() - before
        code = docker("inspect", "-f", "{{.State.ExitCode}}", self.id).strip()
        assert code == "0", f"{self.name} ended with {code}; log:\n{self.log()[-2000:]}"
        return seconds

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
            docker("rm", "-f", "-v", self.id, check=False)
            self.id = ""

    def log(self) -> str:
        return docker("logs", self.id, check=False) if self.id else ""

    def kamcmd(self, *command: str) -> str:
        return docker("exec", self.id, "kamcmd", "-s", "unix:/run/node/ctl", *command, check=False)

    def active(self) -> set[str]:
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
        reply = self.ask("INFO", name, json.dumps(args).encode(), seconds)
        if reply is None:
            raise TimeoutError(f"{self.name} does not answer {name}")
        return json.loads(reply.body)

    def active(self) -> set[str]:
        try:
            nodes = self.command("nodes", 1.0)["nodes"]
        except TimeoutError:
            return set()
        return {uri for uri, status, _, _ in nodes if status == "active"}

    def events(self, kind: str) -> list[dict[str, Any]]:
        file = self.directory / "events.jsonl"
        if not file.exists():
            return []
        # A line that is being written now has no end yet.
        lines = file.read_text().splitlines(keepends=True)
        found = (json.loads(line) for line in lines if line.endswith("\n"))
        return [event for event in found if event["kind"] == kind]

    def heard(self) -> list[str]:
        """The bodies that peer acme got, in order."""
        return [
            bytes.fromhex(event["body"]).decode()
            for event in self.events("message")
            if event["body"]
        ]


class CContainer(Container):
    def __init__(self, bus: Bus, name: str, suite: str, environment: dict[str, str]) -> None:
        super().__init__(bus, name, suite, {"KAMAILIO_CFG": "/opt/node/c_node.cfg", **environment})

    def start(self) -> None:
        # By address: with a name, C lists the notification node twice (5.6, 6.0) or under the
        # name only (6.1), and sends it each broadcast as often.
        for name, value in self.environment.items():
            if name == "DMQ_NOTIFICATION_ADDRESS" and not self.id:
                named = [n for n in self.bus.nodes if f"sip:{n.name}:" in value]
                if not named:
                    break
                node = named[0]
                host = f"[{node.address}]" if ":" in node.address else node.address
                self.environment[name] = value.replace(f"sip:{node.name}:", f"sip:{host}:")
                break
        super().start()

    def active(self) -> set[str]:
        found = set()
        for block in self.kamcmd("dmq.list_nodes").split("}"):
            fields = dict(re.findall(r"(\w+): (\S+)", block))
            if fields.get("status") == "active":
                proto = fields.get("proto", "udp").lower()
                transport = "" if proto in ("udp", "any", "none", "*") else f";transport={proto}"
                found.add(f"sip:{fields['host']}:{fields['port']}{transport}")
        return found

    def bcast(self, body: str) -> int:
        reply = self.ask("MESSAGE", "acme", body.encode())
        return reply.code if reply else 0

    def heard(self) -> list[str]:
        return re.findall(r"GOT from=\S+ size=\d+ body=(.*)", self.log())


class Bus:
    """An internal network and the nodes on it."""

    def __init__(self, directory: Path, ipv6: bool = False) -> None:
        self.directory = directory
        directory.chmod(0o755)
        self.ipv6 = ipv6
        self.volumes: list[str] = []
        self.nodes: list[Container] = []
        name = f"kemi-dmq-test-{uuid.uuid4().hex[:8]}"
        arguments = ["network", "create", "--internal"]
        if ipv6:
            self._prefix = f"fd00:{uuid.uuid4().hex[:4]}:{uuid.uuid4().hex[:4]}::"
            arguments += ["--ipv6", "--subnet", f"{self._prefix}/64"]
            arguments += ["--gateway", f"{self._prefix}1"]
        self.network = docker(*arguments, name).strip()
        settings = json.loads(docker("network", "inspect", self.network))[0]["IPAM"]["Config"]
        gateways = [item["Gateway"].split("/")[0] for item in settings if "Gateway" in item]
        self.gateway = next(g for g in gateways if ":" not in g)

    def address_of(self, container: str, ipv6: bool) -> str:
        key = "GlobalIPv6Address" if ipv6 else "IPAddress"
        template = "{{range .NetworkSettings.Networks}}{{." + key + "}}{{end}}"
        return docker("inspect", "-f", template, container).strip()

    def python(self, name: str, suite: str, **environment: str) -> PythonContainer:
        settings = {"DMQ_PING_INTERVAL": "5", **environment}
        node = PythonContainer(self, name, suite, settings)
        self.nodes.append(node)
        return node

    def c(self, name: str, suite: str, **environment: str) -> CContainer:
        node = CContainer(self, name, suite, {"DMQ_PING_INTERVAL": "5", **environment})
        self.nodes.append(node)
        return node

    def take_an_address(self, suite: str) -> None:
        """Occupy the address that would be given next."""
        holder = Container(self, "holder", suite, {})
        holder.id = docker(
            "run", "-d", "--network", self.network, "--entrypoint", "sleep",
            f"kemi-dmq:{suite}", "600",
        ).strip()  # fmt: skip
        self.nodes.append(holder)

    def close(self) -> Iterator[tuple[str, str]]:
        for node in self.nodes:
            yield f"{node.name} ({node.suite})", node.log()
        for node in self.nodes:
            node.remove()
        docker("network", "rm", self.network, check=False)
