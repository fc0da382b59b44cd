"""app_python.reload: under traffic, with broken scripts, and with good ones after them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.kamailio import (
    BOTH_ROUTINGS,
    FAILING_ENGINE,
    ROUTINGS,
    SCRIPT,
    Bed,
    PythonNode,
    wait_for,
    whole,
)
from tests.support.sip import SipSocket, parse_reply, request

A, B = "127.0.0.2", "127.0.0.3"
NOTIFY = f"sip:{A}:5060"


def script(version: int) -> str:
    return SCRIPT.read_text().replace("VERSION = 1 ", f"VERSION = {version} ")


class Traffic:
    """Messages to acme on a node from several addresses, each with its own body; what they got."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.sent = 0
        self.answers: dict[str, list[str]] = {}
        self.late: list[float] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(4)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        with SipSocket() as sip:
            count = 0
            while not self._stop.is_set():
                count += 1
                body = f"message {number} {count}"
                data = request(self.address, body=body.encode(), via=sip.name)
                self.sent += 1
                self.answers[body] = []
                for _ in range(5):  # as a SIP client would, it sends again
                    sip.send(data, self.address)
                    answer = sip.receive(0.5)
                    if answer is not None:
                        reply = parse_reply(answer)
                        self.answers[body].append(f"{reply.code} {reply.reason}")
                        break

    def check(self, node: PythonNode) -> None:
        """Each message was answered with 200 and its callback ran once."""
        assert self.sent > 50
        assert {tuple(answers) for answers in self.answers.values()} == {("200 OK",)}
        bodies = [bytes.fromhex(e["body"]).decode() for e in node.events("message")]
        ours = [body for body in bodies if body.startswith("message ")]
        assert sorted(ours) == sorted(self.answers), "nothing lost, nothing doubled"


def workers(node: PythonNode) -> set[int]:
    return {pid for pid, what in node.children().items() if "receiver" in what}


def versions_within(node: PythonNode, version: int, seconds: float) -> None:
    """Every SIP worker runs that version of the script within so many seconds."""
    missing = workers(node)
    end = time.monotonic() + seconds
    while missing:
        answer = node.command("nodes")
        if answer["version"] == version:
            missing.discard(answer["pid"])
        assert time.monotonic() < end, f"{missing} still run the old script"


@contextmanager
def two_nodes(bed: Bed) -> Iterator[tuple[PythonNode, PythonNode]]:
    a, b = bed.python(A, children=3), bed.python(B, NOTIFY)
    a.start()
    b.start()
    wait_for(whole(a, b), 3)
    yield a, b
    assert whole(a, b)(), "the bus is whole"


@BOTH_ROUTINGS
def test_a_reload_under_traffic_takes_the_new_script_everywhere_and_loses_nothing(bed: Bed) -> None:
    with two_nodes(bed) as (a, b):
        engine = a.command("health")["engine_pid"]
        with Traffic(A) as traffic:
            for version in (2, 3, 4):
                a.script.write_text(script(version))
                a.kamcmd("app_python.reload")
                versions_within(a, version, 1)
                # Callbacks in the process of their own are the new script's, too.
                b.stop()
                wait_for(lambda: b.uri not in a.active(), 2)
                b.start()
                wait_for(whole(a, b), 3)
                new = {"version": version}
                wait_for(lambda new=new: a.events("event", name="dmq:peer-up", **new))  # type: ignore[misc]
                wait_for(lambda new=new: a.events("init", **new))  # type: ignore[misc]
        traffic.check(a)
        assert a.command("health")["engine_pid"] == engine, "the engine went on"
        assert [e["node"] for e in a.events("init")] == [b.uri] * 4, "once, and for each return"


@BOTH_ROUTINGS
def test_a_peer_that_is_gone_from_the_script_is_gone_and_a_new_one_is_there(bed: Bed) -> None:
    with two_nodes(bed) as (a, _):
        a.script.write_text(script(2).replace('Peer("silent"', 'Peer("quiet"'))
        a.kamcmd("app_python.reload")
        versions_within(a, 2, 1)
        with SipSocket() as sip:
            for user, code in (("silent", 404), ("quiet", 200), ("acme", 200)):
                reply = sip.ask(request(A, user=user, body=b"x", via=sip.name), A)
                assert reply is not None and reply.code == code, user


BROKEN = {
    "syntax error": script(2) + "\ndef broken(:\n",
    "an exception in mod_init": script(2).replace(
        "    return dmq.attach", "    raise RuntimeError('mod_init fails')\n    return dmq.attach"
    ),
    "an exception in mod_init after attach": script(2).replace(
        "    return dmq.attach(Kamailio())",
        "    dmq.attach(Kamailio())\n    raise RuntimeError('mod_init fails')",
    ),
    "SystemExit in mod_init": script(2).replace(
        "    return dmq.attach", "    raise SystemExit(1)\n    return dmq.attach"
    ),
    "a wrong setting": script(2).replace("from_defs()", "from_defs(ping_interval=1)"),
    "an unknown setting": script(2).replace("from_defs()", "from_defs(pong_interval=1)"),
    "an empty file": "",
    "a peer registered twice": script(2).replace('Peer("silent"', 'Peer("acme"'),
}


