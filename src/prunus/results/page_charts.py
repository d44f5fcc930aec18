"""Pictures of a page, in Vega-Lite.

What people name (networks, layers) stands in data alone, never in an expression or the name of a field.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunus.results.page import cell
from prunus.results.palette import COLORS, DASHES, SHAPES
from prunus.results.panels import Panel

INK = "currentColor"  # that of the page, light or dark
_AXIS = {
    "labelColor": INK,
    "titleColor": INK,
    "gridColor": INK,
    "tickColor": INK,
    "domainColor": INK,
    "gridOpacity": 0.12,
    "tickOpacity": 0.3,
    "domainOpacity": 0.3,
    "labelFontSize": 12,
    "titleFontSize": 12,
    "titleFontWeight": "normal",
    "titlePadding": 10,
    "labelPadding": 6,
}
CONFIG = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": _AXIS,
}


@dataclass(frozen=True)
class Spot:
    """A point of a curve.

    Args:
        curve: the place of its curve in the legend.
        x, y: where it is; y is the name of a line in `dots`, which has the value as x.
        tip: what is shown over it: values by name; "title" stands above them.
        low, high: of its interval, where it has one.
        level: whether it is a level of the whole width, in place of a point.
        hollow: whether it is drawn empty.
    """

    curve: int
    x: float
    y: float | str
    tip: Mapping[str, Any]
    low: float | None = None
    high: float | None = None
    level: bool = False
    hollow: bool = False

    def datum(self) -> dict[str, Any]:
        """As the charts below read it."""
        tip = {name: cell(value) for name, value in self.tip.items()}
        said = ", ".join(f"{name} {value}" for name, value in tip.items() if name != "title")
        return {
            "curve": str(self.curve),
            "ink": f"var(--c{self.curve % len(COLORS)})",
            "dash": self.curve // len(COLORS) % len(DASHES),
            "shape": list(SHAPES)[self.curve % len(SHAPES)],
            **{name: getattr(self, name) for name in ("x", "y", "low", "high", "level", "hollow")},
            "tip": tip,
            "says": f"{tip['title']}: {said}",
        }


def lines(
    spots: Sequence[Spot], x: str, y: str, description: str, bars: bool = False, zero: bool = True
) -> dict[str, Any]:
    """Curves of numbers.

    Args:
        spots: in any order.
        x, y: titles of the axes.
        description: in words, for who does not see it.
        bars: whether intervals are bars; else they are bands.
        zero: whether the axes begin there.
    """
    spots = [spot for spot in spots if math.isfinite(spot.x) and math.isfinite(float(spot.y))]
    tops = [end for spot in spots for end in (spot.y, spot.low, spot.high) if isinstance(end, float)]
    across = _axis("x", x, [spot.x for spot in spots if not spot.level], zero)
    up = _axis("y", y, tops, zero)
    ends = {
        "y": {**up, "field": "low"},
        "y2": {"field": "high"},
        "x": across,
        "color": _COLOR,
        "detail": {"field": "curve"},
    }
    interval = (
        {"type": "rule", "strokeWidth": 1.5, "opacity": 0.7} if bars else {"type": "area", "opacity": 0.15}
    )
    both = {"x": across, "y": up, "color": _COLOR, "detail": {"field": "curve"}}
    return {
        **_top([spot.datum() for spot in spots], description),
        "height": 380,
        "layer": [
            {
                "transform": [{"filter": "isValid(datum.low)"}],
                "mark": {**interval, "aria": False},
                "encoding": ends,
            },
            {
                "transform": [{"filter": "!datum.level"}],
                "mark": {"type": "line", "strokeWidth": 2, "aria": False},
                "encoding": {**both, "strokeDash": _DASH},
            },
            {
                "transform": [{"filter": "datum.level"}],
                "mark": {"type": "rule", "strokeWidth": 2, "strokeDash": [2, 4], "aria": False},
                "encoding": {"y": up, "color": _COLOR},
            },
            {"mark": _POINT, "params": [_NEAREST], "encoding": {**both, **_SPOT}},
        ],
    }


def dots(spots: Sequence[Spot], x: str, description: str) -> dict[str, Any]:
    """Values with intervals, a line for each y, in their order: who is ahead, and is it certain?

    Args:
        spots: in percent.
        x: title of the axis.
        description: in words, for who does not see it.
    """
    names, curves = list(dict.fromkeys(spot.y for spot in spots)), {spot.curve for spot in spots}
    across = _axis("x", x, [0.0, 100.0])
    line = {
        "field": "y",
        "type": "nominal",
        "scale": {"domain": names},
        "axis": {"title": None, "grid": True, "domain": False, "ticks": False, "labelLimit": 150},
    }
    beside = {"field": "curve", "type": "nominal", "scale": {"domain": [str(one) for one in sorted(curves)]}}
    place = {"y": line, "yOffset": beside, "color": _COLOR}
    return {
        **_top([spot.datum() for spot in spots], description),
        "height": len(names) * (12 + 9 * len(curves)),
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 1.5, "opacity": 0.7, "aria": False},
                "encoding": {**place, "x": {**across, "field": "low"}, "x2": {"field": "high"}},
            },
            {"mark": _POINT, "params": [_NEAREST], "encoding": {**place, "x": across, **_SPOT}},
        ],
    }


def heat(panel: Panel, most: float, across: str, value: str, description: str) -> dict[str, Any]:
    """A matrix of colours, from 0, the darkest, to `most`.

    Args:
        panel: see `prunus.results.panels`.
        most: the value of the brightest colour.
        across: what the columns are.
        value: what the values are.
        description: in words, for who does not see it.
    """
    rows = [name.removesuffix(".weight") for name in panel.rows]
    cells = [
        {"row": row, "column": column, "value": number}
        for row, numbers in zip(rows, panel.values.tolist(), strict=True)
        for column, number in zip(panel.columns, numbers, strict=True)
        if math.isfinite(number)
    ]
    axis = {"domain": False, "ticks": False, "grid": False}
    thin = (
        "indexof(domain('x'), datum.value) % ceil(length(domain('x')) * 26 / width) == 0 ? datum.label : ''"
    )
    return {
        **_top(cells, description),
        "height": max(1, len(rows)) * (18 if len(rows) <= 30 else 12),
        "mark": {"type": "rect", "stroke": "var(--panel)", "strokeWidth": 1},
        "encoding": {
            "x": {
                "field": "column",
                "type": "ordinal",
                "scale": {"domain": list(panel.columns)},
                "axis": {**axis, "title": across, "labelAngle": 0, "labelExpr": thin},
            },
            "y": {
                "field": "row",
                "type": "ordinal",
                "scale": {"domain": list(dict.fromkeys(rows))},
                "axis": {
                    **axis,
                    "title": None,
                    "labelLimit": 130,
                    "labelFontSize": 11 if len(rows) <= 30 else 9,
                },
            },
            "color": {
                "field": "value",
                "type": "quantitative",
                "scale": {"scheme": "viridis", "domain": [0, most]},
                "legend": None,
            },
            "tooltip": [
                {"field": "row", "title": "title"},
                {"field": "column", "title": across},
                {"field": "value", "title": value, "type": "quantitative", "format": ".6~g"},
            ],
        },
    }


def _top(values: Sequence[Mapping[str, Any]], description: str) -> dict[str, Any]:
    """What all pictures have: their data, less that of the curves which the page hides."""
    return {
        "data": {"values": values},
        "params": [{"name": "hidden", "value": []}],
        "transform": [{"filter": "indexof(hidden, datum.curve) < 0"}],
        "width": "container",
        "autosize": {"type": "fit-x", "contains": "padding"},  # the height is that of the matrix alone
        "description": description,
        "config": CONFIG,
    }


def _axis(field: str, title: str, values: Sequence[float], zero: bool = True) -> dict[str, Any]:
    """An axis as long as the values of all curves, which stays where it is when some are hidden."""
    ends = [value for value in values if math.isfinite(value)] or [0.0, 100.0]
    low, high = min(ends), max(ends) or 100.0
    if zero or low == high:
        low = min(0.0, low)
    return {
        "field": field,
        "type": "quantitative",
        # What lies beyond, as a level without a place, is drawn at its end
        "scale": {"domain": [low, high], "nice": True, "zero": False, "clamp": True},
        "axis": {"title": title, "tickCount": 6},
    }


def _as_told(field: str) -> dict[str, Any]:
    """What stands in the data is what is drawn."""
    return {"field": field, "type": "nominal", "scale": None}


_COLOR = _as_told("ink")
_DASH = {
    "field": "dash",
    "type": "nominal",
    "scale": {"domain": [*range(len(DASHES))], "range": DASHES},
    "legend": None,
}
_NEAREST = {
    "name": "nearest",
    "select": {"type": "point", "nearest": True, "on": "pointerover", "clear": "pointerout"},
}
_POINT = {"type": "point", "strokeWidth": 2, "opacity": 1}
_SPOT = {
    "shape": _as_told("shape"),
    "fill": {**_COLOR, "condition": {"test": "datum.hollow", "value": "var(--panel)"}},
    "size": {"condition": {"param": "nearest", "empty": False, "value": 150}, "value": 45},
    # The area that is nearest to a point holds the point
    "tooltip": {"value": {"expr": "datum.datum ? datum.datum.tip : datum.tip"}},
    "description": {"field": "says"},
}
