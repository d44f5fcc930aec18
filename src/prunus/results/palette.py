"""The colours of every figure, and text as it stands in one."""

from __future__ import annotations

COLORS = (
    "#0072B2",  # blue
    "#D55E00",  # vermilion
    "#009E73",  # green
    "#CC79A7",  # pink
    "#FFB000",  # amber
    "#785EF0",  # violet
    "#66CCEE",  # sky
    "#882255",  # wine
    "#332288",  # indigo
    "#A0522D",  # sienna
    "#000000",  # black
    "#661100",  # brown
)
"""Can be told apart also without red or green cones; the first four are Okabe and Ito's (2008)."""

STYLES = ("-", "--", ":", "-.", (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = "os^Dv*P<>Xph"


def color(number: int) -> str:
    """The colour of this number, from 0; after the last comes the first."""
    return COLORS[number % len(COLORS)]


def shade(colour: str, light: float) -> str:
    """A colour as it is (0), or so light that it can still be seen on white (1), or between."""
    parts = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(part + 0.35 * light * (255 - part)):02X}" for part in parts)


def plain(text: str) -> str:
    """A name such that matplotlib shows it as it is: no mathematics, and not hidden from legends."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
