"""What each group of weights can take, as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from prunus.evaluation.rows import GROWS, PARTS, ProbeRow, in_order
from prunus.results.folder import Layout
from prunus.results.page_sensitivity import matrix, page
from prunus.results.panels import heat_map
from prunus.results.tables import panels, shown


def heat(rows: Sequence[ProbeRow], size: tuple[float, float] | None = None) -> Figure:
    """Accuracy by group, in the order of the network, and ratio: a panel for each way to prune a network."""
    drawn, by_metric = [], False
    for title, found in panels(rows):
        by_metric = found.clean.metric is not None
        name = f"{title} ({shown(found.clean)}{'' if by_metric else '%'} unpruned)"
        drawn.append(matrix(name, found))
    what = "metric" if by_metric else "top-1 accuracy (%)"
    most = max((np.nanmax(panel.values) for panel in drawn), default=1.0) if by_metric else 100
    number = ("{:.3g}" if by_metric else "{:.1f}").format
    return heat_map(drawn, most, "p_prune of this group alone", what, number, abreast=3, size=size)


SENSITIVITY = Layout(ProbeRow.read, {"sensitivity": heat}, page, order=in_order, grows=GROWS, parts=PARTS)
