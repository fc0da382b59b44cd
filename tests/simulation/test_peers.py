"""Peers on simulated nodes: the same API, callbacks and outcomes as in Kamailio."""

from __future__ import annotations

from typing import Any

import pytest

import kemi_dmq
from kemi_dmq import Message, Node, Peer, Reply, Response, ResponseCallback
from kemi_dmq.testing.simulated_python import EventMessage, SimulatedPythonNode
from kemi_dmq.testing.simulator import Simulator
from kemi_dmq.testing.sip_text import build_c_request
from kemi_dmq.wire import Via

A, B, C = (f"10.0.0.{n}" for n in range(1, 4))


class Recorder:
    """A script that keeps what it is told."""

    def __init__(self, node: SimulatedPythonNode) -> None:
        self.api = node.api
        self.messages: list[tuple[str | bytes, str | None, int]] = []
        self.inits: list[str | None] = []
        self.events: list[tuple[str, str]] = []
        self.answer: Response | None = None
        self.peer = node.api.register_dmq_peer(
            Peer("acme", "keeps what it is told", self.on_message, self.on_init)
        )

    def on_message(self, message: Message, node: Node | None) -> Response | None:
        body = message.body_bytes if message.content_type == "x/y" else message.body
        self.messages.append((body, node.host if node else None, message.max_forwards))
        return self.answer

    def on_init(self, node: Node | None) -> None:
        self.inits.append(node.host if node else None)

    def on_event(self, msg: EventMessage, event: str) -> None:
        self.events.append((event, msg.ruri))


HEARD: list[tuple[Reply, Node | None, Any]] = []


def on_reply(reply: Reply, node: Node | None, param: Any) -> None:
    HEARD.append((reply, node, param))


@pytest.fixture(autouse=True)
def nothing_heard() -> None:
    HEARD.clear()


def bus(*, python: bool = True, **more: Any) -> Simulator:
    """Two Python nodes with a Recorder, and a third one of either kind."""
    simulator = Simulator(1, **more)
    for address in (A, B, C):
        is_python = python or address != C
        settings: dict[str, Any] = {"event_callback": "on_event"} if is_python else {}
        script = Recorder if is_python else None
        simulator.add_node(address, [A], is_python, script=script, **settings)
    assert simulator.run_until(simulator.whole, 12)
    simulator.run(1)
    return simulator


def recorder(simulator: Simulator, address: str) -> Recorder:
    script = simulator.python_node(address).script
    assert isinstance(script, Recorder)
    return script


def node_of(simulator: Simulator, at: str, address: str) -> Node:
    node = recorder(simulator, at).api.find_dmq_node_uri(f"sip:{address}:5060")
    assert node is not None
    return node


def test_a_broadcast_reaches_all_others_once() -> None:
    simulator = bus()
    script = recorder(simulator, A)
    assert script.api.bcast_message(script.peer, "hello", max_forwards=3) == 0
    simulator.run(1)
    assert recorder(simulator, B).messages == [("hello", A, 3)]
    assert recorder(simulator, C).messages == [("hello", A, 3)]
    assert script.messages == []
    assert any("KDMQ acme mf 3 'hello'" in line for line in simulator.transcript)


def test_any_bytes_arrive_as_they_are() -> None:
    simulator = bus()
    script = recorder(simulator, A)
    body = b"\0\xff\xfe\r\n\r\n\xc3\xa9"
    script.api.send_message(script.peer, body, node_of(simulator, A, B), content_type="x/y")
    script.api.send_message(script.peer, "é\r\n", node_of(simulator, A, B))
    simulator.run(1)
    assert [message[0] for message in recorder(simulator, B).messages] == [body, "é\r\n"]


def test_the_answer_reaches_the_response_callback() -> None:
    simulator = bus()
    recorder(simulator, B).answer = Response(299, "Fine", "thank you", "text/x")
    script = recorder(simulator, A)
    callback = ResponseCallback(on_reply, {"n": 1})
    script.api.send_message(script.peer, "x", node_of(simulator, A, B), callback)
    simulator.run(1)
    ((reply, node, param),) = HEARD
    assert (reply.code, reply.reason, reply.body, reply.content_type, reply.timed_out) == (
        299,
        "Fine",
        "thank you",
        "text/x",
        False,
    )
    assert node is not None and node.host == B and param == {"n": 1}


