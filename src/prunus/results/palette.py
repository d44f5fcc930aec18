"""The colours of pictures and pages."""

from __future__ import annotations

# The first four are Okabe's and Ito's. Each that follows lies, of all that there are, farthest from those
# before it, as seen with full colour vision and without red, green or blue cones. All stand out from their
# ground with a contrast of 3 at least.
COLORS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#661100",
    "#332277",
    "#9966FF",
    "#884455",
    "#4400DD",
    "#BB0000",
    "#663399",
    "#553344",
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
