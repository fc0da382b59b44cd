"""What python_exec() calls where kamailio.cfg routes by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kemi_dmq import Peer
from kemi_dmq.routing import Handler
from kemi_dmq.testing.fake_kamailio import ReceivedReply, Request

from .conftest import LOCAL, Bed, node
from .scripts import run_script

OTHER = node("sip:10.0.0.2:5060")


def started(bed: Bed, script: dict[str, Any] | None = None) -> Any:
    handler = Handler(bed.new(), script)
    bed.runtime.adopt(handler)
    bed.publish(OTHER)
    bed.kamailio.receive(Request(), lambda msg: None)
    return handler


@pytest.mark.parametrize("body", [b"a b|c", b"\0\xff", b"", 0, 17])
@pytest.mark.parametrize(
    ("what", "content_type"),
    [
        ("acme", "text/plain"),
        ("acme application/json", "application/json"),
        ("  acme   text/x; a=b  c ", "text/x; a=b  c"),
    ],
)
def test_a_broadcast_carries_the_variable_which_is_empty_afterwards(
    bed: Bed, body: bytes | int, what: str, content_type: str
) -> None:
    handler = started(bed)
    bed.kamailio.variables["dmq_body"] = body
    assert handler.dmq_bcast_message(None, what.strip()) == 1
    (sent,) = bed.kamailio.requests
    expected = body if isinstance(body, bytes) else str(body).encode()
    assert (sent.ruri, sent.body) == ("sip:acme@10.0.0.2:5060", expected)
    assert (f"Content-Type: {content_type}\r\n" in sent.headers) == bool(expected)
    assert bed.kamailio.variables["dmq_body"] == b""


@pytest.mark.parametrize(
    ("what", "result"),
    [
        ("acme sip:10.0.0.2:5060", 1),
        ("acme sip:10.0.0.2:5060 text/x", 1),
        ("acme sip:10.0.0.3:5060", -1),
        ("acme", -1),
        ("", -1),
    ],
)
def test_a_message_goes_to_one_node(bed: Bed, what: str, result: int) -> None:
    handler = started(bed)
    bed.kamailio.variables["dmq_body"] = b"x"
    assert handler.dmq_send_message(None, what) == result
    assert len(bed.kamailio.requests) == (result == 1)
    assert len(bed.errors()) == (result != 1)
    assert bed.kamailio.variables["dmq_body"] == b"", "nor does it go with the next message"


def test_a_call_without_its_second_argument_is_false_with_one_line(bed: Bed) -> None:
    handler = started(bed)
    for name in ("dmq_bcast_message", "dmq_send_message"):
        bed.kamailio.variables["dmq_body"] = b"x"
        assert getattr(handler, name)(None) == -1
        assert bed.kamailio.variables["dmq_body"] == b""
    assert ['needs a second argument: "PEER' in line for line in bed.errors()] == [True, True]


def test_a_process_begins_with_an_empty_variable(bed: Bed) -> None:
    handler = started(bed)
    handler.child_init(1)
    assert handler.dmq_bcast_message(None, "acme") == 1
    assert bed.kamailio.requests[0].body == b""


@pytest.mark.parametrize(
    ("given", "result"), [((), 0), (("0",), 0), (("1",), 1), (("7",), 1), (("-1",), -1), (("",), 0)]
)
@pytest.mark.parametrize("name", ["dmq_handle_message", "dmq_process_message"])
def test_the_script_goes_on_where_it_is_told_to(
    bed: Bed, name: str, given: tuple[str, ...], result: int
) -> None:
    handler = started(bed)
    results: list[int] = []
    bed.kamailio.receive(
        Request(ruri="sip:nobody@10.0.0.1:5060"),
        lambda msg: results.append(getattr(handler, name)(msg, *given)),
    )
    assert results == [result]


def test_replication_is_true_unless_the_request_came_from_a_node(bed: Bed) -> None:
    handler = started(bed)
    results: list[int] = []
    for source in ("10.0.0.2", "10.0.0.9"):
        for call in (
            lambda: handler.dmq_is_from_node(None),
            lambda: handler.dmq_t_replicate(None),
            lambda: handler.dmq_t_replicate(None, "1"),
        ):
            bed.kamailio.receive(
                Request(source=(source, 5060)),
                lambda msg, call=call: results.append(call()),  # type: ignore[misc]
            )
    assert results == [1, -1, 1, -1, 1, 1]


def test_replies_are_true_if_they_are_the_engines(bed: Bed) -> None:
    handler = started(bed)
    results: list[int] = []
    for call_id in ("dmq-10.0.0.1-5060-x.1", "dmq-other", "another"):
        bed.kamailio.receive_reply(
            ReceivedReply(200, headers={"Call-ID": call_id}),
            lambda msg: results.append(handler.dmq_reply(msg)),
        )
    assert results == [1, -1, -1]


def test_an_error_that_python_exec_left_is_cleared(bed: Bed) -> None:
    handler = started(bed)
    calls = []

    def pending() -> None:
        calls.append(1)
        raise SystemError("<built-in function> returned a result with an exception set")

    handler._any_call = pending
    assert handler.dmq_bcast_message(None, "acme") == 1 and calls == [1]


def test_an_event_runs_its_event_route(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    import kemi_dmq.host.kamailio as host

    handler = started(bed)
    handler.ksr_dmq_event_route(None, "dmq:peer-up")
    assert bed.kamailio.rpc == [] or host._core_has_event_route("dmq:peer-up")
    bed.kamailio.rpc.clear()
    monkeypatch.setattr(host, "_core_has_event_route", lambda name: name == "dmq:peer-up")
    handler.ksr_dmq_event_route(None, "dmq:peer-up")
    handler.ksr_dmq_event_route(None, "dmq:peer-down")
    (text,) = bed.kamailio.rpc
    assert json.loads(text)["method"] == "evrexec.run"
    assert json.loads(text)["params"] == ["dmq:peer-up"]


# The peers file ------------------------------------------------------------------------------

PEERS = """
import kemi_dmq
api = kemi_dmq.dmq_load_api()
api.register_dmq_peer(kemi_dmq.Peer("acme"))
def lookup(msg, what): return len(what)
constant = 5
def child_init(rank): ranks.append(rank)
"""


def load_script(bed: Bed, tmp_path: Path) -> dict[str, Any]:
    """kemi_dmq_native.py, in tmp_path."""
    bed.kamailio.defines["DMQ_SERVER_ADDRESS"] = f'"{LOCAL}"'
    text = "from kemi_dmq.routing import load\nmod_init = load(globals())\nhandler = mod_init()\n"
    return run_script(text, __file__=str(tmp_path / "kemi_dmq_native.py"), ranks=[])


def test_peers_and_functions_of_the_peers_file_are_the_scripts_own(
    bed: Bed, tmp_path: Path
) -> None:
    (tmp_path / "peers.py").write_text(PEERS)
    bed.kamailio.defines["DMQ_PEERS_FILE"] = '"peers.py"'  # counts from the script's folder
    script = load_script(bed, tmp_path)
    handler = script["handler"]
    assert list(bed.runtime.bus.registry.live) == ["acme"]
    assert handler.lookup(None, "four") == 4
    for name in ("constant", "nothing", "_private"):
        with pytest.raises(AttributeError):
            getattr(handler, name)
    assert handler.child_init(3) == 0 and script["ranks"] == [3]


def test_without_a_peers_file_the_bus_is_there(bed: Bed, tmp_path: Path) -> None:
    load_script(bed, tmp_path)
    assert bed.runtime.bus.attached


def test_a_peers_file_that_fails_at_start_ends_it_with_one_line(bed: Bed, tmp_path: Path) -> None:
    (tmp_path / "peers.py").write_text("1 / 0")
    bed.kamailio.defines["DMQ_PEERS_FILE"] = str(tmp_path / "peers.py")
    with pytest.raises(SystemExit):
        load_script(bed, tmp_path)
    (line,) = bed.kamailio.lines("crit")
    assert "peers.py failed: ZeroDivisionError: division by zero" in line and "peers.py:1)" in line


def test_a_peers_file_that_fails_when_loaded_again_changes_nothing(
    bed: Bed, tmp_path: Path
) -> None:
    peers = tmp_path / "peers.py"
    peers.write_text(PEERS)
    bed.kamailio.defines["DMQ_PEERS_FILE"] = str(peers)
    before = load_script(bed, tmp_path)["handler"]
    peers.write_text(PEERS.replace('"acme"', '"other"') + "1 / 0")
    after = load_script(bed, tmp_path)["handler"]
    assert after is before and list(bed.runtime.bus.registry.live) == ["acme"]
    assert "the script is not taken, the one before it goes on" in bed.errors()[0]
    peers.write_text(PEERS.replace('"acme"', '"other"'))
    script = load_script(bed, tmp_path)
    script["handler"].child_init(1)
    assert list(bed.runtime.bus.registry.live) == ["other"]


def test_a_peer_is_answered(bed: Bed) -> None:
    dmq = bed.new()
    bed.register(Peer("acme", "", lambda message, node: None))
    handler: Any = Handler(dmq)
    dmq.attach(handler)
    results: list[int] = []
    (reply,) = bed.kamailio.receive(
        Request(body=b"x"), lambda msg: results.append(handler.dmq_handle_message(msg))
    )
    assert (results, reply.code) == ([0], 200)
