from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kemi_dmq.c_room import C_LIST_BYTES, c_share
from kemi_dmq.wire import SipUri, build_body

from . import strategies as own

uris = st.lists(own.node_uris, max_size=60, unique_by=lambda uri: uri.key)


@given(uris, uris, uris, uris)
def test_what_c_nodes_list_and_are_told_fits_into_their_buffer(
    c_nodes: list[SipUri], gone: list[SipUri], listed: list[SipUri], python: list[SipUri]
) -> None:
    c = {uri.key: uri for uri in c_nodes}
    ours = {uri.key: uri for uri in python if uri.key not in c}
    active = ours | c | {uri.key: uri for uri in listed}
    lists = {uri.key: uri for uri in (*listed, *gone)}
    share = c_share(lists, c.keys(), active, ours)
    if share.fitting:
        dead = [uri for key, uri in lists.items() if key not in active]
        assert len(build_body([*share.known, *share.fitting, *dead])) <= C_LIST_BYTES
    assert len(build_body(share.known)) <= C_LIST_BYTES
    assert {uri.key for uri in share.known} <= lists.keys() | c.keys()
    assert {uri.key for uri in share.fitting} <= ours.keys() - lists.keys()
    left_out = sorted(ours.keys() - lists.keys() - {uri.key for uri in share.fitting})
    assert (share.left_out == 0) is (ours.keys() <= {u.key for u in (*share.known, *share.fitting)})
    if share.fitting and left_out:
        assert max(uri.key for uri in share.fitting) < left_out[0], "by host and port"


def test_c_nodes_go_first_and_then_who_is_listed() -> None:
    c, a, b = (SipUri(host, 5060) for host in ("10.0.0.9", "10.0.0.1", "10.0.0.2"))
    active = {uri.key: uri for uri in (a, b, c)}
    python = {uri.key: uri for uri in (a, b)}
    assert c_share({b.key: b}, {c.key}, active, python) == ([c, b], [a], 0)
    assert c_share({}, set(), active, python) == ([], [a, b], 0)
