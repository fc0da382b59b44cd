"""Who is let in: allowed networks, signatures, and answers only from where something was asked.

One Gate for each process.  What processes share is in ``shared``: the nonces that were seen, a
secret of this Kamailio's, and the addresses that names in the settings stand for.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from . import wire
from .networks import DEFAULT_NETWORKS, contains, parse_address
from .trust import HEADER, Keyring, Mac, Parts, Signed, compare_digest, encode
from .wire import METHOD, SipUri, WireError, is_address, parse_uri

if TYPE_CHECKING:
    from .host.protocol import Host
    from .settings import Settings
    from .shared import Shared

#: Of a request from one of unsigned_networks that bears no signature.
UNSIGNED = Signed("", 0, "", "")
#: Entries of a process's caches; a sender of many addresses must not make them grow.
_CACHED = 4096
#: Addresses that names have stood for; the oldest go first.
NAMED = 256
_STAMP = 24  # characters, of 4 bits each


class Gate:
    def __init__(self, settings: Settings, shared: Shared) -> None:
        self._settings = settings
        self._shared = shared
        #: source address -> whether it is allowed: one look for each request
        self.sources: dict[str, bool] = {}
        self._named_version = 0
        self._named: set[str] = addresses_in(settings)
        self._unsigned: dict[str, bool] = {}
        socket = settings.server_socket
        self.local_places = {settings.server_address.key, (socket.host, socket.port)}
        self._window = settings.key_window * 1000
        self._call_id_mac = Mac(shared.secret)
        self.keyring = Keyring(settings.keys) if settings.keys else None
        self._nonce_begin = ""
        self._nonce_pid = self._nonce_count = 0

    # Allowed networks ----------------------------------------------------------------------

    def admits(self, source: str) -> bool:
        """Whether requests from an address are let in; for one that is not in sources as True."""
        if self._shared.named.version != self._named_version:
            self._named_version, named = self._shared.named.read()
            self._named = addresses_in(self._settings) | set(named or ())
            self.sources.clear()
        allowed = self.sources.get(source)
        if allowed is None:
            networks = self._settings.allowed_networks
            allowed = contains(networks or DEFAULT_NETWORKS, source)
            if not allowed and not networks:
                allowed = _plain(source) in self._named
            if len(self.sources) >= _CACHED:
                self.sources.clear()
            self.sources[source] = allowed
        return allowed

    # Signatures ----------------------------------------------------------------------------

    def sign(
        self, to: SipUri, from_uri: SipUri, content_type: str, body: str | bytes, nonce: str = ""
    ) -> str:
        """The header line of a request that is sent now, to a peer (the user of to); "" without
        keys."""
        if self.keyring is None:
            return ""
        parts = Parts(
            METHOD,
            str(to),
            str(from_uri.with_transport("udp")),
            to.user,
            content_type if body else "",
            body.encode() if isinstance(body, str) else body,
        )
        return self.keyring.sign(parts, self._now(), nonce or self._nonce())

    def build_request(
        self,
        *,
        from_uri: SipUri,
        to_uri: SipUri,
        body: str,
        content_type: str = "text/plain",
        nonce: str = "",
        **more: Any,
    ) -> str:
        """wire.build_request() with the signature."""
        return wire.build_request(
            from_uri=from_uri,
            to_uri=to_uri,
            body=body,
            content_type=content_type,
            headers=self.sign(to_uri, from_uri, content_type, body, nonce),
            **more,
        )

    def sign_reply(self, asked: Signed | None, code: int, content_type: str, body: str) -> str:
        """The header line of a reply to a signed request; "" for others."""
        if self.keyring is None or asked is None or asked is UNSIGNED:
            return ""
        now = self._now()
        return self.keyring.sign_reply(code, content_type, body.encode(), now, asked.nonce)

    def check(self, host: Host, source: str) -> tuple[Signed | None, str]:
        """Check the request being handled: its signature, UNSIGNED where it needs none, or None
        and what is wrong."""
        assert self.keyring is not None
        header = host.header(HEADER)
        if not header:
            if self._may_be_unsigned(host, source):
                return UNSIGNED, ""
            return None, "it is not signed"
        signed = self.keyring.verify(header, host.signed_parts)
        if signed is None:
            return None, "its signature is not that of a key of this node"
        late = self._now() - signed.time
        if abs(late) > self._window:
            when = f"{late / 1000:.0f} s ago" if late > 0 else f"{-late / 1000:.0f} s in the future"
            return None, f"by its time it was signed {when}: do the clocks differ?"
        if not self._names_us(host, signed.ruri):
            return None, f"it is for another node ({signed.ruri})"
        return signed, ""

    def fresh(self, signed: Signed | None) -> bool:
        """Whether a signed request is here for the first time; it is remembered."""
        if signed is None or signed is UNSIGNED:
            return True
        assert self._shared.nonces is not None
        nonce = (signed.key_id, signed.nonce)
        return self._shared.nonces.add(nonce, signed.time, self._now(), self._window)

    def is_early(self, signed: Signed | None) -> bool:
        """Whether a signed request is refused because this node has started since: it is to come
        again, signed anew."""
        if signed is None or signed is UNSIGNED:
            return False
        assert self._shared.nonces is not None
        return self._shared.nonces.is_early(signed.time, self._now())

    def may_be_listed(self, uri: SipUri) -> bool:
        """Whether somebody who has not signed may list a node: only one that need not sign."""
        return self._settings.keys == () or self._in_unsigned(uri.host)

    def _may_be_unsigned(self, host: Host, source: str) -> bool:
        """Who need not sign cannot speak for those who must."""
        if not self._in_unsigned(source):
            return False
        try:
            return self._in_unsigned(parse_uri(host.from_uri() or "").host)
        except (UnicodeDecodeError, WireError):
            return False

    def _in_unsigned(self, address: str) -> bool:
        found = self._unsigned.get(address)
        if found is None:
            found = contains(self._settings.unsigned_networks, address)
            if len(self._unsigned) >= _CACHED:
                self._unsigned.clear()
            self._unsigned[address] = found
        return found

    def _names_us(self, host: Host, ruri: str) -> bool:
        try:
            uri = parse_uri(ruri)
        except WireError:
            return False
        return uri.key in self.local_places or host.is_myself(f"sip:{uri.host}:{uri.port}")

    def _now(self) -> int:
        return int(self._shared.wall() * 1000)

    def _nonce(self) -> str:
        if self._nonce_pid != os.getpid():
            self._nonce_pid, self._nonce_begin = os.getpid(), self._shared.token()
        self._nonce_count += 1
        return f"{self._nonce_begin}.{self._nonce_count:x}"

    # Answers to the engine -----------------------------------------------------------------

    def stamp(self, unique: str, place: str) -> str:
        """unique, so that nobody can make it up, and with it where the answer has to come from.
        It goes into a Call-ID, and is the nonce of the request."""
        return f"{unique}.{self._call_id_mac(encode((unique, _plain(place))))[:_STAMP]}"

    def check_answer(self, host: Host, stamped: str, code: int) -> str:
        """What is wrong with the reply being handled, which answers the request stamped so; ""
        if it is to be believed."""
        source = host.source_ip() or ""
        unique = stamped.rpartition(".")[0]
        if not compare_digest(self.stamp(unique, source).encode(), stamped.encode()):
            return "it was not asked"
        if self.keyring is None:
            return ""
        header = host.header(HEADER)
        if not header:
            return "" if self._in_unsigned(source) else "the answer is not signed"
        body = host.body()
        raw = body.encode() if isinstance(body, str) else body or b""
        if self.keyring.verify_reply(header, code, host.content_type(), raw, stamped):
            return ""
        return "the answer's signature is not that of a key of this node"

    def is_signed(self, host: Host) -> bool:
        """Whether the reply being handled, which is believed, is signed (or needs not be)."""
        return self.keyring is None or bool(host.header(HEADER))


def named_in(settings: Settings) -> set[str]:
    """The host names that the settings mention; their addresses are allowed by default."""
    uris = (settings.server_address, *settings.notification_address)
    return {uri.host for uri in uris if not is_address(uri.host)}


def addresses_in(settings: Settings) -> set[str]:
    """The addresses that the settings mention."""
    uris = (settings.server_address, *settings.notification_address)
    return {_plain(uri.host) for uri in uris if is_address(uri.host)}


def with_named(before: tuple[str, ...], found: list[str]) -> tuple[str, ...]:
    """The addresses that names have stood for, with those that they stand for now.  The old ones
    stay: a name may give one of its addresses at a time."""
    new = [_plain(address) for address in found]
    return tuple(dict.fromkeys((*before, *filter(None, new))))[-NAMED:]


def _plain(address: str) -> str:
    """An address in one spelling; "" for what is none."""
    found = parse_address(address)
    return "" if found is None else str(found)
