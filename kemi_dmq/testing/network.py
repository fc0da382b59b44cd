"""The network between simulated nodes: how long a datagram is on its way, and what is lost.

A link is one direction between two nodes.  Datagrams of a link arrive in the order in which they
were sent, whatever the latency, unless reordering is asked for.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, fields

from ..wire import parse_uri

Key = tuple[str, int]

#: A datagram that is overtaken takes up to so many times the longest latency more.
OVERTAKEN = 4.0
#: What UDP carries at most.
MAX_DATAGRAM = 65_507


@dataclass(frozen=True, slots=True)
class Link:
    """What differs on a link; None: as everywhere."""

    loss: float | None = None
    duplication: float | None = None
    reordering: float | None = None
    latency: tuple[float, float] | None = None

    def __str__(self) -> str:
        values = [(name, getattr(self, name)) for name in _FIELDS]
        return (
            ", ".join(f"{name} {value}" for name, value in values if value is not None)
            or "as usual"
        )


_USUAL = Link()
_FIELDS = tuple(field.name for field in fields(Link))


class Network:
    """loss, duplication and reordering are probabilities for each datagram; latency is the
    shortest and longest time on the way, in seconds.  All may be changed at any time."""

    def __init__(
        self,
        rng: random.Random,
        loss: float,
        duplication: float,
        reordering: float,
        latency: tuple[float, float],
    ) -> None:
        self.loss = loss
        self.duplication = duplication
        self.reordering = reordering
        self.latency = latency
        self._random = rng.random
        self._links: dict[tuple[Key | None, Key | None], Link] = {}
        self._groups: dict[Key, int] = {}
        self._one_way: list[tuple[frozenset[Key], frozenset[Key]]] = []
        self._last_arrival: dict[tuple[Key, Key], float] = {}

    # Faults --------------------------------------------------------------------------------

    def set_link(self, sender: str | None, receiver: str | None, link: Link = _USUAL) -> None:
        key = (node_key(sender) if sender else None, node_key(receiver) if receiver else None)
        if link == _USUAL:
            self._links.pop(key, None)
        else:
            self._links[key] = link

    def cut(self, groups: Iterable[Iterable[str]]) -> None:
        """Between two groups nothing passes; who is in none sees all."""
        self._groups = {
            node_key(address): number for number, group in enumerate(groups) for address in group
        }

    def cut_one_way(self, senders: Iterable[str], receivers: Iterable[str]) -> None:
        """From senders to receivers nothing passes, the other way all does."""
        self._one_way.append(
            (frozenset(map(node_key, senders)), frozenset(map(node_key, receivers)))
        )

    def end_cuts(self) -> None:
        self._groups = {}
        self._one_way = []

    def end_links(self) -> None:
        self._links = {}

    # Datagrams -----------------------------------------------------------------------------

    def is_cut(self, sender: Key, to: Key) -> bool:
        if self._groups:
            group, other = self._groups.get(sender), self._groups.get(to)
            if group is not None and other is not None and group != other:
                return True
        return any(sender in senders and to in receivers for senders, receivers in self._one_way)

    def arrivals(self, sender: Key, to: Key, now: float, reliable: bool) -> list[float]:
        """When the copies of a datagram that is sent now arrive; none if it is lost.  reliable: it
        goes over TCP, so only a cut stops it."""
        if (self._groups or self._one_way) and self.is_cut(sender, to):
            return []
        link = self._conditions(sender, to) if self._links else _USUAL
        shortest, longest = link.latency or self.latency
        random = self._random
        time = now + shortest + (longest - shortest) * random()
        if not reliable:
            loss = self.loss if link.loss is None else link.loss
            if loss and random() < loss:
                return []
            reordering = self.reordering if link.reordering is None else link.reordering
            if reordering and random() < reordering:
                return [time + OVERTAKEN * longest * random()]
        pair = (sender, to)
        last = self._last_arrival.get(pair)
        if last is not None and last > time:
            time = last
        self._last_arrival[pair] = time
        if len(self._last_arrival) > 100_000:
            self._last_arrival = {p: t for p, t in self._last_arrival.items() if t > now}
        if not reliable:
            duplication = self.duplication if link.duplication is None else link.duplication
            if duplication and random() < duplication:
                return [time, time + (longest - shortest) * random()]
        return [time]

    def _conditions(self, sender: Key, to: Key) -> Link:
        """What the most specific settings say of a link, each for itself."""
        links = [
            found
            for key in ((sender, to), (sender, None), (None, to))
            if (found := self._links.get(key))
        ]
        return Link(
            *(
                next((value for link in links if (value := getattr(link, name)) is not None), None)
                for name in _FIELDS
            )
        )


def node_uri(address: str) -> str:
    """An address as people write it (a host, host:port, or a whole SIP URI) as a URI."""
    if address.startswith(("sip:", "sips:")):
        return address
    port_given = ":" in address.rpartition("]")[2]
    return f"sip:{address}" if port_given else f"sip:{address}:5060"


def node_key(address: str) -> Key:
    return parse_uri(node_uri(address)).key
