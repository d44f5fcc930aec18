"""Pictures of a sweep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from prunus.evaluation.rows import SweepRow, varied
from prunus.results.folder import Layout
from prunus.results.page_sweep import page
from prunus.results.panels import Panel, heat_map

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def _curves(rows: Sequence[SweepRow]) -> Iterator[tuple[str, list[str], list[SweepRow]]]:
    """Rows that differ in ratio and seed alone: network, what sets them apart, and the rows."""
    apart = [name for name in varied(rows) if name != "seed"]
    curves: dict[tuple[str, ...], list[SweepRow]] = {}
    for row in rows:
        columns = row.columns()
        curves.setdefault((row.network, *(f"{columns[name]}" for name in apart)), []).append(row)
    for (network, *values), members in curves.items():
        names = [
            f"p_bern {value}" if name == "p_bern" else value
            for name, value in zip(apart, values, strict=True)
        ]
        yield network, names, members


def curve(rows: Sequence[SweepRow]) -> Figure:
    """Top-1 accuracy against the pruned fraction: a colour a network, a line style a way to prune.

    Several seeds give the mean, and a band from the lowest to the highest.
    """
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    networks = list(dict.fromkeys(row.network for row in rows))
    ways = list(dict.fromkeys(" ".join(names) for _, names, _ in _curves(rows)))
    styles = ("-", "--", ":", "-.")
    for network, names, members in _curves(rows):
        way = ways.index(" ".join(names))
        _draw_curve(
            axes,
            members,
            label=" · ".join((network, *names)),
            color=f"C{networks.index(network) % 10}",
            linestyle=styles[way % 4],
            marker="os^Dv*"[way % 6],
        )
    axes.set_xlabel("pruned weights (%)")
    axes.set_ylabel("top-1 accuracy (%)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def _draw_curve(axes: Axes, rows: Sequence[SweepRow], **style: Any) -> None:
    by_ratio: dict[float, list[SweepRow]] = {}
    for row in rows:
        by_ratio.setdefault(row.point.setting.p_prune, []).append(row)
    ratios = sorted(by_ratio)
    tops = [[row.point.result.top1 for row in by_ratio[p]] for p in ratios]
    means = [sum(top) / len(top) for top in tops]
    pruned = [100 * sum(row.point.pruned_fraction for row in by_ratio[p]) / len(by_ratio[p]) for p in ratios]
    axes.plot(pruned, means, markersize=4, **style)
    if any(len(top) > 1 for top in tops):
        axes.fill_between(pruned, list(map(min, tops)), list(map(max, tops)), color=style["color"], alpha=0.2)


def layers(rows: Sequence[SweepRow]) -> Figure:
    """Pruned fraction of every layer at every ratio (of the first seed): one panel a curve."""
    panels = []
    for network, names, members in _curves(rows):
        first = [row.point for row in members if row.point.setting.seed == members[0].point.setting.seed]
        first.sort(key=lambda point: point.setting.p_prune)
        fractions = [
            [pruned / max(1, weights) for pruned, weights in point.layers.values()] for point in first
        ]
        ratios = [f"{point.setting.p_prune:g}" for point in first]
        title = " · ".join((network, *names))
        panels.append(Panel(title, np.array(fractions).T, list(first[0].layers), ratios))
    return heat_map(panels, 1, "p_prune", "pruned fraction of the layer")


SWEEP = Layout(SweepRow.read, {"curve": curve, "layers": layers}, page)
