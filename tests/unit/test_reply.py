"""Replies that another process sends: what RFC 3261, RFC 3581 ask for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kemi_dmq.reply import RequestHead

SOURCE = ("10.0.0.9", 5070)
HEADERS = (
    "Via: SIP/2.0/UDP 10.0.0.9:5060;branch=z9hG4bK1\r\n"
    "To: <sip:acme@10.0.0.1>\r\n"
    "From: <sip:acme@10.0.0.9>;tag=1\r\n"
    "CSeq: 10 KDMQ\r\n"
    "Call-ID: 1@10.0.0.9\r\n"
    "Max-Forwards: 1\r\n"
    "Supported: kemi_dmq-1\r\n"
    "User-Agent: kemi_dmq (kamailio 5.6.3)\r\n"
    "Content-Length: 0"
)


def reply(headers: str, body: str = "", source: tuple[str, int] = SOURCE) -> str:
    return RequestHead(headers).reply(
        299, "Fine", source=source, tag="t", server="s", body=body, content_type="text/x"
    )


def with_via(via: str) -> str:
    return HEADERS.replace("SIP/2.0/UDP 10.0.0.9:5060;branch=z9hG4bK1", via)


def test_a_reply_copies_what_makes_it_the_requests() -> None:
    assert reply(HEADERS, "grüße") == (
        "SIP/2.0 299 Fine\r\n"
        "Via: SIP/2.0/UDP 10.0.0.9:5060;branch=z9hG4bK1\r\n"
        "To: <sip:acme@10.0.0.1>;tag=t\r\n"
        "From: <sip:acme@10.0.0.9>;tag=1\r\n"
        "CSeq: 10 KDMQ\r\n"
        "Call-ID: 1@10.0.0.9\r\n"
        "Supported: kemi_dmq-1\r\n"
        "Server: s\r\n"
        "Content-Type: text/x\r\n"
        "Content-Length: 7\r\n"
        "\r\n"
        "grüße"
    )
    assert reply(HEADERS).endswith("Server: s\r\nContent-Length: 0\r\n\r\n")
    head = RequestHead(HEADERS)
    assert head.value("supported") == "kemi_dmq-1" and head.value("user-agent").startswith("kemi_")
    assert head.value("subject") == ""


@pytest.mark.parametrize(
    # UDP: SIP/2.0/UDP, "+": where it came from
    ("via", "answered", "port"),
    [
        ("UDP 10.0.0.9;branch=1", "UDP 10.0.0.9;branch=1", 5060),
        ("UDP a.example:5080;branch=1", "UDP a.example:5080;branch=1+", 5080),
        ("UDP a:5080;rport;branch=1", "UDP a:5080;rport=5070;branch=1+", 5070),
        ("UDP 10.0.0.9;branch=1;RPORT", "UDP 10.0.0.9;branch=1;RPORT=5070+", 5070),
        ("UDP a;xrport;branch=rport", "UDP a;xrport;branch=rport+", 5060),
        ('UDP a;p="b,c\\"";rport, UDP d', 'UDP a;p="b,c\\"";rport=5070+, UDP d', 5070),
        ("UDP [2001:DB8::1]:5090 ;branch=1", "UDP [2001:DB8::1]:5090 ;branch=1+", 5090),
        ("nonsense", "nonsense", 5070),
    ],
)
def test_the_topmost_via_says_where_the_request_came_from(
    via: str, answered: str, port: int
) -> None:
    via, answered = (text.replace("UDP", "SIP/2.0/UDP") for text in (via, answered))
    answered = answered.replace("+", ";received=10.0.0.9")
    assert f"\r\nVia: {answered}\r\nTo: " in reply(with_via(via))
    head = RequestHead(with_via(via))
    assert head.back_to("udp", SOURCE) == ("10.0.0.9", port)
    assert head.back_to("tcp", SOURCE) == SOURCE, "over TCP on the connection"


def test_an_ipv6_sender_is_known_by_its_address_with_or_without_brackets() -> None:
    via = "SIP/2.0/UDP [2001:db8::9]:5060;branch=1"
    for ip in ("2001:db8::9", "[2001:db8::9]"):
        assert f"Via: {via}\r\n" in reply(with_via(via), source=(ip, 5060))


def test_compact_and_folded_headers_and_several_vias() -> None:
    text = reply(
        "v: SIP/2.0/UDP 10.0.0.9;branch=1\r\nVIA : SIP/2.0/TCP b;branch=2\r\n"
        't: "x;tag=y" <sip:a;tag=z@b>\r\nf: <sip:c@d>\r\n ;tag=1\r\ni:7\r\nCSEQ: 1 KDMQ'
    )
    assert "Via: SIP/2.0/UDP 10.0.0.9;branch=1\r\nVia: SIP/2.0/TCP b;branch=2\r\n" in text
    assert 'To: "x;tag=y" <sip:a;tag=z@b>;tag=t\r\n' in text
    assert "From: <sip:c@d> ;tag=1\r\n" in text and "Call-ID: 7\r\n" in text
    assert "To: <sip:a>;Tag=8\r\n" in reply("To: <sip:a>;Tag=8")


@given(st.text(max_size=300))
def test_any_headers_can_be_answered(headers: str) -> None:
    head = RequestHead(headers)
    head.back_to("udp", SOURCE)
    assert reply(headers).startswith("SIP/2.0 299 Fine\r\nVia: ")
