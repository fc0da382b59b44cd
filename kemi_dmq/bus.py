"""The bus as one process sees it: requests in and replies out, messages out and answers in.

It joins peers, the published node list and the host, and has no policy of its own.  The way of a
request: handle() -> the gate (gate.py) -> _handle() -> call_peer() -> _reply(); of a node list:
_notification() -> the engine's inbox.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

from . import batch, wire
from .engine import (
    WORKERS,
    Bodies,
    Published,
    answer_event,
    ask_event,
    call_id_prefix,
    notification_event,
    pack_nodes,
    parcel_prefix,
    quiet_parcel,
)
from .gate import UNSIGNED, Gate
from .gossip import WANTS_LIST
from .host.protocol import Host
from .message import (
    OK,
    Message,
    Outcome,
    Reply,
    Response,
    ResponseCallback,
    ResponseFunction,
    find_function,
    function_reference,
    pack_param,
    unpack_param,
)
from .node import Node, Status, next_hop, place
from .once import PLAIN_OK, Answer, Verdict
from .outbox import (
    DEADLINE,
    MAX_DEADLINE,
    NOT_YET,
    Answered,
    fine_event,
    post_event,
    reply_event,
)
from .peer import Peer, RawPeer, Registry
from .reply import RequestHead
from .settings import Settings
from .shared import Shared
from .trust import HEADER_BYTES, Signed
from .unanswered import MAX_BODY as MAX_OWN
from .wire import SipUri, WireError

#: How long a known node's worker waits for the merged list.
ENGINE_WAIT = 0.02
#: Begins the event_param of our messages: outcomes of a script's own requests are not ours.
MARK = "dmq1|"
MARK_CELL = "dmq1#"
MAX_EVENT_PARAM = 127  # Kamailio's $uac_req(evparam)
MAX_UDP = 32766  # 6.0 and later drop larger messages
MAX_BODY = 32767  # Kamailio's $uac_req(body)
# An event has at most 64 KB on its way to another process:
NODES_A_POST = 256
MAX_ANSWER = 48_000
HEADERS = 700  # what headers need at most, apart from the URIs and the content type
_NEW = Verdict.NEW
_CONTENT_TYPE = re.compile(r"([!-~]([ -~]{0,248}[!-~])?)?")
_ACCEPTED = Answer(202, "Accepted DMQ", b"", "")
_NOT_FOUND = Answer(404, "User Not Found", b"", "")
_QUEUE_FULL = Answer(503, "Queue Full", b"", "")
_ALONE = batch.ItemAnswer(batch.SEND_ALONE, "", "", "")  # short: there may be many
_NOT_SIGNED = Answer(403, "Not Signed", b"", "")
#: At most one log line in so many seconds, of all processes, says what was refused and why.
TOLD_AGAIN = 60


class NodeList:
    """What this process knows of the published list, read again when its version moves."""

    def __init__(self, version: int, published: Published, local_address: str = "") -> None:
        self.version = version
        self._local_address = local_address
        self._published = published
        self.by_from: dict[str, Node | None] = {}
        self._to_uris: dict[tuple[str, str], SipUri] = {}
        #: Of messages without tm, by node's URI, peer, Max-Forwards, Content-Type: where the node
        #: is, and what they have in common.
        self.forms: dict[tuple[str, str, int, str], tuple[SipUri, wire.Form]] = {}

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(
            replace(node, address=self._local_address) if node.local and not node.address else node
            for node in self._published.nodes
        )

    @cached_property
    def others(self) -> tuple[Node, ...]:
        return tuple(node for node in self.nodes if not node.local)

    @cached_property
    def kept(self) -> tuple[Node, ...]:
        """Those for which a message may wait: also such as have left the list."""
        return (*self.others, *self._published.absent)

    @cached_property
    def kept_by_key(self) -> dict[tuple[str, int], Node]:
        return {(node.host, node.port): node for node in self.kept}

    @cached_property
    def active(self) -> tuple[Node, ...]:
        return tuple(node for node in self.others if node.active)

    @cached_property
    def active_uris(self) -> tuple[str, ...]:
        return tuple(node.uri for node in self.active)

    @cached_property
    def by_key(self) -> dict[tuple[str, int], Node]:
        return {(node.host, node.port): node for node in self.nodes}

    @cached_property
    def active_keys(self) -> set[tuple[str, int]]:
        return {(node.host, node.port) for node in self.nodes if node.active}

    @cached_property
    def relays(self) -> dict[str, tuple[Node, ...]]:
        """C nodes (URIs) whose messages are passed on, and to whom."""
        by_uri = {node.uri: node for node in self.nodes}
        return {
            uri: tuple(by_uri[to] for to in relays if to in by_uri)
            for uri, relays in self._published.relays.items()
        }

    def of_uri(self, text: str) -> Node | None:
        """The node of a From URI."""
        try:
            return self.of_from(text)
        except WireError:
            return None

    def of_from(self, text: str) -> Node | None:
        """The same; WireError if it is no SIP URI."""
        try:
            return self.by_from[text]
        except KeyError:
            pass
        node = self.by_key.get(wire.parse_uri(text).key)
        if len(self.by_from) < 4096:
            self.by_from[text] = node
        return node

    def to_uri(self, node: Node, peer_id: str) -> SipUri:
        """The URI of a peer on a node."""
        key = (node.uri, peer_id)
        uri = self._to_uris.get(key)
        if uri is None:
            uri = SipUri(node.host, node.port, node.transport, peer_id)
            if len(self._to_uris) < 4096:
                self._to_uris[key] = uri
        return uri

    def body(self, python: bool, whole: bool, from_text: str) -> str:
        """What a notification is answered with."""
        bodies = self._published.bodies
        if not python:
            return bodies.to_c if self.of_uri(from_text) else bodies.to_new_c
        return bodies.whole if whole else bodies.to_python


class Bus:
    """One for each process; what processes share is in ``shared``."""

    def __init__(
        self,
        settings: Settings,
        shared: Shared,
        host: Host,
        registry: Registry,
        clock: Callable[[], float] = time.monotonic,
        local_address: str = "",
    ) -> None:
        self._clock = clock
        self.settings = settings
        self.shared = shared
        self.host = host
        self.registry = registry
        registry.channel = settings.notification_channel
        self._count = shared.counters.add
        self._claim = shared.once.claim
        self._finish = shared.once.finish
        address = settings.server_address
        self._address = local_address
        local = Node(
            str(address),
            address.host,
            address.port,
            address.transport,
            Status.ACTIVE,
            True,
            True,
            local_address,
        )
        alone = Bodies(*[wire.build_body([address])] * 4)
        self._list = NodeList(0, Published(pack_nodes([local], alone)))
        self._prefix = call_id_prefix(settings)
        self._parcel_prefix = parcel_prefix(settings)
        self._references: dict[ResponseFunction, str] = {}
        self._functions: dict[str, ResponseFunction] = {}
        self._from_uris: dict[str, SipUri] = {}  # by peer, of which there are few
        self._send_count = 0
        self._sound: set[tuple[int, str]] = set()  # Max-Forwards and Content-Types that are right
        self._full: tuple[int, frozenset[tuple[str, int]]] = (0, frozenset())
        self._logged_at = float("-inf")
        self._unlogged = 0
        self._workers = shared.workers
        self.gate = Gate(settings, shared)
        self._allowed = self.gate.sources.get
        self._signs = bool(settings.keys)
        # A body of fewer bytes fits into a message to any node, also as base64.
        smallest = min(MAX_UDP, settings.c_tcp_rd_buf_size - 1) - HEADERS - HEADER_BYTES - 1200
        self._safe_body = max(0, smallest) // 4 * 3
        self.attached = False  # whether a script has called dmq.attach()

    published = Published

    # Reading the list ----------------------------------------------------------------------

    def node_list(self) -> NodeList:
        if self.shared.snapshot.version != self._list.version:
            version, value = self.shared.snapshot.read()
            if value is not None:
                # The engine does not know where the local node is if that goes by a name.
                self._list = NodeList(version, self.published(value), self._address)
        return self._list

    def find_node(self, uri: str) -> Node | None:
        return self.node_list().by_key.get(wire.parse_uri(uri).key)

    # A request arrives ---------------------------------------------------------------------

    def handle(self, rc: int = 0, at_once: bool = False) -> int:
        """Work off the KDMQ request being handled and reply to it; gives rc, or -1 when it could
        not be worked off (it is answered all the same).  With num_workers above 0 a worker runs
        its peer and replies, unless at_once."""
        self._count("received")
        if not self.attached:
            self.tell_unattached()
        source = self.host.source_ip() or ""
        if not self._allowed(source) and not self.gate.admits(source):
            return self._refuse_source(source)
        signed = None
        if self._signs:
            signed, wrong = self.gate.check(self.host, source)
            if signed is None:
                return self._refuse_unsigned(source, wrong)
            if self.gate.is_early(signed):
                self._count("early")
                self.host.reply(*NOT_YET)
                return -1
        try:
            return self._handle(rc, at_once, source, signed)
        except UnicodeDecodeError:
            # The R-URI, From, Call-ID or Via; bodies and all else are read with care.
            return self._refuse(400, "Bad Encoding")

    def _refuse_source(self, source: str) -> int:
        self._count("not_allowed")
        self.host.reply(403, "Network Not Allowed")
        self._tell_refused(
            "not_allowed_told",
            f"kemi_dmq: 403 to a request from {source}, which is in no allowed network; if it is a "
            "node of the bus, set DMQ_ALLOWED_NETWORKS (allowed_networks) to all networks of the "
            f'bus, such as "10.0.0.0/8,{source}"',
        )
        return -1

    def _refuse_unsigned(self, source: str, wrong: str) -> int:
        self._count("not_signed")
        self.host.reply(403, "Not Signed")
        self._tell_refused(
            "not_signed_told",
            f"kemi_dmq: 403 to a request from {source}: {wrong}; nodes of the bus share DMQ_KEYS "
            "(keys), and DMQ_UNSIGNED_NETWORKS (unsigned_networks) names those that cannot sign",
        )
        return -1

    def _tell_refused(self, word: str, text: str) -> None:
        words, now = self.shared.words, int(time.monotonic()) + TOLD_AGAIN
        if now - words.get(word) >= TOLD_AGAIN:
            words.set(word, now)
            self.host.log("err", text)

    def _handle(self, rc: int, at_once: bool, source: str, signed: Signed | None) -> int:
        host = self.host
        user = host.ruri_user()
        if not user:
            self._count("bad_requests")
            host.reply(400, "No Peer In Request-URI")
            return -1
        peer = self.registry.live.get(user)
        if peer is None:
            if user == self.settings.notification_channel:
                return self._notification(rc, source, signed)
            if user != batch.PEER and not self.shared.names.has(user):
                self._count("not_found")
                host.reply(404, "User Not Found")
                return rc
        identity: object = host.identity()
        if signed is not None:
            # A stored answer goes to nobody else, and none is stored for a message of another one.
            identity = (identity, source, getattr(signed, "nonce", ""))
        verdict, entry, answer = self._claim(identity)
        if verdict is not _NEW:
            if answer is None:
                self._count("copies_dropped")
                return rc
            self._count("duplicates")
            self._reply(answer)
            return rc
        if self.shared.once.evicted:
            self._count("once_evicted", self.shared.once.evicted)
            self.shared.once.evicted = 0
        nodes = self.node_list()
        if nodes.relays:
            self._relay(nodes, user)
        good = False
        if signed is not None and not self.gate.fresh(signed):
            answer = self._replayed(source)
        elif type(peer) is RawPeer:
            from_uri = self._from_uri()
            if not at_once and self._pass_on(peer, from_uri, (entry, identity)):
                return rc
            answer, good = self._call_raw(peer, from_uri)
        else:
            from_uri, body, content_type, sent_from, hops = host.request(source)
            try:
                node = nodes.of_from(from_uri)
            except WireError:
                answer = self._bad(400, "Bad From")
            else:
                if content_type.endswith(wire.ENCODED):
                    content_type, body = wire.decode_body(content_type, body)
                if body is None:
                    answer = self._bad(413, "Body Cannot Be Read")
                elif body and not content_type:
                    answer = self._bad(400, "Missing Content-Type")
                elif user != batch.PEER and (peer is None or peer.callback is None):
                    self._count("delivered")
                    answer, good = _ACCEPTED, True
                elif at_once or self._workers is None:
                    message = Message(user, body, content_type, from_uri, sent_from, hops)
                    answer, good = self._call(peer, message, node)
                else:
                    claim = (entry, identity)
                    refused = self._queue(
                        (user, body, content_type, from_uri, sent_from, hops), claim
                    )
                    if refused is None:
                        return rc
                    answer = refused
        self._finish(entry, identity, answer)
        self._reply(answer)
        return rc if good else -1

    def _relay(self, nodes: NodeList, user: str) -> None:
        """Pass a message of a C node on to those of whom it cannot be told: under its name, so
        that they know whose it is."""
        host = self.host
        from_text = host.from_uri() or ""
        sender = nodes.of_uri(from_text)
        targets = nodes.relays.get(sender.uri, ()) if sender is not None else ()
        if not targets:
            return
        _, body, content_type, _, _ = host.request("")
        if not body or not content_type:
            return
        from_uri = wire.parse_uri(from_text)
        common = f"Max-Forwards: 1\r\n{wire.SUPPORTED}Content-Type: {content_type}\r\n"
        for node in targets:
            to = nodes.to_uri(node, user)
            headers = common + self.gate.sign(to, from_uri, content_type, body)
            sent = host.send(to, from_uri, headers, body, "", next_hop(node))
            self._count("relayed" if sent else "send_failures")

    # Handed to a worker -----------------------------------------------------------------------

    def _queue(self, message: tuple[Any, ...], claim: tuple[int, object]) -> Answer | None:
        """Hand a claimed request over; the answer if that is not possible."""
        assert self._workers is not None
        headers = self.host.headers()
        if headers is None:
            return self._bad(400, "Bad Encoding")
        sender = wire.parse_uri(message[3]).key
        if self._workers.put(sender, (message, claim, headers, self.host.way_back())):
            self._count("queued")
            return None
        self._count("queue_full")
        self.log_some("kemi_dmq: the workers' queues are full, a message is answered with 503")
        return _QUEUE_FULL

    def queue_custom(self, message: tuple[Any, ...]) -> bool:
        """Hand a message to a worker that no request brought: nobody is answered."""
        assert self._workers is not None
        if self._workers.put(wire.parse_uri(message[3]).key, (message, None, "", ("", ""))):
            self._count("queued")
            return True
        self._count("queue_full")
        return False

    def run_job(self, job: tuple[Any, ...]) -> None:
        """In a worker: run the peer of a request that a SIP worker has received, and reply."""
        message, claim, headers, way_back = job
        peer = self.registry.live.get(message[0])
        node = self.node_list().of_uri(message[3])
        answer, _ = self._call(peer, Message(*message), node)
        if claim is None:
            return
        self._reply_later(answer, claim, headers, way_back, message[4])

    def _from_uri(self) -> str:
        try:
            return self.host.from_uri() or ""
        except UnicodeDecodeError:
            return ""

    def _pass_on(self, peer: RawPeer, from_uri: str, claim: tuple[int, object]) -> bool:
        """Leave a message for a C module to the callbacks process (c_messages.py); False where it
        is to be run at once."""
        queue, host = self.shared.c_messages, self.host
        if queue is None:
            return False
        size = host.size()
        if not queue.takes(size):
            return False
        text, headers = host.whole(), host.headers()
        if text is None or headers is None:
            return False
        job = (peer.peer_id, from_uri, text, claim, headers, host.way_back(), host.source())
        if queue.put(size, job):
            self._count("queued")
            return True
        self._count("queue_full")
        self.log_some(
            "kemi_dmq: a message for a C module finds no room behind others, and runs now"
        )
        return False

    def run_c_message(self, job: tuple[Any, ...]) -> None:
        """In the callbacks process: run the peer of a C module on a request that a SIP worker has
        received, and reply."""
        peer_id, from_uri, text, claim, headers, way_back, source = job
        peer = self.registry.live[peer_id]  # for ever
        assert isinstance(peer, RawPeer)
        answer, _ = self._call_raw(peer, from_uri, text)
        self._reply_later(answer, claim, headers, way_back, source)

    def _reply_later(
        self,
        answer: Answer,
        claim: tuple[int, object],
        headers: str,
        way_back: tuple[str, str],
        source: tuple[str, int],
    ) -> None:
        """Answer a claimed request that another process has received."""
        self._finish(*claim, answer)
        head = RequestHead(headers)
        code, reason, body, content_type = answer
        if code == 408 or (code == 200 and body):
            agent = wire.parse_agent(head.value("supported"), head.value("user-agent"))
            code = _for_agent(code, agent)
        self._send_count += 1
        text = head.reply(
            code,
            reason or "OK",
            source=source,
            tag=f"{self.shared.processes.mine()}.{self._send_count}",
            server=self.user_agent(),
            body=body.decode(),
            content_type=content_type,
        )
        back_to = head.back_to(way_back[0], source)
        if not self.host.send_reply(way_back, back_to, text):
            self.log_some(f"kemi_dmq: Kamailio did not send the reply {code} {reason}")

    def _replayed(self, source: str) -> Answer:
        self._count("replays")
        self._tell_refused(
            "not_signed_told",
            f"kemi_dmq: 403 to a request from {source}: it is signed, but was seen before, or "
            "before this node started",
        )
        return _NOT_SIGNED

    def _bad(self, code: int, reason: str) -> Answer:
        self._count("bad_requests")
        return Answer(code, reason, b"", "")

    def _call(self, peer: Peer | None, message: Message, node: Node | None) -> tuple[Answer, bool]:
        if message.peer_id == batch.PEER:
            return self._call_batch(message, node)
        if peer is None or peer.callback is None:
            return _NOT_FOUND, False  # the script was loaded again and has no such peer any more
        return self.call_peer(peer, message, node)

    def _call_batch(self, batched: Message, node: Node | None) -> tuple[Answer, bool]:
        """Run the peers of the messages of a batch, one after the other."""
        try:
            items = batch.unpack(batched.body)
        except batch.BatchError:
            return self._bad(400, "Bad Batch"), False
        self._count("batched", len(items))
        text = batch.pack_answers([self._call_item(item, batched, node) for item in items])
        if not text:
            return PLAIN_OK, True
        return Answer(batch.MIXED, "Mixed", text.encode(), batch.CONTENT_TYPE), True

    def _call_item(
        self, item: tuple[str, int, str, str], batched: Message, node: Node | None
    ) -> batch.ItemAnswer:
        peer_id, hops, content_type, text = item
        peer = self.registry.live.get(peer_id)
        if peer is None or peer.callback is None:
            # A route of the script's may be its peer, or a C module is: they read the SIP message.
            return _ALONE
        body: str | bytes | None = text
        if content_type.endswith(wire.ENCODED):
            content_type, body = wire.decode_body(content_type, text)
        if body is None:
            answer = self._bad(413, "Body Cannot Be Read")
        elif body and not content_type:
            answer = self._bad(400, "Missing Content-Type")
        else:
            message = Message(peer_id, body, content_type, batched.from_uri, batched.source, hops)
            answer, _ = self.call_peer(peer, message, node)
            if answer is PLAIN_OK:
                return batch.FINE
        code, reason, raw, kind = answer
        return batch.ItemAnswer(code, reason, raw.decode(), kind if raw else "")

    def call_peer(self, peer: Peer, message: Message, node: Node | None) -> tuple[Answer, bool]:
        assert peer.callback is not None
        try:
            response = peer.callback(message, node)
            if response is OK or response is None:
                self._count("delivered")
                return PLAIN_OK, True
        except BaseException as error:  # also sys.exit(): a peer must not end a SIP worker
            return self._callback_failed(
                peer, f"raised on a message from {message.from_uri}: {describe(error)}"
            )
        if not isinstance(response, Response):
            name = getattr(peer.callback, "__qualname__", peer.callback)
            return self._callback_failed(
                peer,
                f"{name} returned {response!r} on a message from {message.from_uri}; it must "
                "return a kemi_dmq.Response or None",
            )
        self._count("delivered")
        if response.code == 200 and response.reason == "OK" and not response.body:
            return PLAIN_OK, True
        body = response.body.encode() if isinstance(response.body, str) else response.body
        return Answer(response.code, response.reason, body, response.content_type), True

    def _call_raw(
        self, peer: RawPeer, from_uri: str, text: bytes | None = None
    ) -> tuple[Answer, bool]:
        """The peer of a C module, which reads the message itself: the request being handled, or
        that in text."""
        assert peer.answer is not None
        try:
            sender: Node | SipUri | None = self.node_list().of_from(from_uri)
            if sender is None:
                # A From URI bears no transport; the nodes of a bus mostly have the same.
                transport = self.settings.server_address.transport
                sender = wire.parse_uri(from_uri).with_user("").with_transport(transport)
        except WireError:
            return self._bad(400, "Bad From"), False
        try:
            answer, wrong = peer.answer(sender, text)
        except BaseException as error:  # ours: C does not raise
            wrong = f"could not be called on a message from {from_uri}: {describe(error)}"
            return self._callback_failed(peer, wrong)
        if wrong:
            return self._callback_failed(peer, f"{wrong} on a message from {from_uri}")
        self._count("delivered")
        return answer, True

    def _callback_failed(self, peer: Peer, what: str) -> tuple[Answer, bool]:
        self._count("callback_errors")
        self.host.log("err", f"kemi_dmq: peer {peer.peer_id}: its callback {what}")
        return Answer(500, "Peer Callback Failed", b"", ""), False

    def _reply(self, answer: Answer) -> None:
        if answer is PLAIN_OK:
            if not self.host.reply(200, "OK"):
                self.log_some("kemi_dmq: Kamailio did not send the reply 200 OK")
            return
        code, reason, body, content_type = answer
        if code == 408 or (code == 200 and body):
            code = _for_agent(code, self._agent())
        if not self.host.reply(code, reason or "OK", body.decode(), content_type):
            self.log_some(f"kemi_dmq: Kamailio did not send the reply {code} {reason}")
            if body:
                self.host.reply(500, "Reply Body Refused")

    def _agent(self) -> wire.Agent:
        return wire.parse_agent(self.host.header("Supported"), self.host.header("User-Agent"))

    # A node list arrives -------------------------------------------------------------------

    def _notification(self, rc: int, source: str, signed: Signed | None) -> int:
        self._count("notifications")
        first = whole = True
        if signed is None or signed is UNSIGNED:
            code, reason, whole = self._take_list(signed is None)
        elif not (self.host.call_id() or "").endswith(signed.nonce):
            return self._refuse_unsigned(source, "its Call-ID is not the one that was signed")
        else:
            # Applying a list twice does no harm, but a replayed one would.  Call-ID and nonce are
            # one: who repeats the request before it is here itself cannot make it a replay.
            identity = (signed.key_id, signed.nonce)
            verdict, entry, answer = self._claim(identity)
            if verdict is _NEW:
                if self.gate.fresh(signed):
                    code, reason, whole = self._take_list(True)
                else:
                    code, reason = self._replayed(source)[:2]
                self._finish(entry, identity, Answer(code, reason, source.encode(), ""))
            elif answer is None:
                self._count("copies_dropped")
                return rc
            else:
                self._count("duplicates")
                code, reason = answer.code, answer.reason or "OK"
                first = answer.body == source.encode()
        body = content_type = ""
        if code == 200 and first:  # to somewhere else a copy's answer says nothing
            python = wire.parse_agent(self.host.header("Supported"), "").python
            body = self.node_list().body(python, whole, self.host.from_uri() or "")
            content_type = "text/plain"
        headers = self.gate.sign_reply(signed, code, content_type, body)
        self.host.reply(code, reason, body, content_type, headers)
        return rc if code == 200 else -1

    def _take_list(self, believed: bool) -> tuple[int, str, bool]:
        """Give the node list being handled to the engine; the answer's code and reason, and
        whether its sender wants the whole list.

        believed: its sender has signed, or there are no keys."""
        host = self.host
        body = host.body()
        text = body.decode("utf-8", "replace") if isinstance(body, bytes) else body
        try:
            sender = wire.parse_uri(host.from_uri() or "")
        except WireError:
            return self._bad_list(400, "Bad From")
        if text is None:
            return self._bad_list(413, "Body Cannot Be Read")
        if text and not host.content_type():
            return self._bad_list(400, "Missing Content-Type")
        try:
            lines, bad = wire.parse_body(text)
        except WireError:
            return self._bad_list(413, "Node List Too Long")
        if bad:
            self._count("bad_lines", bad)
            if not lines:
                return self._bad_list(400, "Bad Node List")
        if not believed:
            lines = self.vouched(lines)
        supported, product = host.header("Supported"), host.header("User-Agent")
        clean = "".join(f"{line}\r\n" for line in lines)
        inbox = self.shared.engine_inbox
        ticket = inbox.put(
            notification_event(str(sender), clean, supported, product, host.max_forwards())
        )
        if not ticket:
            self._inbox_full("engine")
            return 503, "Engine Busy", False
        nodes = self.node_list()
        python = wire.parse_agent(supported, product).python
        if (
            not python
            and sender.key in nodes.by_key
            and any(
                (line.uri.key in nodes.active_keys) != (line.status == "active") for line in lines
            )
        ):
            inbox.wait_applied(ticket, ENGINE_WAIT)
        return 200, "OK", ";inc=" not in text or WANTS_LIST in text

    def _bad_list(self, code: int, reason: str) -> tuple[int, str, bool]:
        self._count("bad_requests")
        return code, reason, False

    def vouched(self, lines: list[wire.Line]) -> list[wire.Line]:
        """The lines of an unsigned list that are taken: about nodes that are on the list already,
        or need not sign.  The engine asks the others itself: their own answer is signed."""
        known, kept = self.node_list().by_key, []
        for line in lines:
            if line.uri.key in known or self.gate.may_be_listed(line.uri):
                kept.append(wire.Line(line.uri, line.status))  # incarnations are for who signs
            elif line.status == "active" and line.uri.key not in self.gate.local_places:
                self.shared.engine_inbox.put(ask_event(str(line.uri)))  # if not, at the next list
        return kept

    def _refuse(self, code: int, reason: str) -> int:
        self._count("bad_requests")
        self.host.reply(code, reason)
        return -1

    # Messages go out -----------------------------------------------------------------------

    def send(
        self,
        peer_id: str,
        body: str | bytes,
        nodes: tuple[Node, ...],
        resp_cback: ResponseCallback | None,
        max_forwards: int,
        content_type: str,
        ordered: bool = False,
        deadline: float | None = None,
        outbox: int = 0,
    ) -> int:
        """Send a message to each of nodes: 0, or -1 if one of them was not accepted.  Ordered, with
        a deadline or with outbox it goes to the outbox in the engine.

        All arguments are checked before anything is sent.
        """
        if not self.attached:
            self.tell_unattached()
        reference = param = ""
        if resp_cback is not None:
            if not isinstance(resp_cback, ResponseCallback):
                raise TypeError(f"resp_cback is {resp_cback!r}; it must be a ResponseCallback")
            reference = self._reference(resp_cback.function)
            param = pack_param(resp_cback.param)
        if type(body) is not str and type(body) is not bytes:
            body = _plain(body)
        if (
            type(max_forwards) is not int
            or type(content_type) is not str
            or (max_forwards, content_type) not in self._sound
        ):
            max_forwards, content_type = self._checked(max_forwards, content_type)
        if body and not content_type:
            raise ValueError("content_type is empty; a body needs one")
        if isinstance(body, str) and not body.isascii():
            try:
                size = len(body.encode())
            except UnicodeEncodeError:
                raise ValueError("body has lone surrogates; send such data as bytes") from None
        else:
            size = len(body)
        text = wire.as_text(body)
        encoded = text is None
        keeps = ordered or deadline is not None
        seconds = _deadline(deadline) if keeps else DEADLINE
        if self.settings.sl_send and not reference and not keeps:
            outbox = 0  # without a transaction: nothing waits for it in the engine
        if encoded and not keeps and not (size < self._safe_body and _all_python(nodes)):
            outbox = 0  # as it is, it reaches C nodes too, and more of it fits
        for node in () if size < self._safe_body else nodes:
            limit = self.max_body(node, peer_id, content_type)
            if encoded and (keeps or outbox):
                limit = limit // 4 * 3 - len(wire.ENCODED)
            if size > limit:
                raise ValueError(
                    f"body has {size} bytes; at most {limit} reach {node.uri} over {node.transport}"
                )
        whose = f"{reference}|{param}" if reference else ""
        if keeps or outbox:
            text = wire.encode(body) if text is None else text
            fields = (peer_id, text, encoded, content_type, max_forwards, bool(ordered))
            return self._post(nodes, seconds, fields, whose)
        result = 0
        for node in nodes:
            accepted = None
            if text is not None:
                if self.settings.sl_send and not reference:
                    accepted = self.send_stateless(node, peer_id, text, max_forwards, content_type)
                elif size <= MAX_OWN and not self.settings.use_tm:
                    accepted = self._send_watched(
                        node, peer_id, text, max_forwards, content_type, whose
                    )
            if accepted is None:
                accepted = self._send_by_tm(node, peer_id, body, max_forwards, content_type, whose)
            if accepted:
                self._count("sent")
            else:
                self._count("send_failures")
                self.log_some(f"kemi_dmq: a message to {peer_id} at {node.uri} was not sent")
                result = -1
        return result

    def _checked(self, max_forwards: int, content_type: str) -> tuple[int, str]:
        """Both as values that are written as what they are."""
        if not isinstance(max_forwards, int) or not 0 <= max_forwards <= 255:
            raise ValueError(f"max_forwards is {max_forwards!r}; it must be 0 to 255")
        if not isinstance(content_type, str) or not _CONTENT_TYPE.fullmatch(content_type):
            raise ValueError(f"content_type is {content_type!r}; it must be such as text/plain")
        if len(self._sound) >= 1000:
            self._sound.clear()
        sound = (int(max_forwards), "".join((content_type,)))
        self._sound.add(sound)
        return sound

    def _post(
        self, nodes: tuple[Node, ...], seconds: float, fields: tuple[Any, ...], whose: str
    ) -> int:
        """Hand a message over to the outbox.  fields: the first ones of its Post."""
        if self.shared.full_nodes.version != self._full[0]:
            version, keys = self.shared.full_nodes.read()
            self._full = (version, frozenset(keys or ()))
        full = self._full[1]
        listed = self.node_list()
        peer_id, _, encoded, *_ = fields
        taken: list[str] | tuple[str, ...] = []
        refused: list[str] = []
        if nodes is listed.active and not full and not encoded:
            nodes, taken = (), listed.active_uris  # nothing for each node
        for node in nodes:
            if (node.host, node.port) in full:
                refused.append(f"as much as outbox_memory allows waits for {node.uri}")
            elif encoded and not node.python:
                refused.append(f"{node.uri} does not run kemi_dmq: only text can be kept for it")
            else:
                taken.append(node.uri)  # type: ignore[union-attr]
        for start in range(0, len(taken), NODES_A_POST):
            uris = tuple(taken[start : start + NODES_A_POST])
            now = self._clock()
            if self.shared.posts.put(post_event(now, *fields, now + seconds, whose, uris)):
                self._count("outbox_posted", len(uris))
            else:
                refused += ["too many messages are on their way to the engine"] * len(uris)
        if not refused:
            return 0
        self._count("outbox_refused", len(refused))
        self.log_some(f"kemi_dmq: a message to {peer_id} was not taken: {refused[-1]}")
        return -1

    def _send_by_tm(
        self,
        node: Node,
        peer_id: str,
        body: str | bytes,
        max_forwards: int,
        content_type: str,
        whose: str,
    ) -> bool:
        """Send with a transaction of tm."""
        to, from_uri = self.node_list().to_uri(node, peer_id), self.from_uri(peer_id)
        headers = f"Max-Forwards: {max_forwards}\r\n{wire.SUPPORTED}"
        if body:
            headers += f"Content-Type: {content_type}\r\n"
        if self._signs:
            headers += self.gate.sign(to, from_uri, content_type, body)
        event_param = self._event_param(f"{MARK}{node.uri}|{whose}") if whose else ""
        if whose and not event_param:
            return False
        accepted = self.host.send(to, from_uri, headers, body, event_param, next_hop(node))
        if not accepted and event_param.startswith(MARK_CELL):
            self.shared.cells.take(int(event_param[len(MARK_CELL) :]))
        return accepted

    def _send_watched(
        self,
        node: Node,
        peer_id: str,
        text: str,
        max_forwards: int,
        content_type: str,
        whose: str,
    ) -> bool | None:
        """Send with a transaction of our own (unanswered.py); None if there is no room for it."""
        table = self.shared.unanswered
        slot, token = table.free()
        if not token:
            return None
        self._send_count += 1
        unique = f"{slot:x}.{self._send_count:x}.{token:x}"
        to, request = self._request(
            node,
            peer_id,
            max_forwards,
            content_type,
            text,
            f"z9hG4bK{unique}",
            f"{self._parcel_prefix}{WORKERS}{unique}",
            f"{self._send_count:x}",
        )
        if not table.fill(slot, token, to, request, f"{node.uri}|{whose}" if whose else ""):
            return None
        if not self.host.send_text(to, request):
            # Unless it has timed out meanwhile: then it has its outcome already.
            return table.take(slot, token) is None
        if table.watch():
            self.shared.engine_inbox.wake()
        return True

    def send_stateless(
        self, node: Node, peer_id: str, body: str, max_forwards: int, content_type: str
    ) -> bool:
        """Send text without a transaction: once, and without an outcome."""
        self._send_count += 1
        mine = self.shared.processes.mine()
        unique = f"{time.time_ns():x}.{mine}.{self._send_count}"
        to, request = self._request(
            node,
            peer_id,
            max_forwards,
            content_type,
            body,
            f"z9hG4bK{unique}",
            f"{unique}@{self.settings.server_socket.host.strip('[]')}",
            f"{mine}.{self._send_count}",
        )
        return self.host.send_text(to, request)

    def _request(
        self,
        node: Node,
        peer_id: str,
        max_forwards: int,
        content_type: str,
        body: str,
        branch: str,
        call_id: str,
        tag: str,
    ) -> tuple[SipUri, str]:
        """Where a message goes that does not go through tm, and its text."""
        nodes = self.node_list()
        key = (node.uri, peer_id, max_forwards, content_type)
        to_place, form = nodes.forms.get(key) or self._new_form(nodes, node, *key[1:])
        signature = ""
        if self._signs:
            to = nodes.to_uri(node, peer_id)
            signature = self.gate.sign(to, self.from_uri(peer_id), content_type, body)
        return to_place, form.request(branch, call_id, tag, body, signature)

    def from_uri(self, peer_id: str) -> SipUri:
        """What names this node in a message of a peer."""
        uri = self._from_uris.get(peer_id)
        if uri is None:
            uri = self.settings.server_address.with_transport("udp").with_user(peer_id)
            self._from_uris[peer_id] = uri
        return uri

    def max_body(self, node: Node, peer_id: str, content_type: str) -> int:
        """The largest body in bytes that reaches a node."""
        headers = HEADERS + 3 * (len(node.uri) + len(peer_id)) + len(content_type)
        if self._signs:
            headers += HEADER_BYTES
        if node.transport == "udp":
            return MAX_UDP - headers
        if node.python:
            return MAX_BODY
        return min(MAX_BODY, self.settings.c_tcp_rd_buf_size - 1 - headers)

    def _new_form(
        self, nodes: NodeList, node: Node, peer_id: str, max_forwards: int, content_type: str
    ) -> tuple[SipUri, wire.Form]:
        socket = self.settings.server_socket
        to = nodes.to_uri(node, peer_id)
        form = wire.Form(
            wire.Via(to.transport, socket.host, socket.port),
            self.from_uri(peer_id),
            to,
            max_forwards,
            content_type,
            self.user_agent(),
        )
        found = (place(node), form)
        if nodes.by_key.get((node.host, node.port)) is node:  # else it is of a list before this one
            if len(nodes.forms) >= 4096:
                nodes.forms.clear()
            nodes.forms[node.uri, peer_id, max_forwards, content_type] = found
        return found

    def tell_unattached(self) -> None:
        self.attached = True  # told once
        self.host.log(
            "crit",
            "kemi_dmq: this node does not join the bus, since dmq.attach() was not called; end "
            'mod_init() with "return dmq.attach(handler)"',
        )

    def user_agent(self) -> str:
        return f"kemi_dmq (kamailio {self.host.version()})"

    # Answers come in -----------------------------------------------------------------------

    def on_reply(self) -> bool:
        """A SIP reply is being handled: True, and it is dropped, if it is for the engine."""
        host = self.host
        try:
            call_id = host.call_id()
        except UnicodeDecodeError:
            return False
        if not call_id:
            return False
        is_parcel = call_id.startswith(self._parcel_prefix)
        if not is_parcel and not call_id.startswith(self._prefix):
            return False
        code = host.reply_code()
        if code >= 200 and is_parcel:
            self._take_reply(call_id, code)
        elif code >= 200:
            wrong = self.gate.check_answer(host, call_id[len(self._prefix) :], code)
            if wrong:
                self._refuse_answer(code, wrong)
            else:
                if code == 403 and not self._signs:
                    self._refuse_answer(code, "this node has no keys")
                self._take_answer(call_id, code)
        host.drop()
        return True

    def _take_answer(self, call_id: str, code: int) -> None:
        host = self.host
        body = host.body() or ""
        text = body.decode("utf-8", "replace") if isinstance(body, bytes) else body
        if self._signs and text and not self.gate.is_signed(host):
            try:
                lines = self.vouched(wire.parse_body(text)[0])
            except WireError:
                lines = []
            text = "".join(f"{line.uri};status={line.status}\r\n" for line in lines)
        event = answer_event(call_id, code, text, host.header("Supported"), host.header("Server"))
        if not self.shared.engine_inbox.put(event):
            self._inbox_full("engine")

    def _refuse_answer(self, code: int, wrong: str) -> None:
        self._count("answers_refused")
        hint = ""
        if code == 403:
            hint = "; it refuses us: see its log, and compare keys, clocks and allowed networks"
        source = self.host.source_ip()
        self._tell_refused(
            "answers_refused_told",
            f"kemi_dmq: an answer {code} from {source} does not count: {wrong}{hint}",
        )

    def _take_reply(self, call_id: str, code: int) -> None:
        """The answer to a parcel of the outbox."""
        host = self.host
        if call_id.startswith(WORKERS, len(self._parcel_prefix)):
            self._take_workers_reply(call_id, code)
            return
        parcel = quiet_parcel(call_id, self._parcel_prefix)
        if parcel and code == 200:
            inbox = self.shared.engine_inbox
            if not inbox.put(fine_event(parcel), wake=False):
                self._inbox_full("engine")
            # Asked after it is there: the engine says so first, and then looks what is there.
            elif self.shared.words.get("answers_wanted") or inbox.fills_up():
                inbox.wake()
            return
        body = host.body() or ""
        if len(body if isinstance(body, bytes) else body.encode()) > MAX_ANSWER:
            self.log_some(f"kemi_dmq: the body of a reply to {call_id} is left out: too large")
            body = ""
        answer = Answered(code, host.reply_reason(), body, host.content_type() if body else "")
        if not self.shared.engine_inbox.put(reply_event(call_id, answer)):
            self._inbox_full("engine")  # it is sent again, and answered again

    def _take_workers_reply(self, call_id: str, code: int) -> None:
        """The answer to what a process of ours has sent by itself: the first one counts."""
        try:
            slot, _, token = call_id[len(self._parcel_prefix) + 1 :].split(".", 2)
            whose = self.shared.unanswered.take(int(slot, 16), int(token, 16))
        except ValueError:
            return  # somebody's answer to what nobody asked
        if whose:
            self._run_answer(MARK + whose, code)

    def _run_answer(self, event_param: str, code: int) -> None:
        """Call the response callback of the answer being handled."""
        self._count("replies")
        host = self.host
        body = host.body() or ""
        content_type = host.content_type() if body else ""
        reply = Reply(code, host.reply_reason(), body, content_type, timed_out=False)
        self.run_response(event_param, reply)

    def timed_out(self, whose: str) -> bool:
        """In the engine's process: tell that no answer came; False if there is no room for it."""
        if not self.shared.callbacks_inbox.put(("timeout", MARK + whose)):
            self.log_some("kemi_dmq: a callback holds up those that follow")
            return False
        self._count("timeouts")
        return True

    def on_outcome(self) -> bool:
        """The outcome of a request that was sent is being handled: True if it was ours."""
        host = self.host
        event_param, code, timed_out = host.event()
        if event_param.startswith(MARK_CELL):
            event_param = self.shared.cells.take(int(event_param[len(MARK_CELL) :])).decode()
        if not event_param.startswith(MARK):
            return False
        if timed_out:
            # tm's timer process serves every transaction of this Kamailio: it only posts.
            self._count("timeouts")
            if not self.shared.callbacks_inbox.put(("timeout", event_param)):
                self._inbox_full("callbacks process")
            return True
        self._run_answer(event_param, code)
        return True

    def run_outcome(self, event: tuple[Any, ...]) -> None:
        """In the callbacks process: tell what became of a message from the outbox."""
        _, whose, name, code, reason, body, content_type = event
        outcome = Outcome(name)
        answered = outcome is Outcome.ANSWERED
        self._count("replies" if answered else "timeouts")
        reply = Reply(code, reason, body, content_type, timed_out=not answered, outcome=outcome)
        self.run_response(MARK + whose, reply)

    def run_response(self, event_param: str, reply: Reply) -> None:
        """Call a response callback; what it raises is logged."""
        _, uri, reference, param = event_param.split("|", 3)
        node = self.node_list().of_uri(uri)
        try:
            function = self._functions.get(reference)
            if function is None:
                function = self._functions[reference] = find_function(reference)
            function(reply, node, unpack_param(param))
        except BaseException as error:  # also sys.exit()
            self._count("user_errors")
            self.host.log(
                "err",
                f"kemi_dmq: response callback {reference} raised on the answer of {uri}: "
                f"{describe(error)}",
            )

    def forget_functions(self) -> None:
        """The script was loaded again: its functions are others now."""
        self._references.clear()
        self._functions.clear()

    def _reference(self, function: ResponseFunction) -> str:
        try:
            reference = self._references.get(function)
        except TypeError:  # not hashable
            reference = None
        if reference is None:
            reference = function_reference(function)
            self._references[function] = reference
        return reference

    def _event_param(self, text: str) -> str:
        if len(text) <= MAX_EVENT_PARAM and text.isascii():
            return text
        cell = self.shared.cells.put(text.encode())
        return "" if cell is None else f"{MARK_CELL}{cell}"

    def _inbox_full(self, whose: str) -> None:
        self._count("inbox_full")
        self.log_some(f"kemi_dmq: the inbox of the {whose} is full, an event is lost")

    def log_some(self, text: str) -> None:
        """Log an error; of many in one second the first, and how many there were."""
        now = time.monotonic()
        self._unlogged += 1
        if now - self._logged_at >= 1:
            more = f" ({self._unlogged - 1} more errors before)" if self._unlogged > 1 else ""
            self.host.log("err", text + more)
            self._logged_at, self._unlogged = now, 0


