"""C modules on kemi_dmq without dmq.so: they replicate with C nodes and with each other."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import pytest

from tests.integration.test_reload import script, versions_within
from tests.support.c_modules import (
    BIND,
    HTABLE,
    HTABLE_SYNC,
    ROUTES,
    USRLOC,
    AnyNode,
    contacts,
    items,
    put,
    register,
    remove,
    value,
)
from tests.support.kamailio import BOTH_ROUTINGS, SCRIPT, Bed, PythonNode, start, wait_for, whole
from tests.support.sip import SipSocket, request

A, B, C = "127.0.0.2", "127.0.0.3", "127.0.0.4"
NOTIFY = f"sip:{A}:5060"


@BOTH_ROUTINGS
def test_htable_replicates_both_ways_with_a_c_node(bed: Bed) -> None:
    a = bed.python(A, defines=BIND, after=HTABLE)
    c = bed.c(C, NOTIFY, before=HTABLE)
    start(a, c)
    put(a, "from-a", "one")
    put(c, "from-c", "two")
    wait_for(lambda: value(c, "from-a") == "one")
    wait_for(lambda: value(a, "from-c") == "two")
    remove(a, "from-c")
    remove(c, "from-a")
    wait_for(lambda: value(c, "from-c") is None)
    wait_for(lambda: value(a, "from-a") is None)
    counters = a.counters()
    assert counters["native_errors"] == counters["callback_errors"] == 0
    assert a.stop() < 2


def node(bed: Bed, kind: str, address: str, notify: str = "") -> AnyNode:
    made: AnyNode
    if kind == "c":
        made = bed.c(address, notify, before=HTABLE_SYNC)
    else:
        made = bed.python(address, notify, defines=BIND, after=HTABLE_SYNC)
    made.shm_mb = 256
    return made


PAIRS = [("python", "c"), ("c", "python"), ("python", "python")]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_table_of_20_000_cells_is_synced_at_start_in_large_messages(
    bed: Bed, first: str, second: str
) -> None:
    a, b = node(bed, first, A), node(bed, second, B, NOTIFY)
    a.start()
    a.kamcmds([f"htable.sets t key{n} v{n:0>150}" for n in range(20_000)])
    assert items(a) == 20_000
    begin = time.monotonic()
    b.start()
    wait_for(lambda: items(b) == 20_000, 60, lambda: f"{items(b)} cells")
    print(f"{first} to {second}: synced {time.monotonic() - begin:.2f} s after its start")
    assert value(b, "key19999") == f"v{19_999:0>150}"
    for each in (a, b):
        if isinstance(each, PythonNode):
            counters = each.counters()
            assert counters["native_errors"] == counters["callback_errors"] == 0
            assert counters["send_failures"] == counters["timeouts"] == 0


def test_what_comes_several_times_at_once_is_there_once(bed: Bed) -> None:
    """htable fills tables without its locks: two processes would both add a cell."""
    a = bed.python(A, defines=BIND, after=HTABLE, children=4)
    a.start()
    for burst in range(20):
        cells = [
            {"htname": "t", "cname": f"{burst}-{n}", "type": 2, "strval": "v" * 100, "expire": 0}
            for n in range(60)
        ]
        body = json.dumps({"cells": cells}).encode()
        with SipSocket() as sip:
            for _ in range(8):
                data = request(
                    A,
                    user="htable",
                    body=body,
                    via=sip.name,
                    headers={"Content-Type": "application/json"},
                )
                sip.send(data, A)
            for _ in range(8):
                assert sip.reply().code == 200
        assert items(a) == 60 * (burst + 1)


@pytest.mark.parametrize("single", [0, 1])
def test_init_with_single_asks_one_node_and_not_all(bed: Bed, single: int) -> None:
    a, b = node(bed, "python", A), node(bed, "python", B, NOTIFY)
    start(a, b)
    put(a, "one", "1")
    wait_for(lambda: value(b, "one") == "1")
    defines = {**BIND, "init_with_single": single}
    c = bed.python(C, NOTIFY, defines=defines, after=HTABLE_SYNC)
    c.start()
    wait_for(whole(a, b, c), 3)
    wait_for(lambda: value(c, "one") == "1")
    # Who was asked: each answers its request, and then sends what it has.
    assert c.counters()["sent"] == (1 if single else 2)


def test_a_node_that_was_started_again_asks_for_what_it_missed(bed: Bed) -> None:
    a, b = node(bed, "python", A), node(bed, "python", B, NOTIFY)
    start(a, b)
    put(a, "one", "1")
    wait_for(lambda: value(b, "one") == "1")
    b.stop()
    put(a, "two", "2")
    b.start()
    wait_for(lambda: (value(b, "one"), value(b, "two")) == ("1", "2"))


@pytest.mark.parametrize(
    ("others", "cut_off"),
    [(["python"], "python"), (["python", "c"], "python"), (["python", "python"], "c")],
)
def test_a_node_that_was_cut_off_brings_nothing_old_back(
    bed: Bed, others: list[str], cut_off: str
) -> None:
    """As with dmq.so each keeps what it has when a cut heals; who is started again asks."""

    def made(kind: str, address: str, notify: str = "") -> AnyNode:
        modules = HTABLE_SYNC + USRLOC
        if kind == "c":
            return bed.c(address, notify, before=modules)
        script = SCRIPT.read_text() + ROUTES
        return bed.python(address, notify, defines=BIND, after=modules, script=script)

    stale = made(cut_off, B, NOTIFY)
    good = [made(k, at, NOTIFY if at != A else "") for k, at in zip(others, (A, C), strict=False)]
    a = good[0]
    for each in (*good, stale):
        each.start()
    wait_for(whole(*good, stale), 5)
    # Each has asked for what the first node has, and asks no more.
    ours = [each for each in (*good, stale) if isinstance(each, PythonNode)]
    wait_for(lambda: all(each.events("init") for each in ours))

    def state(of: AnyNode) -> list[object]:
        return [value(of, "x"), value(of, "y"), len(contacts(of, "alice"))]

    with SipSocket() as sip:
        put(a, "x", "1")
        put(a, "y", "1")
        register(sip, A, "alice", 600)
        wait_for(lambda: all(state(each) == ["1", "1", 1] for each in (*good, stale)))
        assert stale.process is not None
        os.killpg(stale.process.pid, signal.SIGSTOP)
        wait_for(lambda: stale.uri not in a.active(), 20)  # who alone sends from now on
        put(a, "x", "2")
        remove(a, "y")
        register(sip, A, "alice", 0)
        wait_for(lambda: all(state(each) == ["2", None, 0] for each in good))
    os.killpg(stale.process.pid, signal.SIGCONT)
    wait_for(whole(*good, stale), 30)
    put(stale, "healed", "1")
    wait_for(lambda: all(value(each, "healed") == "1" for each in good))
    time.sleep(1)  # what they would ask for has come within milliseconds
    assert [state(each) for each in good] == [["2", None, 0]] * len(good)
    assert state(stale) == ["1", "1", 1]
    stale.kill()
    stale.start()
    wait_for(lambda: state(stale) == ["2", None, 0] and value(stale, "healed") == "1", 20)
    assert [state(each) for each in good] == [["2", None, 0]] * len(good)


def test_ten_thousand_sets_reach_a_c_node_and_a_python_node(bed: Bed) -> None:
    a = bed.python(A, defines=BIND, after=HTABLE)
    b = bed.python(B, NOTIFY, defines=BIND, after=HTABLE)
    c = bed.c(C, NOTIFY, before=HTABLE)
    for node in (a, b, c):
        node.shm_mb = 256
        node.start()
    wait_for(whole(a, b, c), 3)
    begin = time.monotonic()
    for first in range(0, 10_000, 500):
        a.kamcmds([f"htable.sets t key{n} value{n}" for n in range(first, first + 500)])
    print(f"set after {time.monotonic() - begin:.2f} s")
    wait_for(lambda: (items(a), items(b), items(c)) == (10_000,) * 3, 20)
    print(f"there after {time.monotonic() - begin:.2f} s")
    assert value(c, "key9999") == value(b, "key9999") == "value9999"
    wait_for(lambda: a.counters()["replies"] == a.counters()["sent"] >= 20_000, 5, a.counters)
    counters = a.counters()
    assert counters["send_failures"] == counters["timeouts"] == counters["native_errors"] == 0


class Sets:
    """INFO requests to nodes, each of which sets some cells of table t; what was answered."""

    def __init__(self, *nodes: PythonNode, patience: float = 5.0) -> None:
        self._nodes = nodes
        self._patience = patience
        self.answered = 0
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(node, number))
            for node in nodes
            for number in range(2)
        ]

    def __enter__(self) -> Sets:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, node: PythonNode, thread: int) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            key = f"{node.address}-{thread}-{number}"
            try:
                node.command("set", _wait=self._patience, key=key, count=CELLS)
            except (TimeoutError, OSError):
                return
            self.answered += 1


CELLS = 5


def test_reloads_under_load_lose_nothing(bed: Bed) -> None:
    text = script(1) + ROUTES
    a = bed.python(A, defines=BIND, after=HTABLE, script=text, children=3)
    b = bed.python(B, NOTIFY, defines=BIND, after=HTABLE, script=text)
    c = bed.c(C, NOTIFY, before=HTABLE)
    for each in (a, b, c):
        each.shm_mb = 256
        each.start()
    wait_for(whole(a, b, c), 3)
    with Sets(a, b) as sets:
        for version in (2, 3, 4):
            a.script.write_text(script(version) + ROUTES)
            a.kamcmd("app_python.reload")
            versions_within(a, version, 3)
            before = sets.answered
            wait_for(lambda before=before: sets.answered > before + 50)  # type: ignore[misc]
    total = sets.answered * CELLS
    assert total > 500
    wait_for(lambda: [items(a), items(b), items(c)] == [total] * 3, 10)
    for each in (a, b):
        counters = each.counters()
        assert counters["native_errors"] == counters["callback_errors"] == 0
        assert counters["send_failures"] == counters["timeouts"] == 0


@pytest.mark.parametrize("turn", range(3))
def test_a_stop_under_load_is_clean(bed: Bed, turn: int) -> None:
    text = script(1) + ROUTES
    a = bed.python(A, defines=BIND, after=HTABLE, script=text, children=3)
    b = bed.python(B, NOTIFY, defines=BIND, after=HTABLE, script=text)
    for each in (a, b):
        each.shm_mb = 256
        each.start()
    wait_for(whole(a, b), 3)
    a.wait_settled()
    with Sets(a, b, patience=0.5) as sets:
        wait_for(lambda: sets.answered > 100)
        seconds = a.stop_under_load()
        wait_for(lambda: a.uri not in b.active(), 2, "it has said goodbye")
    print(f"stopped within {seconds:.2f} s")
    assert seconds < 2
    assert b.stop_under_load() < 2
