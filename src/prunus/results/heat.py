"""What each group of weights can take, as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from prunus.evaluation.rows import ProbeRow
from prunus.results.folder import Layout
from prunus.results.panels import Panel, heat_map
from prunus.results.tables import panels


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


SENSITIVITY = Layout(ProbeRow.read, {"sensitivity": heat})
