"""A kamailio.cfg that routes by itself (kemi_dmq_native.cfg): its calls, and what stays its own.

That the bus is the same on such a node, the tests with BOTH_ROUTINGS show.
"""

from __future__ import annotations

import pytest

from tests.support.kamailio import SCRIPT, Bed, CNode, PythonNode, start, wait_for, whole
from tests.support.sip import SipReply, SipSocket, request

A, B, C = "127.0.0.2", "127.0.0.3", "127.0.0.4"
NOTIFY = f"sip:{A}:5060"

ROUTES = """
    if (is_method("MESSAGE")) {
        $var(dmq_body) = $rb;
        if (python_exec("dmq_bcast_message", "$hdr(X-Words)")) { sl_send_reply("200", "Sent"); }
        else { sl_send_reply("500", "Not Sent"); }
        exit;
    }
    if (is_method("PUBLISH")) {
        $var(dmq_body) = $rb; python_exec("dmq_send_message", "acme $hdr(X-Node) $hdr(X-Type)");
        $var(second) = -2;
        if ($var(dmq_body) == "") { $var(second) = 1; }
        sl_send_reply("200", "Left $var(second)");
        exit;
    }
    if (is_method("SUBSCRIBE")) {
        if (python_exec("dmq_is_from_node")) { sl_send_reply("200", "Of A Node"); }
        else { sl_send_reply("403", "Of Nobody"); }
        exit;
    }
    if (is_method("OPTIONS")) {
        if (python_exec("dmq_t_replicate")) { xlog("L_NOTICE", "REPLICATED $ci\\n"); }
        else { xlog("L_NOTICE", "KEPT $ci\\n"); }
        sl_send_reply("200", "OK");
        exit;
    }
"""
XLOG = 'loadmodule "xlog.so"'


def native(bed: Bed, address: str, notification: str = "", **more: object) -> PythonNode:
    more = {"routes": ROUTES, "before": XLOG, **more}
    return bed.python(address, notification, native=True, **more)


def ask(
    node: PythonNode | CNode,
    method: str,
    body: bytes = b"",
    source: str = "127.0.0.1",
    **headers: str,
) -> SipReply:
    with SipSocket(source) as sip:
        more: dict[str, str | None] = {n.replace("_", "-"): v for n, v in headers.items()}
        data = request(node.address, method=method, body=body, via=sip.name, headers=more)
        reply = sip.ask(data, node.address)
    assert reply is not None
    return reply


def test_routes_broadcast_any_bytes_to_python_and_c_nodes(bed: Bed) -> None:
    a, b, c = native(bed, A), native(bed, B, NOTIFY), bed.c(C, NOTIFY)
    start(a, b, c)
    bodies = [b"text | with 'marks' \"$rb\" $$ %s", bytes(range(256)), b"\xff\0\xfe", b""]
    for number, body in enumerate(bodies, 1):
        assert ask(a, "MESSAGE", body, X_Words="acme application/x-bytes").code == 200
        wait_for(lambda number=number: len(b.events("message")) == number)  # type: ignore[misc]
    assert [bytes.fromhex(e["body"]) for e in b.events("message")] == bodies
    assert b.events("message")[0]["content_type"] == "application/x-bytes"
    assert c.got()[0] == bodies[0].decode()
    assert ask(a, "MESSAGE", b"plain", X_Words="acme").code == 200
    event = wait_for(lambda: b.events("message", content_type="text/plain"))[0]
    assert bytes.fromhex(event["body"]) == b"plain"


def test_a_route_that_is_a_peer_gets_any_bytes_as_they_were_sent(bed: Bed) -> None:
    a, b = native(bed, A), native(bed, B, NOTIFY)
    b.peer_is_a_route("acme", 'xlog("L_NOTICE", "HEX $(rb{s.encode.hexa})\\n");')
    start(a, b)
    for body in (b"text", bytes(range(256)), b"\xff\0\xfe"):
        assert ask(a, "MESSAGE", body, X_Words="acme application/x-bytes").code == 200
        wait_for(lambda body=body: f"hex {body.hex()}\n" in b.log().lower())  # type: ignore[misc]
    assert b.events("message") == []


def test_a_broadcast_that_is_refused_is_false_and_logged(bed: Bed) -> None:
    a = native(bed, A)
    a.start()
    assert ask(a, "MESSAGE", b"x", X_Words="no@peer").code == 500
    assert "'no@peer' is no peer's name" in a.log()


