"""docs/performance.md: sections that are measured anew replace those of before."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import plots
from .report import Report


@dataclass(frozen=True)
class Section:
    title: str
    about: str
    conditions: str  # when and how it was measured
    report: Report

    def text(self, images: str) -> str:
        """In Markdown; images: the directory of the plots, from the page's."""
        parts = [f"## {self.title}", self.about.strip(), self.report.text.strip()]
        parts += [f"![{p.title}]({images}/{p.name}.png)" for p in self.report.plots]
        parts.append(self.conditions)
        return "\n\n".join(parts) + "\n"


def split(text: str) -> dict[str, str]:
    """Title -> section of a page that was written before; its head is none."""
    sections = re.split(r"^(?=## )", text, flags=re.M)[1:]
    return {section.splitlines()[0][3:]: section.rstrip() + "\n" for section in sections}


def merged(head: str, old: Mapping[str, str], new: Mapping[str, str], order: Sequence[str]) -> str:
    """A page of the sections that there are, in order."""
    found = {**old, **new}
    return "\n".join([head, *(found[title] for title in order if title in found)])


def write(page: Path, head: str, sections: Sequence[Section], order: Sequence[str]) -> None:
    images = page.with_suffix("")
    old = split(page.read_text()) if page.exists() else {}
    new = {section.title: section.text(images.name) for section in sections}
    page.write_text(merged(head, old, new, order))
    for section in sections:
        for plot in section.report.plots:
            plots.save(plot, images)
