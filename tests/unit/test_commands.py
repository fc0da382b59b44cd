"""The operator's commands: what reaches the engine, and what is refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kemi_dmq.commands import Commands
from kemi_dmq.engine import Engine, answer_event, command_event
from kemi_dmq.gate import Gate
from kemi_dmq.message import Outcome
from kemi_dmq.outbox import Ended
from kemi_dmq.settings import check
from kemi_dmq.shared import Shared
from kemi_dmq.wire import SipUri

from .conftest import LOCAL, Bed, Handler, node
from .test_posting import header

OTHER = node("sip:10.0.0.2:5060;transport=tcp")


@pytest.fixture
def handler(bed: Bed) -> Any:
    handler = Handler()
    bed.start(handler=handler)
    bed.publish(OTHER)
    return handler


def posted(bed: Bed) -> list[tuple[Any, ...]]:
    return list(bed.runtime.shared.engine_inbox.take())


@pytest.mark.parametrize(
    ("name", "argument", "event"),
    [
        ("add", " sip:x@10.0.0.3 ", command_event("add", "sip:10.0.0.3:5060")),
        ("remove", "sip:10.0.0.2", command_event("remove", "sip:10.0.0.2:5060")),
        (
            "change_status",
            "sip:10.0.0.2:5060 not_active",
            command_event("change_status", "sip:10.0.0.2:5060", "not_active"),
        ),
    ],
)
def test_a_command_is_posted_to_the_engine_and_logged(
    bed: Bed, handler: Any, name: str, argument: str, event: tuple[Any, ...]
) -> None:
    assert getattr(handler, f"dmq:{name}")(None, argument) == 1
    assert posted(bed) == [event]
    assert bed.kamailio.lines("info")[-1].startswith(f"kemi_dmq: command dmq:{name} ")


@pytest.mark.parametrize(
    ("name", "argument", "said"),
    [
        ("add", "", "it needs the SIP URI of a node"),
        ("add", "10.0.0.3", "it needs the SIP URI of a node"),
        ("add", "sip:10.0.0.2", f"{OTHER.uri} is on the list already"),
        ("add", LOCAL, f"{LOCAL} is on the list already"),
        ("remove", "sip:10.0.0.3", "no node sip:10.0.0.3:5060 is on the list"),
        ("remove", LOCAL, f"{LOCAL} is the local node"),
        ("change_status", "", "the status must be one of active, not_active, disabled"),
        ("change_status", "sip:10.0.0.2 timeout", "the status must be one of"),
        ("change_status", "active", "it needs the SIP URI of a node"),
        ("change_status", f"{LOCAL} disabled", f"{LOCAL} is the local node"),
    ],
)
def test_what_makes_no_sense_is_refused_with_one_line(
    bed: Bed, handler: Any, name: str, argument: str, said: str
) -> None:
    assert getattr(handler, f"dmq:{name}")(None, argument) == -1
    assert posted(bed) == []
    (line,) = bed.errors()
    assert line.startswith(f"kemi_dmq: command dmq:{name} {argument!r} refused: {said}")


def test_the_place_where_this_node_listens_cannot_be_added(bed: Bed) -> None:
    handler: Any = Handler()
    bed.start(
        handler=handler, server_address="sip:192.0.2.1:5060", server_socket="udp:10.0.0.1:5060"
    )
    assert getattr(handler, "dmq:add")(None, "sip:10.0.0.1:5060") == -1
    assert "that is the local node" in bed.errors()[0]


def test_a_name_must_have_an_address(bed: Bed) -> None:
    bed.start()
    known = {"node.example": ["10.0.0.9"]}
    add = Commands(bed.runtime.bus, lambda host: known.get(host, [])).methods()["dmq:add"]
    assert add(None, "sip:node.example") == 1
    assert add(None, "sip:nobody.example") == -1
    assert "the name nobody.example has no address" in bed.errors()[0]


def test_a_full_inbox_is_told(bed: Bed, handler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bed.runtime.shared.engine_inbox, "put", lambda event: 0)
    assert getattr(handler, "dmq:add")(None, "sip:10.0.0.3") == -1
    assert "the inbox of the engine is full" in bed.errors()[0]
    assert bed.runtime.shared.counters.totals()["inbox_full"] == 1


class Nowhere:
    """An engine's outside that keeps what it is told."""

    def __init__(self) -> None:
        self.sent: list[SipUri] = []
        self.texts: list[str] = []
        self.published: list[tuple[Any, ...]] = []

    def send(self, to: SipUri, text: str) -> None:
        self.sent.append(to)
        self.texts.append(text)

    def publish(self, value: Callable[[], tuple[Any, ...]]) -> None:
        self.published.append(value())

    def callback(self, event: tuple[Any, ...]) -> bool:
        return True

    def outcome(self, ended: Ended) -> bool:
        return True

    def ended_silently(self, counts: dict[Outcome, int]) -> None:
        pass

    def want_answers(self, wanted: bool) -> None:
        pass

    def full(self, nodes: frozenset[tuple[str, int]]) -> None:
        pass

    def resolve(self, host: str, srv: str) -> None:
        pass


