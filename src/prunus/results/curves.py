"""Pictures of a sweep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from prunus.evaluation.rows import SweepRow, varied
from prunus.results.folder import Layout
from prunus.results.legends import name_curves
from prunus.results.palette import COLORS, MARKERS, STYLES, color, plain
from prunus.results.panels import Panel, heat_map, layer_name, percent, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

SAME = 0.5  # percentage points: curves that are nearer everywhere would hide each other


@dataclass(frozen=True)
class Curve:
    """Rows that differ in ratio and seed alone.

    Args:
        network: their network.
        names: of what else sets them apart from others, in the same order for all curves.
        rows: some.
    """

    network: str
    names: tuple[str, ...]
    rows: Sequence[SweepRow]

    @property
    def points(self) -> NDArray[np.float64]:
        """By ratio, over the seeds: percent pruned; mean, lowest and highest value."""
        by_ratio: dict[float, list[SweepRow]] = {}
        for row in self.rows:
            by_ratio.setdefault(row.point.setting.p_prune, []).append(row)
        found = []
        for ratio in sorted(by_ratio):
            pruned = [100 * row.point.pruned_fraction for row in by_ratio[ratio]]
            values = [row.value for row in by_ratio[ratio]]
            found.append((np.mean(pruned), np.mean(values), min(values), max(values)))
        return np.array(found).T


def curves_of(rows: Sequence[SweepRow]) -> list[Curve]:
    """The curves of a sweep, in the order of their first rows."""
    apart = [name for name in varied(rows) if name != "seed"]
    found: dict[tuple[str, ...], list[SweepRow]] = {}
    for row in rows:
        columns = row.columns()
        names = (f"p_bern {columns[name]}" if name == "p_bern" else str(columns[name]) for name in apart)
        found.setdefault((row.network, *names), []).append(row)
    return [Curve(network, tuple(names), members) for (network, *names), members in found.items()]


def curve(rows: Sequence[SweepRow], size: tuple[float, float] | None = None) -> Figure:
    """Top-1 accuracy, or a metric, against the pruned fraction.

    What has most values (networks, criteria, granularities, …) has the colours, the next the line styles, and
    all others together the markers. Several seeds give the mean, and a band from the lowest to the highest.
    """
    figure = Figure(figsize=size or (7, 4.4), layout="constrained")
    axes = figure.subplots()
    curves = curves_of(rows)
    several = len({one.network for one in curves}) > 1
    drawn = [one.points for one in curves]
    lines: dict[str, Line2D] = {}
    for one, points, look in zip(curves, drawn, _looks(curves), strict=True):
        over = sum(_same(points, other) for other in drawn[len(lines) + 1 :])
        name = " · ".join((one.network, *one.names) if several else one.names)
        lines[name] = _draw(axes, points, look, over)
    by_metric = any(row.point.result.metric is not None for row in rows)
    axes.set_xlabel("pruned weights (%)")
    axes.set_ylabel("metric" if by_metric else "top-1 accuracy (%)")
    if not by_metric:
        axes.set_ylim(bottom=0)
    if not several:
        axes.set_title(plain(curves[0].network), fontsize=10)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    name_curves(axes, lines, fixed=size is not None)
    return figure


def _looks(curves: Sequence[Curve]) -> Iterator[tuple[int, int, int]]:
    """Numbers of the colour, the line style and the marker of each curve."""
    apart = [(one.network, *one.names) for one in curves]
    kinds = [list(dict.fromkeys(names)) for names in zip(*apart, strict=True)]
    order = sorted(range(len(kinds)), key=lambda kind: -len(kinds[kind]))  # networks before others of as many
    rest: dict[tuple[int, ...], int] = {}
    for names in apart:
        at = [kinds[kind].index(names[kind]) for kind in order]
        first, second, others = at[0], at[1] if len(at) > 1 else 0, tuple(at[2:])
        marker = rest.setdefault(others, len(rest))
        yield first, second + first // len(COLORS), marker if others else first


def _same(points: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    return points.shape == other.shape and bool(np.abs(points[:2] - other[:2]).max() < SAME)


def _draw(axes: Axes, points: NDArray[np.float64], look: tuple[int, int, int], over: int) -> Line2D:
    """One curve, so much wider as others will be drawn over it that would hide it."""
    pruned, means, lowest, highest = points
    own, style, marker = look
    [line] = axes.plot(
        pruned,
        means,
        color=color(own),
        linestyle=STYLES[style % len(STYLES)] if not over else "-",
        marker=MARKERS[marker % len(MARKERS)],
        markersize=4 + 3.5 * over,
        linewidth=1.5 + 3 * over,
        alpha=1,
    )
    if (lowest < highest).any():
        axes.fill_between(pruned, lowest, highest, color=color(own), alpha=0.2, linewidth=0)
    return line


def layers(rows: Sequence[SweepRow], size: tuple[float, float] | None = None) -> Figure:
    """What every layer loses at every ratio (of the first seed): one panel a curve.

    Where all layers lose the same part, as under scope="layer", the weights that are left in each.
    """
    panels, left = [], []
    for one in curves_of(rows):
        seed = one.rows[0].point.setting.seed
        first = [row.point for row in one.rows if row.point.setting.seed == seed]
        first.sort(key=lambda point: point.setting.p_prune)
        ratios = [f"{point.setting.p_prune:g}" for point in first]
        names = [layer_name(name, total) for name, (_, total) in first[0].layers.items()]
        counts = np.array([list(point.layers.values()) for point in first], float).transpose(2, 1, 0)
        title = " · ".join((one.network, *one.names))
        panels.append(Panel(title, counts[0] / np.maximum(1, counts[1]), names, ratios))
        left.append(Panel(title, counts[1] - counts[0], names, ratios))
    if all(np.ptp(panel.values, axis=0).max() < ALIKE for panel in panels):
        what = "weights left (every layer loses the same part)"
        return heat_map(left, None, "p_prune", what, short, size=size)
    return heat_map(panels, 1, "p_prune", "pruned fraction of the layer", percent, size=size)


ALIKE = 0.05  # fractions of layers that differ by less are told apart by no colour


SWEEP = Layout(SweepRow.read, {"curve": curve, "layers": layers})
