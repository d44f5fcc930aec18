"""Which curve is which: beside its end, in free space between the curves, or else outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prunus.results.palette import plain

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.transforms import Bbox

FEW = 4  # curves that are labelled at their ends
GAP = 11  # points between the baselines of two labels


def name_curves(axes: Axes, lines: Mapping[str, Line2D], fixed: bool = False) -> None:
    """Say which line is which.

    Args:
        axes: where they are drawn, alone in their figure.
        lines: by name; one needs no name.
        fixed: whether the figure must stay as large as it is; else it grows by a legend that is outside.
    """
    if len(lines) < 2 or (len(lines) <= FEW and _at_ends(axes, lines)):
        return
    figure = axes.get_figure(root=True)
    assert figure is not None
    legend = axes.legend(lines.values(), map(plain, lines), frameon=False, fontsize=_font(figure))
    figure.draw_without_rendering()
    if _covers(axes, legend.get_window_extent()):
        legend.remove()
        legend_outside(figure, lines, fixed)


def _font(figure: Figure) -> float:
    return 8 if figure.get_figwidth() >= 5 else 6


def _at_ends(axes: Axes, lines: Mapping[str, Line2D]) -> bool:
    """Label every line at its right end, if the ends are far enough from each other."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    right = axes.transAxes.transform((1, 0))[0]
    ends = {name: np.asarray(line.get_xydata())[-1] for name, line in lines.items()}
    places = axes.transData.transform(list(ends.values()))
    near = np.diff(np.sort(places[:, 1])).min() < GAP / 72 * figure.dpi
    if near or (right - places[:, 0]).max() > 0.06 * axes.bbox.width:
        return False
    for name, end in ends.items():
        colour, size = lines[name].get_color(), _font(figure)
        how: Any = {"textcoords": "offset points", "va": "center", "color": colour, "fontsize": size}
        axes.annotate(plain(name), (end[0], end[1]), (8, 0), **how)
    return True


def _covers(axes: Axes, box: Bbox) -> bool:
    """Whether a box lies on the data."""
    lines = (line.get_path().transformed(line.get_transform()) for line in axes.lines)
    bands = (path.transformed(band.get_transform()) for band in axes.collections for path in band.get_paths())
    return any(path.intersects_bbox(box, filled=False) for path in (*lines, *bands))


def legend_outside(figure: Figure, entries: Mapping[str, Artist], fixed: bool = False) -> None:
    """One legend for the whole figure: at its right where that is wide enough, or else below.

    Args:
        figure: in constrained layout.
        entries: handles by name.
        fixed: whether it must stay as large as it is.
    """
    names, width = list(map(plain, entries)), figure.get_figwidth()
    handles = list(entries.values())
    right = figure.legend(handles, names, loc="outside right upper", frameon=False, fontsize=_font(figure))
    wide, high = _inches(figure, right.get_window_extent())
    if wide < (0.4 if fixed else 0.7) * width and high < figure.get_figheight() - 0.3:
        if not fixed:
            figure.set_figwidth(width + wide)
        return
    right.remove()
    for columns in range(min(6, len(names)), 0, -1):
        below = figure.legend(
            handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=_font(figure)
        )
        wide, high = _inches(figure, below.get_window_extent())
        if wide < width - 0.1 or columns == 1:
            break
        below.remove()
    if not fixed:
        figure.set_size_inches(max(width, wide + 0.2), figure.get_figheight() + high)


def _inches(figure: Figure, box: Bbox) -> Sequence[float]:
    return box.width / figure.dpi, box.height / figure.dpi
