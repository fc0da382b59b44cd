"""dmq_api_t, called as C calls it, and called back as C is (tests/support/c_module_script.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.c_modules import BIND
from tests.support.kamailio import SCRIPT, Bed, PythonNode, start, wait_for, whole
from tests.support.sip import SipSocket, request

A, B, C = "127.0.0.2", "127.0.0.3", "127.0.0.4"
NOTIFY = f"sip:{A}:5060"
C_SCRIPT = SCRIPT.read_text() + (Path(SCRIPT).with_name("c_module_script.py")).read_text()
#: tm's timeout, in milliseconds; its own default is 30 s.
SHORT = 'modparam("tm", "fr_timer", 1000)'
ACTIVE = 2


def node_of(node: PythonNode) -> list[Any]:
    address = bytes(int(part) for part in node.address.split(".")).hex()
    return [node.uri, node.address, 5060, address, ACTIVE, 0]


def three(
    bed: Bed, script: str = C_SCRIPT, children: int = 2
) -> tuple[PythonNode, PythonNode, PythonNode]:
    a = bed.python(A, defines=BIND, script=script, after=SHORT, children=children)
    b = bed.python(B, NOTIFY, defines=BIND, script=script, after=SHORT)
    c = bed.python(C, NOTIFY, defines=BIND, script=script, after=SHORT)
    start(a, b, c)
    return a, b, c


def test_each_node_gets_a_broadcast_and_the_callback_hears_of_each_once(bed: Bed) -> None:
    a, b, c = three(bed)
    assert a.command("c_bcast", body="hello", param=7) == 0
    wait_for(lambda: len(a.events("c_reply")) == 2)
    for node in (b, c):
        assert [e["node"] for e in node.events("c_peer", body="hello")] == [node_of(a)]
        replies = [e for e in a.events("c_reply") if e["node"] == node_of(node)]
        assert [(e["message"], e["code"], e["param"]) for e in replies] == [("real", 200, 7)]
    assert a.command("c_bcast", body="not to c", without=c.uri, param=8) == 0
    wait_for(lambda: len(a.events("c_reply", param=8)) == 1)
    assert len(b.events("c_peer", body="not to c")) == 1
    assert not c.events("c_peer", body="not to c")
    assert a.counters()["native_errors"] == 0


def test_a_send_reaches_one_node_and_a_copied_node_counts_as_well(bed: Bed) -> None:
    a, b, c = three(bed)
    assert a.command("c_send", body="to b", to=b.uri) == 0
    assert a.command("c_copied", body="to b too", to=b.uri) == 0
    wait_for(lambda: b.events("c_peer", body="to b") and b.events("c_peer", body="to b too"))
    assert not c.events("c_peer")
    assert a.command("c_find", uri=c.uri) == node_of(c)
    assert a.command("c_find", uri=a.uri) == [*node_of(a)[:5], 1]
    assert a.command("c_find", uri="sip:127.0.0.77:5060") is None
    assert a.command("c_find", uri="nonsense") is None


def test_messages_of_64_kb_go_out_whole(bed: Bed) -> None:
    a, b, _ = three(bed)
    assert a.command("c_send", body="0123456789", times=6400, to=b.uri, param=1) == 0
    wait_for(lambda: a.events("c_reply"))
    assert [e["size"] for e in b.events("c_peer")] == [64_000]
    assert [(e["code"], e["message"]) for e in a.events("c_reply")] == [(200, "real")]
    assert a.command("c_send", body="0123456789", times=6400, to=b.uri, param=1) == 0
    told = [line for line in a.log().splitlines() if "msg_recv_max_size" in line]
    assert len(told) == 1 and "has 64000 bytes" in told[0]


def to_cmod(sip: SipSocket, body: bytes) -> bytes:
    return request(A, user="cmod", body=body, via=sip.name, sender=f"{B}:5060")


def hold(node: PythonNode, sip: SipSocket, go: Path) -> bytes:
    """Hold up the node's callbacks process until go is there, by a large message; the request."""
    data = to_cmod(sip, f"hold {go} ".encode() + b"x" * 9000)
    sip.send(data, node.address)
    wait_for(lambda: node.events("c_peer"))
    return data


