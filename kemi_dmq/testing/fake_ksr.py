"""KSR without Kamailio: ``sys.modules["KSR"] = FakeKSR()`` makes scripts import it.

It has the functions of KSR that kemi_dmq calls, and no other public name; they take and give what
those of Kamailio 5.6.3 do, failures included.  FakeKamailio holds what they work on.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

from ..wire import WireError, parse_uri
from .fake_kamailio import (
    FakeKamailio,
    LogLine,
    Replicated,
    Request,
    SentReply,
    SentRequest,
    SentText,
)

_P = ParamSpec("_P")
_R = TypeVar("_R")
Xval = str | int | None


def _xval(value: bytes | int | None) -> Xval:
    return value.decode() if isinstance(value, bytes) else value


def _kemi(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Parameters as app_python3 takes them: SystemError, with the reason as its cause."""
    signature = inspect.signature(function)
    kinds = [p.annotation for name, p in signature.parameters.items() if name != "self"]
    nothing = signature.return_annotation == "None"

    @functools.wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        this, given = args[0], args[1:]
        try:
            if named:
                raise TypeError(f"{function.__name__}() takes no keyword arguments")
            if not kinds:
                given = ()
            if len(given) != len(kinds):
                raise TypeError(f"takes exactly {len(kinds)} arguments ({len(given)} given)")
            for number, (kind, value) in enumerate(zip(kinds, given, strict=True), 1):
                _check(kind, value, number)
        except (TypeError, ValueError, OverflowError) as error:
            raise SystemError(
                f"<built-in function {function.__name__}> returned a result with an exception set"
            ) from error
        module = type(this).__name__.lower().strip("_")
        this._kamailio.calls[f"{module}.{function.__name__}"] += 1
        result = function(this, *given)  # type: ignore[call-arg]
        return 0 if nothing else result

    return call


def _check(kind: str, value: object, number: int) -> None:
    if kind == "int":
        if not isinstance(value, int):
            raise TypeError(f"{type(value).__name__!r} object cannot be interpreted as an integer")
        if not -(2**31) <= value < 2**31:
            raise OverflowError("signed integer is greater than maximum")
    elif not isinstance(value, str):
        raise TypeError(f"argument {number} must be str, not {type(value).__name__}")
    elif "\0" in value:
        raise ValueError("embedded null character")
    else:
        value.encode()  # a surrogate raises UnicodeEncodeError


class _Module:
    def __init__(self, kamailio: FakeKamailio) -> None:
        self._kamailio = kamailio


class _Kx(_Module):
    @_kemi
    def get_ruser(self) -> Xval:
        return _xval(self._kamailio._ruri_user())

    @_kemi
    def get_furi(self) -> Xval:
        return _xval(self._kamailio._pv("fu", None))

    @_kemi
    def get_method(self) -> Xval:
        return _xval(self._kamailio._pv("rm", None))

    @_kemi
    def get_ouri(self) -> Xval:
        return _xval(self._kamailio._pv("ou", None))

    @_kemi
    def get_callid(self) -> Xval:
        return _xval(self._kamailio._header("call-id"))

    @_kemi
    def get_body(self) -> Xval:
        return _xval(self._kamailio._pv("rb", None) or None)

    @_kemi
    def get_srcip(self) -> Xval:
        return _xval(self._kamailio._pv("si", None))

    @_kemi
    def get_srcport(self) -> Xval:
        return _xval(self._kamailio._pv("sp", None))

    @_kemi
    def get_proto(self) -> Xval:
        return "udp"

    @_kemi
    def get_rcvaddr_sock(self) -> Xval:
        return self._kamailio.listen[0]

    @_kemi
    def ifdef(self, name: str, /) -> bool:
        # Kamailio defines MOD_x for each module that is loaded; here all are.
        return name.startswith("MOD_") or name in self._kamailio.defines

    @_kemi
    def get_def(self, name: str, /) -> Xval:
        return self._kamailio.defines.get(name, "")


class _Hdr(_Module):
    @_kemi
    def get(self, name: str, /) -> Xval:
        return _xval(self._kamailio._header(name))

    @_kemi
    def append_to_reply(self, text: str, /) -> int:
        self._kamailio._reply_headers += text
        return 1


class _Pv(_Module):
    @_kemi
    def get(self, name: str, /) -> Xval:
        try:
            return _xval(self._kamailio._evaluate(name))
        except KeyError:
            self._kamailio.log.append(LogLine("err", f"cannot get pv spec for [{name}]\n"))
            return None

    @_kemi
    def sets(self, name: str, value: str, /) -> bool:
        return self._kamailio._assign(name, value.encode())

    @_kemi
    def seti(self, name: str, value: int, /) -> bool:
        return self._kamailio._assign(name, value)

    @_kemi
    def unset(self, name: str, /) -> bool:
        return self._kamailio._assign(name, None)


class _Pvx(_Module):
    @_kemi
    def var_get(self, name: str, /) -> Xval:
        return _xval(self._kamailio._pv("var", name))

    @_kemi
    def var_sets(self, name: str, value: str, /) -> int:
        self._kamailio.variables[name] = value.encode()
        return 1

    @_kemi
    def var_seti(self, name: str, value: int, /) -> int:
        self._kamailio.variables[name] = str(value).encode()
        return 1

    @_kemi
    def evalx(self, name: str, text: str, /) -> int:
        try:
            value = self._kamailio._evaluate(text) if text.startswith("$") else text.encode()
        except KeyError:
            return -1
        # A format that comes to nothing is the empty string.
        raw = str(value).encode() if isinstance(value, int) else value or b""
        return 1 if self._kamailio._assign(name, raw) else -1


