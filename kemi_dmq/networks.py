"""Networks: which source addresses a node speaks with at all.

Pure.  Addresses come as Kamailio writes them (IPv6 in any spelling, with or without brackets).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: Loopback, private (RFC 1918, RFC 4193), link-local and shared (RFC 6598) ranges.
DEFAULT_NETWORKS: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "100.64.0.0/10",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    )
)


def parse_network(text: str) -> Network:
    """A network in CIDR notation, or one address; ValueError for anything else, and where bits
    are set behind the prefix.  An IPv4 network in IPv6 (``::ffff:10.0.0.0/104``) is the IPv4 one.
    """
    network = ipaddress.ip_network(text)
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        inner = network.network_address.ipv4_mapped
        if inner is not None:
            return ipaddress.ip_network((int(inner), network.prefixlen - 96))
    return network


@lru_cache(maxsize=4096)
def parse_address(text: str) -> Address | None:
    """An IP address; None if it is none.  An IPv4 address in IPv6 is the IPv4 one."""
    try:
        address = ipaddress.ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def contains(networks: Iterable[Network], text: str) -> bool:
    """Whether text is an IP address in one of networks."""
    address = parse_address(text)
    return address is not None and any(address in network for network in networks)
