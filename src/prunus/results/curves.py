"""Pictures of a sweep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from prunus.evaluation.rows import GROWS, PARTS, SweepRow, by_ratio, in_order, varied, worded
from prunus.results.figures import Picture, fit, font_size, name_curves
from prunus.results.folder import Layout
from prunus.results.page_sweep import page
from prunus.results.palette import COLORS, MARKERS, STYLES, color, plain, shade
from prunus.results.panels import Panel, heat_map, layer_name, short, whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

SAME = 0.005  # of what is shown: curves that are nearer everywhere would hide each other


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
        found = []
        for alike in by_ratio(self.rows).values():
            pruned = [100 * row.point.pruned_fraction for row in alike]
            values = [row.value for row in alike]
            found.append((np.mean(pruned), np.mean(values), min(values), max(values)))
        return np.array(found).T


def curves_of(rows: Sequence[SweepRow]) -> list[Curve]:
    """The curves of a sweep, in the order of their first rows."""
    apart = [name for name in varied(rows) if name != "seed"]
    found: dict[tuple[str, ...], list[SweepRow]] = {}
    for row in rows:
        columns = row.columns()
        names = (worded(name, columns[name]) for name in apart)
        found.setdefault((row.network, *names), []).append(row)
    return [Curve(network, tuple(names), members) for (network, *names), members in found.items()]


def curve(rows: Sequence[SweepRow], size: tuple[float, float] | None = None) -> Figure:
    """Top-1 accuracy, or a metric, against the pruned fraction.

    What has most values (networks, criteria, granularities, …) has the colours, the next the line styles, all
    else the markers; shades of a colour are of the same value. Several seeds give the mean, and a band from
    the lowest to the highest.
    """
    figure = Picture(figsize=size or (7, 4.4), layout="constrained")
    axes = figure.subplots()
    curves = curves_of(rows)
    several = len({one.network for one in curves}) > 1
    drawn = [one.points for one in curves]
    lines: dict[str, Line2D] = {}
    by_metric = any(row.point.result.metric is not None for row in rows)
    near = SAME * np.array([[100], [np.ptp(np.hstack(drawn)[1]) if by_metric else 100]])
    for one, points, look in zip(curves, drawn, _looks(curves), strict=True):
        over = sum(_same(points, other, near) for other in drawn[len(lines) + 1 :])
        name = " · ".join((one.network, *one.names) if several else one.names)
        lines[name] = _draw(axes, points, look, over, font_size(figure) / 8)
    text = font_size(figure) + 1
    axes.set_xlabel("pruned weights (%)", fontsize=text)
    axes.set_ylabel("metric" if by_metric else "top-1 accuracy (%)", fontsize=text)
    axes.tick_params(labelsize=text - 1)
    if not by_metric:
        axes.set_ylim(bottom=0)
    if not several:
        axes.set_title(plain(curves[0].network), fontsize=text)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    name_curves(axes, lines, fixed=size is not None)
    return fit(figure)


def _looks(curves: Sequence[Curve]) -> Iterator[dict[str, Any]]:
    """The colour, the line style and the marker of each curve."""
    apart = [(one.network, *one.names) for one in curves]
    kinds = [list(dict.fromkeys(names)) for names in zip(*apart, strict=True)]
    order = sorted(range(len(kinds)), key=lambda kind: -len(kinds[kind]))  # networks before others of as many
    settings = [tuple(kinds[kind].index(names[kind]) for kind in order) for names in apart]
    shades, others = ([*dict.fromkeys(at[left:] for at in settings)] for left in (1, 2))
    for at in settings:
        style = (at[1] if len(at) > 1 else 0) + at[0] // len(COLORS)
        yield {
            "color": shade(color(at[0]), shades.index(at[1:]) / max(1, len(shades) - 1)),
            "linestyle": STYLES[style % len(STYLES)],
            "marker": MARKERS[(others.index(at[2:]) if len(others) > 1 else at[0]) % len(MARKERS)],
        }


def _same(points: NDArray[np.float64], other: NDArray[np.float64], near: NDArray[np.float64]) -> bool:
    return points.shape == other.shape and bool((np.abs(points[:2] - other[:2]) <= near).all())


def _draw(axes: Axes, points: NDArray[np.float64], look: dict[str, Any], over: int, scale: float) -> Line2D:
    """One curve, and whole and so much wider as others will be drawn over it that would hide it."""
    pruned, means, lowest, highest = points
    look = {**look, "linestyle": "-"} if over else look
    width, mark = scale * (1.5 + 2.6 * over), scale * (4 + 2.5 * over)
    [line] = axes.plot(pruned, means, linewidth=width, markersize=mark, **look)
    if (lowest < highest).any():
        axes.fill_between(pruned, lowest, highest, color=look["color"], alpha=0.2, linewidth=0)
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
        panels.append(Panel(title, 100 * counts[0] / np.maximum(1, counts[1]), names, ratios))
        left.append(Panel(title, counts[1] - counts[0], names, ratios))
    if all(np.ptp(panel.values, axis=0).max() < ALIKE for panel in panels):
        what = "weights left in the layer (every one loses the same part)"
        return heat_map(left, None, "p_prune", what, short, size=size)
    return heat_map(panels, 100, "p_prune", "pruned weights of the layer (%)", whole, size=size)


ALIKE = 5  # percent: layers that differ by less are told apart by no colour


SWEEP = Layout(
    SweepRow.read, {"curve": curve, "layers": layers}, page, order=in_order, grows=GROWS, parts=PARTS
)