def test_routes_send_to_one_node_and_the_variable_is_empty_afterwards(bed: Bed) -> None:
    a, b, c = native(bed, A), native(bed, B, NOTIFY), bed.c(C, NOTIFY)
    start(a, b, c)
    assert ask(a, "PUBLISH", b"to c", X_Node=c.uri, X_Type="text/plain").reason == "Left 1"
    wait_for(lambda: c.got() == ["to c"])
    type_ = "text/plain; charset=utf-8"
    assert ask(a, "PUBLISH", "für b".encode(), X_Node=b.uri, X_Type=type_).reason == "Left 1"
    event = wait_for(lambda: b.events("message"))[0]
    assert (bytes.fromhex(event["body"]).decode(), event["content_type"]) == ("für b", type_)
    assert ask(a, "PUBLISH", b"x", X_Node="sip:127.0.0.9:5060", X_Type="").reason == "Left 1"
    wait_for(lambda: "no node sip:127.0.0.9:5060 on the list" in a.log())


def test_routes_ask_for_nodes_and_replicate_once(bed: Bed) -> None:
    onsend = 'onsend_route { xlog("L_NOTICE", "ONSEND $rm\\n"); }'
    a, b, c = native(bed, A, after=onsend), native(bed, B, NOTIFY), bed.c(C, NOTIFY)
    start(a, b, c)
    assert ask(a, "SUBSCRIBE").reason == "Of Nobody"
    assert ask(a, "SUBSCRIBE", source=B).reason == "Of A Node"
    ask(a, "OPTIONS")
    wait_for(lambda: a.log().count("REPLICATED") == 1 and b.log().count("KEPT") == 1)
    assert "ONSEND OPTIONS" in a.log(), "the user's own onsend_route runs"


RC_CALLS = [(f, rc) for f in ("handle_message", "process_message") for rc in ("", "0", "1", "5")]


def test_after_a_handled_request_the_script_ends_or_goes_on_as_in_c(bed: Bed) -> None:
    """dmq_handle_message() and dmq_handle_message("1"), which lets the script go on."""
    a, c = native(bed, A), bed.c(C)
    calls = {
        a: ('python_exec("dmq_handle_message")', 'python_exec("dmq_{}"{})', ', "{}"'),
        c: ("dmq_handle_message()", "dmq_{}({})", '"{}"'),
    }
    for node, (old, call, argument) in calls.items():
        text = node.cfg.read_text()
        assert old in text
        routes = ""
        for number, (function, rc) in enumerate(RC_CALLS):
            this = call.format(function, argument.format(rc) if rc else "")
            routes += (
                f'if ($hdr(X-Case) == "{number}") {{\n{this};\n'
                f'xlog("L_NOTICE", "WENT ON {number}\\n");\nexit;\n}}\n'
            )
        first = '    if (is_method("KDMQ")) {'
        node.cfg.write_text(text.replace(first, f"{first}\n{routes}", 1))
        node.start()

    def went_on(node: PythonNode | CNode) -> list[str]:
        lines = node.log().splitlines()
        return [line.rpartition("WENT ON ")[2] for line in lines if "WENT ON" in line]

    for node in (a, c):
        for number in range(len(RC_CALLS)):
            reply = ask(node, "KDMQ", X_Case=str(number))
            assert reply.code == (404 if node is c else 200)
    wait_for(lambda: len(went_on(a)) >= 4 and len(went_on(c)) >= 4)
    # Lines of two processes may change places.
    assert sorted(went_on(a)) == sorted(went_on(c)) == ["2", "3", "6", "7"]
    assert len(a.events("message")) == len(RC_CALLS)


def test_routes_give_a_message_to_a_peer_themselves(bed: Bed) -> None:
    """dmq_process_custom() and dmq_handle_custom() of dmq.so's development branch."""
    routes = """
    if (is_method("MESSAGE")) {
        $var(dmq_body) = $rb;
        if (python_exec("dmq_$hdr(X-Function)", "$hdr(X-Words)")) { sl_send_reply("200", "OK"); }
        else { sl_send_reply("500", "Not"); }
        exit;
    }
"""
    a = native(bed, A, routes=routes, defines={"num_workers": 1}, children=1)
    b = native(bed, B, NOTIFY)
    start(a, b)
    for function in ("process_custom", "handle_custom"):
        for words, code in (
            (f"acme {b.uri} text/x; a=b", 200),
            ("acme sip:nobody@127.0.0.9", 200),
            (f"nobody {b.uri}", 500),
            ("acme", 500),
        ):
            body = f"{function} {words}".encode() + b"\0\xff"
            reply = ask(a, "MESSAGE", body, X_Function=function, X_Words=words)
            assert reply.code == code, (function, words)
    wait_for(lambda: len(a.events("message")) == 4)
    events = a.events("message")
    assert [(e["node"], e["content_type"]) for e in events] == [
        (b.uri, "text/x; a=b"),
        (None, "text/plain"),
    ] * 2
    assert bytes.fromhex(events[0]["body"]) == (
        f"process_custom acme {b.uri} text/x; a=b".encode() + b"\0\xff"
    )
    children = a.children()
    ran = ["dmq_workers" in children[event["pid"]] for event in events]
    assert ran == [False, False, True, True]