@pytest.mark.allows("Unhandled exception")
@pytest.mark.allows("Traceback")
@pytest.mark.parametrize(
    ("bed", "what"),
    # A peers file has no mod_init(); under KEMI that of the script before is still there.
    [
        (bed, what)
        for what in BROKEN
        for bed in ROUTINGS
        if ("empty" if bed == "kemi" else "mod_init") not in what
    ],
    indirect=["bed"],
)
def test_a_broken_script_is_refused_the_old_one_answers_on_and_the_next_is_taken(
    bed: Bed, what: str
) -> None:
    with two_nodes(bed) as (a, _):
        with Traffic(A) as traffic:
            before = len(a.log())
            a.script.write_text(BROKEN[what])
            a.kamcmd("app_python.reload")
            sent = traffic.sent
            wait_for(lambda: traffic.sent > sent + 200, 20, "200 more messages")
            said = a.log()[before:]
            assert "Error reloading script" in said or "the script is not taken" in said
            if "setting" in what:
                assert said.count("the script is not taken") == 1, said
            with SipSocket() as sip:
                reply = sip.ask(request(A, body=b"version", via=sip.name), A)
                assert reply is not None and reply.code == 202
                assert a.active() == {a.uri, f"sip:{B}:5060"}
            a.script.write_text(script(3))
            a.kamcmd("app_python.reload")
            versions_within(a, 3, 5)
        traffic.check(a)


@pytest.mark.parametrize("what", ["taken", "refused"])
@BOTH_ROUTINGS
def test_a_reload_during_a_reload_is_not_lost(bed: Bed, tmp_path: Path, what: str) -> None:
    """A worker has read the script's text but not run it to its end when the next one is there."""
    with two_nodes(bed) as (a, _):
        begun, go = tmp_path / "begun", tmp_path / "go"
        slow = script(2).replace(
            "VERSION = 2 ",
            f"open({str(begun)!r}, 'w').close()\n"
            f"while not os.path.exists({str(go)!r}):\n    time.sleep(0.01)\n"
            "VERSION = 2 ",
        )
        if what == "refused":
            slow = slow.replace("from_defs()", "from_defs(pong_interval=1)")
        a.script.write_text(slow)
        a.kamcmd("app_python.reload")
        with SipSocket() as sip:
            sip.send(request(A, body=b"version", via=sip.name), A)
            wait_for(begun.exists)
            a.script.write_text(script(3))
            a.kamcmd("app_python.reload")
            go.touch()
            assert sip.receive(3) is not None, "the message that met the reload is answered"
        versions_within(a, 3, 3)


@BOTH_ROUTINGS
def test_changed_settings_are_told_once_and_count_from_the_next_start(bed: Bed) -> None:
    with two_nodes(bed) as (a, _):
        a.script.write_text(script(2).replace("from_defs()", "from_defs(ping_interval=77)"))
        a.kamcmd("app_python.reload")
        versions_within(a, 2, 1)
        told = [line for line in a.log().splitlines() if "changed settings" in line]
        assert len(told) == 1 and "(ping_interval)" in told[0]


@BOTH_ROUTINGS
def test_without_app_pythons_symbols_the_bus_and_reloads_work_all_the_same(bed: Bed) -> None:
    """Then the engine and the callbacks process return to Kamailio ten times a second."""
    hidden = "import kemi_dmq.host.reload as r\nr.ReloadSymbols.release = lambda self: False\n"
    a = bed.python(A, children=3, script=script(1).replace("VERSION = 1 ", hidden + "VERSION = 1 "))
    b = bed.python(B, NOTIFY)
    a.start()
    b.start()
    wait_for(whole(a, b), 3)
    engine = a.command("health")["engine_pid"]
    a.script.write_text(script(2).replace("VERSION = 2 ", hidden + "VERSION = 2 "))
    a.kamcmd("app_python.reload")
    versions_within(a, 2, 1)
    b.stop()
    wait_for(lambda: b.uri not in a.active(), 1)
    wait_for(lambda: a.events("event", version=2), 2, "callbacks are the new script's")
    b.start()
    wait_for(whole(a, b), 3)
    assert a.command("health")["engine_pid"] == engine
    assert a.counters()["engine_failures"] == 0


@pytest.mark.allows("the engine failed")
@BOTH_ROUTINGS
def test_an_engine_that_fails_says_so_once_and_goes_on_with_the_list(bed: Bed) -> None:
    a = bed.python(A, script=script(1).replace("VERSION = 1 ", f"{FAILING_ENGINE}VERSION = 1 "))
    b = bed.python(B, NOTIFY)
    a.start()
    b.start()
    wait_for(whole(a, b), 3)
    with SipSocket("127.0.0.9") as sip:
        body = b"sip:nobody.invalid:5060;status=active\r\n"
        data = request(A, user="notification_peer", body=body, via=sip.name, sender="127.0.0.9")
        reply = sip.ask(data, A)
        assert reply is not None and reply.code == 200
    wait_for(lambda: a.counters()["engine_failures"] == 1)
    assert whole(a, b)()
    b.stop()
    wait_for(lambda: b.uri not in a.active(), 1, "the engine works again")
    assert a.log().count("the engine failed and starts again: RuntimeError: as the test") == 1