class _Sl(_Module):
    @_kemi
    def send_reply(self, code: int, reason: str, /) -> int:
        kamailio = self._kamailio
        if kamailio.refuse_replies or not isinstance(kamailio.current, Request):
            return -1
        body, content_type = kamailio._reply_body or ("", "")
        kamailio.replies.append(
            SentReply(code, reason, kamailio._reply_headers, body, content_type)
        )
        return 1


class _Textops(_Module):
    @_kemi
    def set_reply_body(self, body: str, content_type: str, /) -> int:
        # A second body for the same request is refused, as are an empty body and type.
        if not body or not content_type or self._kamailio._reply_body is not None:
            return -1
        self._kamailio._reply_body = (body, content_type)
        return 1


class _Uac(_Module):
    @_kemi
    def uac_req_send(self) -> int:
        kamailio = self._kamailio
        given = kamailio.uac

        def text(name: str) -> str:
            value = given.get(name, b"")
            return value.decode(errors="surrogateescape") if isinstance(value, bytes) else ""

        if kamailio.refuse_requests or not given.get("method") or not given.get("ruri"):
            return -1
        body, evroute = given.get("body", b""), given.get("evroute", 0)
        assert isinstance(body, bytes) and isinstance(evroute, int)
        kamailio.requests.append(
            SentRequest(
                text("method"),
                text("ruri"),
                text("furi") or text("ruri"),
                text("hdrs"),
                body,
                text("sock"),
                evroute,
                text("evparam"),
            )
        )
        return 1


class _Corex(_Module):
    @_kemi
    def sendx(self, uri: str, sock: str, text: str, /) -> int:
        kamailio = self._kamailio
        try:
            to = parse_uri(uri)
        except WireError:
            return -1
        if kamailio.refuse_requests or (sock and not sock.startswith(f"{to.transport}:")):
            return -1
        kamailio.texts.append(SentText(uri, sock, text))
        return 1

    @_kemi
    def set_send_socket(self, sock: str, /) -> int:
        self._kamailio._send_socket = sock
        return 1

    @_kemi
    def append_branch_uri(self, uri: str, /) -> int:
        return 1


class _Htable(_Module):
    @_kemi
    def sht_sets(self, table: str, key: str, value: str, /) -> int:
        rows = self._kamailio.htables.get(table)
        if rows is None:
            return -1
        rows[key] = value
        return 1

    @_kemi
    def sht_rm(self, table: str, key: str, /) -> int:
        rows = self._kamailio.htables.get(table)
        if rows is None:
            return -1
        rows.pop(key, None)
        return 1


class _Jsonrpcs(_Module):
    @_kemi
    def exec(self, text: str, /) -> int:
        self._kamailio.rpc.append(text)
        return 1


class _Tm(_Module):
    @_kemi
    def t_replicate(self, uri: str, /) -> int:
        kamailio = self._kamailio
        try:
            parse_uri(uri)
        except WireError:
            return -1
        if kamailio.refuse_requests or not isinstance(kamailio.current, Request):
            return -1
        kamailio.replicated.append(Replicated(uri, kamailio._send_socket))
        return 1


class FakeKSR(ModuleType):
    """The module KSR; without kamailio it makes one of its own."""

    dmq: Any  # as with dmq.so, or after DMQ.install()

    def __init__(self, kamailio: FakeKamailio | None = None) -> None:
        super().__init__("KSR")
        self._kamailio = kamailio = kamailio or FakeKamailio()
        self.kx = _Kx(kamailio)
        self.hdr = _Hdr(kamailio)
        self.pv = _Pv(kamailio)
        self.pvx = _Pvx(kamailio)
        self.sl = _Sl(kamailio)
        self.textops = _Textops(kamailio)
        self.uac = _Uac(kamailio)
        self.corex = _Corex(kamailio)
        self.tm = _Tm(kamailio)
        self.htable = _Htable(kamailio)
        self.jsonrpcs = _Jsonrpcs(kamailio)

    @_kemi
    def is_method(self, name: str, /) -> bool:
        current = self._kamailio.current
        return current is not None and current.method == name

    @_kemi
    def is_KDMQ(self) -> bool:
        current = self._kamailio.current
        return current is not None and current.method == "KDMQ"

    @_kemi
    def is_myself(self, uri: str, /) -> bool:
        return self._kamailio._is_myself(uri)

    @_kemi
    def seturi(self, uri: str, /) -> bool:
        self._kamailio.ruri = uri
        return True

    @_kemi
    def set_drop(self) -> None:
        self._kamailio.dropped = True

    @_kemi
    def crit(self, text: str, /) -> None:
        self._kamailio.log.append(LogLine("crit", text))

    @_kemi
    def err(self, text: str, /) -> None:
        self._kamailio.log.append(LogLine("err", text))

    @_kemi
    def warn(self, text: str, /) -> None:
        self._kamailio.log.append(LogLine("warn", text))

    @_kemi
    def info(self, text: str, /) -> None:
        self._kamailio.log.append(LogLine("info", text))
