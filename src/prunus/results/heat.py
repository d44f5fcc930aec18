"""What each group of weights can take, as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from prunus.evaluation.rows import ProbeRow, value_of
from prunus.results.folder import Layout
from prunus.results.panels import Panel, heat_map
from prunus.results.tables import panels, shown


def heat(rows: Sequence[ProbeRow], size: tuple[float, float] | None = None) -> Figure:
    """Accuracy by group, in the order of the network, and ratio: a panel for each way to prune a network."""
    drawn, by_metric = [], False
    for title, found in panels(rows):
        by_metric = found.clean.metric is not None
        ratios = sorted({probe.p_prune for probe in found.probes})
        values = {(probe.group, probe.p_prune): value_of(probe.result) for probe in found.probes}
        matrix = np.array([[values.get((group, p), np.nan) for p in ratios] for group in found.groups])
        names = [group.removesuffix(".weight") for group in found.groups]
        name = f"{title} ({shown(found.clean)}{'' if by_metric else '%'} unpruned)"
        drawn.append(Panel(name, matrix, names, [f"{p:g}" for p in ratios]))
    what = "metric" if by_metric else "top-1 accuracy (%)"
    most = max((np.nanmax(panel.values) for panel in drawn), default=1.0) if by_metric else 100
    number = ("{:.3g}" if by_metric else "{:.1f}").format
    return heat_map(drawn, most, "p_prune of this group alone", what, number, abreast=3, size=size)


SENSITIVITY = Layout(ProbeRow.read, {"sensitivity": heat})
