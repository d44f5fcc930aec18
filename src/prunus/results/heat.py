"""What each group of weights can take: ranked, and as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from prunus.evaluation.rows import GROWS, PARTS, ProbeRow, in_order, varied, worded
from prunus.evaluation.sensitivity import Probe, Sensitivity
from prunus.results.folder import Layout
from prunus.results.panels import Panel, heat_map


def panels(rows: Sequence[ProbeRow]) -> Iterator[tuple[str, Sensitivity]]:
    """Probes that differ in group and ratio alone, and what sets them apart."""
    apart = varied(rows)
    found: dict[tuple[str, ...], list[ProbeRow]] = {}
    for row in rows:
        columns = row.columns()
        found.setdefault((row.network, *(worded(name, columns[name]) for name in apart)), []).append(row)
    for names, members in found.items():
        clean = next((row.point.result for row in members if not row.group), None)
        probes = [_probe(row) for row in members if row.group]
        if clean and probes:  # which a run that was interrupted may not have come to
            yield " · ".join(names), Sensitivity(clean, probes)


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
        ratios = sorted({probe.p_prune for probe in found.probes})
        tops = {(probe.group, probe.p_prune): probe.result.top1 for probe in found.probes}
        values = np.array([[tops.get((group, p), np.nan) for p in ratios] for group in found.groups])
        name = f"{title} ({found.clean.top1:.2f}% unpruned)"
        drawn.append(Panel(name, values, list(found.groups), [f"{p:g}" for p in ratios]))
    return heat_map(drawn, 100, "p_prune of this group alone", "top-1 accuracy (%)", abreast=3)


SENSITIVITY = Layout(ProbeRow.read, {"sensitivity": heat}, order=in_order, grows=GROWS, parts=PARTS)
