from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kemi_dmq.networks import DEFAULT_NETWORKS, contains, parse_address, parse_network


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("127.0.0.9", True),
        ("10.255.0.1", True),
        ("172.31.0.1", True),
        ("172.32.0.1", False),
        ("192.168.1.1", True),
        ("169.254.9.9", True),
        ("100.64.0.1", True),
        ("100.127.255.255", True),
        ("100.128.0.0", False),
        ("8.8.8.8", False),
        ("192.0.2.1", False),
        ("0.0.0.0", False),
        ("::1", True),
        ("[::1]", True),
        ("0:0:0:0:0:0:0:1", True),
        ("fd00::1", True),
        ("fe80::1", True),
        ("fe80::1%eth0", True),
        ("2001:db8::1", False),
        ("::", False),
        ("::ffff:10.0.0.1", True),  # IPv4 as an IPv6 socket sees it
        ("::ffff:8.8.8.8", False),
        ("0:0:0:0:0:ffff:a00:1", True),
        ("", False),
        ("bus.example", False),
        ("10.0.0", False),
        ("010.0.0.1", False),
    ],
)
def test_the_default_is_what_is_not_the_internet(address: str, inside: bool) -> None:
    assert contains(DEFAULT_NETWORKS, address) is inside


def test_a_network_may_be_one_address_and_ipv4_in_ipv6_is_ipv4() -> None:
    assert str(parse_network("10.0.0.7")) == "10.0.0.7/32"
    assert str(parse_network("2001:db8::1")) == "2001:db8::1/128"
    assert str(parse_network("::ffff:10.0.0.0/104")) == "10.0.0.0/8"
    assert str(parse_network("::/0")) == "::/0"
    for wrong in ("10.0.0.1/8", "10.0.0.0/33", "bus.example", "", "10.0.0.0/8/8"):
        with pytest.raises(ValueError):
            parse_network(wrong)


@given(st.ip_addresses(v=6))
def test_every_spelling_of_an_address_is_the_same(address: object) -> None:
    assert parse_address(str(address)) == parse_address(address.exploded)  # type: ignore[attr-defined]


@given(st.text())
def test_any_text_is_an_address_or_none(text: str) -> None:
    contains(DEFAULT_NETWORKS, text)
