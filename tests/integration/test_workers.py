"""num_workers above 0: peers run in processes of their own, which answer the requests."""

from __future__ import annotations

import socket
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.kamailio import BOTH_ROUTINGS, SCRIPT, Bed, PythonNode, wait_for, whole
from tests.support.sip import SipSocket, parse_reply, request

A, B, C = "127.0.0.2", "127.0.0.3", "127.0.0.4"
NOTIFY = f"sip:{A}:5060"


def workers(node: PythonNode) -> set[int]:
    return {pid for pid, what in node.children().items() if "dmq_workers" in what}


def node_with(bed: Bed, count: int, **more: Any) -> PythonNode:
    return bed.python(A, defines={"num_workers": count}, **more)


@BOTH_ROUTINGS
def test_peers_run_in_workers_and_get_what_they_get_in_place(bed: Bed) -> None:
    """The same requests to a node with workers and one without: the same messages and answers."""
    with_workers, without = node_with(bed, 2), bed.python(B)
    bodies = [b"", b"text", b"\0", bytes(range(256)), "grüße".encode(), b"x" * 30_000]
    bodies += [b"answer 299 Fine a body", b"answer 200 OK a body", b"answer 408 No x", b"raise"]
    seen = []
    for node in (with_workers, without):
        node.start()
        answers = []
        with SipSocket("127.0.0.9", 5066) as sip:
            for body in bodies:
                data = request(
                    node.address,
                    body=body,
                    via=sip.name,
                    sender=sip.name,
                    headers={"Max-Forwards": "7", "Content-Type": "text/x" if body else None},
                )
                reply = sip.ask(data, node.address)
                assert reply is not None, body
                answers.append(
                    (
                        reply.code,
                        reply.reason,
                        reply.headers.get("content-type"),
                        reply.body,
                        reply.headers["supported"],
                    )
                )
        events = node.events("message")
        for event in events:
            del event["version"], event["time"]
        pids = {event.pop("pid") for event in events}
        if node is with_workers:
            assert pids <= workers(node)
        else:
            assert not pids & workers(node)
        seen.append((events, answers))
    assert seen[0] == seen[1]
    assert len(seen[0][0]) == len(bodies)
    assert with_workers.counters()["queued"] == len(bodies)


@BOTH_ROUTINGS
def test_a_slow_peer_holds_up_no_sip_worker_and_no_other_node(bed: Bed) -> None:
    a = node_with(bed, 2, children=1)
    b, c = bed.python(B, NOTIFY), bed.c(C, NOTIFY)
    for node in (a, b, c):
        node.start()
    wait_for(whole(a, b, c), 3)
    assert b.command("send", body="sleep 3", to=a.uri) == 0
    wait_for(lambda: a.events("message"))
    assert c.bcast(b"while it sleeps") == 200
    wait_for(lambda: len(a.events("message")) == 2, 1, "the other worker runs it")
    # The only SIP worker answers.
    assert a.command("nodes", _wait=0.5)
    assert len({event["pid"] for event in a.events("message")}) == 2
    assert c.nodes()[a.uri] == "active" and b.active() == {a.uri, b.uri, c.uri}


def test_who_is_new_does_not_wait_for_a_worker_that_hangs(bed: Bed) -> None:
    """The other worker is busy all the time, and its queue the longer one."""
    a = node_with(bed, 2, children=1)
    a.start()
    with SipSocket() as sip:

        def send(body: bytes, sender: int) -> None:
            sip.send(request(A, body=body, via=sip.name, sender=f"127.0.1.{sender}:5060"), A)

        send(b"sleep 8", 1)
        wait_for(lambda: len(a.events("message")) == 1)
        hangs = a.events("message")[0]["pid"]
        # It counts as much as 1,000 bytes for each millisecond; the burst has some 50,000.
        time.sleep(0.3)
        for number in range(2, 62):
            send(b"sleep 0.02", number)
        wait_for(lambda: len(a.events("message")) == 61, 7.5)
    assert [event["pid"] for event in a.events("message")].count(hangs) == 1


