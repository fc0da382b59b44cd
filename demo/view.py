"""What the demo shows: two tables that stay in place on a terminal, else a line per change."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .nodes import Node

#: Of a broadcast: seconds until it was there, None: on its way; LOST; NOBODY: not expected.
LOST = -1.0
NOBODY = -2.0
_STYLES = {"active": "green", "disabled": "red", "stopped": "dim", "starting": "dim"}
_EVENT_LINES = 8


class View:
    """nodes, lists (by name: address -> status, or a word) and arrivals are the story's."""

    def __init__(
        self,
        nodes: list[Node],
        lists: Mapping[str, dict[str, str] | str],
        arrivals: Mapping[tuple[str, str], float | None],
        ends_at: float | None,
    ) -> None:
        self._nodes = nodes
        self._lists = lists
        self._arrivals = arrivals
        self._ends_at = ends_at
        self._began = time.monotonic()
        self._events: list[Text] = []
        self._console = Console(highlight=False)
        self._live: Live | None = None
        self._shown: dict[str, str] = {}
        self.broadcast = 0

    def __enter__(self) -> View:
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._render, console=self._console, refresh_per_second=10
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._began

    def say(self, text: str, style: str = "") -> None:
        line = Text.assemble((f"{self.elapsed:6.1f} s  ", "dim"), (text, style))
        self._events.append(line)
        if self._live is None:
            self._print(line)

    def lists_changed(self) -> None:
        """Without a terminal: a line for each node whose list is another now."""
        if self._live is not None:
            return
        for node in self._nodes:
            found = self._lists[node.name]
            if isinstance(found, str):
                text = found
            else:
                words = [
                    f"{other.name} {found[other.address]}"
                    for other in self._nodes
                    if other is not node and other.address in found
                ]
                text = "lists " + (", ".join(words) or "nobody else")
            if self._shown.get(node.name, "starting") != text:
                self._shown[node.name] = text
                self._print(Text(f"{self.elapsed:6.1f} s    {node.name} {text}"))

    def broadcast_done(self, sender: Node) -> None:
        """Without a terminal: a line for a broadcast whose fate is known."""
        if self._live is not None:
            return
        words = [
            f"{node.name} {_arrival(self._arrivals.get((sender.name, node.name)))[0]}"
            for node in self._nodes
            if self._arrivals.get((sender.name, node.name), NOBODY) != NOBODY
        ]
        reached = ", ".join(words) or "nobody there"
        self._print(Text(f"{self.elapsed:6.1f} s    {sender.name} tells all: {reached}"))

    def end(self, text: str, style: str) -> None:
        self._console.print(Text(text, style))

    # Without a terminal ----------------------------------------------------------------------

    def _print(self, line: Text) -> None:
        self._console.print(line, soft_wrap=True)
        self._console.file.flush()

    # On a terminal ---------------------------------------------------------------------------

    def _render(self) -> RenderableType:
        left = "Ctrl-C ends it"
        if self._ends_at is not None:
            left = f"ends at {self._ends_at:.0f} s"
        title = Text.assemble(
            ("One DMQ bus: two Kamailios with kemi_dmq, one with dmq.so", "bold"),
            (f"   {self.elapsed:.0f} s, {left}", "dim"),
        )
        return Group(
            title,
            "",
            self._list_table(),
            "",
            self._broadcast_table(),
            "",
            *self._events[-_EVENT_LINES:],
        )

    def _table(self, first: str, what: str) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        table.add_column(first, width=24)
        for node in self._nodes:
            table.add_column(what.format(node.name), width=14)
        return table

    def _list_table(self) -> Table:
        table = self._table("node", "{} lists it as")
        for node in self._nodes:
            cells = []
            for lister in self._nodes:
                found = self._lists[lister.name]
                if isinstance(found, str):
                    cells.append(Text(found, "dim"))
                    continue
                status = found.get(node.address, "-")
                text = "itself" if lister is node else status
                cells.append(Text(text, _STYLES.get(status, "yellow")))
            table.add_row(self._name(node), *cells)
        return table

    def _broadcast_table(self) -> Table:
        number = f" {self.broadcast}" if self.broadcast else ""
        table = self._table(f"broadcast{number} from", "reached {}")
        for sender in self._nodes:
            cells = []
            for node in self._nodes:
                if sender is node:
                    cells.append(Text("·", "dim"))
                else:
                    key = (sender.name, node.name)
                    text, style = _arrival(self._arrivals.get(key, NOBODY))
                    cells.append(Text(text, style))
            table.add_row(self._name(sender), *cells)
        return table

    @staticmethod
    def _name(node: Node) -> Text:
        return Text.assemble((node.name, "bold"), f" {node.address} ", (node.kind, "cyan"))


def _arrival(value: float | None) -> tuple[str, str]:
    if value is None:
        return "…", "dim"
    if value == LOST:
        return "not reached", "bold red"
    if value == NOBODY:
        return "-", "dim"
    return f"after {1000 * value:.1f} ms", "green"
