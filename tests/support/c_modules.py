"""kamailio.cfg lines for C modules that replicate over DMQ, on either kind of node, and what
their RPC commands show."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from .kamailio import CNode, PythonNode
from .sip import SipSocket, request


class Commanded(Protocol):
    """A node, in a container or not."""

    def kamcmd(self, *command: str) -> str: ...


#: On a Python node these follow kemi_dmq.cfg, on a C node dmq.so.
HTABLE = """
loadmodule "htable.so"
modparam("htable", "enable_dmq", 1)
modparam("htable", "htable", "t=>size=10;autoexpire=0;dmqreplicate=1;")
"""
#: A sync that is under way can bring back what was removed meanwhile.
HTABLE_SYNC = f'{HTABLE}\nmodparam("htable", "dmq_init_sync", 1)\n'

BIND = {"bind_c_modules": 1}


def value(node: Commanded, key: str) -> str | None:
    """What a node's table t holds under key."""
    found = re.search(r"value: (.*)", node.kamcmd("htable.get", "t", key))
    return found[1].strip() if found else None


def put(node: Commanded, key: str, what: str) -> None:
    node.kamcmd("htable.sets", "t", key, what)


def remove(node: Commanded, key: str) -> None:
    node.kamcmd("htable.delete", "t", key)


def items(node: Commanded) -> int:
    """How many cells table t has."""
    found = re.search(r"\bname: t\b.*?\ball: (\d+)", node.kamcmd("htable.stats"), re.DOTALL)
    return int(found[1]) if found else -1


AnyNode = PythonNode | CNode

USRLOC = """
#!define WITH_REGISTRAR
loadmodule "usrloc.so"
modparam("usrloc", "preload", "location")
loadmodule "registrar.so"
loadmodule "dmq_usrloc.so"
modparam("dmq_usrloc", "enable", 1)
modparam("dmq_usrloc", "sync", 1)
"""

#: One SIP worker, and in C one DMQ worker: with more of them the messages on one call may overtake
#: each other.
DIALOG = """
children=1
#!ifdef MOD_dmq
modparam("dmq", "num_workers", 1)
#!endif
loadmodule "rr.so"
loadmodule "dialog.so"
modparam("dialog", "dlg_match_mode", 2)
modparam("dialog", "enable_dmq", 1)
"""

#: Without a database.
PRESENCE = """
#!define WITH_PRESENCE
loadmodule "presence.so"
loadmodule "presence_xml.so"
modparam("presence", "publ_cache", 2)
modparam("presence", "subs_db_mode", 0)
modparam("presence", "enable_dmq", 1)
modparam("presence_xml", "force_active", 1)
"""

#: Appended to node_script.py.  The caller's INVITE goes on to the address in its R-URI.
ROUTES = """

class WithRoutes(Kamailio):
    def do_set(self, args):
        for number in range(args["count"]):
            KSR.htable.sht_sets("t", f"{args['key']}-{number}", "v")

    def ksr_request_route(self, msg):
        if KSR.is_method("REGISTER"):
            KSR.registrar.save("location", 0)
            return 1
        if KSR.is_method("PUBLISH"):
            KSR.presence.handle_publish()
            return 1
        if KSR.is_method("INVITE") or KSR.is_method("ACK") or KSR.is_method("BYE"):
            KSR.dialog.dlg_manage()
            KSR.tm.t_relay()
            return 1
        return super().ksr_request_route(msg)


def mod_init():
    return dmq.attach(WithRoutes())
"""


def contacts(node: Commanded, user: str) -> list[str]:
    """Where a user is registered, as a node has it."""
    return re.findall(r"Address: (\S+)", node.kamcmd("ul.lookup", "location", user))


def dialogs(node: Commanded) -> dict[str, str]:
    """Call-ID -> state of the dialogs that a node knows."""
    text = node.kamcmd("dlg.list")
    return dict(re.findall(r"call-id: (\S+).*?state: (\d)", text, re.DOTALL))


def register(sip: SipSocket, at: str, user: str, expires: int) -> None:
    """Register a user of the socket at the node with the address at."""
    headers: dict[str, str | None] = {
        "To": f"<sip:{user}@{at}>",
        "From": f"<sip:{user}@{at}>;tag=1",
        "Contact": f"<sip:{user}@{sip.name}>",
        "Expires": str(expires),
    }
    data = request(at, method="REGISTER", user="", via=sip.name, headers=headers)
    reply = sip.ask(data, at)
    assert reply is not None and reply.code == 200, reply


def publish(sip: SipSocket, at: str, user: str) -> None:
    """Publish at the node with the address at that a user is there."""
    body = (
        f'<?xml version="1.0"?><presence xmlns="urn:ietf:params:xml:ns:pidf" '
        f'entity="sip:{user}@{at}"><tuple id="t"><status><basic>open</basic></status></tuple>'
        "</presence>"
    ).encode()
    headers: dict[str, str | None] = {
        "To": f"<sip:{user}@{at}>",
        "From": f"<sip:{user}@{at}>;tag=1",
        "Event": "presence",
        "Expires": "600",
        "Content-Type": "application/pidf+xml",
    }
    data = request(at, method="PUBLISH", user=user, body=body, via=sip.name, headers=headers)
    reply = sip.ask(data, at)
    assert reply is not None and reply.code == 200, reply


def published(node: Commanded) -> set[str]:
    """The users whose presence a node knows."""
    return set(re.findall(r"user: (\w+)", node.kamcmd("presence.presentity_list")))


@contextmanager
def call(
    through: str, caller_address: str = "127.0.0.11", callee_address: str = "127.0.0.12"
) -> Iterator[str]:
    """A call through a node; its Call-ID.  It ends with the context."""
    with SipSocket(caller_address) as caller, SipSocket(callee_address) as callee:

        def send(method: str, to_tag: str, cseq: int) -> bytes:
            return request(
                callee_address,
                port=callee.socket.getsockname()[1],
                method=method,
                user="callee",
                via=caller.name,
                headers={
                    "Call-ID": call_id,
                    "From": f"<sip:caller@{caller.name}>;tag=a",
                    "To": f"<sip:callee@{callee.name}>{to_tag}",
                    "Contact": f"<sip:caller@{caller.name}>",
                    "CSeq": f"{cseq} {method}",
                    "Max-Forwards": "10",
                },
            )

        def answer(method: str) -> None:
            got = callee.receive()
            assert got is not None and got.startswith(method.encode()), got
            head = got.split(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
            names = ("via", "from", "call-id", "cseq", "record-route")
            lines = [line for line in head if line.split(":")[0].lower() in names]
            to = next(line for line in head if line.startswith("To:"))
            lines += [to if "tag=" in to else f"{to};tag=b", f"Contact: <sip:callee@{callee.name}>"]
            text = "\r\n".join(["SIP/2.0 200 OK", *lines, "Content-Length: 0", "", ""])
            callee.send(text.encode(), through)

        def expect_200() -> None:
            while True:
                got = caller.receive()
                assert got is not None
                if got.startswith(b"SIP/2.0 200"):
                    return

        call_id = f"call-{caller.name}"
        caller.send(send("INVITE", "", 1), through)
        answer("INVITE")
        expect_200()
        caller.send(send("ACK", ";tag=b", 1), through)
        assert (callee.receive() or b"").startswith(b"ACK")
        yield call_id
        caller.send(send("BYE", ";tag=b", 2), through)
        answer("BYE")
        expect_200()