@BOTH_ROUTINGS
def test_one_nodes_messages_keep_their_order(bed: Bed) -> None:
    """One SIP worker receives; three workers run messages of three nodes, some of them slow."""
    a = node_with(bed, 3, children=1)
    a.start()
    senders = ["127.0.0.7:5060", "127.0.0.8:5060", "127.0.0.9:5060"]
    with SipSocket() as sip:
        for number in range(40):
            for sender in senders:
                pause = (number + int(sender[8])) % 3 / 100
                body = f"sleep {pause}" if number % 5 == 0 else "at once"
                data = request(
                    A,
                    body=body.encode(),
                    via=sip.name,
                    sender=sender,
                    headers={"Max-Forwards": str(number)},
                )
                sip.send(data, A)
    wait_for(lambda: len(a.events("message")) == 120, 10)
    for sender in senders:
        numbers = [e["max_forwards"] for e in a.events("message") if sender in e["sender"]]
        assert numbers == list(range(40)), sender
    pids = {event["pid"] for event in a.events("message")}
    assert len(pids) == 3 and pids <= workers(a)


def test_a_full_queue_is_answered_with_503_and_nothing_else_is_lost(bed: Bed) -> None:
    a = node_with(bed, 1, children=1)
    a.start()
    with SipSocket() as sip:
        sip.send(request(A, body=b"sleep 2", via=sip.name), A)
        wait_for(lambda: a.events("message"))
        codes = []
        big = b"x" * 30_000
        for _ in range(60):  # some 35 of them fit into 1 MB
            data = request(A, body=big, via=sip.name)
            reply = sip.ask(data, A, 0.02)
            codes.append(reply.code if reply else 0)
            if reply:
                again = sip.ask(data, A)
                assert again is not None and again.code == 503, "a copy gets the same answer"
        assert codes.index(503) >= 30 and set(codes[: codes.index(503)]) == {0}
        assert set(codes[codes.index(503) :]) == {503}
        queued = a.counters()["queued"]
        assert queued == 1 + codes.index(503) and a.counters()["queue_full"] == 60 - queued + 1
        got: list[int] = []
        while len(got) < queued and (answer := sip.receive(5)):
            got.append(parse_reply(answer).code)
        assert got == [200] * queued, "whatever was queued is answered"
        reply = sip.ask(request(A, body=b"after", via=sip.name), A)
        assert reply is not None and reply.code == 200


@BOTH_ROUTINGS
def test_copies_are_dropped_while_the_first_one_waits_and_then_get_its_answer(bed: Bed) -> None:
    a = node_with(bed, 1, children=2)
    a.start()
    with SipSocket() as sip:
        sip.send(request(A, body=b"sleep 0.5", via=sip.name), A)
        wait_for(lambda: a.events("message"))
        data = request(
            A, body=b"answer 299 Once a body", via=sip.name, headers={"Supported": "kemi_dmq-1"}
        )
        for _ in range(4):
            sip.send(data, A)
        wait_for(lambda: a.counters()["copies_dropped"] == 3)
        answers = [sip.reply() for _ in range(2)]
        assert sorted(reply.code for reply in answers) == [200, 299]
        late = sip.ask(data, A)
        assert late is not None
        assert (late.code, late.reason, late.body) == (299, "Once", b"a body")
        assert sip.receive(0.1) is None
    assert len(a.events("message")) == 2


@BOTH_ROUTINGS
def test_process_message_works_at_once(bed: Bed) -> None:
    script = SCRIPT.read_text().replace("dmq.handle_message()", "dmq.process_message()")
    a = node_with(bed, 2, script=script)
    text = a.cfg.read_text()
    a.cfg.write_text(text.replace('"dmq_handle_message"', '"dmq_process_message"'))
    a.start()
    with SipSocket() as sip:
        reply = sip.ask(request(A, body=b"x", via=sip.name), A)
        assert reply is not None and reply.code == 200
    (event,) = a.events("message")
    assert event["pid"] not in workers(a) and workers(a)
    assert a.counters()["queued"] == 0
    # handle_custom_message hands over, process_custom_message does not.
    for function in ("process_custom_message", "handle_custom_message"):
        args = ["acme", "sip:x@127.0.0.9", "custom", "text/x"]
        assert a.command("dropin", function=function, args=args) == 1
    wait_for(lambda: len(a.events("message")) == 3)
    at_once, handed = a.events("message", body=b"custom".hex())
    assert at_once["pid"] not in workers(a) and handed["pid"] in workers(a)