def test_a_param_that_is_too_long_for_tm_comes_back_all_the_same() -> None:
    simulator = bus()
    script = recorder(simulator, A)
    script.api.bcast_message(script.peer, "x", resp_cback=ResponseCallback(on_reply, "y" * 3000))
    simulator.run(1)
    assert [param for _, _, param in HEARD] == ["y" * 3000] * 2


def test_a_node_that_is_gone_times_out_after_thirty_seconds() -> None:
    simulator = bus()
    script = recorder(simulator, A)
    simulator.kill(B)
    callback = ResponseCallback(on_reply, "p")
    script.api.send_message(script.peer, "x", node_of(simulator, A, B), callback)
    simulator.run(29.9)
    assert HEARD == []
    simulator.run(0.2)
    ((reply, _, param),) = HEARD
    assert (reply.code, reply.timed_out, param) == (408, True, "p")
    sent = [line for line in simulator.transcript if "KDMQ acme" in line]
    assert len(sent) == 10, "T1, doubled up to T2: 0, 0.5, 1.5, 3.5, 7.5, 11.5 ... 27.5 s"


def test_with_half_of_all_lost_each_message_runs_once_and_is_answered_once() -> None:
    simulator = bus()
    simulator.loss = 0.5
    simulator.duplication = 0.3
    script = recorder(simulator, A)
    for number in range(20):
        callback = ResponseCallback(on_reply, number)
        script.api.send_message(script.peer, f"{number}", node_of(simulator, A, B), callback)
        simulator.run(0.1)
    simulator.run(40)
    assert sorted(param for _, _, param in HEARD) == list(range(20))
    bodies = [body for body, _, _ in recorder(simulator, B).messages]
    answered = {f"{param}" for reply, _, param in HEARD if not reply.timed_out}
    assert len(bodies) == len(set(bodies)) and answered <= set(bodies)
    assert len(answered) > 15, "of ten tries with two datagrams each, one mostly gets through"
    assert simulator.python_node(B).counters["duplicates"] > 0


def test_a_c_node_answers_404_to_a_peer_that_it_does_not_have() -> None:
    simulator = bus(python=False)
    script = recorder(simulator, A)
    script.api.bcast_message(script.peer, "x", resp_cback=ResponseCallback(on_reply))
    simulator.run(1)
    assert {node.host: reply.code for reply, node, _ in HEARD if node} == {B: 200, C: 404}
    assert simulator.stuck() == {}


def test_a_c_node_may_ask_a_peer_and_is_not_given_a_body_with_200() -> None:
    simulator = bus(python=False)
    recorder(simulator, A).answer = Response(200, "OK", "no node list")
    text = (
        f"KDMQ sip:acme@{A}:5060 SIP/2.0\r\nVia: SIP/2.0/UDP {C}:5060;branch=z9hG4bK1\r\n"
        f"To: <sip:acme@{A}:5060>\r\nFrom: <sip:acme@{C}:5060>;tag=1\r\nCSeq: 10 KDMQ\r\n"
        "Call-ID: 1\r\nMax-Forwards: 1\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nhi"
    )
    simulator.node(C).send(simulator.node(A).uri, text)
    simulator.run(1)
    assert recorder(simulator, A).messages == [("hi", C, 1)]
    assert any("202 acme 'no node list'" in line for line in simulator.transcript)


def test_init_and_event_callbacks_run() -> None:
    simulator = bus()
    script = recorder(simulator, B)
    assert script.inits == [A]
    assert set(script.events) == {
        ("dmq:peer-up", f"sip:{A}:5060"),
        ("dmq:peer-up", f"sip:{C}:5060"),
    }
    simulator.leave(C)
    simulator.run(0.1)
    assert script.events[-1] == ("dmq:peer-down", f"sip:{C}:5060")
    simulator.restart(C)
    simulator.run(2)
    assert script.inits == [A, C] and script.events[-1] == ("dmq:peer-up", f"sip:{C}:5060")


