"""Plots as PNG files, by matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .report import Plot

#: By how a series' name begins; what kemi_dmq offers is blue, the C module orange.
BLUES: tuple[str, ...] = ("#0b5394", "#3d85c6", "#76a5d8", "#134f5c", "#45818e", "#76b0a3")
ORANGES: tuple[str, ...] = ("#e06c00", "#f6a04d", "#b45f06")
GREYS: tuple[str, ...] = ("#666666", "#999999", "#bbbbbb", "#444444")


def colours(names: list[str]) -> dict[str, str]:
    found = {}
    used = {BLUES: 0, ORANGES: 0, GREYS: 0}
    for name in names:
        shades = GREYS
        if name.startswith("kemi_dmq"):
            shades = BLUES
        elif name.startswith(("C ", "dmq.so")):
            shades = ORANGES
        found[name] = shades[used[shades] % len(shades)]
        used[shades] += 1
    return found


def save(plot: Plot, directory: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    directory.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(figsize=(8, 4.2), layout="constrained")
    points = [point for series in plot.series.values() for point in series]
    if all(isinstance(x, str) for x, _ in points):
        _bars(plot, axes)
    else:
        colour = colours(list(plot.series))
        for name, series in plot.series.items():
            xs, ys = zip(*series, strict=True)
            marker = "o" if len(series) < 20 else ""
            axes.plot(xs, ys, label=name, color=colour[name], marker=marker)
    if plot.log_x:
        ticks = sorted({x for x, _ in points if not isinstance(x, str)})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.minorticks_off()
    if plot.log_y:
        axes.set_yscale("log")
    elif min(y for _, y in points) >= 0:
        axes.set_ylim(bottom=0)
    axes.set_title(plot.title, fontsize=11)
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    # Without the version and the date: the same figures make the same file.
    figure.savefig(directory / f"{plot.name}.png", dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def _bars(plot: Plot, axes: Any) -> None:
    """One group for each x, one bar in it for each series."""
    groups: list[float | str] = []
    for series in plot.series.values():
        groups += [x for x, _ in series if x not in groups]
    width = 0.8 / len(plot.series)
    colour = colours(list(plot.series))
    for number, (name, series) in enumerate(plot.series.items()):
        offset = (number - (len(plot.series) - 1) / 2) * width
        places = [groups.index(x) + offset for x, _ in series]
        bars = axes.bar(places, [y for _, y in series], width, label=name, color=colour[name])
        axes.bar_label(bars, fmt="%.3g", fontsize=7, padding=1)
    axes.set_xticks(range(len(groups)), [str(group) for group in groups], fontsize=8)
