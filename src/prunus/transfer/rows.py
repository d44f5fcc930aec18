"""How each target answers the images of each attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from prunus.checks import check_fraction, check_number, check_text, check_whole, choose
from prunus.evaluation.statistics import Shares, wilson
from prunus.transfer.methods import KINDS, Method


@dataclass(frozen=True)
class Trial:
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
    def item(self) -> Trial:
        """The attack whose images were judged."""
        method = Method(self.method, self.strength)
        return Trial(self.surrogate, method, self.eps, self.targeted, self.seed)

    def order(self) -> tuple[Any, ...]:
        """What rows are sorted by when they are shown."""
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

    def columns(self) -> dict[str, Any]:
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
        """What `read` makes the row of, as JSON can keep it."""
        return asdict(self)

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> TransferRow:
        """The row of which `stored` gave this.

        Raises:
            KeyError, TypeError, ValueError: `stored` gives no such thing.
        """
        curve = {int(at): check_whole("curve", count) for at, count in stored["curve"].items()}
        row = cls(**{**stored, "curve": curve})
        row._check()
        return row

    def _check(self) -> None:
        for name in ("surrogate", "target", "fooled"):
            check_text(name, getattr(self, name))
        for name in ("eps", "linf", "l2", "seconds_per_image"):
            check_number(name, getattr(self, name))
        check_whole("seed", self.seed)
        check_whole("images", self.images, least=1)
        if not isinstance(self.targeted, bool):
            raise TypeError(f"targeted must be True or False, got {self.targeted!r}")
        if (choose("method", self.method, KINDS).strength is None) != (self.strength is None):
            raise ValueError(f"{self.method} with strength {self.strength!r}")
        if self.strength is not None:
            check_fraction("strength", self.strength)
        if len(bytes.fromhex(self.fooled)) != (self.images + 7) // 8:
            raise ValueError(f"fooled must be a bit for each of {self.images:,} images")


def check_rows(rows: Sequence[TransferRow]) -> None:
    """Refuse rows that are not of the same images.

    Raises:
        ValueError: their numbers of images differ.
    """
    counts = {row.images for row in rows}
    if len(counts) > 1:
        raise ValueError(f"rows of {' and '.join(map(str, sorted(counts)))} images")


GOALS = {"untargeted": False, "targeted": True}  # by their names, whether an attack is targeted


def goal_of(targeted: bool) -> str:
    """The name of a goal."""
    return next(name for name, value in GOALS.items() if value == targeted)
