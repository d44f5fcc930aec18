"""The colours of pictures and pages."""

from __future__ import annotations

# The first four are Okabe's and Ito's. Each that follows is the one that lies farthest from all before it, as
# seen with full colour vision, without red, green or blue cones; all have a contrast of 3 to white at least.
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
