"""Panels of heat: one matrix each, side by side, with one scale of colours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from prunus.results.figures import Picture, fit
from prunus.results.palette import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW, COLUMN, LETTER = 0.16, 0.3, 0.058  # inches of a cell, and of a letter of a name
HEAD, BAR, TOP = 0.85, 0.9, 0.3  # inches of a title and an axis, of the scale of colours, of what they mean
HIGHEST, WIDEST = 14, 13  # inches of all rows of a panel, and of the page
SMALLEST = 5  # points: smaller letters cannot be read on paper
COLOURS = "viridis"  # which those see as well who lack a kind of cones


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


def heat_map(
    panels: Sequence[Panel],
    most: float | None,
    across: str,
    colours: str,
    number: Callable[[float], str],
    abreast: int = 4,
    size: tuple[float, float] | None = None,
) -> Figure:
    """A picture of several panels, with numbers where there is room for them.

    Args:
        panels: some.
        most: the value of the brightest colour, 0 being the darkest; None for a logarithmic scale.
        across: what the columns are.
        colours: what the values are.
        number: how a value is written.
        abreast: so many panels at most stand side by side.
        size: width and height in inches; default as the panels need it.
    """
    shared = len({tuple(panel.rows) for panel in panels}) == 1  # names at the left alone
    most_abreast = range(1, (min(len(panels), abreast) or 1) + 1)
    across_page = max((n for n in most_abreast if _width(panels, n, shared) <= WIDEST), default=1)
    down = -(-len(panels) // across_page) or 1
    page = size or (_width(panels, across_page, shared), _height(panels, down))
    figure = Picture(figsize=page, layout="constrained")
    grid = figure.subplots(down, across_page, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    norm, image = _norm(panels, most), None
    shown = list(zip(grid.flat, panels, strict=False))
    high, wide = (page[1] - TOP) / down - HEAD, (page[0] - BAR) / across_page
    for at, (axes, panel) in enumerate(shown):
        axes.set_axis_on()
        image = axes.imshow(panel.values, norm=norm, aspect="auto", cmap=COLOURS)
        axes.set_title(fill(plain(panel.title), max(12, int(wide / LETTER))), fontsize=8)
        axes.set_xlabel(across, fontsize=8)
        axes.tick_params(length=2)
        row = 72 * high / len(panel.rows)
        _name(axes.set_yticks, () if shared and at % across_page else panel.rows, SMALLEST / row, 0.75 * row)
        _name(axes.set_xticks, panel.columns, 0, 7)
    if image is not None:
        shrink = min(1, 4 / page[1])
        bar = figure.colorbar(image, ax=grid, aspect=30 * shrink, pad=0.01, shrink=shrink, anchor=(0, 1))
        bar.ax.tick_params(labelsize=7)
    figure.suptitle(colours, fontsize=9)  # where there is more room for it than beside the scale
    figure.draw_without_rendering()  # from here on it is known how large cells are
    for axes, panel in shown:
        points = 72 / figure.dpi * axes.bbox.size
        column, row = points / (len(panel.columns), len(panel.rows))
        _name(axes.set_xticks, panel.columns, 5 * max(map(len, panel.columns)) / column, 7)
        if column > 15 and row > 7:
            _write(axes, panel.values, norm, number)
    return fit(figure)


def _letters(panels: Sequence[Panel]) -> float:
    """Inches that the longest name of a row takes."""
    return LETTER * max((len(name) for panel in panels for name in panel.rows), default=0)


def _width(panels: Sequence[Panel], across: int, shared: bool) -> float:
    widest = max((len(panel.columns) for panel in panels), default=1)
    room = max(2.2, min(COLUMN * widest, 6)) + 0.15
    return BAR + _letters(panels) * (1 if shared else across) + room * across


def _height(panels: Sequence[Panel], down: int) -> float:
    tallest = max((len(panel.rows) for panel in panels), default=1)
    return TOP + (HEAD + min(ROW * max(tallest, 3), HIGHEST)) * down


def _norm(panels: Sequence[Panel], most: float | None) -> Normalize:
    if most is not None:
        return Normalize(0, most)
    values = np.concatenate([panel.values.ravel() for panel in panels])
    some = values[values > 0]
    least, largest = (some.min(), some.max()) if some.size else (1, 1)
    return LogNorm(least, max(2 * least, largest), clip=True)  # none has the colour of least


def _name(place: Callable[..., object], names: Sequence[str], crowded: float, points: float) -> None:
    """Name ticks, or every second or third of them where there is no room for all."""
    every = max(1, -(-int(1000 * crowded) // 1000))
    size = max(SMALLEST, min(7, points * every))
    place(range(0, len(names), every), list(map(plain, names))[::every], fontsize=size)


def _write(axes: Axes, values: NDArray[np.float64], norm: Normalize, number: Callable[[float], str]) -> None:
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            colour = "white" if norm(value) < 0.6 else "black"
            text = axes.text(column, row, number(value), ha="center", va="center", fontsize=6, color=colour)
            text.set_in_layout(False)  # inside, and many


def short(count: float) -> str:
    """A number of weights in at most four letters and a point: 144, 36.9k, 2.36M.

    Example:
        >>> [short(count) for count in (0, 144, 9216, 2359296, 123456789)]
        ['0', '144', '9.22k', '2.36M', '123M']
    """
    size = min(4, (len(f"{count:.0f}") - 1) // 3)
    return f"{count / 1000**size:.3g}{('', 'k', 'M', 'G', 'T')[size]}"


def layer_name(name: str, weights: int) -> str:
    """A layer as a row: its name, and how many weights it has."""
    return f"{name.removesuffix('.weight')}  {short(weights)}"


def whole(value: float) -> str:
    """As a whole number."""
    return f"{value:.0f}"
