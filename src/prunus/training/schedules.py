"""How much has fallen after how many of several cuts?

A schedule is a function from the fraction before, that at the end, the number of a cut from 0 and how many
there are. Those here are frozen, and equal where their fields are. To add one, write it here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from prunus.checks import check_fraction, check_whole

Schedule: TypeAlias = Callable[[float, float, int, int], float]


def share(cut: int, cuts: int) -> float:
    """The part of the way, from 0 at the first of several cuts to 1 at the last."""
    return 1.0 if cuts == 1 else cut / (cuts - 1)


@dataclass(frozen=True)
class OneShot:
    """All at the first cut.

    Example:
        >>> OneShot()(0.0, 0.9, 0, 5)
        0.9
    """

    def __call__(self, start: float, to: float, cut: int, cuts: int) -> float:
        """What has fallen after this cut."""
        return to


@dataclass(frozen=True)
class Linear:
    """As much at every cut, from `start` at the first to `to` at the last.

    Example:
        >>> [Linear()(0.0, 0.5, cut, 3) for cut in range(3)]
        [0.0, 0.25, 0.5]
    """

    def __call__(self, start: float, to: float, cut: int, cuts: int) -> float:
        """What has fallen after this cut."""
        return start + (to - start) * share(cut, cuts)


@dataclass(frozen=True)
class Cubic:
    """Fast first, slow at the end: to + (start - to)·(1 - share)³ (Zhu, Gupta 2017, arXiv 1710.01878, eq. 1).

    Example:
        >>> [Cubic()(0.0, 1.0, cut, 3) for cut in range(3)]
        [0.0, 0.875, 1.0]
    """

    def __call__(self, start: float, to: float, cut: int, cuts: int) -> float:
        """What has fallen after this cut."""
        return to + (start - to) * (1 - share(cut, cuts)) ** 3


@dataclass(frozen=True)
class Exponential:
    """What is kept falls by the same factor between two cuts.

    Example:
        >>> [round(Exponential()(0.0, 0.75, cut, 3), 12) for cut in range(3)]
        [0.0, 0.5, 0.75]
    """

    def __call__(self, start: float, to: float, cut: int, cuts: int) -> float:
        """What has fallen after this cut."""
        part = share(cut, cuts)
        if part == 1 or start == 1:
            return to
        kept: float = (1 - start) * ((1 - to) / (1 - start)) ** part
        return 1 - kept


@dataclass(frozen=True)
class Iterative:
    """A part of the rest at every cut, the first included, until `to` is reached (Han et al. 2015).

    Args:
        rate: the part.

    Example:
        >>> [round(Iterative(0.5)(0.0, 0.8, cut, 4), 12) for cut in range(4)]
        [0.5, 0.75, 0.8, 0.8]
    """

    rate: float = 0.2

    def __post_init__(self) -> None:
        if not check_fraction("rate", self.rate) > 0:
            raise ValueError(f"rate must be above 0, got {self.rate!r}")

    def __call__(self, start: float, to: float, cut: int, cuts: int) -> float:
        """What has fallen after this cut."""
        return min(to, 1 - (1 - start) * (1 - self.rate) ** (cut + 1))


@dataclass(frozen=True)
class Cyclic:
    """Cubic from `start` to `to`, over and over; between two cycles all comes back (Srinivas et al. 2022).

    Their paper is arXiv 2202.01290. Masks nest within a cycle. What comes back starts at zero.

    Args:
        cycles: how many; the cuts are divided among them, the first ones having one more where they must.

    Example:
        >>> [Cyclic(2)(0.0, 1.0, cut, 6) for cut in range(6)]
        [0.0, 0.875, 1.0, 0.0, 0.875, 1.0]
    """

    cycles: int = 3

    def __post_init__(self) -> None:
        check_whole("cycles", self.cycles, 1)

    def __call__(self, start: float, to: float, cut: int, cuts: int) -> float:
        """What has fallen after this cut."""
        cycle = cut * self.cycles // cuts
        first, end = (-(-number * cuts // self.cycles) for number in (cycle, cycle + 1))
        return Cubic()(start, to, cut - first, end - first)