def test_node_events_run_the_event_routes_of_kamailio_cfg(bed: Bed) -> None:
    routes = "".join(
        f'event_route[dmq:{name}] {{ xlog("L_NOTICE", "EVENT {name} $ru\\n"); }}\n'
        for name in ("peer-up", "peer-down", "peer-disabled")
    )
    a = native(bed, A, after=routes)
    b, c = native(bed, B, NOTIFY), bed.c(C, NOTIFY)
    start(a, b, c)

    def told() -> list[str]:
        return [line.rpartition("EVENT ")[2] for line in a.log().splitlines() if "EVENT" in line]

    wait_for(lambda: sorted(told()) == [f"peer-up {b.uri}", f"peer-up {c.uri}"])
    b.wait_settled()
    b.stop()
    wait_for(lambda: len(told()) == 3)
    assert told()[2].split()[0] in ("peer-down", "peer-disabled") and b.uri in told()[2]
    b.start()
    wait_for(lambda: len(told()) == 4)
    assert told()[3] == f"peer-up {b.uri}"
    # The function that DMQ_EVENT_CALLBACK names hears of them, too.
    wait_for(lambda: len(a.events("event")) == 4)


def test_an_event_route_may_broadcast_also_when_the_script_was_loaded_anew(bed: Bed) -> None:
    """Python within Python, in the callbacks process."""
    routes = """
event_route[dmq:peer-up] {
    $var(dmq_body) = "welcome " + $ru;
    if (python_exec("dmq_bcast_message", "acme")) { xlog("L_NOTICE", "WELCOMED $ru\\n"); }
    python_exec("route");
}
"""
    a, b, c = native(bed, A, after=routes), native(bed, B, NOTIFY), bed.c(C, NOTIFY)
    a.start()
    c.start()
    wait_for(lambda: c.got() == [f"welcome {c.uri}"])
    b.start()
    wait_for(lambda: f"welcome {b.uri}" in c.got())
    a.wait_settled()
    for version in (2, 3):
        a.script.write_text(SCRIPT.read_text().replace("VERSION = 1 ", f"VERSION = {version} "))
        a.kamcmd("app_python.reload")
        wait_for(whole(a, b, c), 3)
        b.wait_settled()
        b.stop()
        wait_for(lambda: b.uri not in a.active())
        b.start()
        up = {"name": "dmq:peer-up", "version": version}
        wait_for(lambda up=up: a.events("event", **up), 10)  # type: ignore[misc]
        wait_for(lambda n=version: c.got().count(f"welcome {b.uri}") == n, 10)  # type: ignore[misc]
    assert a.counters()["user_errors"] == 0


def test_without_event_routes_nothing_is_said_about_them(bed: Bed) -> None:
    a, b = native(bed, A), native(bed, B, NOTIFY)
    start(a, b)
    wait_for(lambda: a.events("event"))
    assert "event route" not in a.log()