def _for_agent(code: int, agent: wire.Agent) -> int:
    """The code in place of a 200 with a body, or of a 408: a C node takes the one's body for a
    node list, and the other for the node's death."""
    if agent.python:
        return code
    return 480 if code == 408 else 202


def _plain(body: object) -> str | bytes:
    """A body of a derived type (an enum's) as the text or bytes that it is: what is written of it
    might be something else."""
    if isinstance(body, str):
        return "".join((body,))
    if isinstance(body, bytes):
        return b"".join((body,))
    raise TypeError(f"body is {type(body).__name__}; it must be str or bytes")


def _all_python(nodes: tuple[Node, ...]) -> bool:
    return all(node.python for node in nodes)


def _deadline(deadline: float | None) -> float:
    if deadline is None:
        return DEADLINE
    if isinstance(deadline, bool) or not isinstance(deadline, (int, float)):
        raise TypeError(f"deadline is {deadline!r}; it must be a number of seconds, or None")
    if not math.isfinite(deadline) or not 0 < deadline <= MAX_DEADLINE:
        raise ValueError(f"deadline is {deadline!r}; it must be above 0 and at most {MAX_DEADLINE}")
    return float(deadline)


def describe(error: BaseException) -> str:
    """An exception on one line, with the place in the user's code."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = ""
    if trace is not None:
        where = f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})"
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text + where
