from __future__ import annotations

import hashlib
import hmac
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kemi_dmq import trust
from kemi_dmq.trust import HEADER, HEADER_BYTES, Key, Keyring, Mac, Parts, encode

RING = Keyring([Key("k1", b"one"), Key("k2", b"two")])
PARTS = Parts("KDMQ", "sip:a@10.0.0.1:5060", "sip:a@10.0.0.2:5060", "a", "text/plain", b"hello")
texts = st.text(st.characters(exclude_categories=["Cs"]))
parts = st.builds(Parts, texts, texts, texts, texts, texts, st.binary())


def value(line: str) -> str:
    assert line.startswith(f"{HEADER}: ") and line.endswith("\r\n") and line.count("\r\n") == 1
    return line[len(HEADER) + 2 : -2]


messages = st.tuples(st.lists(texts | st.from_regex("[0-9]{,2}:")).map(tuple), st.binary())


@given(messages, messages)
def test_other_parts_are_other_bytes(
    one: tuple[tuple[str, ...], bytes], other: tuple[tuple[str, ...], bytes]
) -> None:
    assert (encode(*one) == encode(*other)) == (one == other)


@given(messages)
def test_what_moves_from_one_part_to_the_next_makes_a_difference(
    given_: tuple[tuple[str, ...], bytes],
) -> None:
    parts, body = given_
    whole = "".join(parts)
    for cut in range(len(whole) + 1):
        split = (whole[:cut], whole[cut:])
        assert split == parts or encode(split, body) != encode(parts, body)
    coded = encode(parts, body)
    for number, part in enumerate(parts):
        for change in (part + "0", part[1:] if part else "0", "1:" + part):
            changed = (*parts[:number], change, *parts[number + 1 :])
            assert encode(changed, body) != coded
    for cut in range(len(body)):  # the body's begin as the end of the last text
        text = body[: cut + 1].decode("latin-1")
        if parts:
            assert encode((*parts[:-1], parts[-1] + text), body[cut + 1 :]) != coded


@given(st.binary(min_size=1, max_size=200), st.binary())
def test_a_mac_is_the_standards(secret: bytes, data: bytes) -> None:
    right = hmac.digest(secret, data, "sha256").hex()
    assert Mac(secret)(data) == right


def test_openssl_is_left_out() -> None:
    """With Kamailio's tls its hash objects do not outlive a fork."""
    code = "import sys, kemi_dmq, kemi_dmq.trust; print('_hashlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert trust.sha256 is not hashlib.sha256


@given(parts, st.integers(0, 10**13))
def test_what_is_signed_is_verified(given_: Parts, time: int) -> None:
    header = value(RING.sign(given_, time, "n.1"))
    signed = RING.verify(header, lambda: given_)
    assert signed is not None and signed == ("k1", time, "n.1", given_.ruri)


@given(parts, st.data())
def test_a_change_in_any_part_is_noticed(given_: Parts, data: st.DataObject) -> None:
    header = value(RING.sign(given_, 1000, "n.1"))
    name = data.draw(st.sampled_from(Parts._fields))
    other = data.draw(st.binary() if name == "body" else texts)
    changed = Parts(**{**given_._asdict(), name: other})
    assert (RING.verify(header, lambda: changed) is not None) == (changed == given_)


def test_a_change_in_any_byte_of_the_header_is_noticed() -> None:
    header = value(RING.sign(PARTS, 1_795_594_376_355, "n.1"))
    for number in range(len(header)):
        for byte in "0Az-. ;=\n":
            changed = header[:number] + byte + header[number + 1 :]
            found = RING.verify(changed, lambda: PARTS)
            assert (found is not None) == (changed == header), changed


@given(st.text())
def test_any_text_is_no_signature(header: str) -> None:
    def unread() -> Parts:
        raise AssertionError("not worth while")

    assert RING.verify(header, unread) is None


def test_the_first_key_signs_and_all_verify() -> None:
    turned = Keyring([Key("k2", b"two"), Key("k1", b"one")])
    for signer, verifier, key in ((RING, turned, "k1"), (turned, RING, "k2")):
        signed = verifier.verify(value(signer.sign(PARTS, 1, "n")), lambda: PARTS)
        assert signed is not None and signed.key_id == key
    only = Keyring([Key("k2", b"two")])
    assert only.verify(value(RING.sign(PARTS, 1, "n")), lambda: PARTS) is None
    same_id = Keyring([Key("k1", b"two")])
    assert same_id.verify(value(RING.sign(PARTS, 1, "n")), lambda: PARTS) is None


def test_what_cannot_be_read_is_not_signed() -> None:
    assert RING.verify(value(RING.sign(PARTS, 1, "n")), lambda: None) is None


def test_a_reply_answers_one_request() -> None:
    header = value(RING.sign_reply(200, "text/plain", b"list", 1000, "n.1"))
    assert RING.verify_reply(header, 200, "text/plain", b"list", "n.1")
    for code, kind, body, nonce in (
        (202, "text/plain", b"list", "n.1"),
        (200, "text/plaim", b"list", "n.1"),
        (200, "text/plain", b"lisd", "n.1"),
        (200, "text/plain", b"list", "n.2"),
    ):
        assert not RING.verify_reply(header, code, kind, body, nonce)
    for number in range(len(header)):
        changed = header[:number] + ("1" if header[number] != "1" else "2") + header[number + 1 :]
        assert not RING.verify_reply(changed, 200, "text/plain", b"list", "n.1")
    assert not RING.verify_reply("", 200, "text/plain", b"list", "n.1")


def test_a_request_is_no_reply_and_a_reply_no_request() -> None:
    """Whoever has the one signed cannot show it as the other."""
    reply = value(RING.sign_reply(200, "text/plain", b"x", 1, "n"))
    parts = Parts("200", "text/plain", "x", "", "", b"")
    assert RING.verify(reply, lambda: parts) is None


@pytest.mark.parametrize("ring", [Keyring([Key("k" * 32, b"x")])])
def test_the_header_is_no_longer_than_is_allowed_for(ring: Keyring) -> None:
    assert len(ring.sign(PARTS, 10**15 - 1, "n" * 64)) <= HEADER_BYTES


def test_a_key_does_not_show_its_secret() -> None:
    assert "one" not in repr(Key("k1", b"one")) and "one" not in str(Key("k1", b"one"))
