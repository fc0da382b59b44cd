"""make demo: what a DMQ bus of three Kamailios does, until Ctrl-C or for DEMO_SECONDS.

With DEMO_SECONDS it ends by itself; its status is 0 only if every node listed all others, at the
start and after one was stopped and started again, and every broadcast arrived.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from .nodes import DemoError, Node, Seen
from .view import LOST, View

A, B, C = "127.0.0.21", "127.0.0.22", "127.0.0.23"
POLL = 0.05
#: Seconds that a broadcast may take, and that joining may take; a C node asks again at a ping.
ARRIVES, JOINS = 2.0, 12.0
EVERY = 3.0
#: Seconds until the death of a node that says no goodbye (dmq.so) is seen: ping and patience.
LEAVES = 30.0
END = 1.0  # what is kept of DEMO_SECONDS for stopping


class Story:
    def __init__(self, directory: Path, seconds: float | None) -> None:
        self.nodes = [
            Node("A", A, "kemi_dmq", B, directory),
            Node("B", B, "kemi_dmq", A, directory),
            Node("C", C, "dmq.so", A, directory),
        ]
        self.problems: list[str] = []
        self._seen: dict[str, Seen] = {}
        self._lists: dict[str, dict[str, str] | str] = {n.name: "not started" for n in self.nodes}
        self._arrivals: dict[tuple[str, str], float | None] = {}
        self._sent: dict[str, tuple[int, float]] = {}
        self._numbers = itertools.count(1)
        ends_at = None if seconds is None else max(0.0, seconds - END)
        self.view = View(self.nodes, self._lists, self._arrivals, seconds)
        self._ends_at = ends_at
        self._said: set[str] = set()

    # The story -------------------------------------------------------------------------------

    def tell(self) -> None:
        began = time.monotonic()
        self.view.say("three Kamailios start")
        for node in self.nodes:
            node.start()
            self._lists[node.name] = "starting"
        self._watch(lambda: self.nodes[0].name in self._seen, JOINS)
        self._joined(began, "the start")
        self._broadcasts()
        self._pause(1.5)
        self._stop_and_start(self.nodes[1])
        others = itertools.cycle((self.nodes[2], self.nodes[0], self.nodes[1]))
        rounds = 0
        while self._broadcasts():
            rounds += 1
            if self._ends_at is None and rounds % 5 == 0:
                self._stop_and_start(next(others))

    def _joined(self, since: float, what: str) -> None:
        whole = self._watch(self._whole, JOINS)
        seconds = time.monotonic() - since
        if whole:
            self.view.say(f"all list all as active, {seconds:.1f} s after {what}", "green")
        else:
            self._problem(f"not all list all as active {seconds:.0f} s after {what}")

    def _stop_and_start(self, node: Node) -> None:
        others = [other for other in self.nodes if other is not node]
        self.view.say(f"{node.name} ({node.kind}) is stopped with SIGTERM", "yellow")
        left = {other.name: LEAVES for other in others}
        stopped = time.monotonic()
        if node.process is not None:
            node.process.terminate()
        self._lists[node.name] = "stopped"
        self._seen.pop(node.name, None)

        def gone() -> bool:
            for other in others:
                seen = self._seen.get(other.name)
                if seen and left[other.name] == LEAVES and seen.nodes.get(node.address) != "active":
                    left[other.name] = seconds = time.monotonic() - stopped
                    self.view.say(f"{other.name} has seen {node.name} go after {seconds:.2f} s")
            return all(seconds < LEAVES for seconds in left.values())

        if not self._watch(gone, LEAVES, without=node):
            self._problem(f"{node.name} was stopped and is still listed after {LEAVES:.0f} s")
        node.stop()
        self._broadcasts()
        self._pause(1.5)
        self.view.say(f"{node.name} is started again", "yellow")
        began = time.monotonic()
        node.start()
        self._lists[node.name] = "starting"
        self._joined(began, f"{node.name} was started again")

    def _broadcasts(self) -> bool:
        """Each node tells all others, once; False if there is no more time for the next round."""
        self.view.broadcast = number = next(self._numbers)
        self._arrivals.clear()
        senders = [node for node in self.nodes if node.name in self._seen]
        for sender in senders:
            for node in senders:
                if node is not sender:
                    self._arrivals[sender.name, node.name] = None
        for sender in senders:
            self._sent[sender.name] = (number, sender.broadcast(number))
        self._poll()
        self._watch(self._all_arrived, ARRIVES)
        for (sender_name, name), seconds in self._arrivals.items():
            if seconds is None:
                self._arrivals[sender_name, name] = LOST
                self._problem(f"broadcast {number} from {sender_name} did not reach {name}")
        for sender in senders:
            self.view.broadcast_done(sender)
        if self._ends_at is None:
            return self._pause(EVERY)
        return self._pause(min(EVERY, self._ends_at - self.view.elapsed)) and (
            self.view.elapsed < self._ends_at
        )

    # Looking ---------------------------------------------------------------------------------

    def _watch(self, what: Callable[[], bool], seconds: float, without: Node | None = None) -> bool:
        """Look at all nodes again and again, until what() is true."""
        end = time.monotonic() + seconds
        while not what():
            if time.monotonic() > end:
                return False
            time.sleep(POLL)
            self._poll(without)
        return True

    def _pause(self, seconds: float) -> bool:
        self._watch(lambda: False, seconds)
        return True

    def _poll(self, without: Node | None = None) -> None:
        for node in self.nodes:
            if node is without or not node.running:
                continue
            node.check()
            seen = node.ask()
            if seen is not None:
                self._seen[node.name] = seen
                self._lists[node.name] = seen.nodes
                self._note_arrivals(node, seen)
        self.view.lists_changed()

    def _note_arrivals(self, node: Node, seen: Seen) -> None:
        for sender, (number, when) in seen.got.items():
            key = (sender, node.name)
            if key in self._arrivals and self._arrivals[key] is None:
                sent_number, sent = self._sent.get(sender, (0, 0.0))
                if number == sent_number:
                    self._arrivals[key] = max(0.0, when - sent)

    def _whole(self) -> bool:
        everyone = {node.address: "active" for node in self.nodes}
        return all(
            node.name in self._seen and self._seen[node.name].nodes == everyone
            for node in self.nodes
        )

    def _all_arrived(self) -> bool:
        return all(seconds is not None for seconds in self._arrivals.values())

    def _problem(self, text: str) -> None:
        self.problems.append(text)
        self.view.say(text, "bold red")


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    text = os.environ.get("DEMO_SECONDS", "")
    try:
        seconds = float(text) if text else None
    except ValueError:
        print(f"DEMO_SECONDS is {text!r}; it must be a number of seconds", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    with tempfile.TemporaryDirectory(prefix="kemi_dmq-demo-") as directory:
        try:
            story = Story(Path(directory), seconds)
        except DemoError as error:
            print(error, file=sys.stderr)
            return 1
        interrupted = False
        with story.view:
            try:
                story.tell()
            except KeyboardInterrupt:
                interrupted = True
            except DemoError as error:
                story.problems.append(str(error))
            finally:
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    signal.signal(number, signal.SIG_IGN)
                for node in story.nodes:
                    node.kill()
    if story.problems:
        story.view.end("Not all went well:", "bold red")
        for problem in story.problems:
            story.view.end(f"  {problem}", "red")
        return 1
    if interrupted:
        story.view.end("Ended; all went well until then.", "green")
        return 130 if seconds is not None else 0
    story.view.end("All went well: everybody found everybody, every broadcast arrived.", "green")
    return 0


if __name__ == "__main__":
    sys.exit(main())
