"""The fake against the stubs, which are written from what a running Kamailio exports."""

from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest

from kemi_dmq.testing.fake_kamailio import FakeKamailio, ReceivedReply, Request
from kemi_dmq.testing.fake_ksr import FakeKSR

STUB = Path(__file__).resolve().parents[2] / "typings" / "KSR" / "__init__.pyi"
MODULES = ("kx", "hdr", "pv", "pvx", "sl", "textops", "uac", "corex", "tm", "htable", "jsonrpcs")


def real_signatures() -> dict[str, tuple[list[str], str]]:
    found = {}
    for item in ast.parse(STUB.read_text()).body:
        prefix = f"{item.name.removeprefix('_')}." if isinstance(item, ast.ClassDef) else ""
        for function in item.body if isinstance(item, ast.ClassDef) else [item]:
            if isinstance(function, ast.FunctionDef) and function.returns:
                kinds = [
                    ast.unparse(a.annotation) for a in function.args.posonlyargs if a.annotation
                ]
                found[prefix + function.name] = (kinds, ast.unparse(function.returns))
    return found


def fake_signatures() -> dict[str, tuple[list[str], str]]:
    ksr = FakeKSR()
    found = {}
    for prefix, holder in [("", ksr), *((f"{m}.", getattr(ksr, m)) for m in MODULES)]:
        for name, function in inspect.getmembers(type(holder), inspect.isfunction):
            if not name.startswith("_"):
                signature = inspect.signature(function)
                kinds = [str(p.annotation) for n, p in signature.parameters.items() if n != "self"]
                returns = str(signature.return_annotation).replace("Xval", "str | int | None")
                found[prefix + name] = (kinds, returns)
    return found


def test_each_function_takes_and_gives_what_kamailios_does() -> None:
    real, fake = real_signatures(), fake_signatures()
    assert len(fake) > 25
    assert fake == {name: real.get(name) for name in fake}


def test_nothing_public_is_there_that_kamailio_does_not_have() -> None:
    ksr = FakeKSR()
    functions = {name for name in fake_signatures() if "." not in name}
    there = {*vars(ksr), *vars(FakeKSR)}
    assert {name for name in there if not name.startswith("_")} == functions | set(MODULES)
    for module in MODULES:
        names = {name for name in dir(getattr(ksr, module)) if not name.startswith("_")}
        assert names == {
            n.partition(".")[2] for n in fake_signatures() if n.startswith(f"{module}.")
        }


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (("$var(a)", "a\0b"), ValueError),
        (("$var(a)", b"ab"), TypeError),
        (("$var(a)", "\udcff"), UnicodeEncodeError),
        (("$var(a)",), TypeError),
        (("$var(a)", "b", "c"), TypeError),
    ],
)
def test_a_wrong_str_is_a_system_error(arguments: tuple[str, ...], cause: type[Exception]) -> None:
    with pytest.raises(SystemError) as caught:
        FakeKSR().pv.sets(*arguments)
    assert isinstance(caught.value.__cause__, cause)


def test_a_wrong_int_is_a_system_error() -> None:
    ksr = FakeKSR()
    for value in (1 << 40, "1", None):
        with pytest.raises(SystemError):
            ksr.pv.seti("$var(a)", value)  # type: ignore[arg-type]
    assert ksr.pv.seti("$var(a)", -5) and ksr.pv.get("$var(a)") == -5


def test_functions_without_parameters_take_any_and_those_without_result_give_0() -> None:
    ksr = FakeKSR()
    assert ksr.kx.get_body(1, 2) is None  # type: ignore[call-arg]
    nothing: list[Any] = [getattr(ksr, "err")("x"), getattr(ksr, "set_drop")()]  # noqa: B009
    assert nothing == [0, 0]


def test_what_is_not_utf_8_raises_where_it_is_read_and_not_as_base64() -> None:
    kamailio = FakeKamailio()
    ksr = kamailio.install()
    bad = b"\xff".decode(errors="surrogateescape")
    request = Request(
        ruri=f"sip:a{bad}@h", from_uri=f"sip:{bad}@h", body=b"a\0\xffz", headers={"X": bad}
    )
    kamailio.receive(request, lambda msg: None)
    for read in (ksr.kx.get_ruser, ksr.kx.get_furi, ksr.kx.get_body):
        with pytest.raises(UnicodeDecodeError):
            read()
    with pytest.raises(UnicodeDecodeError):
        ksr.hdr.get("x")
    assert ksr.pv.get("$(rb{s.encode.base64})") == "YQD/eg=="
    assert ksr.hdr.get("content-type") == ksr.hdr.get("c") == ksr.pv.get("$cT") == "text/plain"


def test_base64_ends_at_some_49000_bytes() -> None:
    kamailio = FakeKamailio()
    ksr = kamailio.install()
    kamailio.receive(Request(body=b"\xff" * 49_100), lambda msg: None)
    assert len(str(ksr.pv.get("$(rb{s.encode.base64})"))) == 65_468
    kamailio.receive(Request(body=b"\xff" * 49_500), lambda msg: None)
    assert ksr.pv.get("$(rb{s.encode.base64})") is None


