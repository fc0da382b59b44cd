"""A bus of one kind of node: one that sends, and those that receive."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from .brokers import Broker, BrokerSubject
from .cpu import Meter, tree
from .load import LoadError, Sender
from .modes import NATS, PYTHON, REDIS, C, Mode
from .nodes import REGISTRAR, CSubject, PythonSubject, Subject, running, wait_until

#: Seconds for which deliveries are waited for.
PATIENCE = 5


class Bus:
    """The nodes of a mode.  Addresses are 127.0.NETWORK.1 (it sends) and following."""

    def __init__(
        self,
        mode: Mode,
        directory: Path,
        network: int,
        receivers: int,
        *,
        small: bool = True,
        registrar: bool = False,
    ) -> None:
        self.mode = mode
        self.broker = Broker(mode.kind, directory, network) if mode.kind in (REDIS, NATS) else None
        self.nodes: list[Subject] = []
        self.lost = 0  # messages that should have come and did not
        for number in range(receivers + 1):
            address = f"127.0.{network}.{number + 1}"
            place = directory / address
            notification = self.nodes[0].bus_uri if number else ""
            more = REGISTRAR if registrar and not number else ""
            tiny = small and number > 0
            node: Subject
            if mode.kind == PYTHON:
                node = PythonSubject(
                    address,
                    place,
                    notification,
                    defines=mode.defines,
                    more=more,
                    small=tiny,
                    transport=mode.transport,
                )
            elif mode.kind == C:
                node = CSubject(
                    address,
                    place,
                    notification,
                    more=more,
                    small=tiny,
                    transport=mode.transport,
                )
            else:
                assert self.broker is not None
                node = BrokerSubject(address, place, self.broker, bool(number), more, tiny)
            self.nodes.append(node)
        self.sender, *self.receivers = self.nodes

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if self.broker:
                stack.enter_context(self.broker.running())
            stack.enter_context(running(*self.nodes))
            self.wait_whole()
            yield

    def wait_whole(self) -> None:
        """Wait until all list all, and until C nodes know their peers."""
        if self.mode.kind in (PYTHON, C):
            everybody = {node.uri for node in self.nodes}
            for node in self.nodes:
                wait_until(
                    lambda node=node: node.active() == everybody,  # type: ignore[misc]
                    60,
                    lambda node=node: f"{node.uri} lists all; log:\n{node.log()[-2000:]}",  # type: ignore[misc]
                )
        for node in self.nodes:
            if isinstance(node, CSubject):
                node.learn()
        # The processes of all are there, and what they did at the start is done.
        for node in self.nodes:
            node.wait_settled()
        time.sleep(0.2)

    def pids(self) -> list[int]:
        own = [pid for node in self.nodes for pid in tree(node.pid)]
        return own + (tree(self.broker.pid) if self.broker else [])

    def meter(self) -> Meter:
        """Of all nodes, and of the broker between them."""
        return Meter(self.pids())

    def delivered(self) -> int:
        return sum(node.delivered() for node in self.receivers)

    def read_when_delivered(self, meter: Meter, before: int, messages: int) -> int:
        """The meter, when the receivers have got so many more messages than before.  Asking them
        costs them something, so it is read first."""
        limit = time.monotonic() + PATIENCE
        while True:
            time.sleep(0.03)
            found = meter.read()
            missing = before + messages - self.delivered()
            if missing <= 0:
                return found
            if time.monotonic() > limit:
                self._lose(missing, messages)
                return found

    def forget_stamps(self) -> None:
        for node in self.receivers:
            node.forget_stamps()

    def stamps(self, each: int) -> list[list[tuple[float, float]]]:
        """What each receiver noted, when all have noted so many."""
        limit = time.monotonic() + PATIENCE
        while True:
            found = [node.stamps() for node in self.receivers]
            missing = sum(max(0, each - len(stamps)) for stamps in found)
            if not missing:
                return found
            if time.monotonic() > limit:
                self._lose(missing, each * len(found))
                return found
            time.sleep(0.001)

    def _lose(self, missing: int, messages: int) -> None:
        """A few may be lost, where nobody sends again."""
        self.lost += missing
        if missing > max(1, messages // 50):
            raise LoadError(f"{self.mode.name}: {missing} of {messages} messages did not come")

    def trigger(
        self,
        client: Sender,
        action: str,
        count: int = 1,
        peer: str = "silent",
        body: str = "text-200",
        content: str | bytes = "x" * 200,
        to: str = "",
    ) -> bytes:
        """A request that makes the sender send or broadcast; see node.py."""
        user = action
        if self.mode.kind == C and peer == "timed":
            user += "_timed"
        return client.build(
            "INFO",
            user,
            self.sender.address,
            body=content,
            headers=f"X-What: {peer} {self.mode.how} {count} {body} 0\r\n"
            f"X-Count: {count}\r\nX-Node: {to}\r\n",
        )


@contextlib.contextmanager
def all_running(buses: Sequence[Bus]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for bus in buses:
            stack.enter_context(bus.running())
        yield


def losses(buses: Sequence[Bus]) -> str:
    """A line that says how many messages were lost, if any were."""
    found = [f"{bus.mode.name}: {bus.lost}" for bus in buses if bus.lost]
    return f"\nMessages that did not come: {', '.join(found)}.\n" if found else ""
