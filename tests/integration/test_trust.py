"""Attackers at real Kamailios: who must not add, remove or disable a node, nor get data."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kemi_dmq.trust import HEADER, Key, Keyring, Parts
from tests.support.kamailio import BOTH_ROUTINGS, SCRIPT, Bed, PythonNode, wait_for, whole
from tests.support.sip import SipReply, SipSocket, request

A, B, C, X = "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.9"
NOTIFY = f"sip:{A}:5060"
CHANNEL = "notification_peer"
SECRET = "e2kPm0TnLx8vQd5sYw3u"
KEYS = {"keys": f"k1:{SECRET}"}
RING = Keyring([Key("k1", SECRET.encode())])
_numbers = iter(range(1, 10**9))


def signed(
    to: str,
    *,
    user: str = "acme",
    body: str = "hello",
    sender: str = B,
    ring: Keyring = RING,
    age: float = 0.0,
    nonce: str = "",
    sent: dict[str, Any] | None = None,
) -> bytes:
    """A signed request; sent: what is put on the wire in place of what was signed."""
    ruri = f"sip:{user}@{to}:5060"
    from_uri = f"sip:{user}@{sender}:5060"
    kind = "text/plain" if body else ""
    parts = Parts("KDMQ", ruri, from_uri, user, kind, body.encode())
    nonce = nonce or f"n{time.time_ns()}.{next(_numbers)}"
    header = ring.sign(parts, int((time.time() - age) * 1000), nonce)
    headers: dict[str, str | None] = {HEADER: header.partition(":")[2].strip()}
    headers["Call-ID"] = f"dmq-{nonce}"  # the engine's end with the nonce
    given = {"user": user, "body": body.encode(), "sender": f"{sender}:5060", **(sent or {})}
    headers.update(given.pop("headers", {}))
    return request(to, headers=headers, **given)


def ask(data: bytes, to: str = A, address: str = X) -> SipReply:
    with SipSocket(address) as sip:
        via = re.search(rb"Via: SIP/2.0/UDP ([^;]+);", data)
        assert via is not None
        reply = sip.ask(data.replace(via[1], sip.name.encode(), 1), to)
    assert reply is not None
    return reply


def two(bed: Bed, **more: Any) -> tuple[PythonNode, PythonNode]:
    """Two nodes with a key that know each other."""
    a = bed.python(A, **{"defines": KEYS, **more})
    b = bed.python(B, NOTIFY, **{"defines": KEYS, **more})
    a.start()
    b.start()
    wait_for(whole(a, b), 3)
    return a, b


@contextmanager
def listening(address: str) -> Iterator[list[bytes]]:
    """What arrives at an address."""
    got: list[bytes] = []
    with SipSocket(address, 5060) as sip:
        ends = threading.Event()

        def run() -> None:
            while not ends.is_set():
                data = sip.receive(0.05)
                if data is not None:
                    got.append(data)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield got
        finally:
            ends.set()
            thread.join()


# Allowed networks


@BOTH_ROUTINGS
def test_who_is_in_no_allowed_network_gets_403_and_the_log_says_what_to_set(bed: Bed) -> None:
    a = bed.python(A, defines={"allowed_networks": f"127.0.0.1, {A}, {B}"})
    b = bed.python(B, NOTIFY)
    a.start()
    b.start()
    wait_for(whole(a, b), 3)
    for data in (
        request(A, user=CHANNEL, body=f"sip:{X}:5060;status=active\r\n".encode()),
        request(A, user=CHANNEL, sender=f"{B}:5060", body=b"sip:127.0.0.3;status=disabled\r\n"),
        request(A, body=b"hello"),
        request(A, user="nobody"),
        request(A, user=""),
    ):
        reply = ask(data)
        assert (reply.code, reply.reason) == (403, "Network Not Allowed")
    assert a.counters()["not_allowed"] == 5 and not a.events("message")
    assert whole(a, b)()
    lines = [line for line in a.log().splitlines() if "DMQ_ALLOWED_NETWORKS" in line]
    assert len(lines) == 1 and X in lines[0]
    assert b.command("bcast", body="x") == 0
    wait_for(lambda: a.events("message"))


@pytest.mark.parametrize("call", ["workers", "dropin"])
def test_allowed_networks_hold_however_requests_are_handled(bed: Bed, call: str) -> None:
    script = None
    defines: dict[str, object] = {"allowed_networks": f"127.0.0.1,{A}"}
    before = ""
    if call == "workers":
        defines["num_workers"] = 2
    else:
        script = SCRIPT.read_text().replace("dmq.handle_message()", "KSR.dmq.process_message()")
    a = bed.python(A, defines=defines, before=before, script=script)
    a.start()
    assert ask(request(A, body=b"hello")).code == 403
    assert ask(request(A, body=b"hello"), address=A).code == 200
    wait_for(lambda: len(a.events("message")) == 1)


def test_a_name_in_notification_address_stands_for_allowed_addresses(bed: Bed) -> None:
    """192.0.2.7 is in no default network, but a name in the settings means it."""
    place = "192.0.2.7"
    with own_address(place):
        hosts = bed.directory / "hosts"
        hosts.write_text(f"127.0.0.1 localhost\n{place} bus.example\n")
        a = bed.python(A, "sip:bus.example:5060", listen=f"listen=udp:{A}:5060")
        a.prefix = ["unshare", "-m", "sh", "-c", f'mount --bind {hosts} /etc/hosts; exec "$@"', "-"]
        a.start()
        time.sleep(0.5)
        assert ask(request(A, body=b"hello"), address=place).code == 200
        assert ask(request(A, body=b"hello")).code == 200  # loopback is, too
    with own_address("192.0.2.8"):
        assert ask(request(A, body=b"hello"), address="192.0.2.8").code == 403


@contextmanager
def own_address(address: str) -> Iterator[None]:
    import subprocess

    subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", "address", "del", f"{address}/32", "dev", "lo"], check=True)


# Answers that nobody asked for


def test_an_answer_from_where_nobody_was_asked_is_not_believed(bed: Bed) -> None:
    """The attacker is asked itself, so it knows a Call-ID; it answers for another node."""
    a = bed.python(A)
    a.start()
    evil = f"sip:{X}:5060;status=active\r\n".encode()
    with SipSocket("127.0.0.8", 5060) as member, SipSocket(X) as outsider:
        body = b"sip:127.0.0.8:5060;status=active\r\n"
        member.ask(request(A, user=CHANNEL, body=body, sender="127.0.0.8:5060", via=member.name), A)
        ping = wait_for(member.receive) or b""
        kept = [
            line
            for line in ping.split(b"\r\n")
            if line.split(b":")[0] in (b"Via", b"From", b"To", b"CSeq")
        ]
        call_id = re.search(rb"Call-ID: (dmq-\S+)", ping)
        assert call_id is not None
        head = [b"SIP/2.0 200 OK", *kept, b"Content-Type: text/plain"]

        def answer(sip: SipSocket, name: bytes) -> None:
            length = b"Content-Length: %d" % len(evil)
            sip.send(b"\r\n".join([*head, b"Call-ID: " + name, length, b"", evil]), A)

        answer(outsider, call_id[1])
        answer(member, call_id[1][:-1] + b"_")
        answer(member, call_id[1].rpartition(b".")[0])
        wait_for(lambda: a.counters()["answers_refused"] == 3)
        assert f"sip:{X}:5060" not in a.nodes()
        answer(member, call_id[1])
        wait_for(lambda: f"sip:{X}:5060" in a.nodes())  # who is on the bus is believed


# Keys


@BOTH_ROUTINGS
def test_nodes_with_the_same_key_work_as_without(bed: Bed) -> None:
    a, b = two(bed)
    assert b.command("bcast", body="x", param="p") == 0
    wait_for(lambda: a.events("message", node=b.uri))
    wait_for(lambda: b.events("reply", code=200, param="p"))
    assert b.command("bcast", hex="00ff80") == 0
    wait_for(lambda: a.events("message", body="00ff80"))
    assert b.command("bcast", body="") == 0
    wait_for(lambda: a.events("message", size=0))
    assert b.command("bcast", body="y", times=30_000) == 0
    wait_for(lambda: a.events("message", size=30_000))
    before = time.monotonic()
    b.stop()
    wait_for(lambda: b.uri not in a.active(), 2)
    assert time.monotonic() - before < 2
    counters = a.counters()
    assert counters["not_signed"] == counters["replays"] == counters["answers_refused"] == 0
    for node in (a, b):
        assert SECRET not in node.log()


@pytest.mark.parametrize("transport", ["tcp", "udp6"])
def test_keys_over_tcp_and_ipv6(bed: Bed, transport: str) -> None:
    uris: list[str] = []
    nodes: list[PythonNode] = []
    for address in (A, B):
        if transport == "tcp":
            uri = f"sip:{address}:5060;transport=tcp"
            more = f"listen=tcp:{address}:5060"
        else:
            uri = f"sip:[::1]:507{address[-1]}"
            more = f"listen=udp:{uri[4:]}"
        listen = f"listen=udp:{address}:5060\n{more}"
        given = {**KEYS, "server_address": uri}
        notify = uris[0] if uris else ""
        nodes.append(bed.python(address, notify, listen=listen, defines=given))
        uris.append(uri)
    a, b = nodes
    a.start()
    b.start()
    wait_for(lambda: a.active() == b.active() == set(uris), 5)
    # As soon as it knows that the other one reads more than a C node.
    wait_for(lambda: b.command("bcast", body="x", times=20_000) == 0)
    wait_for(lambda: a.events("message", size=20_000, node=uris[1]))
    b.stop()
    if transport != "tcp":  # Kamailio's TCP process is stopped at the same time
        wait_for(lambda: uris[1] not in a.active(), 2)
    counters = a.counters()
    assert counters["not_signed"] == counters["answers_refused"] == 0


def test_stateless_and_worker_messages_are_signed_too(bed: Bed) -> None:
    a, b = two(bed, defines={**KEYS, "sl_send": 1, "num_workers": 2})
    assert b.command("bcast", body="x") == 0
    wait_for(lambda: a.events("message", node=b.uri))
    assert a.counters()["not_signed"] == 0


def test_an_outsider_neither_adds_nor_removes_nor_disables_a_node(bed: Bed) -> None:
    a, b = two(bed)
    with listening(X) as got:
        for address in (X, B, "127.0.0.10"):  # B: the source is forged
            for sender in (X, B):
                for body in (
                    f"sip:{X}:5060;status=active\r\n",
                    f"sip:{B}:5060;status=disabled\r\n",
                    f"sip:{B}:5060;status=not_active\r\nsip:{X}:5060;status=active\r\n",
                ):
                    data = request(A, user=CHANNEL, body=body.encode(), sender=f"{sender}:5060")
                    reply = ask(data, address=address)
                    assert (reply.code, reply.body) == (403, b"")
        assert ask(request(A, body=b"hello", sender=f"{B}:5060")).code == 403
        assert whole(a, b)()
        assert a.command("bcast", body="data") == 0
        wait_for(lambda: b.events("message", size=4))
        time.sleep(0.5)
        assert got == []
    assert not a.events("message")
    assert [e for e in a.events("event") if e["name"] != "dmq:peer-up"] == []
    assert a.counters()["not_signed"] == 19
    assert a.log().count("is not signed") == 1


def test_whom_a_node_asks_must_sign_to_be_believed(bed: Bed) -> None:
    """The attacker holds the notification address, and answers in plain."""
    a = bed.python(A, f"sip:{X}:5060", defines=KEYS)
    with SipSocket(X, 5060) as sip:
        a.start()
        body = f"sip:{X}:5060;status=active\r\n".encode()
        for _ in range(3):
            data = wait_for(sip.receive) or b""
            head = data.split(b"\r\n\r\n")[0].split(b"\r\n")
            kept = [
                h for h in head if h.split(b":")[0] in (b"Via", b"From", b"To", b"Call-ID", b"CSeq")
            ]
            length = b"Content-Length: %d" % len(body)
            kind = b"Content-Type: text/plain"
            # What it was asked with is no signature of its answer.
            auth = next(h for h in head if h.startswith(HEADER.encode()))
            for more in ([], [auth]):
                sip.send(
                    b"\r\n".join([b"SIP/2.0 200 OK", *kept, kind, *more, length, b"", body]), A
                )
        wait_for(lambda: a.counters()["answers_refused"] >= 6)
        assert a.active() == {a.uri}


CHANGES: dict[str, dict[str, Any]] = {
    "method": {"method": "KDMR"},
    "peer": {"user": "acmf"},
    "from": {"sender": "127.0.0.4:5060"},
    "from user": {"headers": {"From": f"<sip:acmf@{B}:5060>;tag=1"}},
    "body": {"body": b"hellp"},
    "longer body": {"body": b"hello "},
    "content type": {"headers": {"Content-Type": "text/plaim"}},
    "content length": {"headers": {"Content-Length": "4"}},
}


def test_a_changed_byte_of_what_is_signed_is_noticed(bed: Bed) -> None:
    script = SCRIPT.read_text().replace(
        'KSR.is_method("KDMQ")', 'KSR.pv.get("$rm") in ("KDMQ", "KDMR")'
    )
    a = bed.python(A, defines=KEYS, script=script)
    a.start()
    assert ask(signed(A)).code == 200
    for what, change in CHANGES.items():
        reply = ask(signed(A, sent=change))
        assert (what, reply.code) == (what, 403)
    data = signed(A).replace(b"Content-Type", b"c: text/html\r\nContent-Type", 1)
    assert ask(data).code == 403  # C modules see the first one, whatever its name
    data = signed(A)
    header = re.search(rb"DMQ-Auth: ([^\r]+)", data)
    assert header is not None
    for number, byte in enumerate(header[1]):
        changed = bytearray(header[1])
        changed[number] = ord("1") if byte != ord("1") else ord("2")
        assert ask(data.replace(header[1], bytes(changed))).code == 403, bytes(changed)
    ruri = data.replace(b"KDMQ sip:acme@127.0.0.2:5060", b"KDMQ sip:acme@127.0.0.2:5061", 1)
    assert ask(ruri).code == 403
    assert len(a.events("message")) == 1
    assert ask(data).code == 200  # nothing of all that has used its nonce up


def test_a_retransmission_is_answered_and_a_replay_is_not(bed: Bed) -> None:
    a = bed.python(A, defines=KEYS)
    b = bed.python(B, defines=KEYS)
    a.start()
    b.start()
    with SipSocket(X) as sip, SipSocket("127.0.0.10") as other:
        data = signed(A, body="answer 202 Fine secret")
        data = data.replace(b"127.0.0.1:5060;branch", sip.name.encode() + b";branch")
        first = sip.ask(data, A)
        again = sip.ask(data, A)
        assert first is not None and again is not None
        assert (first.code, first.body) == (again.code, again.body) == (202, b"secret")
        altered = [
            re.sub(rb"Call-ID: ", b"Call-ID: x", data),
            re.sub(rb"branch=z9hG4bK", b"branch=z9hG4bKx", data),
        ]
        for replay in altered:
            reply = sip.ask(replay, A)
            assert reply is not None and (reply.code, reply.body) == (403, b"")
            reply = sip.ask(replay, A)  # and its own retransmission
            assert reply is not None and reply.code == 403
        # The same bytes from elsewhere: the answer is for nobody else.
        other.send(data, A)
        reply = other.ask(data, A)
        assert reply is None or (reply.code, reply.body) == (403, b"")
        reply = sip.ask(data, B)
        assert reply is not None and reply.code == 403
    assert len(a.events("message")) == 1 and not b.events("message")
    assert a.counters()["replays"] == 3


def test_a_replayed_goodbye_removes_nobody(bed: Bed) -> None:
    a, _ = two(bed)
    data = signed(A, user=CHANNEL, body=f"sip:{X}:5060;status=active\r\n", sender=X)
    gone = signed(A, user=CHANNEL, body=f"sip:{X}:5060;status=not_active\r\n", sender=X)
    with SipSocket(X, 5060) as sip:

        def tell(data: bytes) -> int:
            reply = sip.ask(data.replace(b"127.0.0.1:5060", sip.name.encode(), 1), A)
            assert reply is not None
            return reply.code

        assert tell(data) == 200 and tell(gone) == 200
        wait_for(lambda: f"sip:{X}:5060" not in a.active())
        assert (
            tell(signed(A, user=CHANNEL, body=f"sip:{X}:5060;status=active\r\n", sender=X)) == 200
        )
        wait_for(lambda: f"sip:{X}:5060" in a.active())
        downs = wait_for(lambda: len(a.events("event", name="dmq:peer-down")))
        assert tell(gone) == 200  # a retransmission: answered, without effect
        assert tell(re.sub(rb"(Call-ID: [^\r]+)", rb"\1x", gone)) == 403
        assert tell(gone.replace(b"branch=z9hG4bK", b"branch=z9hG4bKx")) == 200
        elsewhere = ask(gone, address="127.0.0.10")
        assert (elsewhere.code, elsewhere.body) == (200, b"")
        assert len(a.events("event", name="dmq:peer-down")) == downs
        assert f"sip:{X}:5060" in a.active()


def test_unknown_keys_and_wrong_times_are_refused(bed: Bed) -> None:
    a = bed.python(A, defines={**KEYS, "key_window": 30})
    a.start()
    assert ask(signed(A, age=-29)).code == 200
    wait_for(lambda: len(a.events("message")) == 1)
    stranger = Keyring([Key("k2", SECRET.encode())])
    wrong = Keyring([Key("k1", b"another secret")])
    for data in (
        signed(A, ring=stranger),
        signed(A, ring=wrong),
        signed(A, age=32),
        signed(A, age=-32),
    ):
        assert ask(data).code == 403
    # From before this node started: perhaps seen before a restart.  Its sender signs it anew.
    assert ask(signed(A, age=20)).code == 503
    assert len(a.events("message")) == 1
    counters = a.counters()
    assert (counters["not_signed"], counters["early"]) == (4, 1)


OLD, NEW = f"old:{SECRET}", "new:other-secret-of-the-bus"
ROLLING = {
    "rotation": [
        {"keys": OLD},
        {"keys": f"{OLD},{NEW}"},
        {"keys": f"{NEW},{OLD}"},
        {"keys": NEW},
    ],
    "the first key": [{}, {"keys": OLD, "unsigned_networks": "127.0.0.0/8"}, {"keys": OLD}],
}


@pytest.mark.parametrize("what", ROLLING)
def test_keys_change_node_by_node_without_a_gap(bed: Bed, what: str) -> None:

    def restart(address: str, defines: dict[str, str], notify: str) -> PythonNode:
        node = bed.python(address, notify, defines=defines)
        node.start()
        return node

    first, *steps = ROLLING[what]
    a = restart(A, first, f"sip:{B}:5060")
    b = restart(B, first, f"sip:{A}:5060")
    for defines in steps:
        for which in (A, B):
            wait_for(whole(a, b), 5)
            for sender, receiver in ((a, b), (b, a)):
                before = len(receiver.events("message"))
                assert sender.command("bcast", body="x") == 0
                wait_for(lambda: len(receiver.events("message")) > before)  # noqa: B023
            node = a if which == A else b
            node.wait_settled()
            node.stop()
            if which == A:
                a = restart(A, defines, f"sip:{B}:5060")
            else:
                b = restart(B, defines, f"sip:{A}:5060")
    wait_for(whole(a, b), 5)
    assert a.counters()["not_signed"] == b.counters()["not_signed"] == 0


def test_c_nodes_on_the_list_need_not_sign(bed: Bed) -> None:
    more = {**KEYS, "unsigned_networks": C}
    a = bed.python(A, f"sip:{C}:5060", defines=more)
    b = bed.python(B, f"sip:{C}:5060", defines=more)
    c = bed.c(C)
    c.start()
    a.start()
    b.start()  # the two know each other through the C node alone
    wait_for(whole(a, b, c), 5)
    assert c.bcast(b"from C") == 200
    for node in (a, b):
        wait_for(lambda: node.events("message", node=f"sip:{C}:5060"))  # noqa: B023
    assert a.command("bcast", body="from Python") == 0
    wait_for(lambda: c.got() == ["from Python"] and b.events("message", node=a.uri))
    # Whom the C node believes, nobody else does.
    with listening(X) as got:
        body = f"sip:{X}:5060;status=active\r\n".encode()
        reply = ask(request(C, user=CHANNEL, body=body, sender=f"{X}:5060"), to=C)
        assert reply.code == 200
        wait_for(lambda: f"sip:{X}:5060" in c.nodes())
        time.sleep(6)  # the C node's pings tell of it
        assert a.active() == b.active() == {a.uri, b.uri, c.uri}
        assert a.command("bcast", body="data") == 0
        wait_for(lambda: "data" in c.got())
        asked = [data for data in got if f"@{A}:".encode() in data or f"@{B}:".encode() in data]
        for data in asked:  # only whether it is there
            assert data.startswith(b"KDMQ sip:notification_peer@")
            assert data.count(b";status=") == 0, "told of nobody"
    # Nor does it speak for others, forged or not.
    for sender in (B, X):
        body = f"sip:{B}:5060;status=disabled\r\n".encode()
        data = request(A, user=CHANNEL, body=body, sender=f"{sender}:5060")
        assert ask(data, address=C).code == 403
    assert a.active() == {a.uri, b.uri, c.uri}


def test_a_mixed_bus_without_keys_works_as_before(bed: Bed) -> None:
    a, b, c = bed.python(A), bed.python(B, NOTIFY), bed.c(C, NOTIFY)
    for node in (a, b, c):
        node.start()
    wait_for(whole(a, b, c), 5)
    # One that has keys asks it in vain, and harms nobody.
    keyed = bed.python("127.0.0.5", NOTIFY, defines=KEYS)
    keyed.start()
    wait_for(lambda: keyed.counters()["answers_refused"] > 1)
    assert keyed.active() == {keyed.uri}
    assert c.bcast(b"x") == 200 and a.command("bcast", body="y") == 0
    wait_for(lambda: a.events("message") and len(b.events("message")) == 2 and c.got() == ["y"])
    assert not keyed.events("message")


def test_c_modules_sign_and_are_protected(bed: Bed) -> None:
    table = """
