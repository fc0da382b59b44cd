from __future__ import annotations

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from kemi_dmq.testing.sip_text import parse
from kemi_dmq.wire import (
    MAX_LINES,
    Agent,
    Form,
    Line,
    SipUri,
    Via,
    WireError,
    build_body,
    build_request,
    is_address,
    is_sip_uri,
    leave_status,
    normal_host,
    parse_agent,
    parse_body,
    parse_line,
    parse_uri,
)

from . import strategies as own


@given(own.uris)
def test_a_uri_reads_back_as_it_was_written(uri: SipUri) -> None:
    assert parse_uri(str(uri)) == uri


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("sip:10.0.0.1", SipUri("10.0.0.1", 5060)),
        ("SIP:Host.Example:5070", SipUri("host.example", 5070)),
        ("sips:host.example", SipUri("host.example", 5061, "tls")),
        ("sip:host;transport=tls", SipUri("host", 5061, "tls")),
        ("sip:host;lr;Transport=TCP;x=y", SipUri("host", 5060, "tcp")),
        ("sip:a:secret@host?x=y", SipUri("host", 5060, "udp", "a")),
        ("sip:[2001:DB8:0:0::1]:5080", SipUri("[2001:db8::1]", 5080)),
        ("sip:host;status=active", SipUri("host", 5060)),
    ],
)
def test_a_uri_in_all_its_spellings(text: str, uri: SipUri) -> None:
    assert parse_uri(text) == uri


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.0.0.1:5060",
        "sip:",
        "sip:@host",
        "sip:host:0",
        "sip:host:65536",
        "sip:host:",
        "sip:host;transport=ws",
        "sip:10.0.0.256",
        "sip:10.0.0",
        "sip:1.2.3.4.5",
        "sip:[::1",
        "sip:[1:2:3]",
        "sip:2001:db8::1",
        "sip:a..b",
        "sip:-host",
        "sip:ho st",
        "sip:host\n",
        "sip:host\0",
        "sip:hös",
        "tel:+4912345",
        "<sip:host>",
        "sip:host:٥٠٦٠",
    ],
)
def test_what_is_no_uri_is_refused(text: str) -> None:
    with pytest.raises(WireError):
        parse_uri(text)
    assert not is_sip_uri(text)


@given(st.text(max_size=60))
def test_no_text_breaks_the_parsers(text: str) -> None:
    is_sip_uri(text)
    is_sip_uri("sip:" + text)
    lines, bad = parse_body("sip:" + text)
    assert len(lines) + bad <= len(text) + 1


def test_a_host_has_one_spelling() -> None:
    assert normal_host("[0:0::0:1]") == "[::1]"
    assert normal_host("A.Example") == "a.example"
    assert is_address("[::1]") and is_address("10.0.0.1") and not is_address("a.example")


def test_transport_and_user_do_not_make_another_node() -> None:
    assert parse_uri("sip:a@h:1").key == parse_uri("sip:h:1;transport=tcp").key
    assert parse_uri("sip:h:1").key != parse_uri("sip:h:2").key


@given(own.lines)
def test_a_line_reads_back_as_it_was_written(line: Line) -> None:
    assert parse_line(f"{line.uri};status={line.status}") == line


@pytest.mark.parametrize("word", ["timeout", "pending", "not_active", "NOT_ACTIVE"])
def test_all_words_of_all_versions_for_a_node_that_is_away(word: str) -> None:
    assert parse_line(f"sip:10.0.0.1:5060;status={word}").status == "not_active"


@pytest.mark.parametrize("line", ["sip:h:5060", "sip:h;status=", "sip:h;status=up", "x;status=a"])
def test_a_line_without_a_known_status_is_refused(line: str) -> None:
    with pytest.raises(WireError):
        parse_line(line)


def test_the_user_of_a_line_is_not_part_of_the_node() -> None:
    assert parse_line("sip:x@10.0.0.1;status=active").uri == SipUri("10.0.0.1", 5060)


@given(st.lists(own.node_uris, unique_by=lambda uri: uri.key, max_size=30), own.statuses)
def test_a_body_reads_back_as_it_was_written(uris: list[SipUri], status: str) -> None:
    assert parse_body(build_body(uris, status)) == ([Line(uri, status) for uri in uris], 0)


@given(st.lists(own.lines, max_size=10), st.lists(st.sampled_from(["x", "sip:", "sip:h;status=?"])))
def test_bad_lines_are_counted_and_harm_no_other(lines: list[Line], garbage: list[str]) -> None:
    texts = [f"{line.uri};status={line.status}" for line in lines]
    mixed = [item for pair in zip(garbage, texts, strict=False) for item in pair]
    mixed += garbage[len(texts) :] + texts[len(garbage) :]
    found, bad = parse_body("\r\n".join(mixed))
    assert bad == len(garbage)
    assert found == list({line.uri.key: line for line in lines}.values())


