"""What each group of weights can take: ranked, and as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from prunus.evaluation.rows import ProbeRow, varied
from prunus.evaluation.sensitivity import Probe, Sensitivity
from prunus.results import page_charts as charts
from prunus.results.folder import Layout
from prunus.results.page import Chart, Curve, Line, Page, Section
from prunus.results.panels import Panel, heat_map


def panels(rows: Sequence[ProbeRow]) -> Iterator[tuple[str, Sensitivity]]:
    """Probes that differ in group and ratio alone, and what sets them apart."""
    for told, found in _panels(rows):
        yield " · ".join(told.values()), found


def _panels(rows: Sequence[ProbeRow]) -> Iterator[tuple[dict[str, str], Sensitivity]]:
    apart = varied(rows)
    found: dict[tuple[str, ...], list[ProbeRow]] = {}
    for row in rows:
        columns = row.columns()
        found.setdefault((row.network, *(str(columns[name]) for name in apart)), []).append(row)
    for names, members in found.items():
        clean = next((row.point.result for row in members if not row.group), None)
        probes = [_probe(row) for row in members if row.group]
        if clean and probes:  # which a run that was interrupted may not have come to
            yield dict(zip(("network", *apart), names, strict=True)), Sensitivity(clean, probes)


def _probe(row: ProbeRow) -> Probe:
    point = row.point
    return Probe(row.group, point.setting.p_prune, point.pruned, point.weights, row.predicted, point.result)


def ranked_table(rows: Sequence[ProbeRow]) -> Iterator[Table]:
    """For each network: its groups, most sensitive first, with the accuracy at every ratio.

    `predicted` is the share of all scores that falls, as a mean over the ratios.
    """
    for title, found in panels(rows):
        ratios = sorted({probe.p_prune for probe in found.probes})
        made = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
        made.add_column("group", no_wrap=True)
        for name in ("weights", "predicted", *(f"acc@1 at {p:g}" for p in ratios)):
            made.add_column(name, justify="right", no_wrap=True)
        for group in found.ranked:
            probes = found.groups[group]
            tops = {probe.p_prune: f"{probe.result.top1:.2f}" for probe in probes}
            predicted = sum(probe.predicted for probe in probes) / len(probes)
            made.add_row(
                group.removesuffix(".weight"),
                f"{probes[0].weights:,}",
                f"{predicted:.4f}",
                *(tops.get(p, "") for p in ratios),
            )
        made.add_section()
        made.add_row("unpruned", "", "", f"{found.clean.top1:.2f}")
        yield made


def heat(rows: Sequence[ProbeRow]) -> Figure:
    """Accuracy by group, in the order of the network, and ratio: a panel for each way to prune a network."""
    drawn = []
    for title, found in panels(rows):
        drawn.append(_heat(f"{title} ({found.clean.top1:.2f}% unpruned)", found))
    return heat_map(drawn, 100, "p_prune of this group alone", "top-1 accuracy (%)", abreast=3)


def _heat(title: str, found: Sensitivity) -> Panel:
    ratios = sorted({probe.p_prune for probe in found.probes})
    tops = {(probe.group, probe.p_prune): round(probe.result.top1, 4) for probe in found.probes}
    values = np.array([[tops.get((group, p), np.nan) for p in ratios] for group in found.groups])
    return Panel(title, values, list(found.groups), [f"{p:g}" for p in ratios])


SHOWN = 12  # curves that a page shows at first, of each network: more cannot be told apart


def page(rows: Sequence[ProbeRow]) -> Page:
    """How much each group can take: as curves, as heat, and every probe in the table."""
    apart, measured = varied(rows), list(_panels(rows))
    curves, spots, heats, words = list[Curve](), list[charts.Spot](), list[Chart](), list[str]()
    for told, found in measured:
        title, groups = " · ".join(told.values()), found.groups
        for place, group in enumerate(found.ranked):
            name = " · ".join([title] * (len(measured) > 1) + [group.removesuffix(".weight")])
            spots += [_spot(len(curves), name, probe) for probe in groups[group]]
            worst = min(probe.result.top1 for probe in groups[group])
            curves.append(Curve(name, told, f"{worst:.2f}% at worst", place < SHOWN))
        first, last = found.ranked[0], found.ranked[-1]
        words.append(
            f"{title}: {found.clean.top1:.2f}% unpruned. Of {len(groups)}, {first.removesuffix('.weight')} "
            f"is the most sensitive, {last.removesuffix('.weight')} the least."
        )
        chart = charts.heat(_heat(title, found), 100, "p_prune", "top-1 (%)", f"{ACROSS}, {words[-1]}")
        heats.append(Chart(title, chart, words[-1:], told))
    chart = charts.lines(spots, "pruned weights of this group (%)", "top-1 accuracy (%)", " ".join(words))
    sections = [
        Section(
            "Each alone",
            "Top-1 accuracy as one group of weights is pruned and all others stay, most sensitive first."
            + f" At first the {SHOWN} most sensitive of each network are shown." * (len(curves) > SHOWN),
            [Chart("", chart, words)],
            curves,
        ),
        Section(ACROSS, "In the order of the network.", heats, scale=("0% correct", "100%")),
    ]
    cells = ("network", "group", *apart, "p_prune", "acc1", "acc5", "loss", "predicted", "pruned", "weights")
    return Page(
        "sensitivity",
        "Which layers can take it?",
        f"{len(rows):,} measurements of {', '.join(dict.fromkeys(row.network for row in rows))}.",
        sections if measured else [],
        [
            Line(
                {name: row.columns()[name] for name in cells},
                {"network": row.network, **{name: str(row.columns()[name]) for name in apart}},
            )
            for row in rows
        ],
    )


ACROSS = "Accuracy by layer and ratio"


def _spot(curve: int, title: str, probe: Probe) -> charts.Spot:
    top, pruned = round(probe.result.top1, 4), 100 * probe.pruned / max(1, probe.weights)
    tip = {"title": title, "p_prune": probe.p_prune, "pruned (%)": pruned, "top-1 (%)": top}
    return charts.Spot(curve, pruned, top, tip)


SENSITIVITY = Layout(ProbeRow.read, {"sensitivity": heat}, page)