def test_large_messages_and_what_comes_after_run_in_the_callbacks_process(
    bed: Bed, tmp_path: Path
) -> None:
    """In the order in which they came, whichever SIP workers received them."""
    follow = "import kemi_dmq.c_messages\nkemi_dmq.c_messages.FOLLOW = 60\n"
    a, _, _ = three(bed, follow + C_SCRIPT, children=4)
    go = tmp_path / "go"
    with SipSocket() as sip:
        first = hold(a, sip, go)
        for number, body in enumerate(
            (
                *(b"small %d" % n for n in range(8)),
                b"answer 406 Large " + b"x" * 50_000,
                b"send it back" + b"x" * 9000,
                b"no UTF-8: \xff" * 1000,
            )
        ):
            sip.send(to_cmod(sip, body), A)
            wait_for(lambda n=number + 2: a.counters()["queued"] == n)  # type: ignore[misc]
        sip.send(first, A)
        wait_for(lambda: a.counters()["copies_dropped"] == 1)
        assert sip.receive(0.2) is None and len(a.events("c_peer")) == 1
        go.touch()
        replies = [sip.reply() for _ in range(12)]
        assert [reply.code for reply in replies] == [200] * 9 + [406] + [200] * 2
        assert replies[9].reason == "Large"
        again = sip.ask(first, A)
        assert again is not None and again.code == 200
        events = a.events("c_peer")

        def small_ones_run_where_they_are_received() -> bool:
            reply = sip.ask(to_cmod(sip, b"small"), A)
            return reply is not None and bool(a.events("c_peer", received_here=True))

        wait_for(small_ones_run_where_they_are_received)
    assert not any(e["received_here"] for e in events)
    assert len({e["pid"] for e in events}) == 1
    assert {e["node"][0] for e in events} == {f"sip:{B}:5060"}
    assert [e["body"] for e in events[1:9]] == [f"small {n}" for n in range(8)]
    assert [e["size"] for e in events[9:]] == [50_017, 9012, 11_000]
    assert a.counters()["native_errors"] == a.counters()["callback_errors"] == 0


def test_large_messages_that_find_no_room_run_at_once(bed: Bed, tmp_path: Path) -> None:
    a, _, _ = three(bed, children=1)
    go = tmp_path / "go"
    with SipSocket() as sip:
        hold(a, sip, go)
        sent = 1
        while not (full := a.counters()["queue_full"]):
            sip.send(to_cmod(sip, b"x" * 60_000), A)
            sent += 1
            wait_for(lambda n=sent: a.counters()["queued"] + a.counters()["queue_full"] == n)  # type: ignore[misc]
        assert (full, 10 < sent < 25) == (1, True)
        assert sip.reply().code == 200
        assert [e["size"] for e in a.events("c_peer", received_here=True)] == [60_000]
        assert "a message for a C module finds no room behind others" in a.log()
        go.touch()
        assert [sip.reply().code for _ in range(sent - 1)] == [200] * (sent - 1)
    wait_for(lambda: len(a.events("c_peer")) == sent)


def test_a_node_that_does_not_answer_is_told_once_as_408(bed: Bed) -> None:
    a, b, c = three(bed)
    c.kill()
    assert a.command("c_bcast", body="hello", param=9) == 0
    wait_for(lambda: a.events("c_reply", code=408), 5)
    # tm's own default: the transaction is gone when the next one has timed out, too
    assert a.command("c_send", body="again", to=c.uri, param=10) == 0
    wait_for(lambda: a.events("c_reply", param=10), 5)
    replies = [(e["code"], e["message"], e["node"][0]) for e in a.events("c_reply", param=9)]
    assert sorted(replies) == [(200, "real", b.uri), (408, "none", c.uri)]
    assert a.counters()["timeouts"] == 2


def test_a_c_peers_answer_goes_out_as_it_is(bed: Bed) -> None:
    a, b, _ = three(bed)
    for body in ("answer 200 OK the body", "answer 406 Not-So", "answer 99 Bad", "fail"):
        b.command("send", body="x", to=a.uri)  # something between them
        a.command("c_send", body=body, to=b.uri, param=1)
    wait_for(lambda: len(a.events("c_reply")) == 4)
    assert sorted(e["code"] for e in a.events("c_reply")) == [200, 406, 500, 500]
    with SipSocket() as sip:
        data = request(
            B,
            user="cmod",
            body=b"answer 200 OK the body",
            via=sip.name,
            sender=f"{A}:5060",
            headers={"Supported": "kemi_dmq-1"},
        )
        reply = sip.ask(data, B)
        assert reply is not None
        assert (reply.code, reply.body, reply.headers["content-type"]) == (
            200,
            b"the body",
            "text/x-c",
        )
        # A C node would take it for a node list.
        data = data.replace(b"Supported: kemi_dmq-1\r\n", b"").replace(b"branch=", b"branch=z")
        reply = sip.ask(data, B)
        assert reply is not None and (reply.code, reply.body) == (202, b"the body")
    assert b.counters()["callback_errors"] == 2
    assert "cmod: its callback returned -1" in b.log()
    assert "cmod: its callback answered with the code 99" in b.log()


