"""What all figures have in common: notebooks show them, legends lie on nothing, and no text is cut off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text

from prunus.results.palette import plain

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D
    from matplotlib.transforms import Bbox

FEW = 4  # curves that are labelled at their ends
DASHES = 3  # letters that a line in a legend is long, so that its style is seen


class Picture(Figure):
    """A figure that stands by itself: a notebook shows it though nothing of pyplot is loaded."""

    def _repr_png_(self) -> bytes:
        file = BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()


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
    how: Any = {"frameon": False, "fontsize": font_size(figure), "handlelength": DASHES}
    legend = axes.legend(lines.values(), map(plain, lines), **how)
    figure.draw_without_rendering()
    if _covers(axes, legend.get_window_extent()):
        legend.remove()
        legend_outside(figure, lines, fixed)


def font_size(figure: Figure) -> float:
    """Points of its smaller text: on small figures less."""
    return 8 if figure.get_figwidth() >= 5 else 6


def _at_ends(axes: Axes, lines: Mapping[str, Line2D]) -> bool:
    """Label every line at its right end, if no label comes to lie on the data or on another one."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    labels = []
    for name, line in lines.items():
        how: Any = {"textcoords": "offset points", "va": "center", "color": line.get_color()}
        end: Any = np.asarray(line.get_xydata())[-1]
        labels.append(axes.annotate(plain(name), end, (8, 0), fontsize=font_size(figure), **how))
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in labels]
    clear = not any(_covers(axes, box) for box in boxes) and not any(
        one.overlaps(other) for one, other in combinations(boxes, 2)
    )
    if not clear:
        for label in labels:
            label.remove()
    return clear


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
    width = figure.get_figwidth()
    how: Any = {"frameon": False, "fontsize": font_size(figure), "handlelength": DASHES}
    named: Any = entries.values(), list(map(plain, entries))
    right = figure.legend(*named, loc="outside right upper", **how)
    wide, high = _inches(figure, right.get_window_extent())
    if wide < (0.4 if fixed else 0.7) * width and high < figure.get_figheight() - 0.3:
        if not fixed:
            figure.set_figwidth(width + wide)
        return
    right.remove()
    for columns in range(min(6, len(entries)), 0, -1):
        below = figure.legend(*named, loc="outside lower center", ncols=columns, **how)
        wide, high = _inches(figure, below.get_window_extent())
        if wide < width - 0.1 or columns == 1:
            break
        below.remove()
    if not fixed:
        figure.set_size_inches(max(width, wide + 0.2), figure.get_figheight() + high)


def _inches(figure: Figure, box: Bbox) -> Sequence[float]:
    return box.width / figure.dpi, box.height / figure.dpi


def fit(figure: Figure) -> Figure:
    """The same figure; text that would reach out of it is made smaller."""
    for _ in range(10):
        figure.draw_without_rendering()
        whole = figure.bbox.padded(1)
        out = [text for text in _texts(figure) if _reaches_out(text, whole)]
        if not out:
            break
        for text in out:
            text.set_fontsize(0.9 * float(text.get_fontsize()))
    return figure


def _texts(figure: Figure) -> Iterator[Text]:
    """But for ticks, which constrained layout leaves room for."""
    yield from figure.texts
    for legend in figure.legends:
        yield from legend.get_texts()
    for axes in figure.axes:
        yield from (axes.title, axes.xaxis.label, axes.yaxis.label)
        yield from (text for text in axes.texts if text.get_in_layout())


def _reaches_out(text: Text, whole: Bbox) -> bool:
    box = text.get_window_extent()
    return bool(text.get_text()) and not (whole.contains(box.x0, box.y0) and whole.contains(box.x1, box.y1))
