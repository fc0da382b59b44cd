from __future__ import annotations

import functools
import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kemi_dmq.message import (
    MAX_PARAM,
    Message,
    Reply,
    Response,
    find_function,
    function_reference,
    pack_param,
)

json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4)
    ),
    max_leaves=15,
)


def message(body: str | bytes) -> Message:
    return Message("acme", body, "text/plain", "sip:a@h", ("10.0.0.1", 5060), 1)


@given(st.binary(max_size=100))
def test_bytes_are_exact_and_text_never_raises(body: bytes) -> None:
    assert message(body).body_bytes == body
    assert message(body).body == body.decode("utf-8", "replace")
    assert Reply(200, "OK", body, "", False).body_bytes == body


@given(st.text(max_size=100))
def test_text_comes_as_bytes_too(body: str) -> None:
    assert message(body).body_bytes == body.encode()
    assert message(body).body == body


@pytest.mark.parametrize(
    "arguments",
    [
        {"code": 100},
        {"code": 199},
        {"code": 700},
        {"code": "200"},
        {"code": 200.0},
        {"reason": ""},
        {"reason": "a\r\nX: y"},
        {"reason": "a\0"},
        {"reason": None},
        {"content_type": "text/plain\r\nX: y"},
        {"body": b"\xff"},
        {"body": "a\0b"},
        {"body": b"a\0b"},
        {"body": "x", "content_type": ""},
    ],
    ids=repr,
)
def test_a_response_that_kamailio_would_not_send_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(reversed(arguments)) + "|body"):
        Response(**arguments)


def test_a_response_body_of_another_type_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="body is int"):
        Response(200, "OK", 5)  # type: ignore[arg-type]


def test_a_response_takes_all_final_codes_and_both_kinds_of_body() -> None:
    assert Response().code == 200
    assert Response(699, "x", "ü").body == "ü"
    assert Response(200, "x", "ü".encode()).body == "ü".encode()
    assert Response(200, "x", b"", "").body == b""


@given(json_values)
def test_a_param_comes_back_equal_or_is_refused_at_the_call(param: Any) -> None:
    try:
        text = pack_param(param)
    except ValueError as error:
        assert len(json.dumps(param, separators=(",", ":"))) > MAX_PARAM, error
    else:
        assert json.loads(text) == param


@pytest.mark.parametrize("param", [b"x", object(), {1: 2}, {"a": {1, 2}}, [{"a": {True: 1}}]])
def test_a_param_that_json_cannot_keep_is_a_type_error(param: object) -> None:
    with pytest.raises(TypeError, match="param"):
        pack_param(param)


def test_a_param_is_limited_as_json() -> None:
    assert pack_param("x" * (MAX_PARAM - 2))
    with pytest.raises(ValueError, match="4097 bytes as JSON; at most 4096"):
        pack_param("x" * (MAX_PARAM - 1))


class Holder:
    @staticmethod
    def static(*arguments: object) -> None: ...

    @classmethod
    def of_class(cls, *arguments: object) -> None: ...

    def method(self, *arguments: object) -> None: ...


def test_a_function_is_found_again_by_its_reference() -> None:
    functions: tuple[Any, ...] = (Holder.static, Holder.of_class, json.dumps, len)
    for function in functions:
        assert find_function(function_reference(function)) == function


def test_a_module_that_is_not_loaded_is_imported_for_it() -> None:
    sys.modules.pop("this_module_is_written_nowhere", None)
    with pytest.raises(ModuleNotFoundError):
        find_function("this_module_is_written_nowhere:f")
    sys.modules.pop("colorsys", None)
    assert find_function("colorsys:rgb_to_hsv").__name__ == "rgb_to_hsv"


def test_what_another_process_could_not_find_is_refused() -> None:
    def local(*arguments: object) -> None: ...

    for function in (local, lambda *a: None, Holder().method, None, "f", functools.partial(print)):
        with pytest.raises(ValueError, match="top level of a module"):
            function_reference(function)
