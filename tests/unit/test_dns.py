"""SRV answers as servers write them, and as they do not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kemi_dmq.dns import (
    MAX_TARGETS,
    SRV,
    DnsError,
    ResolvConf,
    Srv,
    SrvAnswer,
    build_query,
    parse_answer,
    parse_resolv_conf,
)
from tests.support import dns

NAME = "_sip._udp.bus.example"
QUERY = build_query(0x1234, NAME)


def answer(*records: tuple[bytes, int, bytes], flags: int = 0x8180, query: bytes = QUERY) -> bytes:
    head = query[:2] + b"".join(n.to_bytes(2) for n in (flags, 1, len(records), 0, 0))
    body = b"".join(
        owner + kind.to_bytes(2) + b"\0\1" + bytes(4) + len(data).to_bytes(2) + data
        for owner, kind, data in records
    )
    return head + query[12:] + body


def test_a_question_asks_for_srv_records() -> None:
    assert QUERY[:2] == b"\x12\x34" and QUERY[2:12] == b"\1\0\0\1\0\0\0\0\0\0"
    assert QUERY[12:] == b"\4_sip\4_udp\3bus\7example\0" + b"\0\x21\0\1"
    assert build_query(1, NAME + ".") == build_query(1, NAME)


@pytest.mark.parametrize("name", ["", "a..b", "x" * 64, "é.example", ".".join(["abc"] * 64)])
def test_what_is_no_name_is_not_asked_for(name: str) -> None:
    with pytest.raises(DnsError):
        build_query(1, name)


def test_records_come_in_the_order_in_which_they_are_to_be_tried() -> None:
    data = answer(
        (b"\xc0\x0c", SRV, dns.srv(20, 0, 5060, "c.example")),
        (b"\xc0\x0c", SRV, dns.srv(10, 1, 5070, "B.example")),
        (b"\xc0\x0c", SRV, dns.srv(10, 9, 5080, "a.example")),
        (b"\xc0\x0c", SRV, dns.srv(0, 0, 0, ".")),  # "not offered"
    )
    assert parse_answer(data, QUERY).records == (
        Srv(10, 9, 5080, "a.example"),
        Srv(10, 1, 5070, "b.example"),
        Srv(20, 0, 5060, "c.example"),
    )


def test_an_alias_before_the_records_and_a_name_that_points_back() -> None:
    # "example" stands in the question at 12 + 5 + 5 + 4
    target = dns.srv(1, 2, 5060, "")[:-1] + b"\1a\xc0\x1a"
    data = answer(
        (b"\xc0\x0c", dns.CNAME, dns.name("_sip._udp.other.example")),
        (dns.name("_sip._udp.other.example"), SRV, target),
    )
    assert parse_answer(data, QUERY).records == (Srv(1, 2, 5060, "a.example"),)


def test_no_records_no_such_name_a_failure_and_an_answer_cut_short() -> None:
    assert parse_answer(answer(), QUERY) == SrvAnswer()
    assert parse_answer(answer(flags=0x8183), QUERY) == SrvAnswer()
    assert parse_answer(answer(flags=0x8182), QUERY) == SrvAnswer(failed=True)
    assert parse_answer(answer(flags=0x8380), QUERY) == SrvAnswer(truncated=True)


def test_more_targets_than_enough_are_left_out() -> None:
    records = [(b"\xc0\x0c", SRV, dns.srv(1, 1, 5060, f"n{n}.example")) for n in range(100)]
    assert len(parse_answer(answer(*records), QUERY).records) == MAX_TARGETS


@pytest.mark.parametrize(
    "data",
    [
        b"",
        QUERY,  # a question
        answer(query=build_query(0x1235, NAME)),
        answer(query=build_query(0x1234, "_sip._udp.other.example")),
        answer((b"\xc0\x0c", SRV, dns.srv(1, 1, 5060, "a.example")))[:-3],
        answer((b"\xc0\x0c", SRV, b"\0\1\0\1\x13\xc4\xc0\xff")),  # points behind the end
        # A name that points to itself: the question is 27 bytes long, the record's name 12
        answer((b"\xc0\x27", SRV, b"")),
        answer((b"\x80\x0c", SRV, b"")),
    ],
)
def test_what_is_no_answer_to_the_question(data: bytes) -> None:
    with pytest.raises(DnsError):
        parse_answer(data, QUERY)


@given(st.binary(max_size=200))
def test_no_answer_breaks_the_parser(data: bytes) -> None:
    for text in (data, QUERY[:2] + b"\x80\0" + data, answer() + data):
        try:
            parse_answer(text, QUERY)
        except DnsError:
            pass


def test_resolv_conf() -> None:
    conf = parse_resolv_conf(
        "# comment\nsearch bus.example. lab ; x\nnameserver 10.0.0.53\nnameserver ::1 # second\n"
        "nameserver nobody\noptions timeout:2 attempts:3 ndots:2 rotate\n"
    )
    assert conf == ResolvConf(("10.0.0.53", "::1"), ("bus.example", "lab"), 2, 2, 3)
    assert parse_resolv_conf("") == ResolvConf()
    assert conf.names("a") == ["a.bus.example", "a.lab", "a"]
    assert conf.names("_sip._udp.a") == [
        "_sip._udp.a",
        "_sip._udp.a.bus.example",
        "_sip._udp.a.lab",
    ]
    assert conf.names("a.") == ["a"]


@given(st.text())
def test_any_resolv_conf_can_be_read(text: str) -> None:
    conf = parse_resolv_conf(text)
    assert 1 <= len(conf.nameservers) <= 3 and conf.timeout > 0
