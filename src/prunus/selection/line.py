"""Which pieces are the lowest fraction?

Exactly, and without sorting, copying or concatenating all scores: a sample tells between which two
scores the line must lie; one streaming pass counts what is below them and collects the few scores in
between. In the rare case that the line lies elsewhere, a wider bracket takes another pass. A last pass
tells every piece on which side of the line it is, tensor by tensor. `keep_rows` draws a line for every row of
a small table at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from prunus.selection.arrays import CHUNK, Array, Room, as_array, compare, count_true, where_true
from prunus.selection.scored import Kept, ScoreMap, not_finite, protected

SAMPLE = 1 << 15  # scores that the brackets are made from, at least
FEW = 16  # scores in a row that are compared pair by pair
MARGIN = 4.0  # half the width of a bracket, in standard deviations of a position in the sample


class Line(NamedTuple):
    """Where the lowest pieces end: all that score below `value`, and the first `ties` (None: all) at it."""

    value: float
    ties: int | None


def draw_lines(scores: ScoreMap, counts: Sequence[int]) -> list[Line]:
    """The line under which exactly `count` pieces lie, for every count.

    Raises:
        ValueError: a score is NaN or infinite, or more pieces are asked for than are not protected.
    """
    total, scratch = sum(len(source) for source in scores.values()), _scratch(scores)
    _check_counts(scores, total, max(counts, default=0))
    flags = np.empty((2, len(scratch)), bool)
    sample = _sample(scores, total) if total > SAMPLE else np.empty(0)
    lines = {0: Line(-math.inf, 0)}
    margin = MARGIN
    while True:
        missing = [count for count in dict.fromkeys(counts) if count not in lines]
        brackets = [_Bracket(count, *_between(sample, count / total, margin)) for count in missing]
        for name, source in scores.items():
            known = protected(source)  # to be finite beneath: what is protected has been found
            for chunk in source.chunks(scratch):
                if len(chunk) and not known and not chunk.max() < math.inf:  # NaN is not, either
                    raise not_finite(name)
                for bracket in brackets:
                    bracket.survey(chunk, flags)
        lines |= {bracket.count: line for bracket in brackets if (line := bracket.line())}
        if all(count in lines for count in counts):
            return [lines[count] for count in counts]
        margin *= 4


def _check_counts(scores: ScoreMap, total: int, most: int) -> None:
    spared = sum(protected(source) for source in scores.values())
    if most > total - spared:
        where = next(iter(scores)) if len(scores) == 1 else f"{len(scores):,} tensors"
        raise ValueError(
            f"p_prune asks for {most:,} of the {total:,} pieces of {where}, but keep_at_least protects "
            f"{spared:,} of them, which leaves {total - spared:,}: lower one of the two"
        )


def above(scores: ScoreMap, line: Line) -> Kept:
    """False for every piece under the line; ties go by position: tensor order, then index."""
    scratch, ties = _scratch(scores), line.ties
    room = Room(sum(len(source) for source in scores.values()))
    for name, source in scores.items():
        kept, end = room.take(len(source), source.device), 0
        for chunk in source.chunks(scratch):
            start, end = end, end + len(chunk)
            relation = np.greater_equal if ties == 0 else np.greater
            keep = compare(relation, chunk, line.value, as_array(kept[start:end]))
            if ties:
                equal = chunk == line.value
                fallen = min(count_true(equal), ties)
                if fallen == ties:  # the last ones under the line are in this chunk
                    keep[where_true(equal)[ties:]] = True
                ties -= fallen
        yield name, kept


class _Bracket:
    """Two scores that a line should lie between, and what a pass finds of the scores around them."""

    def __init__(self, count: int, low: float, high: float) -> None:
        self.count, self.low, self.high = count, low, high
        self.below = self.at_low = self.at_high = 0
        self.inside: list[np.ndarray] = []

    def survey(self, chunk: Array, flags: np.ndarray) -> None:
        """Take some more scores into account."""
        not_below = compare(np.greater_equal, chunk, self.low, flags[0])
        around = compare(np.not_equal, not_below, compare(np.greater, chunk, self.high, flags[1]), flags[1])
        self.below += len(chunk) - count_true(not_below)
        found = chunk[where_true(around)]
        found = found.cpu().numpy() if isinstance(found, Tensor) else found
        self.inside.append(self._without_ends(found) if len(found) > len(chunk) / 8 else found)

    def _without_ends(self, found: np.ndarray) -> np.ndarray:
        """What lies strictly inside; of the ends themselves there may be any number: they are counted."""
        self.at_low += count_true(found == self.low)
        self.at_high += count_true(found == self.high) if self.high > self.low else 0
        return found[(found > self.low) & (found < self.high)]

    def line(self) -> Line | None:
        """The line, where it lies within the bracket."""
        inside = self._without_ends(np.concatenate(self.inside))
        rest = self.count - self.below
        if rest <= 0:
            return None
        if rest <= self.at_low:
            return _line(self.low, rest, self.at_low)
        rest -= self.at_low
        if rest <= len(inside):
            inside.partition(rest - 1)
            value = inside[rest - 1]
            rest -= count_true(inside < value)
            return _line(float(value), rest, count_true(inside == value))
        rest -= len(inside)
        return _line(self.high, rest, self.at_high) if rest <= self.at_high else None


def _line(value: float, ties: int, equal: int) -> Line:
    return Line(value, ties if ties < equal else None)


def _between(sample: np.ndarray, fraction: float, margin: float) -> tuple[float, float]:
    """Two scores of a sorted sample around its quantile at `fraction`, or infinities beyond its ends."""
    middle, deviation = fraction * len(sample), math.sqrt(fraction * (1 - fraction) * len(sample))
    low, high = math.floor(middle - margin * deviation) - 1, math.ceil(middle + margin * deviation)
    return (
        float(sample[low]) if low >= 0 else -math.inf,
        float(sample[high]) if high < len(sample) else math.inf,
    )


def _sample(scores: ScoreMap, total: int) -> np.ndarray:
    """Sorted scores of pieces that lie evenly over the network."""
    step = total // max(SAMPLE, round(total ** (2 / 3)))  # more would cost more than they save
    while math.gcd(step, 2 * 3 * 5 * 7) > 1:  # not in step with the sides of kernels and layers
        step += 1
    parts, wide, start = [], _scratch(scores).dtype, 0
    for source in scores.values():
        parts.append(source.every(-start % step, step).to(wide).cpu().numpy())
        start += len(source)
    return np.sort(np.concatenate(parts))


def _scratch(scores: ScoreMap) -> Tensor:
    """Memory for the scores that are looked at, in the widest of their types."""
    dtypes = {source.dtype for source in scores.values()}
    return torch.empty(CHUNK, dtype=reduce(torch.promote_types, dtypes, torch.float32), device="cpu")


def keep_rows(scores: Tensor, p_prune: float) -> Tensor:
    """False for the lowest `int(p_prune · N)` of the N scores in each row, ties by position.

    Example:
        >>> keep_rows(torch.tensor([[3.0, 1.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]]), 0.25).int()
        tensor([[1, 0, 1, 1],
                [0, 1, 1, 1]], dtype=torch.int32)
    """
    return keep_highest(scores, int(p_prune * scores.shape[1]))


def keep_highest(scores: Tensor, count: int) -> Tensor:
    """False for the `count` lowest scores in each row, ties by position."""
    if not count:
        return torch.ones_like(scores, dtype=torch.bool)
    if scores.shape[1] <= FEW and scores.dim() == 2:
        return _keep_of_few(scores, count)
    line = scores.kthvalue(count, dim=1, keepdim=True).values
    kept, at = scores > line, scores == line
    ties = count - (~kept & ~at).sum(1, keepdim=True)
    if (at.sum(1, keepdim=True) > ties).any():
        kept |= at & (at.cumsum(1) > ties)
    return kept


def _keep_of_few(scores: Tensor, count: int) -> Tensor:
    """The same of short rows: a score's rank is how many of its row are lower, or equal and before it."""
    columns = scores.t().contiguous()
    ranks = torch.zeros_like(columns, dtype=torch.uint8)
    for later in range(1, len(columns)):
        for earlier in range(later):
            above = columns[earlier] > columns[later]
            ranks[earlier] += above
            ranks[later] += ~above
    return (ranks >= count).t().contiguous()