def test_with_more_parameters_than_slots_a_message_is_refused_and_counted(bed: Bed) -> None:
    """What waits for an answer with a parameter takes a slot; others go on."""
    few = "import kemi_dmq.native.outstanding as outstanding\noutstanding.SLOTS = 1\n"
    # One SIP worker: no answer empties the slot while it still sends.
    a, b, c = three(bed, few + C_SCRIPT, children=1)
    assert a.command("c_bcast", body="one slot for two", param=7) == -1
    assert a.counters()["send_failures"] == 1
    wait_for(lambda: len(a.events("c_reply")) == 1)
    assert a.command("c_bcast", body="none needed", param=0) == 0
    wait_for(lambda: len(a.events("c_reply", param=0)) == 2)
    assert {e["node"][0] for e in a.events("c_reply", param=0)} == {b.uri, c.uri}


def test_a_copy_of_a_request_is_answered_again_but_does_not_run_again(bed: Bed) -> None:
    a, _, _ = three(bed)
    with SipSocket() as sip:
        data = request(A, user="cmod", body=b"answer 406 Once", via=sip.name, sender=f"{B}:5060")
        for _ in range(3):
            reply = sip.ask(data, A)
            assert reply is not None and reply.code == 406
    assert len(a.events("c_peer")) == 1
    assert a.counters()["duplicates"] == 2


def test_a_sender_that_is_not_on_the_list_is_a_node_while_its_message_is_handled(bed: Bed) -> None:
    """A node that joins is asked for what it has by nodes that it has not heard of yet."""
    a, _, _ = three(bed)
    with SipSocket() as sip:
        port = sip.socket.getsockname()[1]
        data = request(A, user="cmod", body=b"send it back", via=sip.name, sender=sip.name)
        sip.send(data, A)
        got = [sip.receive() or b"", sip.receive() or b""]
        (back,) = [text for text in got if text.startswith(f"KDMQ sip:cmod@{sip.name}".encode())]
        assert back.endswith(b"\r\n\r\nback")
        (reply_text,) = [text for text in got if text.startswith(b"SIP/2.0")]
        assert reply_text.startswith(b"SIP/2.0 200")
        name = request(A, user="cmod", body=b"send it back", via=sip.name, sender="nobody.invalid")
        reply = sip.ask(name, A)
        assert reply is not None and reply.code == 200
        assert "at sip:nobody.invalid:5060 was not sent" in a.log(), "nobody waits for the DNS"
        reply = sip.ask(
            request(A, user="cmod", body=b"x", via=sip.name, headers={"From": "<tel:1>;tag=1"}), A
        )
        assert reply is not None and reply.code == 400
    not_active = 4
    assert [e["node"] for e in a.events("c_peer")] == [
        [f"sip:127.0.0.1:{port}", "127.0.0.1", port, "7f000001", not_active, 0],
        ["sip:nobody.invalid:5060", "nobody.invalid", 5060, "", not_active, 0],
    ]


