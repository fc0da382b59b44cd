"""What Kamailio says, and does, at start about settings."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.kamailio import BOTH_ROUTINGS, SCRIPT, Bed, PythonNode, wait_for, whole
from tests.support.sip import SipSocket, request

A, B, C = "127.0.0.2", "127.0.0.3", "127.0.0.4"


@pytest.mark.parametrize(
    ("defines", "said"),
    [
        ({"server_address": None}, "server_address is not set; it must be a SIP URI"),
        ({"server_address": "mysql://x"}, "server_address is 'mysql://x'; it must be a SIP URI"),
        ({"server_address": "sip:127.0.0.9:5060"}, "that this Kamailio listens on"),
        ({"server_address": f"sip:{A}:5061"}, "that this Kamailio listens on"),
        ({"server_address": f"sip:{A}:5060;transport=tcp"}, "that this Kamailio listens on"),
        ({"server_socket": "udp:127.0.0.9:5060"}, "server_socket is 'udp:127.0.0.9:5060'"),
        ({"server_socket": "127.0.0.2"}, "server_socket is '127.0.0.2'; it must be a listening"),
        ({"ping_interval": 4}, "ping_interval is 4; it must be a number from 5 to 86400"),
        ({"multi_notify": 2}, "multi_notify is 2; it must be a number from 0 to 1"),
        ({"ping_interval": "often"}, "ping_interval is 'often'"),
        ({"notification_address": "sip:"}, "notification_address is 'sip:'"),
    ],
)
@BOTH_ROUTINGS
def test_a_wrong_setting_stops_kamailio_with_one_line(
    bed: Bed, defines: dict[str, object], said: str
) -> None:
    node = bed.python(A, defines=defines)
    refused(node, said)


@BOTH_ROUTINGS
def test_an_unknown_keyword_stops_kamailio_with_one_line(bed: Bed) -> None:
    script = SCRIPT.read_text().replace("from_defs()", "from_defs(ping_intervall=7)")
    node = bed.python(A, script=script)
    refused(
        node,
        "ping_intervall is 7; it must be left out: there is no such setting; did you mean ping_int",
    )


@BOTH_ROUTINGS
def test_a_peer_with_the_name_of_the_notification_channel_stops_it_with_one_line(bed: Bed) -> None:
    node = bed.python(A, defines={"notification_channel": "acme"})
    refused(node, "notification_channel is 'acme'; it must be another name than that of a peer")


@BOTH_ROUTINGS
def test_so_does_one_of_a_module_that_was_imported_before(bed: Bed) -> None:
    script = f"import sys\nsys.path.append({str(bed.directory)!r})\nimport peers_of_mine\n"
    (bed.directory / "peers_of_mine.py").write_text(
        "import kemi_dmq\nkemi_dmq.dmq_load_api().register_dmq_peer(kemi_dmq.Peer('early'))\n"
    )
    node = bed.python(
        A, defines={"notification_channel": "early"}, script=script + SCRIPT.read_text()
    )
    refused(node, "notification_channel is 'early'; it must be another name than that of a peer")


def refused(node: PythonNode, said: str) -> None:
    node.start(wait=False)
    assert node.process is not None
    assert node.process.wait(10) != 0
    lines = [line for line in node.log().splitlines() if "kemi_dmq: setting" in line]
    assert len(lines) == 1 and said in lines[0], node.log()[-2000:]
    assert "Traceback" not in node.log()


def test_keyword_arguments_are_settings(bed: Bed) -> None:
    script = SCRIPT.read_text().replace(
        "kemi_dmq.DMQ.from_defs()",
        f"kemi_dmq.DMQ(server_address='sip:{A}:5060', notification_address=['sip:{B}:5060'],"
        " ping_interval=7)",
    )
    a, b = bed.python(A, script=script), bed.python(B)
    b.start()
    a.start()
    wait_for(whole(a, b), 2)


@BOTH_ROUTINGS
def test_an_advertised_address_needs_server_socket_only(bed: Bed) -> None:
    """server_address is then not checked, and is what the others see."""
    a = bed.python(
        A, defines={"server_address": "sip:127.0.0.9:5060", "server_socket": f"udp:{A}:5060"}
    )
    a.start()
    assert a.command("socket") == f"udp:{A}:5060"
    assert a.nodes() == {"sip:127.0.0.9:5060": "active"}


def test_an_address_that_the_listen_line_advertises_needs_none(bed: Bed) -> None:
    a = bed.python(
        A,
        defines={"server_address": "sip:127.0.0.9:5060"},
        listen=f"listen=udp:{A}:5060 advertise 127.0.0.9:5060",
    )
    a.start()
    assert a.nodes() == {"sip:127.0.0.9:5060": "active"}


@BOTH_ROUTINGS
@pytest.mark.parametrize("sl_send", [0, 1])
def test_all_leaves_from_server_socket_with_the_advertised_address_as_its_name(
    bed: Bed, sl_send: int
) -> None:
    listen = f"listen=udp:{A}:5060\nlisten=udp:{A}:5070\ndisable_tcp=yes"
    settings: dict[str, object] = {
        "server_address": "sip:127.0.0.9:5090",
        "server_socket": f"udp:{A}:5070",
        "worker_usleep": 1000,  # accepted, of no effect
        "sl_send": sl_send,
    }
    a = bed.python(A, f"sip:{B}:5060", listen=listen, defines=settings)
    with SipSocket(B, 5060) as peer:
        a.start()
        peer.socket.settimeout(5)

        def next_of(name: str) -> tuple[list[str], tuple[str, int]]:
            """The headers and the source of the next request to a peer of B."""
            while True:
                data, source = peer.socket.recvfrom(65535)
                if data.startswith(f"KDMQ sip:{name}@".encode()):
                    return data.decode().split("\r\n"), source

        def check(name: str) -> None:
            lines, source = next_of(name)
            assert source == (A, 5070)
            via, *more = [line for line in lines if line.startswith("Via:")]
            assert via.startswith(f"Via: SIP/2.0/UDP {A}:5070;") and not more
            (sender,) = [line for line in lines if line.startswith("From:")]
            assert f"<sip:{name}@127.0.0.9:5090>" in sender

        check("notification_peer")
        body = f"sip:{B}:5060;status=active\r\n".encode()
        data = request(A, user="notification_peer", body=body, via=peer.name, sender=peer.name)
        assert peer.ask(data, A) is not None
        wait_for(lambda: len(a.active()) == 2)
        assert a.command("bcast", body="x") == 0
        check("acme")


@BOTH_ROUTINGS
def test_several_notification_addresses_are_all_asked(bed: Bed) -> None:
    a, b = bed.python(A), bed.python(B)
    c = bed.python(C, f"sip:{A}:5060, sip:{B}:5060")
    for node in (a, b, c):
        node.start()
    wait_for(whole(a, b, c), 2, "two that do not know each other meet through C")


@pytest.mark.parametrize("multi_notify", [0, 1])
@BOTH_ROUTINGS
def test_a_name_with_several_addresses(bed: Bed, multi_notify: int, tmp_path: Path) -> None:
    """multi_notify 1 asks all addresses of a name, 0 the first one."""
    hosts = tmp_path / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n{A} bus.test\n{B} bus.test\n")
    a, b = bed.python(A), bed.python(B)
    c = bed.python(C, "sip:bus.test:5060", defines={"multi_notify": multi_notify})
    a.start()
    b.start()
    # A mount namespace in which /etc/hosts has the name; this machine's own stays as it is.
    c.prefix = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        f'mount --bind {hosts} /etc/hosts && exec "$@"',
        "sh",
    ]
    c.start()
    if multi_notify:
        wait_for(whole(a, b, c), 3)
    else:
        wait_for(whole(a, c), 3)
        time.sleep(0.5)
        assert b.active() == {b.uri}


def test_another_notification_channel_on_a_mixed_bus(bed: Bed) -> None:
    a = bed.python(A, defines={"notification_channel": "lists"})
    b = bed.python(B, f"sip:{A}:5060", defines={"notification_channel": "lists"})
    channel = 'modparam("dmq", "notification_channel", "lists")'
    c = bed.c(C, f"sip:{A}:5060", before=channel)
    other = bed.python("127.0.0.5", f"sip:{A}:5060")
    for node in (a, b, c, other):
        node.start()
    wait_for(whole(a, b, c), 3)
    wait_for(lambda: a.counters()["not_found"], why="the usual channel is no peer there")
    assert other.active() == {other.uri}