loadmodule "htable.so"
modparam("htable", "enable_dmq", 1)
modparam("htable", "dmq_init_sync", 1)
modparam("htable", "htable", "t=>size=8;autoexpire=300;dmqreplicate=1;")
"""
    a, b = two(bed, defines={**KEYS, "bind_c_modules": 1}, after=table)
    b.kamcmd("htable.sets", "t", "key", "value")
    wait_for(lambda: "value" in a.kamcmd("htable.dump", "t"))
    body = b'{"action":1,"htname":"t","cname":"evil","type":2,"strval":"x","mode":1}'
    data = request(A, user="htable", body=body, headers={"Content-Type": "application/json"})
    assert ask(data).code == 403
    assert "evil" not in a.kamcmd("htable.dump", "t")
    assert a.counters()["not_signed"] == 1


def test_wrong_keys_stop_the_start_without_showing_them(bed: Bed) -> None:
    a = bed.python(A, defines={"keys": f"k1:{SECRET},{SECRET}"})
    a.start(wait=False)
    assert a.process is not None and a.process.wait(10) != 0
    assert "setting keys is (not shown here)" in a.log() and "entry 2" in a.log()
    assert SECRET not in a.log()


def test_a_flood_of_refused_requests_is_no_flood_of_lines(bed: Bed) -> None:
    a = bed.python(A, defines=KEYS)
    a.start()
    with SipSocket(X) as sip:
        for _ in range(300):
            sip.send(request(A, body=b"hello", via=sip.name), A)
        wait_for(lambda: a.counters()["not_signed"] >= 300)
    assert a.log().count("kemi_dmq: 403") == 1


def test_a_recorded_copy_of_a_kept_message_runs_nothing(bed: Bed) -> None:
    """The callback takes longer than the pause before the copy, which is signed anew."""
    a, b = two(bed)
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800)) as wire:
        wire.bind(("lo", 0))
        wire.settimeout(0.2)
        assert b.command("send", body="sleep 0.8", to=a.uri, ordered=True, param="p") == 0
        copies: list[bytes] = []
        while not b.events("reply", param="p"):
            with contextlib.suppress(TimeoutError):
                data = wire.recv(65535)[28:]  # behind IP's and UDP's headers
                if data.startswith(b"KDMQ sip:acme@") and data not in copies:
                    copies.append(data)
    assert len(copies) == 2 and len(a.events("message")) == 1
    for copy in copies:
        assert ask(re.sub(rb"Call-ID: ", b"Call-ID: x", copy)).code == 403
    assert len(a.events("message")) == 1


def test_an_answer_to_a_kept_message_from_elsewhere_is_not_believed(bed: Bed) -> None:
    """Who has seen one message knows the Call-IDs of all that follow."""
    a = bed.python(A)
    a.start()
    place = "127.0.0.8"
    with SipSocket(place, 5060) as member, SipSocket(X) as outsider:
        body = f"sip:{place}:5060;status=active\r\n".encode()
        member.ask(request(A, user=CHANNEL, body=body, sender=f"{place}:5060", via=member.name), A)
        wait_for(lambda: f"sip:{place}:5060" in a.active())

        def letter(text: bytes) -> bytes:
            data = wait_for(lambda: member.receive() or b"")
            while not data.endswith(text):
                data = wait_for(lambda: member.receive() or b"")
            return data

        def answer(data: bytes) -> bytes:
            names = (b"Via", b"From", b"To", b"CSeq", b"Call-ID")
            kept = [line for line in data.split(b"\r\n") if line.split(b":")[0] in names]
            return b"\r\n".join([b"SIP/2.0 200 OK", *kept, b"Content-Length: 0", b"", b""])

        send: dict[str, Any] = {"to": f"sip:{place}:5060", "ordered": True, "deadline": 60}
        assert a.command("send", body="one", param=1, **send) == 0
        one = letter(b"one")
        member.send(answer(one), A)
        wait_for(lambda: a.events("reply", param=1, code=200))
        # Its answer is ready before it has seen the next one.
        guess = re.sub(rb"(Call-ID: .*|branch=.*|tag=)1\b", rb"\g<1>2", answer(one))
        assert a.command("send", body="two", param=2, **send) == 0
        two_ = letter(b"two")
        outsider.send(guess, A)
        time.sleep(0.3)
        assert a.events("reply", param=2) == []
        member.send(answer(two_), A)
        wait_for(lambda: a.events("reply", param=2, code=200))


def test_a_node_without_keys_says_that_others_refuse_it(bed: Bed) -> None:
    a, b = bed.python(A, defines=KEYS), bed.python(B, NOTIFY)
    a.start()
    b.start()
    wait_for(lambda: "it refuses us" in b.log())
    assert b.counters()["answers_refused"] > 0 and b.active() == {b.uri}