def test_uac_req_stays_from_one_send_to_the_next_until_it_is_unset() -> None:
    kamailio = FakeKamailio()
    ksr = kamailio.install()
    assert ksr.uac.uac_req_send() == -1
    assert ksr.pv.sets("$uac_req(method)", "KDMQ") and ksr.pv.sets("$uac_req(ruri)", "sip:a@h")
    assert ksr.pv.sets("$uac_req(body)", "one")
    assert not ksr.pv.sets("$uac_req(body)", "x" * 32_768)
    assert ksr.uac.uac_req_send() == ksr.uac.uac_req_send() == 1
    assert [sent.body for sent in kamailio.requests] == [b"one", b"one"]
    assert ksr.pv.unset("$uac_req(all)")
    assert ksr.pv.get("$uac_req(body)") is None and ksr.pv.get("$uac_req(evroute)") == 0
    assert ksr.uac.uac_req_send() == -1


def test_binary_bodies_go_through_a_variable() -> None:
    kamailio = FakeKamailio()
    ksr = kamailio.install()
    assert ksr.pvx.var_sets("b", "AAEC/w==") == 1
    assert ksr.pvx.evalx("$uac_req(body)", "$(var(b){s.decode.base64})") == 1
    assert ksr.pv.get("$(uac_req(body){s.len})") == 4
    with pytest.raises(UnicodeDecodeError):
        ksr.pv.get("$uac_req(body)")
    assert ksr.pvx.evalx("$nosuch(x)", "x") == -1
    assert ksr.pv.get("$(var(c){s.decode.base64})") is None


def test_a_second_reply_body_for_a_request_is_refused() -> None:
    kamailio = FakeKamailio()
    ksr = kamailio.install()

    def route(msg: object) -> None:
        assert ksr.textops.set_reply_body("", "text/plain") == -1
        assert ksr.textops.set_reply_body("x", "") == -1
        assert ksr.textops.set_reply_body("x", "text/plain") == 1
        assert ksr.textops.set_reply_body("y", "text/plain") == -1
        assert ksr.hdr.append_to_reply("X: y\r\n") == 1
        assert ksr.sl.send_reply(200, "OK") == 1

    (reply,) = kamailio.receive(Request(), route)
    assert (reply.code, reply.body, reply.headers) == (200, "x", "X: y\r\n")


@pytest.mark.parametrize(
    ("uri", "mine"),
    [
        ("sip:127.0.0.77:5060;transport=udp", True),
        ("sip:127.0.0.77:5060", True),
        ("sip:127.0.0.77", True),
        ("sip:127.0.0.77:5061", False),
        ("sip:127.0.0.77:5060;transport=tcp", False),
        ("sip:127.0.0.78:5060", False),
        ("junk", False),
    ],
)
def test_is_myself(uri: str, mine: bool) -> None:
    assert FakeKSR(FakeKamailio(["udp:127.0.0.77:5060"])).is_myself(uri) is mine


def test_sendx_refuses_what_is_no_uri_and_another_transports_socket() -> None:
    kamailio = FakeKamailio()
    ksr = kamailio.install()
    assert ksr.corex.sendx("sip:10.0.0.2:5060", "udp:10.0.0.1:5060", "x") == 1
    assert ksr.corex.sendx("sip:10.0.0.2:5060", "", "y") == 1
    assert ksr.corex.sendx("junk", "", "x") == -1
    assert ksr.corex.sendx("sip:h;transport=tcp", "udp:10.0.0.1:5060", "x") == -1
    assert [sent.text for sent in kamailio.texts] == ["x", "y"]


def test_events_of_uac_come_only_if_they_were_asked_for() -> None:
    kamailio = FakeKamailio()
    ksr = kamailio.install()
    seen: list[object] = []

    def route(msg: object, event: str) -> None:
        names = ("evparam", "evcode", "evtype")
        seen.append((event, [ksr.pv.get(f"$uac_req({n})") for n in names], ksr.kx.get_body()))

    for evroute in (0, 1):
        ksr.pv.sets("$uac_req(method)", "KDMQ")
        ksr.pv.sets("$uac_req(ruri)", "sip:a@h")
        ksr.pv.sets("$uac_req(evparam)", "p")
        ksr.pv.seti("$uac_req(evroute)", evroute)
        ksr.uac.uac_req_send()
        kamailio.answer(kamailio.requests[-1], ReceivedReply(486, "Busy", b"x"), route)
        kamailio.time_out(kamailio.requests[-1], route)
    assert seen == [
        ("uac:reply", ["p", 486, 1], "x"),
        ("uac:reply", ["p", 408, 2], None),
    ]


def test_scripts_import_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "KSR", FakeKSR())
    import KSR

    assert KSR is sys.modules["KSR"] and KSR.kx.ifdef("X") is False
