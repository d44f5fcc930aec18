"""The page of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prunus.evaluation.rows import SweepRow, by_ratio, titled, varied
from prunus.results import page_charts as charts
from prunus.results.page import Chart, Curve, Line, Page, Section, Told
from prunus.results.panels import Panel
from prunus.results.tables import Units, units_of

CELLS = ("p_prune", "pruned_fraction", "acc1", "acc5", "loss", "metric", "pruned", "weights")


def page(rows: Sequence[SweepRow]) -> Page:
    """Curves to look into, layer by layer below, and every point in the table."""
    apart = varied(rows)
    units = units_of(rows)
    several = len({row.network for row in rows}) > 1
    names = [*(("network",) if several else ()), *(name for name in apart if name != "seed")]
    columns = [row.columns() for row in rows]
    networks = ", ".join(dict.fromkeys(row.network for row in rows))
    images = " or ".join(f"{count:,}" for count in sorted({row.point.result.images for row in rows}))
    return Page(
        "sweep",
        "Accuracy against pruning" if units.sign else "A metric against pruning",
        f"{len(rows):,} measurements of {networks} on {images} images.",
        _sections(_ways(rows, names), "seed" in apart, units),
        [
            Line(
                {name: values[name] for name in ("network", *apart, *CELLS) if name in values},
                _told(row, names),
            )
            for row, values in zip(rows, columns, strict=True)
        ],
    )


@dataclass(frozen=True)
class _Sum:
    """The rows of one ratio, which differ in seed alone."""

    rows: Sequence[SweepRow]

    @property
    def p_prune(self) -> float:
        return self.rows[0].point.setting.p_prune

    @property
    def pruned(self) -> float:
        """Percent of the weights."""
        return 100 * sum(row.point.pruned_fraction for row in self.rows) / len(self.rows)

    @property
    def tops(self) -> list[float]:
        return [round(row.value, 4) for row in self.rows]

    @property
    def top(self) -> float:
        return sum(self.tops) / len(self.rows)


@dataclass(frozen=True)
class _Way:
    """A network that is pruned in one way: a curve."""

    told: Told
    rows: Sequence[SweepRow]

    @property
    def title(self) -> str:
        return titled(self.told) or self.rows[0].network

    @property
    def sums(self) -> list[_Sum]:
        """Ratio by ratio."""
        return [_Sum(alike) for alike in by_ratio(self.rows).values()]

    @property
    def ends(self) -> str:
        """Of a metric, of which nobody says whether more is better."""
        first, last = self.sums[0], self.sums[-1]
        return f"{first.top:.4g} at {first.pruned:.0f}% pruned, {last.top:.4g} at {last.pruned:.0f}%"

    @property
    def words(self) -> str:
        """Until where it keeps 99% of its accuracy; of one that has no unpruned point, its ends."""
        first, *others = self.sums
        last = others[-1] if others else first
        if first.p_prune or not others:
            return f"{first.top:.2f}% at {first.pruned:.0f}% pruned, {last.top:.2f}% at {last.pruned:.0f}%"
        below = next((found for found in others if found.top < 0.99 * first.top), None)
        if below is None:
            return f"{first.top:.2f}% unpruned, never below 99% of that"
        kept = [first, *others][others.index(below)]
        until = (
            f"99% of that up to {kept.pruned:.0f}% pruned" if kept is not first else "less than 99% of that"
        )
        return f"{first.top:.2f}% unpruned, {until}, {below.top:.2f}% at {below.pruned:.0f}%"

    @property
    def layers(self) -> Panel:
        """The pruned fraction of every layer at every ratio, of the first seed."""
        points = [found.rows[0].point for found in self.sums]
        parts = [[pruned / max(1, weights) for pruned, weights in point.layers.values()] for point in points]
        ratios = [f"{point.setting.p_prune:g}" for point in points]
        return Panel(self.title, np.array(parts).T, list(points[0].layers), ratios)


def _told(row: SweepRow, names: Sequence[str]) -> dict[str, str]:
    columns = row.columns()
    return {name: str(columns[name]) for name in names}


def _ways(rows: Sequence[SweepRow], names: Sequence[str]) -> list[_Way]:
    found: dict[tuple[str, ...], list[SweepRow]] = {}
    for row in rows:
        found.setdefault(tuple(_told(row, names).values()), []).append(row)
    return [_Way(_told(members[0], names), members) for members in found.values()]


def _sections(ways: Sequence[_Way], several_seeds: bool, units: Units) -> list[Section]:
    spots = [_spot(curve, way.title, found, units) for curve, way in enumerate(ways) for found in way.sums]
    notes = [way.words if units.sign else way.ends for way in ways]
    words = [f"{way.title}: {note}." for way, note in zip(ways, notes, strict=True)]
    axes = ("pruned weights (%)", units.long)
    good = ": towards the upper right is better" if units.sign else ""
    lead = f"{units.long.capitalize()} over the part of the weights that is pruned{good}."
    of_seeds = " The mean of all seeds, in a band from the lowest to the highest." if several_seeds else ""
    first = " Of the first seed." if several_seeds else ""
    return [
        Section(
            "What pruning costs",
            lead + of_seeds,
            [Chart("", charts.lines(spots, *axes, " ".join(words), zero=bool(units.sign)), words)],
            [Curve(way.title, way.told, note) for way, note in zip(ways, notes, strict=True)],
        ),
        Section(
            "Where it falls",
            f"The part of every layer that is pruned at each ratio.{first}",
            [_heat(way) for way in ways],
            scale=("nothing pruned", "all pruned"),
        ),
    ]


def _spot(curve: int, title: str, found: _Sum, units: Units) -> charts.Spot:
    tip = {"title": title, "p_prune": found.p_prune, "pruned (%)": found.pruned, units.short: found.top}
    if len(found.rows) == 1:
        return charts.Spot(curve, found.pruned, found.top, tip)
    low, high = min(found.tops), max(found.tops)
    tip |= {"lowest": low, "highest": high, "seeds": len(found.rows)}
    return charts.Spot(curve, found.pruned, found.top, tip, low, high)


def _heat(way: _Way) -> Chart:
    panel = way.layers
    emptied = {
        name.removesuffix(".weight"): panel.columns[int(np.argmax(parts == 1))]
        for name, parts in zip(panel.rows, panel.values, strict=True)
        if (parts == 1).any()
    }
    found = ", ".join(f"{name} from p_prune {ratio}" for name, ratio in emptied.items())
    words = f"Emptied: {found}." if found else "No layer is emptied."
    described = f"Pruned fraction of every layer, {panel.title}. {words}"
    return Chart(
        panel.title, charts.heat(panel, 1, "p_prune", "pruned fraction", described), [words], way.told
    )
