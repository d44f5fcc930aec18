"""Pictures of a sweep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from prunus.evaluation.rows import SweepRow, varied
from prunus.results.folder import Layout
from prunus.results.page import Chart, Curve, Line, Page, Section, Told
from prunus.results import page_charts as charts
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


def page(rows: Sequence[SweepRow]) -> Page:
    """Curves to look into, layer by layer below, and every point in the table."""
    several = len({row.network for row in rows}) > 1
    apart = [name for name in varied(rows) if name != "seed"]
    curves, spots, panels = list[Curve](), list[charts.Spot](), list[Chart]()
    for network, names, members in _curves(rows):
        told, title = _told(members[0], apart), " · ".join([network] * (several or not names) + names)
        sums = _over_seeds(members)
        spots += [_spot(len(curves), title, found) for found in sums]
        curves.append(Curve(title, told, _kept(sums)))
        panels.append(_layers_chart(title, told, members))
    cells = (
        "network",
        *varied(rows),
        "p_prune",
        "pruned_fraction",
        "acc1",
        "acc5",
        "loss",
        "pruned",
        "weights",
    )
    images = " or ".join(f"{count:,}" for count in sorted({row.point.result.images for row in rows}))
    words = [f"{one.name}: {one.note}." for one in curves if one.note]
    chart = charts.lines(
        spots, "pruned weights (%)", "top-1 accuracy (%)", "Accuracy against pruning. " + " ".join(words)
    )
    return Page(
        "prunus sweep",
        "Accuracy against pruning",
        f"{len(rows):,} measurements of {', '.join(dict.fromkeys(row.network for row in rows))} on {images} images.",
        [
            Section(
                "What pruning costs",
                "Top-1 accuracy over the part of the weights that is pruned: towards the upper right is better. Of "
                "several seeds the mean, in a band from the lowest to the highest.",
                [Chart("", chart, words or ["One point a curve."])],
                curves,
            ),
            Section(
                "Where it falls",
                "The part of every layer that is pruned, at each ratio, of the first seed.",
                panels,
                scale=("nothing pruned", "all pruned"),
            ),
        ],
        [Line({name: row.columns()[name] for name in cells}, _told(row, apart)) for row in rows],
    )


@dataclass(frozen=True)
class _OverSeeds:
    """The rows of one ratio."""

    rows: Sequence[SweepRow]

    @property
    def p_prune(self) -> float:
        return self.rows[0].point.setting.p_prune

    @property
    def tops(self) -> list[float]:
        return [row.columns()["acc1"] for row in self.rows]

    @property
    def top(self) -> float:
        return sum(self.tops) / len(self.tops)

    @property
    def pruned(self) -> float:
        return 100 * sum(row.point.pruned_fraction for row in self.rows) / len(self.rows)


def _over_seeds(rows: Sequence[SweepRow]) -> list[_OverSeeds]:
    by_ratio: dict[float, list[SweepRow]] = {}
    for row in rows:
        by_ratio.setdefault(row.point.setting.p_prune, []).append(row)
    return [_OverSeeds(by_ratio[ratio]) for ratio in sorted(by_ratio)]


def _told(row: SweepRow, apart: Sequence[str]) -> dict[str, str]:
    """What filters look at."""
    columns = row.columns()
    return {"network": row.network, **{name: str(columns[name]) for name in apart}}


def _spot(curve: int, title: str, found: _OverSeeds) -> charts.Spot:
    tip = {"title": title, "p_prune": found.p_prune, "pruned (%)": found.pruned, "top-1 (%)": found.top}
    if len(found.rows) == 1:
        return charts.Spot(curve, found.pruned, found.top, tip)
    low, high = min(found.tops), max(found.tops)
    tip |= {"lowest": low, "highest": high, "seeds": len(found.rows)}
    return charts.Spot(curve, found.pruned, found.top, tip, low, high)


def _kept(sums: Sequence[_OverSeeds]) -> str:
    """Until where a curve keeps 99% of its accuracy; of one that has no unpruned point, its ends."""
    if len(sums) < 2:
        return ""
    first, *others = sums
    if first.p_prune:
        return (
            f"{first.top:.2f}% at {first.pruned:.0f}% pruned, {sums[-1].top:.2f}% at {sums[-1].pruned:.0f}%"
        )
    below = next((found for found in others if found.top < 0.99 * first.top), None)
    if below is None:
        return f"{first.top:.2f}% unpruned, never below 99% of that"
    last = sums[sums.index(below) - 1]
    until = f"99% of that up to {last.pruned:.0f}% pruned" if last is not first else "less than 99% of that"
    return f"{first.top:.2f}% unpruned, {until}, {below.top:.2f}% at {below.pruned:.0f}%"


def _layers_chart(title: str, told: Told, members: Sequence[SweepRow]) -> Chart:
    first = [row.point for row in members if row.point.setting.seed == members[0].point.setting.seed]
    first.sort(key=lambda point: point.setting.p_prune)
    names = list(first[0].layers)
    parts = np.array(
        [[pruned / max(1, weights) for pruned, weights in point.layers.values()] for point in first]
    ).T.reshape(len(names), len(first))
    panel = Panel(title, parts, names, [f"{point.setting.p_prune:g}" for point in first])
    empty = {
        name.removesuffix(".weight"): first[int(np.argmax(part == 1))].setting.p_prune
        for name, part in zip(names, parts, strict=True)
        if (part == 1).any()
    }
    words = "No layer is emptied."
    if empty:
        words = (
            "Emptied: " + ", ".join(f"{name} from p_prune {ratio:g}" for name, ratio in empty.items()) + "."
        )
    chart = charts.heat(
        panel, 1, "p_prune", "pruned fraction", f"Pruned fraction of every layer, {title}. {words}"
    )
    return Chart(title, chart, [words], told)


SWEEP = Layout(SweepRow.read, {"curve": curve, "layers": layers}, page)
