"""All seeds of a method together, and one method against another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from typing import Any

import numpy as np
from scipy.stats import binomtest

from prunus.evaluation.statistics import Shares, gain, wilson
from prunus.transfer.methods import PLAIN, Method
from prunus.transfer.published import Published
from prunus.transfer.rows import TransferRow, goal_of


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
        """How long an attack took, the median over seeds."""
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


def mcnemar(first: Summary, second: Summary) -> float:
    """Exact McNemar p-value (two-sided): do the two fool equally many images?

    Seed against seed, or against the only one there is; the largest p-value of all seeds, so that several
    seeds make nothing significant. 1 where no image tells the two apart.
    """
    pairs = [(one.hits > 0, second.of_seed(one.seed).hits > 0) for one in first.rows]
    only = [(int((one & ~other).sum()), int((other & ~one).sum())) for one, other in pairs]
    return max(float(binomtest(a, a + b).pvalue) if a + b else 1.0 for a, b in only)


def summarize(rows: Sequence[TransferRow]) -> Summaries:
    """Rows that differ in seed alone, together."""
    by_key: dict[Key, list[TransferRow]] = {}
    for row in sorted(rows, key=TransferRow.order):
        key = Key(row.targeted, row.eps, row.surrogate, Method(row.method, row.strength), row.target)
        by_key.setdefault(key, []).append(row)
    return {key: Summary(key, members) for key, members in by_key.items()}


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


def with_published(rows: Sequence[TransferRow], published: Published) -> list[dict[str, Any]]:
    """The lines of a summary, and below them what was published; a column `source` tells which is which."""
    targets = list(dict.fromkeys(row.target for row in rows))
    surrogates = list(dict.fromkeys(row.surrogate for row in rows))
    lines = [{**line, "source": "measured"} for line in summary_lines(rows)]
    for targeted, eps in dict.fromkeys((row.targeted, row.eps) for row in rows):
        lines += [
            {
                "surrogate": row.surrogate,
                "method": f"published: {row.name}",
                "target": target,
                "white_box": row.surrogate == target,
                "goal": goal_of(targeted),
                "eps_255": round(255 * eps, 6),
                "rate": round(row.rates[target], 6),
                "source": f"published, not measured here: {published.source}",
            }
            for row in published.of(targeted, eps, surrogates, targets)
            for target in targets
            if target in row.rates
        ]
    return lines
