"""What tells curves apart, in pictures and on pages, and text as it stands in a picture."""

from __future__ import annotations

# The first four are Okabe's and Ito's (2008). Any two are far apart, as seen with full colour vision and
# without red or green cones, and all stand out from white with a contrast of 3 at least.
COLORS = (
    "#0072B2",  # blue
    "#D55E00",  # vermilion
    "#009E73",  # green
    "#CC79A7",  # pink
    "#662200",  # brown
    "#7766FF",  # violet
    "#444444",  # grey
    "#AA5533",  # sienna
    "#000088",  # navy
    "#0000FF",  # pure blue
    "#002255",  # ink
    "#000011",  # black
)

ON_DARK = (
    "#56B4E9",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#FFFFDD",
    "#9944FF",
    "#88FF44",
    "#CCCCAA",
    "#FF0011",
    "#CC22BB",
    "#228800",
    "#AACCFF",
)

# By Vega's names, as they are drawn in a legend of the page
SHAPES = {
    "circle": "M5,0A5,5 0 1,1 -5,0A5,5 0 1,1 5,0Z",
    "square": "M-4.5,-4.5H4.5V4.5H-4.5Z",
    "triangle-up": "M0,-5.5L5.5,4.5H-5.5Z",
    "diamond": "M-5,0L0,-6L5,0L0,6Z",
    "triangle-down": "M0,5.5L5.5,-4.5H-5.5Z",
    "cross": "M-5.5,-2H-2V-5.5H2V-2H5.5V2H2V5.5H-2V2H-5.5Z",
}
DASHES = ((1, 0), (7, 3), (2, 3), (9, 3, 2, 3))  # the next one once all colours are used

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
