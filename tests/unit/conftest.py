from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from hypothesis import settings

from kemi_dmq import dmq as runtime_module
from kemi_dmq.api import DmqApi
from kemi_dmq.dmq import DMQ
from kemi_dmq.engine import Bodies, pack_nodes
from kemi_dmq.node import Node, Status
from kemi_dmq.peer import Peer, Registry
from kemi_dmq.testing.fake_kamailio import FakeKamailio, Request, SentReply
from kemi_dmq.wire import build_body, parse_uri

from .scripts import run_script

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=100)
settings.load_profile("ci")

LOCAL = "sip:10.0.0.1:5060"


def node(
    uri: str, status: Status = Status.ACTIVE, *, local: bool = False, python: bool = True
) -> Node:
    parsed = parse_uri(uri)
    address = parsed.host.strip("[]")
    return Node(
        str(parsed), parsed.host, parsed.port, parsed.transport, status, local, python, address
    )


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    if len(os.listdir("/proc/self/fd")) > before:
        gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before, "the test leaks file descriptors"


class Handler:
    """A script's handler; attach() adds to it."""


class Bed:
    """One Kamailio process without Kamailio."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kamailio = FakeKamailio(
            listen=["udp:10.0.0.1:5060", "tcp:10.0.0.1:5060", "udp:192.168.0.1:5070"]
        )
        self.ksr = self.kamailio.install()
        self.patch = monkeypatch
        self.dmq: DMQ | None = None
        self.kept: list[object] = []
        for name in ("kemi_dmq.host.kamailio", "kemi_dmq.host.process"):
            sys.modules.pop(name, None)
        monkeypatch.setattr(runtime_module, "_runtime", None)
        registry = Registry()
        monkeypatch.setattr(runtime_module, "registry", registry)
        monkeypatch.setattr(runtime_module, "_api", DmqApi(registry))
        # Taking 2**28 references is for Kamailio; here objects are to go with the test.
        monkeypatch.setattr("kemi_dmq.host.reload.keep", self.kept.append)

    @property
    def api(self) -> DmqApi:
        return runtime_module.dmq_load_api()

    def new(self, **given: Any) -> DMQ:
        """DMQ(), as the script's first line."""
        self.dmq = DMQ(**{"server_address": LOCAL, "outbox": 0, "use_tm": 1, **given})
        return self.dmq

    @property
    def runtime(self) -> runtime_module.Runtime:
        assert runtime_module._runtime is not None
        return runtime_module._runtime

    def register(self, *peers: Peer) -> None:
        """What the script does between DMQ() and attach()."""
        run_script("for peer in peers: register(peer)", peers=peers, register=self.register_peer)

    def register_peer(self, peer: Peer) -> Peer:
        return self.api.register_dmq_peer(peer)

    def start(self, *peers: Peer, handler: Any = None, **given: Any) -> DMQ:
        """A script that has loaded."""
        dmq = self.new(**given)
        self.register(*peers)
        dmq.attach(handler if handler is not None else Handler())
        return dmq

    def publish(self, *nodes: Node) -> None:
        """What the engine does when the list changes."""
        local = node(LOCAL, local=True)
        uris = [parse_uri(n.uri) for n in [local, *nodes] if n.active]
        bodies = Bodies(build_body(uris[:2]), "", build_body(uris[:1]), build_body(uris))
        self.runtime.shared.snapshot.publish(pack_nodes([local, *nodes], bodies))

    def ask(self, request: Request) -> SentReply:
        """The one reply to a request for the bus."""
        replies = self.asked(request)
        assert len(replies) == 1, replies
        return replies[0]

    def asked(self, request: Request) -> list[SentReply]:
        assert self.dmq is not None
        dmq = self.dmq
        return self.kamailio.receive(request, lambda msg: dmq.handle_message())

    def errors(self) -> list[str]:
        return self.kamailio.lines("err")

    def close(self) -> None:
        if runtime_module._runtime is None:
            return
        shared = self.runtime.shared
        for fd in (
            shared.engine_inbox.fd,
            shared.posts.fd,
            shared.callbacks_inbox.fd,
            shared.processes._lock_fd,
            shared.names._lock_fd,
            shared.cells._lock_fd,
            *(inbox.fd for inbox in (shared.workers.inboxes if shared.workers else ())),
        ):
            os.close(fd)


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    bed = Bed(monkeypatch)
    yield bed
    bed.close()
    gc.unfreeze()
    sys.modules.pop("KSR", None)


@pytest.fixture
def write_module(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, str], ModuleType | None]]:
    """Write a module; import it, or leave that to others."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    names: list[str] = []

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)
        names.append(name)
        importlib.invalidate_caches()

    yield write
    for name in names:
        sys.modules.pop(name, None)