def test_replies_have_all_that_the_way_back_needs(bed: Bed) -> None:
    """Several Vias, compact and folded headers, rport: as Kamailio itself replies."""
    a, b = node_with(bed, 1), bed.python(B)
    replies = []
    for node in (a, b):
        node.start()
        with SipSocket("127.0.0.9", 5067) as sip:
            text = (
                f"KDMQ sip:acme@{node.address}:5060 SIP/2.0\r\n"
                "v: SIP/2.0/UDP 10.9.9.9:5099 ;rport;branch=z9hG4bK1, SIP/2.0/UDP "
                "10.0.0.1;branch=z9hG4bK2\r\n"
                "Via: SIP/2.0/TCP [2001:db8::1]:5060;branch=z9hG4bK3\r\n"
                f't: "a;tag=b" <sip:acme@{node.address}:5060>\r\n'
                "f: <sip:acme@127.0.0.9:5067>\r\n ;tag=1\r\n"
                "i: folded@test\r\nCSEQ: 7 KDMQ\r\nl: 0\r\nMax-Forwards: 1\r\n\r\n"
            ).encode()
            sip.send(text, node.address)
            answer = sip.receive()
        assert answer is not None
        lines = answer.decode().split("\r\n")
        vias = [line.partition(":")[2] for line in lines if line.lower().startswith(("v:", "via:"))]
        reply = parse_reply(answer)
        values = ",".join(vias).replace(" ", "")
        # Kamailio writes received behind the last value of the first line.
        received = ";received=127.0.0.9"
        assert received in (values.partition(",")[0] if node is a else values)
        replies.append((values.replace(received, ""), reply.headers["cseq"]))
        to = reply.headers.get("to") or reply.headers["t"]
        assert to.rpartition(">")[2].startswith(";tag=")
        assert reply.code == 200 and (reply.headers.get("call-id") or reply.headers["i"])
    assert replies[0] == replies[1]
    assert ";rport=5067" in replies[0][0] and replies[0][0].count("branch=") == 3


@pytest.mark.parametrize("odd", [b"\0", b"\xff"])
def test_headers_that_cannot_be_given_back_are_answered_with_400(bed: Bed, odd: bytes) -> None:
    a = node_with(bed, 1)
    a.start()
    with SipSocket() as sip:
        for header in ("Subject", "User-Agent"):
            data = request(A, body=b"x", via=sip.name, headers={header: "ODD"})
            reply = sip.ask(data.replace(b"ODD", b"a" + odd + b"b"), A)
            assert reply is not None and (reply.code, reply.reason) == (400, "Bad Encoding")
        reply = sip.ask(request(A, body=b"x", via=sip.name), A)
        assert reply is not None and reply.code == 200
    assert len(a.events("message")) == 1


def test_a_via_without_rport_is_answered_at_its_port(bed: Bed) -> None:
    a, b = node_with(bed, 1), bed.python(B)
    for node in (a, b):
        node.start()
        for via, port in (("10.9.9.9:5068", 5068), ("127.0.0.9", 5060)):
            with SipSocket("127.0.0.9", port) as there, SipSocket("127.0.0.9", 5069) as sip:
                sip.send(request(node.address, body=b"x", via=via), node.address)
                assert there.reply(5).code == 200