@pytest.fixture
def outside() -> Nowhere:
    return Nowhere()


@pytest.fixture
def engine(outside: Nowhere) -> Engine:
    settings = check({"server_address": LOCAL})
    gate = Gate(
        settings, cast(Shared, SimpleNamespace(secret=b"", named=SimpleNamespace(version=0)))
    )
    engine = Engine(settings, outside, random.Random(1), "test", gate)
    engine.start(0.0)
    return engine


def listed(engine: Engine) -> list[tuple[str, str]]:
    return [(n.uri, n.status.value) for n in engine.membership.nodes() if not n.local]


def test_the_engine_carries_commands_out(engine: Engine, outside: Nowhere) -> None:
    uri = "sip:10.0.0.3:5060;transport=tcp"
    engine.handle(command_event("add", uri), 1.0)
    assert listed(engine) == [(uri, "active")] and [str(to) for to in outside.sent] == [uri]
    engine.handle(command_event("change_status", uri, "disabled"), 2.0)
    assert listed(engine) == [(uri, "disabled")]
    engine.handle(command_event("remove", uri), 3.0)
    assert listed(engine) == [] and len(outside.published) == 4


@pytest.mark.parametrize(
    ("command", "status"), [("remove", ""), ("change_status", "disabled")], ids=["remove", "status"]
)
def test_an_answer_to_what_was_asked_before_a_command_does_not_undo_it(
    engine: Engine, outside: Nowhere, command: str, status: str
) -> None:
    uri = "sip:10.0.0.3:5060"

    def answer(now: float) -> None:
        call_id = header(outside.texts[-1], "Call-ID")
        engine.handle(answer_event(call_id, 200, f"{uri};status=active\r\n", "", ""), now)

    engine.handle(command_event("add", uri), 1.0)
    engine.handle(command_event(command, uri, status), 1.1)
    after = listed(engine)
    answer(1.2)
    assert listed(engine) == after == ([(uri, "disabled")] if status else [])
    before = len(outside.texts)
    engine.tick(60.0)
    if status:
        assert len(outside.texts) == before + 1, "it is asked at the usual time"
        answer(60.1)
        assert listed(engine) == [(uri, "active")]


def test_a_command_for_what_has_left_the_list_meanwhile_does_not_end_its_pings(
    engine: Engine, outside: Nowhere
) -> None:
    uri = "sip:10.0.0.3:5060"

    def run(until: Callable[[], bool], end: float = 1000.0) -> float:
        while not until():
            now = engine.next_deadline()
            if now is None or now > end:
                break
            engine.tick(now)
        return now or end

    engine.handle(command_event("add", uri), 1.0)
    run(lambda: listed(engine) == [])
    count = len(outside.texts)
    now = run(lambda: len(outside.texts) > count)
    engine.handle(command_event("change_status", uri, "not_active"), now + 0.01)
    count = len(outside.texts)
    run(lambda: False, now + 100)
    assert len(outside.texts) > count + 5
