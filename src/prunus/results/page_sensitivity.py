"""The page of sensitivities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunus.evaluation.points import Probe
from prunus.evaluation.rows import ProbeRow, titled, value_of, varied
from prunus.evaluation.sensitivity import Sensitivity
from prunus.results import page_charts as charts
from prunus.results.page import Chart, Curve, Line, Page, Section
from prunus.results.panels import Panel
from prunus.results.tables import Units, probed, shown, units_of

SHOWN = 12  # curves that a page shows at first, of each network: more cannot be told apart


def page(rows: Sequence[ProbeRow]) -> Page:
    """How much each group can take: as curves, as heat, and every probe in the table."""
    apart, measured, units = varied(rows), list(probed(rows)), units_of(rows)
    curves, spots, heats, words = list[Curve](), list[charts.Spot](), list[Chart](), list[str]()
    most = max((value_of(row.point.result) for row in rows), default=0.0) if not units.sign else 100
    for told, found in measured:
        title, groups = titled(told), found.groups
        for place, group in enumerate(found.ranked):
            name = " · ".join([title] * (len(measured) > 1) + [group.removesuffix(".weight")])
            spots += [_spot(len(curves), name, probe, units) for probe in groups[group]]
            lowest = min((probe.result for probe in groups[group]), key=value_of)
            curves.append(Curve(name, told, f"{shown(lowest)}{units.sign} at the lowest", place < SHOWN))
        first, last = (found.ranked[place].removesuffix(".weight") for place in (0, -1))
        words.append(
            f"{title}: {shown(found.clean)}{units.sign} unpruned. Of {len(groups)}, {first} is the most "
            f"sensitive, {last} the least."
        )
        chart = charts.heat(matrix(title, found), most, "p_prune", units.short, f"{ACROSS}, {words[-1]}")
        heats.append(Chart(title, chart, words[-1:], told))
    chart = charts.lines(spots, "pruned weights of this group (%)", units.long, " ".join(words))
    sections = [
        Section(
            "Each alone",
            f"{units.long.capitalize()} as one group of weights is pruned and all others stay, the most "
            "sensitive first."
            + f" At first the {SHOWN} most sensitive of each network are shown."
            * (len(curves) > SHOWN),
            [Chart("", chart, words)],
            curves,
        ),
        Section(
            ACROSS, "In the order of the network.", heats, scale=(f"0{units.sign}", f"{most:g}{units.sign}")
        ),
    ]
    cells = {
        "network",
        "group",
        *apart,
        "p_prune",
        "acc1",
        "acc5",
        "loss",
        "metric",
        "predicted",
        "pruned",
        "weights",
    }
    return Page(
        "sensitivity",
        "Which layers can take it?",
        f"{len(rows):,} measurements of {', '.join(dict.fromkeys(row.network for row in rows))}.",
        sections if measured else [],
        [
            Line(
                {name: value for name, value in row.columns().items() if name in cells},
                {"network": row.network, **{name: str(row.columns()[name]) for name in apart}},
            )
            for row in rows
        ],
    )


ACROSS = "Accuracy by layer and ratio"


def _spot(curve: int, title: str, probe: Probe, units: Units) -> charts.Spot:
    value, pruned = round(value_of(probe.result), 4), 100 * probe.pruned / max(1, probe.weights)
    tip = {"title": title, "p_prune": probe.p_prune, "pruned (%)": pruned, units.short: value}
    return charts.Spot(curve, pruned, value, tip)


def matrix(title: str, found: Sensitivity) -> Panel:
    """What each group comes to at every ratio, in the order of the network."""
    ratios = sorted({probe.p_prune for probe in found.probes})
    values = {(probe.group, probe.p_prune): round(value_of(probe.result), 4) for probe in found.probes}
    numbers = np.array([[values.get((group, p), np.nan) for p in ratios] for group in found.groups])
    names = [group.removesuffix(".weight") for group in found.groups]
    return Panel(title, numbers, names, [f"{p:g}" for p in ratios])
