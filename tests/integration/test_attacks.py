"""What tried to break a node, and does not any more."""

from __future__ import annotations

import socket
import threading

import pytest

from tests.support.kamailio import BOTH_ROUTINGS, SCRIPT, Bed, wait_for, whole
from tests.support.sip import SipSocket, request

A, B, C, D = "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"

pytestmark = BOTH_ROUTINGS
NOTIFY = f"sip:{A}:5060"
CHANNEL = "notification_peer"


def tell(sip: SipSocket, body: str) -> int:
    data = request(A, user=CHANNEL, body=body.encode(), via=sip.name, sender=f"{D}:5060")
    reply = sip.ask(data, A)
    assert reply is not None
    return reply.code


def test_a_node_of_a_transport_that_this_kamailio_has_not_does_no_harm(bed: Bed) -> None:
    """corex would connect without a socket of that transport, and Kamailio's TCP process die."""
    # With a TCP process, without a TCP socket.
    a = bed.python(A, listen=f"listen=udp:{A}:5060", defines={"outbox": 0})
    a.start()
    connected = threading.Event()
    with socket.create_server((D, 5070)) as server, SipSocket(D, 5060) as sip:
        server.settimeout(2)

        def accept() -> None:
            try:
                connection, _ = server.accept()
            except TimeoutError:
                return
            connected.set()
            with connection:
                connection.recv(4096)
                connection.sendall(b"SIP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=accept)
        thread.start()
        assert tell(sip, f"sip:{D}:5070;transport=tcp;status=active\r\n") == 200
        wait_for(lambda: f"sip:{D}:5070;transport=tcp" in a.nodes())
        assert a.command("bcast", body="x") == -1
        thread.join()
    assert not connected.is_set()
    assert a.stop() < 2


def test_names_that_no_dns_can_hold_do_not_stop_the_look_ups(bed: Bed) -> None:
    a = bed.python(A)
    a.start()
    with SipSocket(D, 5060) as sip:
        long = "".join(f"sip:{'a' * 64}.{n}x:5060;status=active\r\n" for n in range(8))
        assert tell(sip, long) == 200
        assert tell(sip, "sip:localhost:5099;status=active\r\n") == 200
        wait_for(lambda: "sip:localhost:5099" in a.nodes(), 5, "names still resolve")


def test_a_node_that_comes_back_with_another_transport_is_used_with_that(bed: Bed) -> None:
    listen = "listen=udp:{0}:5060\nlisten=tcp:{0}:5060"
    a = bed.python(A, listen=listen.format(A))
    tcp = {"server_address": f"sip:{B}:5060;transport=tcp"}
    b = bed.python(B, NOTIFY, listen=listen.format(B), defines=tcp)
    a.start()
    b.start()
    wait_for(lambda: f"sip:{B}:5060;transport=tcp" in a.active(), 3)
    b.wait_settled()
    b.stop()
    # Over TCP the goodbye may be lost: Kamailio's TCP process is stopped at the same time.
    wait_for(lambda: a.active() == {a.uri}, 25)
    b = bed.python(B, NOTIFY)
    b.start()
    wait_for(whole(a, b), 3)
    assert a.command("bcast", body="x") == 0
    wait_for(lambda: b.events("message"))


@pytest.mark.parametrize("what", ["sys.exit()", "raise KeyboardInterrupt"])
def test_a_callback_that_wants_to_end_the_process_is_a_500_like_any_other(
    bed: Bed, what: str
) -> None:
    script = SCRIPT.read_text().replace(
        'raise RuntimeError("as the message asked for")', f"import sys; {what}"
    )
    script = script.replace('note("init",', f'import sys\n    {what}\n    note("init",')
    a, b = bed.python(A, script=script), bed.python(B, NOTIFY)
    a.start()
    b.start()
    wait_for(whole(a, b), 3)
    with SipSocket(D) as sip:
        data = request(A, body=b"raise", via=sip.name)
        for _ in range(2):
            reply = sip.ask(data, A)
            assert reply is not None and reply.code == 500
    assert a.log().count("peer acme: its callback raised") == 1
    wait_for(lambda: a.log().count("init_callback of peer acme raised") == 1)
    wait_for(lambda: a.events("event", name="dmq:peer-up"), why="events go on")


def test_a_scripts_own_uac_request_after_ours_is_its_own(bed: Bed) -> None:
    script = SCRIPT.read_text().replace(
        "    def do_socket(",
        "    def do_own(self, args):\n"
        "        api.bcast_message(acme, 'ours', resp_cback="
        "kemi_dmq.ResponseCallback(on_reply, 'ours'))\n"
        "        KSR.pv.sets('$uac_req(method)', 'OPTIONS')\n"
        "        KSR.pv.sets('$uac_req(ruri)', args['to'])\n"
        "        KSR.pv.sets('$uac_req(furi)', 'sip:me@127.0.0.2')\n"
        "        return KSR.uac.uac_req_send()\n"
        "    def do_socket(",
    )
    a, b = bed.python(A, script=script), bed.python(B, NOTIFY)
    a.start()
    b.start()
    wait_for(whole(a, b), 3)
    with SipSocket(D, 5060) as sip:
        assert a.command("own", to=f"sip:{D}:5060") == 1
        data = sip.receive()
        assert data is not None and data.startswith(b"OPTIONS")
        assert b"ours" not in data and b"kemi_dmq" not in data
        head = data.split(b"\r\n\r\n")[0].split(b"\r\n")
        kept = [
            h for h in head if h.split(b":")[0] in (b"Via", b"From", b"To", b"Call-ID", b"CSeq")
        ]
        sip.send(b"\r\n".join([b"SIP/2.0 200 OK", *kept, b"Content-Length: 0", b"", b""]), A)
        wait_for(lambda: a.events("reply"))
        assert a.command("health")["engine_pid"] > 0  # a turn for the answer above
    assert len(a.events("reply", param="ours")) == 1


def test_a_c_node_with_sixty_others_around_works_on(bed: Bed) -> None:
    """A C node's list breaks at 26: it is told of no more than it can hold."""
    a, c = bed.python(A), bed.c(C, NOTIFY)
    a.start()
    c.start()
    wait_for(whole(a, c), 3)
    sockets = [SipSocket(f"127.0.1.{n}", 5060) for n in range(1, 61)]
    try:
        for number, sip in enumerate(sockets, 1):
            uri = f"sip:127.0.1.{number}:5060"
            data = request(
                A,
                user=CHANNEL,
                body=f"{uri};status=active\r\n".encode(),
                via=sip.name,
                sender=f"127.0.1.{number}:5060",
                headers={"Max-Forwards": "2", "Supported": "kemi_dmq-1"},
            )
            sip.send(data, A)
        wait_for(lambda: len(a.active()) == 62)
        assert len(c.active()) < 30
        before = len(a.events("message"))
        assert c.bcast(b"still here") == 200
        wait_for(lambda: len(a.events("message")) > before)
        # It answers node lists, and pings.
        with SipSocket(D) as sip:
            data = request(C, user=CHANNEL, body=b"", via=sip.name, sender=f"{D}:5060")
            reply = sip.ask(data, C)
            assert reply is not None and reply.code == 200 and A.encode() in reply.body
    finally:
        for sip in sockets:
            sip.socket.close()


@pytest.mark.parametrize("transport", ["tcp"])
def test_the_limit_over_tcp_is_what_the_receiver_reads(bed: Bed, transport: str) -> None:
    listen = "listen=udp:{0}:5060\nlisten=tcp:{0}:5060"
    uris = {address: f"sip:{address}:5060;transport={transport}" for address in (A, B, C)}
    a = bed.python(A, listen=listen.format(A), defines={"server_address": uris[A]})
    b = bed.python(B, uris[A], listen=listen.format(B), defines={"server_address": uris[B]})
    c = bed.c(C, uris[A], listen=f"listen=tcp:{C}:5060", server_address=uris[C])
    for node in (a, b, c):
        node.start()
    wait_for(lambda: a.active() == set(uris.values()), 5)
    answer = a.command("bcast", body="x", times=20_000)
    assert answer["error"] == "ValueError" and C in answer["text"]
    assert a.command("send", body="x", times=30_000, to=uris[B]) == 0
    wait_for(lambda: b.events("message", size=30_000))
    assert a.command("bcast", body="x", times=15_000) == 0
    wait_for(lambda: b.events("message", size=15_000) and len(c.got()) == 1)


def test_an_alias_is_no_address_that_this_kamailio_listens_on(bed: Bed) -> None:
    a = bed.python(
        A, defines={"server_address": "sip:10.1.2.3:5060"}, before='alias="10.1.2.3:5060"'
    )
    a.start(wait=False)
    assert a.process is not None and a.process.wait(10) != 0
    assert "that this Kamailio listens on" in a.log()
