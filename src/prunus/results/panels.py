"""Panels of heat: one matrix each, side by side, with one scale of colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray


@dataclass(frozen=True)
class Panel:
    """A matrix (rows, columns) and what stands beside it.

    Args:
        title: above.
        values: NaN where there is none.
        rows: names of rows; of weights, without ".weight".
        columns: names of columns.
    """

    title: str
    values: NDArray[np.float64]
    rows: Sequence[str]
    columns: Sequence[str]


def heat_map(panels: Sequence[Panel], most: float, across: str, colours: str, abreast: int = 4) -> Figure:
    """A picture of several panels.

    Args:
        panels: some.
        most: the value of the brightest colour; 0 is the darkest.
        across: what the columns are.
        colours: what the values are.
        abreast: so many panels at most stand side by side.
    """
    columns, tallest = min(len(panels), abreast) or 1, max((len(one.rows) for one in panels), default=1)
    lines = -(-len(panels) // columns) or 1
    size = (1.2 + 3.6 * columns, (1.2 + min(0.15 * tallest + 0.4, 12)) * lines)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    image = None
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, panel in zip(grid.flat, panels, strict=False):
        axes.set_axis_on()
        image = axes.imshow(panel.values, vmin=0, vmax=most, aspect="auto", cmap="viridis")
        axes.set_title(panel.title, fontsize=9)
        every = -(-len(panel.columns) // 12)  # or they would overlap
        axes.set_xticks(range(0, len(panel.columns), every), panel.columns[::every], fontsize=7)
        axes.set_xlabel(across, fontsize=8)
        names = [name.removesuffix(".weight") for name in panel.rows]
        axes.set_yticks(range(len(names)), names, fontsize=max(2.5, min(7, 400 / len(names))))
    if image is not None:
        figure.colorbar(image, ax=grid, label=colours, shrink=0.8)
    return figure
