"""What hypothesis makes of our values."""

from __future__ import annotations

from hypothesis import strategies as st

from kemi_dmq.wire import TRANSPORTS, Line, SipUri, Via

ipv4 = st.ip_addresses(v=4).map(str)
ipv6 = st.ip_addresses(v=6).map(lambda a: f"[{a.compressed}]")
label = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
names = st.lists(label, min_size=1, max_size=3).map(".".join)
hosts = st.one_of(ipv4, ipv6, names)
ports = st.integers(1, 65535)
users = st.from_regex(r"[A-Za-z0-9._~!$&'()*+,=-]{0,12}", fullmatch=True)
uris = st.builds(SipUri, hosts, ports, st.sampled_from(TRANSPORTS), users)
node_uris = st.builds(SipUri, hosts, ports, st.sampled_from(TRANSPORTS))
address_uris = st.builds(SipUri, ipv4, ports)
statuses = st.sampled_from(["active", "not_active", "disabled"])
lines = st.builds(Line, node_uris, statuses)
vias = st.builds(Via, st.sampled_from(TRANSPORTS), hosts, ports)
