"""KSR.dmq.*: a script written for dmq.so runs unchanged, with C's return values."""

from __future__ import annotations

from typing import Any

from tests.support.kamailio import BOTH_ROUTINGS, Bed, CNode, PythonNode, start, wait_for
from tests.support.sip import SipSocket, request

A, B, C = "127.0.0.2", "127.0.0.3", "127.0.0.4"
NOTIFY = f"sip:{A}:5060"

# A KEMI script as users of dmq.so have it: the two lines that set kemi_dmq up are all that is new.
SCRIPT = """
import os
import KSR
{setup}

class kamailio:
    def child_init(self, rank):
        return 0
    def ksr_request_route(self, msg):
        if KSR.is_KDMQ():
            function = os.environ["HANDLER"]
            if function.endswith("_rc"):
                result = getattr(KSR.dmq, function)(7)
            else:
                result = getattr(KSR.dmq, function)()
            KSR.err("RETURNED " + str(result) + "\\n")
            return result
        if KSR.is_method("MESSAGE"):
            result = KSR.dmq.bcast_message("acme", KSR.pv.get("$rb"), "text/plain")
            KSR.sl.send_reply(200, "bcast " + str(result))
        elif KSR.is_method("INFO"):
            result = KSR.dmq.send_message("acme", KSR.pv.get("$hdr(X-Node)"), KSR.pv.get("$rb"),
                                          "text/plain")
            KSR.sl.send_reply(200, "send " + str(result))
        elif KSR.is_method("REGISTER"):
            result = KSR.dmq.t_replicate_mode(int(KSR.pv.get("$rU") or 0))
            KSR.sl.send_reply(200, "replicate " + str(result) + " " + str(KSR.dmq.is_from_node()))
        elif KSR.is_method("OPTIONS"):
            KSR.sl.send_reply(200, "OK")
        return 1

def mod_init():
    return {attach}
"""
OURS = SCRIPT.format(
    setup="import kemi_dmq; dmq = kemi_dmq.DMQ.from_defs(); dmq.install()",
    attach="dmq.attach(kamailio())",
)
THEIRS = SCRIPT.format(setup="", attach="kamailio()")


class ScriptNode(PythonNode):
    def answers(self) -> bool:
        return super(PythonNode, self).answers()


def both(bed: Bed, handler: str) -> tuple[ScriptNode, ScriptNode]:
    """A node with kemi_dmq and one with dmq.so, both with the same script; not on one bus."""
    ours = ScriptNode(A, bed.directory / "ours", script=OURS, defines={"event_callback": None})
    theirs = ScriptNode(B, bed.directory / "theirs", script=THEIRS)
    text = theirs.cfg.read_text()
    dmq = f'loadmodule "dmq.so"\nmodparam("dmq", "server_address", "sip:{B}:5060")\n'
    text = text.replace("include_file", f"{C_MODULES}{dmq}include_file").replace(
        'cfgengine "python"', 'cfgengine "python"\n'
    )
    lines = [line for line in text.splitlines() if "rtimer" not in line]
    theirs.cfg.write_text("\n".join(lines) + "\n")
    for node in (ours, theirs):
        node._env["HANDLER"] = handler
        bed.nodes.append(node)
        node.start()
    return ours, theirs


C_MODULES = 'loadmodule "tm.so"\nloadmodule "sl.so"\nloadmodule "pv.so"\n'


def ask(node: PythonNode | CNode, **more: Any) -> str:
    with SipSocket() as sip:
        data = request(node.address, via=sip.name, sender="127.0.0.9:5060", **more)
        reply = sip.ask(data, node.address, 1)
    return f"{reply.code} {reply.reason}" if reply else "none"


def compare(bed: Bed, handler: str) -> list[str]:
    ours, theirs = both(bed, handler)
    cases: list[dict[str, Any]] = [
        {"user": "acme", "body": b"x"},
        {"user": "notification_peer", "body": b"sip:127.0.0.9:5060;status=active\r\n"},
        {"method": "MESSAGE", "user": "x", "body": b"to nobody yet"},
        {"method": "INFO", "user": "x", "body": b"x", "headers": {"X-Node": "sip:127.0.0.8:5060"}},
        {"method": "INFO", "user": "x", "body": b"x", "headers": {"X-Node": "not a uri"}},
        {"user": "acme", "body": b"now it is a peer that is only sent to"},
    ]
    for case in cases:
        assert ask(ours, **case) == ask(theirs, **case), case

    def returned(node: ScriptNode) -> list[str]:
        lines = node.log().splitlines()
        return [line.rpartition("RETURNED ")[2] for line in lines if "RETURNED" in line]

    for node in (ours, theirs):
        wait_for(lambda node=node: len(returned(node)) == 3)  # type: ignore[misc]
    assert returned(ours) == returned(theirs)
    return returned(ours)


def test_handle_message_is_as_in_c(bed: Bed) -> None:
    assert compare(bed, "handle_message") == ["0", "0", "0"]


def test_process_message_rc_is_as_in_c(bed: Bed) -> None:
    assert compare(bed, "process_message_rc") == ["7", "7", "7"]


def test_process_message_is_as_in_c(bed: Bed) -> None:
    assert compare(bed, "process_message") == ["0", "0", "0"]


def test_handle_message_rc_is_as_in_c(bed: Bed) -> None:
    assert compare(bed, "handle_message_rc") == ["7", "7", "7"]


@BOTH_ROUTINGS
def test_messages_are_sent_with_ksr_dmq(bed: Bed) -> None:
    a, b, c = bed.python(A), bed.python(B, NOTIFY), bed.c(C, NOTIFY)
    start(a, b, c)

    def call(function: str, *args: object) -> object:
        return a.command("dropin", function=function, args=args)

    assert call("bcast_message", "acme", "to all", "text/plain") == 1
    assert call("send_message", "acme", c.uri, "to c", "text/plain") == 1
    assert call("send_message", "acme", "sip:127.0.0.9:5060", "x", "text/plain") == -1
    assert call("bcast_message", "acme", "x" * 40_000, "text/plain") == -1
    wait_for(lambda: sorted(c.got()) == ["to all", "to c"])
    wait_for(lambda: b.events("message"))
    assert call("process_custom_message", "acme", b.uri, "custom", "text/x") == 1
    event = wait_for(lambda: a.events("message"))[0]
    assert (event["node"], event["content_type"]) == (b.uri, "text/x")
    assert call("handle_custom_message", "acme", "sip:x@127.0.0.9", "custom", "text/x") == 1
    assert a.events("message")[1]["node"] is None
    assert call("process_custom_message", "acme", b.uri, "raise", "text/x") == -1
    assert call("process_custom_message", "nobody", b.uri, "x", "text/x") == -1


@BOTH_ROUTINGS
def test_t_replicate_sends_a_register_to_all_nodes_and_not_back(bed: Bed) -> None:
    a, b, c = bed.python(A), bed.python(B, NOTIFY), bed.c(C, NOTIFY)
    start(a, b, c)
    with SipSocket("127.0.0.9") as sip:
        data = request(A, method="REGISTER", user="bob", via=sip.name)
        reply = sip.ask(data, A)
    assert reply is not None and reply.code == 200
    wait_for(lambda: "REGISTERED from=127.0.0.2" in c.log())
    event = wait_for(lambda: b.events("register"))[0]
    assert (event["from_node"], event["result"]) == (1, -1), (
        "it came from a node, and B did not send it on"
    )
    event = wait_for(lambda: a.events("register"))[0]
    assert (event["from_node"], event["result"]) == (-1, 0)
    assert len(a.events("register")) == 1 and len(b.events("register")) == 1