@BOTH_ROUTINGS
@pytest.mark.parametrize("transport", ["tcp", "tls"])
def test_replies_go_out_on_the_requests_connection(
    bed: Bed, tmp_path: Path, transport: str
) -> None:
    port = 5061 if transport == "tls" else 5060
    listen = f"listen=udp:{A}:5060\nlisten={transport}:{A}:{port}"
    before = ""
    if transport == "tls":
        key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"]
        command += ["ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(key)]
        command += ["-out", str(cert), "-subj", "/CN=a"]
        subprocess.run(command, check=True, capture_output=True)
        before = (
            f'enable_tls=yes\nloadmodule "tls.so"\nmodparam("tls", "tls_method", "TLSv1.2+")\n'
            f'modparam("tls", "private_key", "{key}")\nmodparam("tls", "certificate", "{cert}")\n'
        )
    a = node_with(bed, 2, listen=listen, before=before)
    a.start()
    a.wait_settled()  # TCP is served last
    plain = [socket.create_connection((A, port), 5, ("127.0.0.9", 0)) for _ in range(3)]
    connections: list[socket.socket] = plain
    if transport == "tls":
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connections = [context.wrap_socket(sock) for sock in plain]
    try:
        for number, sock in enumerate([*connections, *reversed(connections)]):
            name = f"127.0.0.9:{sock.getsockname()[1]}"
            body = f"answer 299 Number{number} body{number}".encode()
            via = f"SIP/2.0/{transport.upper()} {name};branch=z9hG4bK{number}"
            data = request(A, port=port, body=body, headers={"Via": via})
            sock.sendall(data)
            sock.settimeout(5)
            reply = parse_reply(sock.recv(65535))
            assert (reply.code, reply.reason, reply.body) == (
                299,
                f"Number{number}",
                f"body{number}".encode(),
            )
            assert f"branch=z9hG4bK{number}" in reply.headers["via"]
    finally:
        for sock in connections:
            sock.close()
    assert {e["pid"] for e in a.events("message")} <= workers(a)


@BOTH_ROUTINGS
def test_workers_run_the_script_that_was_loaded_last(bed: Bed) -> None:
    a = node_with(bed, 2)
    a.start()
    a.script.write_text(SCRIPT.read_text().replace("VERSION = 1", "VERSION = 2"))

    def version() -> str:
        with SipSocket() as sip:
            reply = sip.ask(request(A, body=b"version", via=sip.name), A)
            assert reply is not None
            return reply.reason

    assert version() == "v1"
    a.kamcmd("app_python.reload")
    for _ in range(8):  # each SIP worker loads it when it next runs Python
        a.command("nodes")
    wait_for(lambda: {version() for _ in range(8)} == {"v2"})


def test_more_workers_than_are_started_stop_kamailio_with_one_line(bed: Bed) -> None:
    script = SCRIPT.read_text().replace("from_defs()", "from_defs(num_workers=4)")
    a = bed.python(A, script=script)
    a.start(wait=False)
    assert a.process is not None and a.process.wait(10) != 0
    said = [line for line in a.log().splitlines() if "kemi_dmq: setting" in line]
    assert len(said) == 1 and "num_workers is 4; it must be at most 0" in said[0], a.log()


def test_a_timer_of_ones_own_says_how_many_there_are(bed: Bed) -> None:
    """The way to have more than eight on 5.6."""
    timer = "name=dmq_workers;interval=100000u;mode=10"
    a = bed.python(A, defines={"num_workers": 10, "workers_timer": timer}, children=1)
    a.start()
    wait_for(lambda: len(workers(a)) == 10)
    with SipSocket() as sip:
        for number in range(10):
            data = request(A, body=b"sleep 0.5", via=sip.name, sender=f"127.0.1.{number}:5060")
            sip.send(data, A)
        wait_for(lambda: len(a.events("message")) == 10, 3)
    assert {event["pid"] for event in a.events("message")} == workers(a)


def test_a_stop_with_messages_in_the_queue_is_quick(bed: Bed) -> None:
    a = node_with(bed, 2)
    a.start()
    a.wait_settled()
    with SipSocket() as sip:
        for _ in range(20):
            sip.send(request(A, body=b"sleep 0.3", via=sip.name), A)
        wait_for(lambda: a.events("message"))
        assert a.stop() < 2