def test_reply_routes_and_uac_events_of_ones_own_stay(bed: Bed) -> None:
    """Ours takes the engine's replies only."""
    before = f"""{XLOG}
#!define DMQ_KEEP_UAC_REPLY
#!define DMQ_OUTBOX 0
#!define DMQ_USE_TM 1
reply_route {{ xlog("L_NOTICE", "FIRST $rs $ci\\n"); }}
"""
    after = """
reply_route { xlog("L_NOTICE", "LAST $rs $rm $ci\\n"); }
event_route[uac:reply] {
    if (python_exec("dmq_uac_reply")) { return; }
    xlog("L_NOTICE", "UAC $uac_req(evcode) $uac_req(evparam)\\n");
}
"""
    routes = """
    if (is_method("NOTIFY")) {
        $uac_req(method) = "OPTIONS"; $uac_req(ruri) = "sip:127.0.0.4:5060";
        $uac_req(furi) = "sip:x@127.0.0.2"; $uac_req(turi) = "sip:127.0.0.4:5060";
        $uac_req(evroute) = 1; $uac_req(evparam) = "mine";
        uac_req_send();
        sl_send_reply("200", "OK");
        exit;
    }
"""
    a = native(bed, A, before=before, after=after, routes=routes)
    c = bed.c(C, NOTIFY)
    start(a, c)
    assert ask(a, "NOTIFY").code == 200
    wait_for(lambda: "UAC 200 mine" in a.log())
    assert a.command("bcast", body="x", param="p") == 0
    wait_for(lambda: a.events("reply", code=200, param="p"))
    log = a.log()
    assert "UAC 200 dmq1" not in log
    engines = [line for line in log.splitlines() if "FIRST" in line and " dmq-" in line]
    assert engines, "the engine's answers pass a reply_route that stands before the include"
    assert not [line for line in log.splitlines() if "LAST" in line and " dmq-" in line]
    assert log.count("LAST 200") == 2, "all others come to the one after it"


def test_a_python_exec_with_bytes_that_are_no_text_harms_no_later_message(bed: Bed) -> None:
    a = native(bed, A, children=1)
    a.start()
    with SipSocket() as sip:
        data = request(A, method="MESSAGE", via=sip.name, headers={"X-Words": "acme BYTE"})
        reply = sip.ask(data.replace(b"BYTE", b"\xff"), A)
        assert reply is not None and reply.code == 500
        reply = sip.ask(request(A, body=b"x", via=sip.name), A)
        assert reply is not None and reply.code == 200
    assert len(a.events("message")) == 1


def test_a_wrong_setting_in_the_peers_file_is_one_line(bed: Bed) -> None:
    script = SCRIPT.read_text().replace("from_defs()", "from_defs(ping_interval=1)")
    a = native(bed, A, script=script)
    a.start(wait=False)
    assert a.process is not None and a.process.wait(10) != 0
    lines = [line for line in a.log().splitlines() if "kemi_dmq" in line and "CRITICAL" in line]
    assert len(lines) == 1 and "setting ping_interval is 1" in lines[0], a.log()[-2000:]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("def broken(:\n", "SyntaxError"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("import sys; sys.exit()\n", "SystemExit"),
        (None, "FileNotFoundError"),
    ],
)
def test_a_peers_file_that_fails_stops_kamailio_with_one_line(
    bed: Bed, script: str | None, said: str
) -> None:
    a = native(bed, A, script=script)
    if script is None:
        a.script.unlink()
    a.start(wait=False)
    assert a.process is not None and a.process.wait(10) != 0
    lines = [line for line in a.log().splitlines() if "DMQ_PEERS_FILE" in line]
    assert len(lines) == 1 and said in lines[0] and str(a.script) in lines[0], a.log()[-2000:]
    assert "Traceback" not in a.log()


def test_a_peers_file_that_fails_at_a_reload_is_one_line_and_the_old_one_goes_on(bed: Bed) -> None:
    def said() -> list[str]:
        return [line for line in a.log().splitlines() if "as the test asked for" in line]

    a = native(bed, A)
    a.start()
    a.wait_settled()
    a.script.write_text(SCRIPT.read_text() + "\nraise RuntimeError('as the test asked for')\n")
    a.kamcmd("app_python.reload")

    def tried() -> bool:
        assert a.command("nodes")["version"] == 1
        return bool(said())

    wait_for(tried, 10)
    for _ in range(20):
        assert a.command("nodes")["version"] == 1
    assert len(said()) == 1 and "the script is not taken" in said()[0]
    assert "Error reloading script" not in a.log()


def test_without_a_peers_file_the_node_joins_and_sends(bed: Bed) -> None:
    a, c = native(bed, A, defines={"event_callback": None}), bed.c(C, NOTIFY)
    text = a.cfg.read_text()
    a.cfg.write_text("\n".join(x for x in text.splitlines() if "DMQ_PEERS_FILE" not in x) + "\n")
    c.start()
    super(PythonNode, a).start(wait=False)
    wait_for(lambda: a.uri in c.active(), 5, f"it joins; {a.log()[-2000:]}")
    # The channel is one that it only sends to.
    wait_for(lambda: ask(a, "MESSAGE", b"x", X_Words="acme").code == 200 and "x" in c.got())
