"""docs/migration.md as it is written: three C nodes become nodes of kemi_dmq, one by one, under
traffic; and one goes back."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.support.kamailio import ROOT, Bed, CNode, Kamailio, wait_for
from tests.support.sip import SipSocket, request

ADDRESSES = ("127.0.0.31", "127.0.0.32", "127.0.0.33")
BEFORE, AFTER = re.findall(
    r"```cfg\n(.*?)```", (ROOT / "docs/migration.md").read_text(), re.DOTALL
)  # fmt: skip


class Moving(CNode):
    """A node of the page; write() chooses which of the two."""

    def __init__(self, address: str, notification: str, directory: Path, etc: Path) -> None:
        env = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        Kamailio.__init__(self, address, directory, "", env)
        self._notification = notification
        self._etc = etc

    def write(self, text: str) -> None:
        text = text.replace("10.0.0.20", self.address).replace("10.0.0.21", self._notification)
        text = text.replace("/etc/kamailio", str(self._etc))
        ctl = f'loadmodule "ctl.so"\nmodparam("ctl", "binrpc", "{self.ctl}")'
        self.cfg.write_text(text.replace('loadmodule "ctl.so"', ctl))
        subprocess.run(
            ["kamailio", "-c", "-f", str(self.cfg)],
            check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def table(self) -> dict[str, str]:
        """What it has in its htable."""
        dump = self.kamcmd("htable.dump", "ipban")
        return dict(re.findall(r"name: (\S+)\s+value: (\S+)", dump))

    def logged(self, what: str) -> list[str]:
        return re.findall(rf"{what}: (\S+)$", self.log(), re.MULTILINE)


class Traffic:
    """Alarms, table entries and registrations, to one node after the other that is not being
    restarted, as a load balancer would."""

    def __init__(self, nodes: list[Moving]) -> None:
        self.targets = list(nodes)
        self.lock = threading.Lock()  # held while a request is under way
        self.sent: list[tuple[float, str, str, str]] = []  # when, to whom, what, its text
        self.failed: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        number = 0
        with SipSocket() as sip:
            while not self._stop.wait(0.01):
                number += 1
                what, method = (
                    ("alarm", "MESSAGE"), ("entry", "PUBLISH"), ("register", "REGISTER")
                )[number % 3]  # fmt: skip
                with self.lock:
                    node = self.targets[number // 3 % len(self.targets)]
                    text = f"{what}-{number}"
                    body = text.encode() if what != "register" else b""
                    headers: dict[str, str | None] = {"To": f"<sip:{text}@{node.address}>"}
                    data = request(
                        node.address, method=method, user=text, body=body, via=sip.name,
                        sender=sip.name, headers=headers,
                    )  # fmt: skip
                    when = time.time()
                    reply = sip.ask(data, node.address, 2)
                    if reply is None or reply.code not in (200, 202):
                        self.failed.append(f"{text} at {node.address}: {reply}")
                    self.sent.append((when, node.address, what, text))

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def etc_kamailio(tmp_path: Path) -> Path:
    etc = tmp_path / "etc"
    etc.mkdir()
    for name in ("kemi_dmq.cfg", "kemi_dmq_native.cfg", "kemi_dmq_native.py"):
        text = (ROOT / "kamailio-cfg" / name).read_text()
        (etc / name).write_text(text.replace("/etc/kamailio", str(etc)))
    return etc


INCLUDE = 'include_file "/etc/kamailio/kemi_dmq_native.cfg"'
HTABLE = re.findall(r'loadmodule "htable.so".*?"enable_dmq", 1\)\n', AFTER, re.DOTALL)[0]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("", "", ""),
        ("DMQ_PING_INTERVAL 60", "DMQ_PING_INTERVAL 3", "setting ping_interval is 3"),
        ("#!define DMQ_SERVER_ADDRESS", "#!define DMQ_SERVER_ADRESS", "server_address is not set"),
        ("10.0.0.20:5060", "10.0.0.99:5060", "10.0.0.99"),
        ("PYTHONPATH", "", "the package is in no folder"),
        (INCLUDE, f'loadmodule "dmq.so"\n{INCLUDE}', "dmq.so"),
        (INCLUDE, f"{HTABLE}{INCLUDE}", "bind_dmq"),
    ],
)
def test_a_trial_start_finds_what_kamailio_c_does_not(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    etc = etc_kamailio(tmp_path)
    cfg = etc / "kamailio.new.cfg"
    text = AFTER.replace(HTABLE, "") if HTABLE in new else AFTER
    assert old in text or old == "PYTHONPATH"
    cfg.write_text(text.replace(old, new, 1).replace("/etc/kamailio", str(etc)))
    env = {**os.environ, "RUN_AS": "root", "SECONDS_TO_RUN": "2"}
    env["PYTHONPATH"] = "" if old == "PYTHONPATH" else str(ROOT)
    subprocess.run(["ip", "addr", "add", "10.0.0.20", "dev", "lo"], check=False)
    done = subprocess.run(
        [ROOT / "tools/try-start.sh", cfg], env=env, capture_output=True, text=True, cwd="/"
    )
    output = done.stdout + done.stderr
    assert done.returncode == (1 if said else 0) and said in output, output
    assert "Traceback" not in output


def test_the_migration_guide_as_it_is_written(bed: Bed, tmp_path: Path) -> None:
    etc = etc_kamailio(tmp_path)
    first, second, third = ADDRESSES
    notified = {first: second, second: first, third: first}
    nodes = [Moving(a, notified[a], tmp_path / a, etc) for a in ADDRESSES]
    bed.nodes += nodes
    everyone = {node.uri for node in nodes}
    up: dict[str, list[list[float]]] = {}

    def whole() -> bool:
        return all(node.active() == everyone for node in nodes)

    for node in nodes:
        node.write(BEFORE)
        node.start()
        up[node.address] = [[0.0, float("inf")]]
    wait_for(whole, 15, lambda: [node.nodes() for node in nodes])

    with Traffic(nodes) as traffic:

        def restart(node: Moving, text: str) -> None:
            count = len(traffic.sent)
            wait_for(lambda: len(traffic.sent) > count + 100, 20)
            with traffic.lock:
                traffic.targets.remove(node)
                up[node.address][-1][1] = time.time() - 0.2
            node.write(text)
            node.wait_settled()
            node.stop()
            node.start()
            wait_for(whole, 20, lambda: [n.nodes() for n in nodes])
            with traffic.lock:
                up[node.address].append([time.time() + 0.1, float("inf")])
                traffic.targets.append(node)

        for node in reversed(nodes):  # the one that the others name comes last
            restart(node, AFTER)
        restart(nodes[1], BEFORE)  # and back
        restart(nodes[1], AFTER)
        count = len(traffic.sent)
        wait_for(lambda: len(traffic.sent) > count + 100, 20)
    assert traffic.failed == []

    def was_up(address: str, when: float) -> bool:
        return any(begin <= when <= end for begin, end in up[address])

    for node in nodes:
        due = [
            (what, text)
            for when, sender, what, text in traffic.sent
            if what != "entry"
            and was_up(node.address, when)
            and (sender != node.address or what == "register")
        ]
        assert len(due) > 200

        def missed(node: Moving = node, due: list[tuple[str, str]] = due) -> set[str]:
            heard = {*node.logged("alarm"), *node.logged("register")}
            return {text for _, text in due} - heard

        wait_for(lambda: not missed(), 5, missed)
    entries = {text: text for _, _, what, text in traffic.sent if what == "entry"}
    for node in nodes:
        wait_for(lambda node=node: node.table() == entries, 5)  # type: ignore[misc]
    for node in nodes:  # kemi_dmq takes no message twice
        alarms = node.logged("alarm")
        assert len(alarms) == len(set(alarms))
