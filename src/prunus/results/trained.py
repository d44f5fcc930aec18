"""What trainings came to: the table over seeds, accuracy against sparsity, and layers over time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from prunus.evaluation.rows import in_order
from prunus.evaluation.statistics import mean_over
from prunus.results import page_charts as charts
from prunus.results.figures import Picture, fit, legend_outside
from prunus.results.folder import Layout
from prunus.results.page import Chart, Curve, Line, Page, Section
from prunus.results.palette import MARKERS, color, plain
from prunus.results.panels import Panel, heat_map, layer_name, whole
from prunus.table import Table
from prunus.training.rows import DENSE, GROWS, Run, TrainRow


@dataclass(frozen=True)
class Outcome:
    """One way, over its seeds.

    Args:
        run: that of the first seed.
        rows: one a seed.
        dense: the dense network of the same seeds, those that there are.
    """

    run: Run
    rows: Sequence[TrainRow]
    dense: Sequence[TrainRow]

    @property
    def top1(self) -> tuple[float, float]:
        """In percent: the mean over seeds, and how far its 95% interval reaches."""
        return mean_over([row.point.result.top1 for row in self.rows])

    @property
    def lost(self) -> tuple[float, float] | None:
        """Likewise, what the dense network of the same seed has more, in percentage points."""
        dense = {row.run.setting.seed: row.point.result.top1 for row in self.dense}
        lost = [
            dense[row.run.setting.seed] - row.point.result.top1
            for row in self.rows
            if row.run.setting.seed in dense
        ]
        return mean_over(lost) if lost and not self.run.is_dense else None

    @property
    def seconds(self) -> float | None:
        """Of training, as a mean over seeds; None where not all rows know them."""
        known = [row.seconds for row in self.rows if row.seconds is not None]
        return sum(known) / len(known) if len(known) == len(self.rows) else None

    @property
    def fraction(self) -> float:
        """Pruned, of the weights that can be."""
        return sum(row.point.pruned_fraction for row in self.rows) / len(self.rows)

    def columns(self) -> dict[str, Any]:
        """A line of the summary."""
        setting, (top1, reach) = self.run.setting, self.top1
        lost, lost_reach = self.lost or ("", "")
        return {
            "network": self.run.network,
            "how": self.run.how,
            "to": setting.p_prune,
            "seeds": len(self.rows),
            "epochs": self.rows[0].epochs,
            "pruned_fraction": round(self.fraction, 6),
            "acc1": top1,
            "acc1_reach": reach,
            "lost": lost,
            "lost_reach": lost_reach,
            "seconds": "" if self.seconds is None else round(self.seconds, 3),
        }


def outcomes(rows: Sequence[TrainRow]) -> list[Outcome]:
    """Every way, over its seeds, in the order of the rows."""
    found: dict[Run, list[TrainRow]] = {}
    for row in rows:
        way = replace(row.run, setting=replace(row.run.setting, seed=0))
        found.setdefault(way, []).append(row)
    dense = {way.network: members for way, members in found.items() if way.is_dense}
    return [Outcome(way, members, dense.get(way.network, ())) for way, members in found.items()]


def trained_table(rows: Sequence[TrainRow]) -> Table:
    """Network, way, fraction, epochs and seconds, acc@1 and loss against dense, with intervals over seeds."""
    lines = []
    for outcome in outcomes(rows):
        several = len(outcome.rows) > 1
        cells = [_shown(part, several) for part in (outcome.top1, outcome.lost)]
        seconds = "" if outcome.seconds is None else f"{outcome.seconds:.1f}"
        first = [outcome.run.network, outcome.run.how, f"{outcome.fraction:.4f}"]
        lines.append([*first, str(outcome.rows[0].epochs), seconds, *cells])
    return Table(("network", "trained", "fraction", "epochs", "seconds", "acc@1", "lost"), lines, named=2)


def _shown(part: tuple[float, float] | None, several: bool) -> str:
    if part is None:
        return ""
    mean, reach = part
    return f"{mean:.2f} [{mean - reach:.2f}, {mean + reach:.2f}]" if several else f"{mean:.2f}"


def accuracy(rows: Sequence[TrainRow]) -> Figure:
    """Top-1 accuracy against the pruned fraction: a panel a network, a colour a way, 95% bars over seeds."""
    by_network: dict[str, list[Outcome]] = {}
    for outcome in outcomes(rows):
        by_network.setdefault(outcome.run.network, []).append(outcome)
    figure = Picture(figsize=(1 + 5.2 * len(by_network), 4.2), layout="constrained")
    panels = figure.subplots(1, len(by_network), squeeze=False, sharey=True)[0]
    handles: dict[str, Any] = {}
    ways: dict[str, int] = {}
    for axes, (network, found) in zip(panels, by_network.items(), strict=True):
        lines: dict[str, list[Outcome]] = {}
        for outcome in found:
            lines.setdefault(outcome.run.how, []).append(outcome)
        for how, points in lines.items():
            points = sorted(points, key=lambda outcome: outcome.fraction)
            if points[0].run.is_dense:
                handles[how] = axes.axhline(points[0].top1[0], color="0.4", linestyle="--")
                continue
            number = ways.setdefault(how, len(ways))
            handles[how] = axes.errorbar(
                [100 * point.fraction for point in points],
                [point.top1[0] for point in points],
                [point.top1[1] for point in points],
                color=color(number),
                marker=MARKERS[number % len(MARKERS)],
                markersize=4,
                capsize=2,
            )
        low, high = axes.get_ylim()
        low = max(low, -2)  # intervals over two seeds reach far beyond
        axes.set_ylim(low, min(high, 100 + 0.02 * (100 - low)))  # room for a marker, no tick past 100%
        axes.set_title(plain(network), fontsize=10)
        axes.set_xlabel("pruned weights (%)")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("top-1 accuracy (%)")
    legend_outside(figure, handles)
    return fit(figure)


def layers(rows: Sequence[TrainRow]) -> Figure:
    """Pruned fraction of every layer after every epoch: a panel for each way, to its last amount."""
    last = {(outcome.run.network, outcome.run.how): outcome.rows[0] for outcome in outcomes(rows)}
    return heat_map(list(_over_time(last.values())), 100, "epoch", "pruned weights of the layer (%)", whole)


def _over_time(rows: Any) -> Iterator[Panel]:
    for row in rows:
        if row.over_time and row.schedule != DENSE:
            totals = {name: max(1, weights) for name, (_, weights) in row.point.layers.items()}
            values = [
                [100 * epoch.get(name, 0) / weights for epoch in row.over_time]
                for name, weights in totals.items()
            ]
            epochs = [str(number + 1) for number in range(len(row.over_time))]
            names = [layer_name(name, total) for name, total in totals.items()]
            yield Panel(f"{row.network} · {row.run.how}", np.array(values), names, epochs)


def _summary(rows: Sequence[TrainRow]) -> list[dict[str, Any]]:
    return [outcome.columns() for outcome in outcomes(rows)]


def page(rows: Sequence[TrainRow]) -> Page:
    """Ways beside each other, layers over the epochs, and the summary over seeds."""
    found = outcomes(rows)
    several = len({outcome.run.network for outcome in found}) > 1
    ways: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in found:
        ways.setdefault((outcome.run.network, outcome.run.how), []).append(outcome)
    curves, spots = list[Curve](), list[charts.Spot]()
    for (network, how), members in ways.items():
        name = f"{network} · {how}" if several else how
        spots += [_spot(len(curves), name, outcome) for outcome in members]
        tops = ", ".join(f"{one.top1[0]:.2f}% at {100 * one.fraction:.0f}% pruned" for one in members)
        curves.append(Curve(name, {"network": network, "trained": how}, tops))
    words = [f"{curve.name}: {curve.note}." for curve in curves]
    chart = charts.lines(
        spots,
        "pruned weights (%)",
        "top-1 accuracy (%)",
        "Accuracy after training. " + " ".join(words),
        bars=True,
        zero=False,
    )
    last = {key: members[-1].rows[0] for key, members in ways.items()}
    heats = [
        Chart(panel.title, charts.heat(panel, 100, "epoch", "pruned (%)", panel.title), [_ends(panel)], told)
        for (network, how), row in last.items()
        for told in [{"network": network, "trained": how}]
        for panel in _over_time([row])
    ]
    sections = [
        Section(
            "What training recovers",
            "Top-1 accuracy over the part of the weights that is pruned: towards the upper right is better. "
            "Of several seeds the mean, with its 95% interval; dotted: dense.",
            [Chart("", chart, words)],
            curves,
        )
    ]
    if heats:
        lead = "The part of every layer that is pruned after each epoch, on the way to the last amount."
        scale = ("nothing pruned", "all pruned")
        sections.append(Section("Layer by layer, over time", lead, heats, scale=scale))
    return Page(
        "train",
        "Trained to a sparsity",
        f"{len(rows):,} trainings of {', '.join(dict.fromkeys(row.network for row in rows))}.",
        sections,
        [
            Line(outcome.columns(), {"network": outcome.run.network, "trained": outcome.run.how})
            for outcome in found
        ],
        "summary",
    )


def _spot(curve: int, title: str, outcome: Outcome) -> charts.Spot:
    (top, reach), pruned = outcome.top1, 100 * outcome.fraction
    tip = {"title": title, "pruned (%)": pruned, "top-1 (%)": top}
    if len(outcome.rows) == 1:
        return charts.Spot(curve, pruned, top, tip, level=outcome.run.is_dense)
    low, high = max(0.0, top - reach), min(100.0, top + reach)
    tip |= {"95% interval": f"{low:.2f} to {high:.2f}", "seeds": len(outcome.rows)}
    return charts.Spot(curve, pruned, top, tip, low, high, level=outcome.run.is_dense)


def _ends(panel: Panel) -> str:
    """In words, what a picture of layers over time ends with."""
    last = dict(zip(panel.rows, panel.values[:, -1], strict=True))
    most, least = max(last, key=lambda name: last[name]), min(last, key=lambda name: last[name])
    ends = (f"{name.removesuffix('.weight')} ({last[name]:.0f}%)" for name in (most, least))
    return "At the end {} is pruned most, {} least.".format(*ends)


ORDER = ("network", "seed", "schedule", "rewind", "backward", "granularity", "criterion", "scope")
TRAINED = Layout(
    TrainRow.read,
    {"accuracy": accuracy, "layers": layers},
    page,
    _summary,
    order=partial(in_order, names=ORDER),
    grows=GROWS,
    parts=("mask_every",),  # of those that train by --backward
)