def test_what_tm_reads_stays_while_the_table_of_strings_is_emptied(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each message makes room here for its own strings; freed memory is overwritten."""
    monkeypatch.setenv("PYTHONMALLOC", "malloc")
    monkeypatch.setenv("MALLOC_PERTURB_", "165")
    few = "import kemi_dmq.native.sending as sending\nsending.MAX_STRINGS = 1\n"
    a, b, c = three(bed, few + C_SCRIPT)
    for number in range(20):
        assert a.command("c_bcast", body=f"m{number}", param=7) == 0
    wait_for(lambda: len(a.events("c_reply", code=200)) == 40, why=lambda: a.log()[-1000:])
    for node in (b, c):
        bodies = [e["body"] for e in node.events("c_peer") if e["node"] == node_of(a)]
        assert sorted(bodies) == sorted(f"m{number}" for number in range(20))
    assert a.counters()["send_failures"] == a.counters()["native_errors"] == 0


def test_strangers_take_no_room_that_nodes_need(bed: Bed) -> None:
    few = "import kemi_dmq.native.nodes as nodes\nnodes.COUNT, nodes.STRANGERS = 3, 4\n"
    a = bed.python(A, defines=BIND, script=few + C_SCRIPT, after=SHORT, children=1)
    a.start()
    before = a.command("c_strings")
    with SipSocket() as sip:
        for number in range(12):
            sender = f"127.0.0.9:{6000 + number}"
            reply = sip.ask(
                request(A, user="cmod", body=b"ask back", via=sip.name, sender=sender), A
            )
            assert reply is not None and reply.code == 200
    wait_for(lambda: len(a.events("c_reply", code=408)) == 12)
    told = {e["node"][0] for e in a.events("c_reply")}
    assert told <= {f"sip:127.0.0.9:{6000 + number}" for number in range(8, 12)}
    assert a.command("c_strings") - before < 12
    b = bed.python(B, NOTIFY, defines=BIND, script=C_SCRIPT)
    b.start()
    wait_for(whole(a, b), 3)
    assert a.command("c_bcast", body="to a node", param=1) == 0
    wait_for(lambda: [e["node"] for e in a.events("c_reply", param=1)] == [node_of(b)])
    assert a.counters()["native_errors"] == 0


def test_init_callback_runs_once_and_in_the_callbacks_process(bed: Bed) -> None:
    """What a node that is back knows may be old.  A Python init_callback gets that node."""
    a, b, _ = three(bed)
    wait_for(lambda: len(a.events("c_init")) == 1)
    before = len(a.events("init"))
    b.stop()
    wait_for(lambda: b.uri not in a.active())
    b.events_file.unlink()
    b.start()
    wait_for(lambda: len(a.events("init")) > before and b.events("c_init"))
    assert a.command("bcast", body="later") == 0
    wait_for(lambda: b.events("message"))
    assert len(a.events("c_init")) == len(b.events("c_init")) == 1
    pids = {e["pid"] for e in a.events("c_init")} | {e["pid"] for e in a.events("init")}
    assert len(pids) == 1 and "dmq_callbacks" in a.children()[pids.pop()]


def test_what_a_c_caller_does_wrong_is_told_and_counted(bed: Bed) -> None:
    a, b, _ = three(bed)
    assert a.command("again") is False, "a name that is taken gives NULL"
    assert "peer_id 'cmod' is taken" in a.log()
    failures = a.counters()["send_failures"]
    assert a.command("c_send", to=b.uri, typed=False) == -1
    assert "no content type" in a.log()
    assert a.command("c_send", to="sip:127.0.0.77:5060") == -1
    assert a.counters()["send_failures"] == failures + 2
    assert a.counters()["native_errors"] == 0
    # That raises inside our callback.
    assert a.command("c_send", to=b.uri, no_peer=True) == -1
    assert a.counters()["native_errors"] == 1
    assert a.log().count("a C module's call failed: ValueError") == 1


def test_a_message_without_response_callback_goes_out_without_a_transaction_with_sl_send(
    bed: Bed,
) -> None:
    a = bed.python(A, defines=BIND | {"sl_send": 1}, script=C_SCRIPT)
    b = bed.python(B, NOTIFY, defines=BIND, script=C_SCRIPT)
    start(a, b)

    def transactions() -> str:
        return a.kamcmd("tm.stats").split("created: ")[1].split()[0]

    before = transactions()
    assert a.command("c_bcast", body="stateless") == 0
    wait_for(lambda: b.events("c_peer", body="stateless"))
    assert transactions() == before
    assert a.command("c_bcast", body="stateful", param=1) == 0
    wait_for(lambda: a.events("c_reply"))
    assert transactions() != before


@pytest.mark.parametrize("transport", ["tcp"])
def test_over_tcp(bed: Bed, transport: str) -> None:
    nodes = []
    for address in (A, B):
        uri = f"sip:{address}:5060;transport={transport}"
        listen = f"listen={transport}:{address}:5060\nlisten=udp:{address}:5060"
        defines = BIND | {"server_address": uri}
        notify = f"sip:{A}:5060;transport={transport}" if address == B else ""
        node = bed.python(address, notify, defines=defines, listen=listen, script=C_SCRIPT)
        node.uri = uri
        node.start()
        nodes.append(node)
    a, b = nodes
    wait_for(whole(a, b), 5)
    assert a.command("c_send", body="0123456789", times=6000, to=b.uri, param=1) == 0
    wait_for(lambda: a.events("c_reply"))
    assert [e["size"] for e in b.events("c_peer")] == [60_000]