def test_the_script_runs_again_when_its_node_is_restarted() -> None:
    simulator = bus()
    old = recorder(simulator, B)
    simulator.restart(B)
    simulator.run(2)
    new = recorder(simulator, B)
    assert new is not old
    script = recorder(simulator, A)
    script.api.bcast_message(script.peer, "x")
    simulator.run(1)
    assert [body for body, _, _ in new.messages] == ["x"] and old.messages == []


def test_what_a_callback_raises_is_seen_and_answered_with_500() -> None:
    simulator = Simulator(1)

    def raises(message: Message, node: Node | None) -> None:
        raise KeyError("missing")

    def script(node: SimulatedPythonNode) -> Peer:
        return node.api.register_dmq_peer(Peer("acme", "", raises))

    for address in (A, B):
        simulator.add_node(address, [A], script=script)
    simulator.run(2)
    node = simulator.python_node(A)
    callback = ResponseCallback(on_reply)
    node.api.bcast_message(node.script, "x", resp_cback=callback)
    simulator.run(1)
    assert [reply.code for reply, _, _ in HEARD] == [500]
    (error,) = simulator.errors()
    assert error.startswith("10.0.0.2: ") and "KeyError: 'missing'" in error


def test_the_api_refuses_what_it_refuses_in_kamailio() -> None:
    simulator = bus()
    script = recorder(simulator, A)
    with pytest.raises(ValueError, match="top level"):
        script.api.bcast_message(script.peer, "x", resp_cback=ResponseCallback(lambda *a: None))
    with pytest.raises(ValueError, match="at most"):
        script.api.bcast_message(script.peer, "x" * 40_000)
    with pytest.raises(RuntimeError, match="outside of loading"):
        script.api.register_dmq_peer(kemi_dmq.Peer("late"))
    with pytest.raises(TypeError, match="C module"):
        bus(python=False).python_node(C)


def test_a_message_to_a_paused_node_runs_when_it_goes_on() -> None:
    simulator = bus()
    simulator.pause(B, 5.0)
    script = recorder(simulator, A)
    callback = ResponseCallback(on_reply)
    script.api.send_message(script.peer, "x", node_of(simulator, A, B), callback)
    simulator.run(4.9)
    assert recorder(simulator, B).messages == [] and HEARD == []
    simulator.run(0.2)
    assert recorder(simulator, B).messages == [("x", A, 1)], "once, whatever was sent again"
    assert [reply.code for reply, _, _ in HEARD] == [200]


def test_messages_without_a_transaction_are_sent_once() -> None:
    simulator = Simulator(1)
    for address in (A, B):
        simulator.add_node(address, [A], script=Recorder, sl_send=1)
    simulator.run(2)
    simulator.kill(B)
    script = recorder(simulator, A)
    script.api.bcast_message(script.peer, "x")
    simulator.run(3)
    assert sum("KDMQ acme" in line for line in simulator.transcript) == 1


# A C node on a bus that is larger than it can know


@pytest.mark.parametrize(
    "settings", [{}, {"keys": "k1:a-secret-of-the-bus", "unsigned_networks": C}]
)
def test_what_a_c_node_broadcasts_reaches_each_python_node_once(settings: dict[str, Any]) -> None:
    hosts = [f"10.0.1.{n}" for n in range(1, 46)]
    simulator = Simulator(1)
    for host in hosts:
        simulator.add_node(host, hosts[:1], script=Recorder, **settings)
    assert simulator.run_until(simulator.whole, 5)
    c = simulator.add_node(C, hosts[:1], python=False, version=(5, 6))
    simulator.run(12)
    assert simulator.stuck() == {}
    known = [uri for uri, status in c.listed().items() if status == "active" and uri != c.uri]
    assert 20 < len(known) < 30, "as many as its 1,024 bytes hold"
    for number in range(3):
        for uri in known:
            text = build_c_request(
                Via("udp", C, 5060),
                f"{number}.{uri.host}@{C}",
                c.uri.with_user("acme"),
                uri.with_user("acme"),
                f"message {number}",
                1,
                "kamailio (5.6.3)",
            )
            simulator.transmit(c.uri, uri.key, text)
        simulator.run(1)
    for host in hosts:
        got = simulator.python_node(host).script.messages
        assert got == [(f"message {number}", C, 1) for number in range(3)], host
    warned = [line for line in simulator.transcript if "a C node can be told of" in line]
    assert len(warned) == len(hosts), "each node says so once"
