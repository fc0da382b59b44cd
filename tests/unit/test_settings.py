from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kemi_dmq.settings import NAMES, SettingError, Settings, check, from_defs
from kemi_dmq.trust import Key
from kemi_dmq.wire import SipUri, Via

ADDRESS = "sip:10.0.0.20:5060"


def test_only_the_server_address_is_required() -> None:
    settings = check({"server_address": ADDRESS})
    assert settings.server_address == SipUri("10.0.0.20", 5060)
    assert settings.server_socket == Via("udp", "10.0.0.20", 5060)
    assert settings.notification_address == ()


def test_defaults_are_those_of_the_c_module_except_num_workers() -> None:
    settings = check({"server_address": ADDRESS})
    assert {name: getattr(settings, name) for name in NAMES if name in C_DEFAULTS} == C_DEFAULTS


C_DEFAULTS = {
    "notification_channel": "notification_peer",
    "multi_notify": 0,
    "num_workers": 0,
    "worker_usleep": 0,
    "ping_interval": 60,
    "remove_inactive": 1,
    "fail_count_enabled": 0,
    "fail_count_threshold_not_active": 0,
    "fail_count_threshold_disabled": 1,
    "init_with_single": 0,
    "event_callback": "",
    "sl_send": 0,
}


@pytest.mark.parametrize(
    ("given_", "name", "says"),
    [
        ({}, "server_address", "is not set"),
        ({"server_address": "10.0.0.1"}, "server_address", "a SIP URI such as"),
        ({"server_address": 5}, "server_address", "is 5"),
        ({"server_socket": "10.0.0.1:5060"}, "server_socket", "a listening socket"),
        ({"server_socket": "udp:10.0.0.1:0"}, "server_socket", "a listening socket"),
        ({"server_socket": "udp:10.0.0.999:5060"}, "server_socket", "a listening socket"),
        ({"server_socket": "ws:10.0.0.1:5060"}, "server_socket", "a listening socket"),
        ({"notification_address": "sip:a b"}, "notification_address", "'b'"),
        ({"notification_address": 7}, "notification_address", "a list of SIP URIs"),
        ({"notification_address": ["x"]}, "notification_address", "a SIP URI such as"),
        ({"notification_channel": "a b"}, "notification_channel", "user part"),
        ({"notification_channel": ""}, "notification_channel", "user part"),
        ({"ping_interval": 4}, "ping_interval", "a number from 5 to"),
        ({"ping_interval": "5s"}, "ping_interval", "'5s'"),
        ({"ping_interval": 5.0}, "ping_interval", "5.0"),
        ({"ping_interval": ""}, "ping_interval", "''"),
        ({"remove_inactive": 2}, "remove_inactive", "0 to 1"),
        ({"event_callback": "on event"}, "event_callback", "name of a method"),
        ({"once_memory": 10}, "once_memory", "65536"),
        ({"ping_intervall": 5}, "ping_intervall", "did you mean ping_interval?"),
        ({"xyz": 5}, "xyz", "there are server_address"),
        ({"allowed_networks": "10.0.0.1/8"}, "allowed_networks", "no bits set behind the prefix"),
        ({"allowed_networks": "10.0.0.0/8 bus"}, "allowed_networks", "'bus'"),
        ({"unsigned_networks": 5}, "unsigned_networks", "a list of networks"),
        ({"probe_timeout": 900}, "probe_timeout", "less than probe_interval, which is 900"),
        ({"probe_interval": 400}, "probe_interval", "more than probe_timeout, which is 400"),
        ({"key_window": 1}, "key_window", "a number from 5 to 3600"),
        (
            {"allowed_networks": "10.0.0.0/8", "notification_address": "sip:192.0.2.1"},
            "allowed_networks",
            "wider: 192.0.2.1",
        ),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_what_would_be_right(
    given_: dict[str, object], name: str, says: str
) -> None:
    if name != "server_address":
        given_ = {"server_address": ADDRESS, **given_}
    with pytest.raises(SettingError) as caught:
        check(given_)
    assert caught.value.name == name
    assert f"setting {name} " in str(caught.value) and says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_notification_addresses_come_in_one_text_or_as_a_list() -> None:
    both = (SipUri("10.0.0.21", 5060), SipUri("bus.example", 5061, "tls"))
    texts = ["sip:10.0.0.21", "sip:bus.example;transport=tls"]
    for form in (", ".join(texts), " ".join(texts), texts, tuple(texts)):
        assert (
            check({"server_address": ADDRESS, "notification_address": form}).notification_address
            == both
        )


def test_the_socket_may_differ_from_an_advertised_address() -> None:
    settings = check(
        {"server_address": "sip:bus.example", "server_socket": "TCP:[2001:DB8::1]:5060"}
    )
    assert settings.server_socket == Via("tcp", "[2001:db8::1]", 5060)
    assert settings.server_address.host == "bus.example"


def test_numbers_may_be_texts_as_kamailio_cfg_gives_them() -> None:
    assert check({"server_address": ADDRESS, "ping_interval": " 7 "}).ping_interval == 7
    assert check({"server_address": ADDRESS, "sl_send": True}).sl_send == 1


def test_none_means_not_given() -> None:
    given_ = dict.fromkeys(NAMES) | {"server_address": ADDRESS}
    assert check(given_) == check({"server_address": ADDRESS})


def test_defines_lose_their_quotes_and_missing_ones_are_not_given() -> None:
    defines = {
        "DMQ_SERVER_ADDRESS": f'"{ADDRESS}"',
        "DMQ_EVENT_CALLBACK": "'on_event'",
        "DMQ_PING_INTERVAL": "9",
        "OTHER": "x",
    }
    given_ = from_defs(defines.get)
    assert given_ == {
        "server_address": ADDRESS,
        "event_callback": "on_event",
        "ping_interval": "9",
    }
    assert isinstance(check(given_), Settings)


@given(st.dictionaries(st.sampled_from(NAMES), st.one_of(st.text(), st.integers(), st.none())))
def test_whatever_is_given_is_taken_or_refused_with_one_line(given_: dict[str, object]) -> None:
    try:
        assert isinstance(check(given_), Settings)
    except SettingError as error:
        assert error.name in NAMES
        assert len(str(error).splitlines()) == 1


def test_networks_and_keys_come_in_one_text_or_as_a_list() -> None:
    for networks in ("10.0.0.0/8,::1", "10.0.0.0/8, ::1", ["10.0.0.0/8", "::1"]):
        settings = check({"server_address": ADDRESS, "allowed_networks": networks})
        assert [str(n) for n in settings.allowed_networks] == ["10.0.0.0/8", "::1/128"]
    for keys in ("a:hunter:1,b:hunter", "a:hunter:1\nb:hunter\n", ["a:hunter:1", "b:hunter"]):
        settings = check({"server_address": ADDRESS, "keys": keys})
        assert settings.keys == (Key("a", b"hunter:1"), Key("b", b"hunter"))
        assert "hunter" not in repr(settings) and "hunter" not in str(settings)
    assert check({"server_address": ADDRESS, "keys": ""}).keys == ()


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ("hunter2", "entry 1 is none"),
        ("a:hunter2,hunter3", "entry 2 is none"),
        ("a:hunter2,:hunter3", "entry 2 is none"),
        ("a:hunter2,hunter3:", "entry 2 is none"),
        ("a:hunter2,a:hunter3", "entry 2 has the id of another"),
        ("hun/ter2:a", "entry 1 is none"),
        (["a:hunter2 hunter3"], "entry 1 is none"),
        ([b"a:hunter2"], "entry 1 is none"),
        (b"a:hunter2", "an id"),
        ({"hunter2": 1}, "entry 1 is none"),
        (5, "an id"),
    ],
)
def test_an_error_about_keys_does_not_show_them(keys: object, says: str) -> None:
    with pytest.raises(SettingError) as caught:
        check({"server_address": ADDRESS, "keys": keys})
    text = str(caught.value)
    assert text.startswith("kemi_dmq: setting keys is (not shown here); it must be ")
    assert says in text and "hunter" not in text and "\n" not in text
    assert caught.value.__cause__ is None and caught.value.__context__ is None


@pytest.mark.parametrize("name", ["key", "keyz", "kees", "dmq_keys", "secret", "password"])
def test_a_misspelt_name_does_not_show_a_secret_either(name: str) -> None:
    with pytest.raises(SettingError) as caught:
        check({"server_address": ADDRESS, name: "a:hunter2"})
    assert "hunter2" not in str(caught.value) and name in str(caught.value)
