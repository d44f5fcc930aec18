"""How often adversarial images fool networks that were not attacked, with what certainty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import zip_longest
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from prunus.methods import KINDS, PLAIN, Method

Z = 1.959964  # of a 95% interval
Shares: TypeAlias = NDArray[np.float64]  # one number in [0, 1] an image


@dataclass(frozen=True)
class Cell:
    """One attack on all images: on what, how, how far and to what end."""

    surrogate: str
    method: Method
    eps: float
    targeted: bool
    seed: int


@dataclass(frozen=True)
class TransferRow:
    """How one target answers the images of one attack.

    Args:
        fooled: a bit an image, packed, in hexadecimal; judged on the PNG files.
        curve: images fooled after so many gradients each, before rounding.
        linf, l2: realised changes of pixels in [0, 1]: the largest of all, and the mean norm.
    """

    surrogate: str
    method: str
    strength: float | None
    target: str
    targeted: bool
    eps: float
    seed: int
    images: int
    fooled: str
    linf: float
    l2: float
    seconds_per_image: float
    curve: dict[int, int]

    @property
    def cell(self) -> Cell:
        """The attack whose images were judged."""
        method = Method(self.method, self.strength)
        return Cell(self.surrogate, method, self.eps, self.targeted, self.seed)

    def order(self) -> tuple[Any, ...]:
        """By which rows are shown."""
        kind = list(KINDS).index(self.method)
        return (not self.targeted, self.eps, self.surrogate, kind, self.strength or 0, self.target, self.seed)

    @cached_property
    def hits(self) -> Shares:
        """Whether each image fools the target."""
        return np.unpackbits(np.frombuffer(bytes.fromhex(self.fooled), np.uint8), count=self.images).astype(
            float
        )

    @property
    def success(self) -> int:
        """Images that fool the target, read from their files."""
        return int(self.hits.sum())

    @property
    def rate(self) -> float:
        """Fraction of images that fool the target."""
        return self.success / self.images

    def cells(self) -> dict[str, Any]:
        """Every column of the CSV by name."""
        low, high = wilson(self.success, self.images)
        return {
            "surrogate": self.surrogate,
            "method": self.method,
            "strength": self.strength,
            "target": self.target,
            "white_box": self.surrogate == self.target,
            "goal": goal_of(self.targeted),
            "eps_255": round(255 * self.eps, 6),
            "seed": self.seed,
            "images": self.images,
            "success": self.success,
            "rate": round(self.rate, 6),
            "wilson_low": round(low, 6),
            "wilson_high": round(high, 6),
            "success_before_rounding": self.curve[max(self.curve)],
            "linf_255": round(255 * self.linf, 4),
            "l2": round(self.l2, 4),
            "seconds_per_image": round(self.seconds_per_image, 4),
            "gradients": max(self.curve),
        }

    def stored(self) -> dict[str, Any]:
        """All there is to keep."""
        return asdict(self)

    @classmethod
    def read(cls, cells: Mapping[str, Any]) -> TransferRow:
        """A row from what was stored."""
        return cls(**{**cells, "curve": {int(at): count for at, count in cells["curve"].items()}})


@dataclass(frozen=True)
class Key:
    """What rows that differ in seed alone agree in."""

    targeted: bool
    eps: float
    surrogate: str
    method: Method
    target: str

    @property
    def white_box(self) -> bool:
        """Whether the target is the surrogate."""
        return self.surrogate == self.target


@dataclass(frozen=True)
class Summary:
    """All seeds of one method on one surrogate against one target."""

    key: Key
    rows: Sequence[TransferRow]

    def of_seed(self, seed: int) -> TransferRow:
        """The row of this seed, or the first, where there is no such."""
        return next((row for row in self.rows if row.seed == seed), self.rows[0])

    @property
    def seconds_per_image(self) -> float:
        """Median over seeds."""
        return float(np.median([row.seconds_per_image for row in self.rows]))

    @property
    def images(self) -> int:
        """How many were attacked, by each seed."""
        return self.rows[0].images

    @cached_property
    def share(self) -> Shares:
        """For every image, the fraction of seeds that fooled the target."""
        share: Shares = np.mean([row.hits for row in self.rows], axis=0)
        return share

    @property
    def rate(self) -> float:
        """Fraction of images that fool the target, mean over seeds."""
        return float(self.share.mean())


Summaries = dict[Key, Summary]


def goal_of(targeted: bool) -> str:
    """In words."""
    return "targeted" if targeted else "untargeted"


def wilson(success: float, count: int) -> tuple[float, float]:
    """95% interval of a rate (Wilson 1927, without correction for continuity).

    Seeds share their images, so it is images that count, and `success`, a mean over seeds, may be a fraction.

    Example:
        >>> [round(end, 3) for end in wilson(5, 10)]
        [0.237, 0.763]
    """
    rate, z2 = success / count, Z**2
    middle = rate + z2 / (2 * count)
    reach = Z * math.sqrt(rate * (1 - rate) / count + z2 / (4 * count**2))
    low, high = ((middle + side * reach) / (1 + z2 / count) for side in (-1, 1))
    # An end that is the rate itself, at 0 or 1, may come out on its wrong side
    return max(0.0, min(low, rate)), min(1.0, max(high, rate))


def mcnemar(first: Summary, second: Summary) -> float:
    """Exact McNemar p-value (two-sided): do the two fool equally many images?

    Seed against seed, or against the only one there is; the largest p-value of all seeds, so that several
    seeds make nothing significant. 1 where no image tells the two apart.
    """
    pairs = [(one.hits > 0, second.of_seed(one.seed).hits > 0) for one in first.rows]
    only = [(int((one & ~other).sum()), int((other & ~one).sum())) for one, other in pairs]
    return max(float(binomtest(a, a + b).pvalue) if a + b else 1.0 for a, b in only)


def gain(first: Shares, second: Shares) -> tuple[float, float, float]:
    """First rate minus second, and its 95% interval over the paired differences of images.

    The interval is that of Bonett and Price (2012): normal, after one image was added that only the first
    fools and one that only the second does, so that few images never give a narrow interval.

    Example:
        >>> [round(number, 2) for number in gain(np.array([1, 1, 0, 1]), np.array([0, 1, 0, 1]))]
        [0.25, -0.38, 0.72]
    """
    paired = first - second
    added = np.append(paired, [1, -1])
    middle, reach = float(added.mean()), Z * float(added.std()) / len(added) ** 0.5
    return float(paired.mean()), max(-1.0, middle - reach), min(1.0, middle + reach)


def summarize(rows: Sequence[TransferRow]) -> Summaries:
    """Rows that differ in seed alone, together."""
    groups: dict[Key, list[TransferRow]] = {}
    for row in sorted(rows, key=TransferRow.order):
        key = Key(row.targeted, row.eps, row.surrogate, Method(row.method, row.strength), row.target)
        groups.setdefault(key, []).append(row)
    return {key: Summary(key, members) for key, members in groups.items()}


def black_box(
    found: Summaries, targeted: bool, eps: float, surrogate: str, method: Method | None
) -> Shares | None:
    """For every image, its mean success over seeds, and over all targets but the surrogate."""
    shares = [
        summary.share
        for key, summary in found.items()
        if (key.targeted, key.eps, key.surrogate, key.method) == (targeted, eps, surrogate, method)
        and not key.white_box
    ]
    return np.mean(shares, axis=0) if shares else None


def summary_lines(rows: Sequence[TransferRow]) -> list[dict[str, Any]]:
    """All seeds of a method together, and against plain and against random pruning of the same amount."""
    found = summarize(rows)
    lines = []
    for key, summary in found.items():
        low, high = wilson(summary.rate * summary.images, summary.images)
        line: dict[str, Any] = {
            "surrogate": key.surrogate,
            "method": key.method.kind,
            "strength": key.method.strength,
            "target": key.target,
            "white_box": key.white_box,
            "goal": goal_of(key.targeted),
            "eps_255": round(255 * key.eps, 6),
            "seeds": len(summary.rows),
            "images": summary.images,
            "rate": round(summary.rate, 6),
            "wilson_low": round(low, 6),
            "wilson_high": round(high, 6),
        }
        for name, other in (("plain", PLAIN), ("random", key.method.control)):
            against = found.get(replace(key, method=other)) if other and other != key.method else None
            numbers = gain(summary.share, against.share) if against else ()
            columns = (f"minus_{name}", f"{name}_low", f"{name}_high")
            line |= dict(zip_longest(columns, (round(number, 6) for number in numbers), fillvalue=""))
            line[f"{name}_mcnemar_p"] = mcnemar(summary, against) if against else ""
        lines.append(line)
    return lines