def test_empty_lines_and_bare_line_ends_are_no_error() -> None:
    found, bad = parse_body("\n\nsip:10.0.0.1;status=active\n  \r\nsip:10.0.0.2;status=active\r\n")
    assert ([line.uri.host for line in found], bad) == (["10.0.0.1", "10.0.0.2"], 0)


def test_the_last_line_about_a_node_counts() -> None:
    found, _ = parse_body("sip:10.0.0.1;status=active\r\nsip:10.0.0.1;status=disabled\r\n")
    assert [line.status for line in found] == ["disabled"]


def test_a_list_that_is_too_long_is_refused_whole() -> None:
    assert parse_body("\n" * MAX_LINES) == ([], 0)
    with pytest.raises(WireError):
        parse_body("\n" * (MAX_LINES + 1))


@pytest.mark.parametrize(
    ("supported", "product", "agent"),
    [
        ("", "", Agent()),
        ("path, kemi_dmq-1", "kemi_dmq (kamailio 6.1.5)", Agent(True, (6, 1))),
        ("KEMI_DMQ-7", "", Agent(True)),
        ("kemi_dmq", "other/1.0", Agent()),
        ("path", "kamailio (5.6.3 (x86_64/linux))", Agent(False, (5, 6))),
        ("", "Kamailio/10.2", Agent(False, (10, 2))),
    ],
)
def test_who_the_other_side_is(supported: str, product: str, agent: Agent) -> None:
    assert parse_agent(supported, product) == agent


@given(st.text(max_size=50), st.text(max_size=50))
def test_no_header_breaks_the_agent(supported: str, product: str) -> None:
    assume(not supported.lower().strip().startswith("kemi_dmq-"))
    parse_agent(supported, product)


@pytest.mark.parametrize(
    ("agent", "word"),
    [
        (None, "disabled"),
        (Agent(), "disabled"),
        (Agent(False, (5, 6)), "timeout"),
        (Agent(False, (6, 0)), "timeout"),
        (Agent(False, (6, 1)), "not_active"),
        (Agent(True), "not_active"),
        (Agent(True, (5, 6)), "not_active"),
    ],
)
def test_a_leave_says_the_word_that_the_other_side_takes_back(
    agent: Agent | None, word: str
) -> None:
    assert leave_status(agent) == word


@given(
    own.vias, own.uris, own.uris, st.text("aé\r\n;=", max_size=30), st.integers(0, 255), own.names
)
def test_a_request_reads_back_as_it_was_built(
    via: Via, from_uri: SipUri, to_uri: SipUri, body: str, max_forwards: int, call_id: str
) -> None:
    text = build_request(
        via=via,
        branch="z9hG4bKx",
        call_id=call_id,
        tag="t",
        from_uri=from_uri,
        to_uri=to_uri,
        body=body,
        max_forwards=max_forwards,
        user_agent="kemi_dmq (kamailio 6.1.5)",
    )
    message = parse(text)
    assert parse_uri(message.uri) == to_uri
    assert parse_uri(message.from_uri) == from_uri.with_transport("udp")
    assert message.header("Via").startswith(
        f"SIP/2.0/{via.transport.upper()} {via.host}:{via.port};branch=z9hG4bK"
    )
    assert message.header("Call-ID") == call_id
    assert message.header("Max-Forwards") == str(max_forwards)
    assert message.header("Content-Type") == ("text/plain" if body else "")
    assert message.header("CSeq").endswith(" KDMQ")
    assert parse_agent(message.header("Supported"), message.header("User-Agent")) == Agent(
        True, (6, 1)
    )
    assert message.body == body


@given(own.vias, own.uris, own.uris, st.booleans())
@example(Via("tls", "a", 5060), SipUri("a", 5060), SipUri("b", 5060), False)
def test_the_short_form_says_the_same(
    via: Via, from_uri: SipUri, to_uri: SipUri, signed: bool
) -> None:
    form = Form(via, from_uri, to_uri, 1, "text/kdmq", "", compact=True, signed=signed)
    text = form.request("z9hG4bKx", "id", "tag", "b\xf6dy", "X: y\r\n" if signed else "")
    message = parse(text)
    sender = from_uri.with_transport("udp")
    assert parse_uri(message.uri).key == to_uri.key and parse_uri(message.uri).user == to_uri.user
    assert parse_uri(message.from_uri).key == sender.key
    if signed:
        assert (message.uri, message.from_uri) == (str(to_uri), str(sender))
    sent_by = message.header("Via").removeprefix(f"SIP/2.0/{via.transport.upper()} ")
    default = 5061 if via.transport == "tls" else 5060
    host, colon, port = sent_by.partition(";")[0].removeprefix(via.host).partition(":")
    assert (host, int(port) if colon else default) == ("", via.port)
    assert message.header("To") == f"<{message.uri}>"
    assert message.header("Max-Forwards") == "1" and message.header("CSeq") == "10 KDMQ"
    assert message.header("Content-Type") == "text/kdmq" and message.header("Call-ID") == "id"
    assert message.header("X") == ("y" if signed else "") and message.body == "b\xf6dy"
