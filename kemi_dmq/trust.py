"""Signatures: who holds one of the bus's keys says so in a header.

    DMQ-Auth: id=k1;time=1764057600000;nonce=…;mac=…

time is when it was signed (Unix time, milliseconds), mac HMAC-SHA-256 in hex.  A request's
covers method, R-URI, From URI, peer, Content-Type, body, key id, time and nonce; a reply has the
nonce of its request, so that it answers that one and no other, and its mac covers code,
Content-Type, body, key id, time and nonce.  Pure: time and nonces are arguments.
"""

from __future__ import annotations

import importlib
import re
from _operator import _compare_digest
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

HEADER = "DMQ-Auth"
#: Bytes that the header needs at most.
HEADER_BYTES = 220
_HEADER = re.compile(
    r"id=([A-Za-z0-9._-]{1,32});time=([0-9]{1,15});nonce=([A-Za-z0-9._-]{1,64});mac=([0-9a-f]{64})",
    re.ASCII,
)
KEY_ID = re.compile(r"[A-Za-z0-9._-]{1,32}")
_INNER = bytes(byte ^ 0x36 for byte in range(256))
_OUTER = bytes(byte ^ 0x5C for byte in range(256))


def _own_sha256() -> Any:
    """Python's own SHA-256, as the standard library's random has it, not OpenSSL's.

    Kamailio's tls has OpenSSL take its memory from Kamailio's.  Then hash objects that were made
    before the fork fail or crash in the children (docs/kamailio.md), and at the stop the lock of
    that memory may be held for ever by a process that has died.
    """
    for name in ("_sha2", "_sha256"):  # Python 3.12 and later; 3.11
        try:
            return importlib.import_module(name).sha256
        except ImportError:
            pass
    return importlib.import_module("hashlib").sha256


sha256 = _own_sha256()
#: hmac.compare_digest(), without the OpenSSL that hmac imports.
compare_digest = _compare_digest


@dataclass(frozen=True, slots=True)
class Key:
    """One entry of the setting keys.  What it looks like never shows the secret."""

    id: str
    secret: bytes = field(repr=False)


class Parts(NamedTuple):
    """What a request's signature covers, besides its own values."""

    method: str
    ruri: str
    from_uri: str
    peer: str
    content_type: str
    body: bytes


class Signed(NamedTuple):
    """A request whose signature is right: which key, when (Unix time, ms), the nonce, and for
    whom."""

    key_id: str
    time: int
    nonce: str
    ruri: str


class Mac:
    """HMAC-SHA-256 (RFC 2104) with one secret, in hex.  The two blocks that depend on the
    secret alone are worked off once."""

    def __init__(self, secret: bytes) -> None:
        block = (sha256(secret).digest() if len(secret) > 64 else secret).ljust(64, b"\0")
        self._inner = sha256(block.translate(_INNER))
        self._outer = sha256(block.translate(_OUTER))

    def __call__(self, data: bytes) -> str:
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(data)
        outer.update(inner.digest())
        return outer.hexdigest()  # type: ignore[no-any-return]


def encode(texts: tuple[str, ...], body: bytes = b"") -> bytes:
    """Any number of texts, and a body, as bytes, so that others are always other bytes: each text
    after its length in characters, the body last."""
    head = "".join([f"{len(text)}:{text}" for text in texts])
    return f"{len(texts)}:{head}".encode("utf-8", "surrogatepass") + body


class Keyring:
    """The keys of this node: the first one signs, all of them verify."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys = tuple(keys)
        self._macs = {key.id: Mac(key.secret) for key in self._keys}
        self._first = self._keys[0].id

    def sign(self, parts: Parts, time: int, nonce: str) -> str:
        """The header line of a request, its end included."""
        return self._header(time, nonce, _request(self._first, str(time), nonce, parts))

    def verify(self, header: str, parts: Callable[[], Parts | None]) -> Signed | None:
        """Check a request's header; parts() is called if that is worth while, and may give
        None.  None if the request is not signed, or not rightly."""
        match = _HEADER.fullmatch(header)
        if match is None or match[1] not in self._macs:
            return None
        key_id, time, nonce, mac = match.groups()
        covered = parts()
        if covered is None:
            return None
        right = self._macs[key_id](_request(key_id, time, nonce, covered))
        if not compare_digest(right, mac):
            return None
        return Signed(key_id, int(time), nonce, covered[1])

    def sign_reply(self, code: int, content_type: str, body: bytes, time: int, nonce: str) -> str:
        """The header line of the reply to the request with that nonce."""
        covered = _reply(self._first, str(time), nonce, code, content_type, body)
        return self._header(time, nonce, covered)

    def verify_reply(
        self, header: str, code: int, content_type: str, body: bytes, nonce: str
    ) -> bool:
        """Whether a reply is rightly signed and answers the request with that nonce."""
        match = _HEADER.fullmatch(header)
        if match is None or match[1] not in self._macs or match[3] != nonce:
            return False
        key_id, time, _, mac = match.groups()
        covered = _reply(key_id, time, nonce, code, content_type, body)
        return compare_digest(self._macs[key_id](covered), mac)

    def _header(self, time: int, nonce: str, covered: bytes) -> str:
        mac = self._macs[self._first](covered)
        return f"{HEADER}: id={self._first};time={time};nonce={nonce};mac={mac}\r\n"


def _request(key_id: str, time: str, nonce: str, parts: Parts) -> bytes:
    method, ruri, from_uri, peer, content_type, body = parts
    texts = ("request", key_id, time, nonce, method, ruri, from_uri, peer, content_type)
    return encode(texts, body)


def _reply(key_id: str, time: str, nonce: str, code: int, content_type: str, body: bytes) -> bytes:
    return encode(("reply", key_id, time, nonce, str(code), content_type), body)
