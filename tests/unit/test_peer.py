from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from kemi_dmq.peer import Peer, Registry, is_peer_id

from .scripts import run_script

Write = Callable[[str, str], None]
current = Registry()


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    registry = Registry("notification_peer")
    # Scripts of these tests find it here.
    monkeypatch.setattr(sys.modules[__name__], "current", registry)
    return registry


def register(peer: Peer) -> Peer:
    """As DmqApi.register_dmq_peer: one frame between the script and the registry."""
    return current.register(peer)


def opened() -> None:
    """As DMQ()."""
    current.open_generation()


def names(registry: Registry) -> set[str]:
    return {peer.peer_id for peer in registry.peers()}


class Script:
    def __init__(self, text: str) -> None:
        self.text = text

    def load(self) -> None:
        run_script(self.text, register=register, opened=opened, Peer=Peer)


def test_a_generation_answers_only_when_the_script_has_loaded(registry: Registry) -> None:
    registry.open_generation()
    Script("register(Peer('acme'))").load()
    assert names(registry) == set()
    registry.commit()
    assert names(registry) == {"acme"}


def test_the_next_generation_replaces_the_one_before_as_a_whole(registry: Registry) -> None:
    registry.open_generation()
    Script("register(Peer('a')); register(Peer('b'))").load()
    registry.commit()
    registry.open_generation()
    Script("register(Peer('b')); register(Peer('c'))").load()
    assert names(registry) == {"a", "b"}
    registry.commit()
    assert names(registry) == {"b", "c"}


def test_a_script_that_fails_changes_nothing_and_can_be_loaded_again(registry: Registry) -> None:
    Script("opened(); register(Peer('a'))").load()
    registry.commit()
    with pytest.raises(RuntimeError):
        Script("opened(); register(Peer('b')); raise RuntimeError").load()
    assert names(registry) == {"a"}
    Script("opened(); register(Peer('b'))").load()
    registry.commit()
    assert names(registry) == {"b"}


def test_a_second_dmq_in_one_load_keeps_what_was_registered(registry: Registry) -> None:
    Script("opened(); register(Peer('a')); opened(); register(Peer('b'))").load()
    registry.commit()
    assert names(registry) == {"a", "b"}


def test_a_discarded_generation_leaves_the_one_before(registry: Registry) -> None:
    registry.open_generation()
    Script("register(Peer('a'))").load()
    registry.commit()
    registry.open_generation()
    Script("register(Peer('b'))").load()
    registry.discard()
    registry.commit()
    assert names(registry) == {"a"}


def test_after_loading_registering_raises(registry: Registry) -> None:
    registry.open_generation()
    registry.commit()
    with pytest.raises(RuntimeError, match="outside of loading"):
        Script("register(Peer('late'))").load()


def test_a_name_is_taken_once(registry: Registry) -> None:
    registry.open_generation()
    Script("register(Peer('a'))").load()
    for name in ("a", "notification_peer"):
        with pytest.raises(ValueError, match="taken"):
            Script(f"register(Peer({name!r}))").load()


def test_what_is_no_peer_is_refused(registry: Registry) -> None:
    registry.open_generation()
    with pytest.raises(TypeError, match="it must be a kemi_dmq"):
        registry.register("acme")  # type: ignore[arg-type]


def test_registrations_of_imported_modules_stay(registry: Registry, write_module: Write) -> None:
    write_module(
        "my_peers",
        f"import sys\nfrom kemi_dmq.peer import Peer\n"
        f"sys.modules[{__name__!r}].register(Peer('of_module'))\n",
    )
    script = Script("import my_peers\nregister(Peer('of_script'))")
    registry.open_generation()
    script.load()
    registry.commit()
    assert names(registry) == {"of_module", "of_script"}
    registry.open_generation()
    script.load()  # does not import my_peers again
    registry.commit()
    assert names(registry) == {"of_module", "of_script"}
    registry.open_generation()
    with pytest.raises(ValueError, match="taken"):
        Script("register(Peer('of_module'))").load()


def test_a_module_may_register_before_there_is_a_bus(
    registry: Registry, write_module: Write
) -> None:
    write_module(
        "early_peers",
        f"import sys\nfrom kemi_dmq.peer import Peer\n"
        f"sys.modules[{__name__!r}].register(Peer('early'))\n",
    )
    Script("import early_peers").load()
    assert names(registry) == {"early"}


def test_a_function_of_a_module_registers_for_the_script_that_calls_it(
    registry: Registry, write_module: Write
) -> None:
    write_module(
        "ready_made",
        f"import sys\nfrom kemi_dmq.peer import Peer\n"
        f"def make(name): return sys.modules[{__name__!r}].register(Peer(name))\n",
    )
    registry.open_generation()
    Script("import ready_made\nready_made.make('table')").load()
    registry.commit()
    registry.open_generation()
    Script("import ready_made\nready_made.make('other')").load()
    registry.commit()
    assert names(registry) == {"other"}


@pytest.mark.parametrize("peer_id", ["", "a b", "a@b", "ä", "x" * 65, None, 5, "a:b", "a\n"])
def test_a_peer_id_is_the_user_part_of_a_uri(peer_id: Any) -> None:
    with pytest.raises(ValueError, match="peer_id is"):
        Peer(peer_id)
    assert not is_peer_id(peer_id)
    assert is_peer_id("x" * 64) and is_peer_id("htable_sync-1.0")


def test_callbacks_must_be_callable() -> None:
    with pytest.raises(TypeError, match="callback of peer acme"):
        Peer("acme", "", "no")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="init_callback of peer acme"):
        Peer("acme", init_callback=1)  # type: ignore[arg-type]
