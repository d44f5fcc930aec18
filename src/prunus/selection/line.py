"""Which groups are the lowest fraction?

Exactly, and without sorting, copying or concatenating all scores: a sample tells between which two
scores the line must lie; one streaming pass counts what is below them and collects the few scores in
between. In the rare case that the line lies elsewhere, a wider bracket takes another pass. A last pass
tells every group on which side of the line it is, tensor by tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

PIECE = 1 << 18  # scores at a time: few enough for the cache
BLOCK = 1 << 24  # booleans that get their memory at once
SAMPLE = 1 << 15  # scores that the brackets are made from, at least
MARGIN = 4.0  # half the width of a bracket, in standard deviations of a sampled rank

Array: TypeAlias = Any  # np.ndarray on the CPU, Tensor elsewhere: compared, indexed and counted alike


class Scores(Protocol):
    """The scores of one tensor's groups, which may be made anew whenever they are read."""

    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102

    @property
    def device(self) -> torch.device: ...  # noqa: D102

    def __len__(self) -> int: ...

    def pieces(self, scratch: Tensor) -> Iterator[Array]:
        """All of them in order, `len(scratch)` at a time or fewer, in its dtype.

        Each must be read before the next: on the CPU it may have been made in that memory.
        """

    def every(self, first: int, step: int) -> Tensor:
        """Some of them: the first, and then one in `step`."""


@dataclass(frozen=True)
class Stored:
    """Scores that are kept in a 1-D tensor."""

    scores: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """Of the scores."""
        return self.scores.dtype

    @property
    def device(self) -> torch.device:
        """Of the scores."""
        return self.scores.device

    def __len__(self) -> int:
        return len(self.scores)

    def pieces(self, scratch: Tensor) -> Iterator[Array]:
        """All of them in order."""
        return (as_array(piece.to(scratch.dtype)) for piece in torch.split(self.scores, len(scratch)))

    def every(self, first: int, step: int) -> Tensor:
        """Some of them."""
        return self.scores[first::step]


ScoreMap: TypeAlias = Mapping[str, Scores]
Kept: TypeAlias = Iterator[tuple[str, Tensor]]  # by tensor, one boolean a group, True = keep


class Line(NamedTuple):
    """Where the lowest groups end: all that score below `value`, and the first `ties` (None: all) at it."""

    value: float
    ties: int | None


def draw_lines(scores: ScoreMap, counts: Sequence[int]) -> list[Line]:
    """The line under which exactly `count` groups lie, for every count.

    Raises:
        ValueError: a score is NaN or infinite.
    """
    total, scratch = sum(len(source) for source in scores.values()), _scratch(scores)
    flags = np.empty((2, len(scratch)), bool)
    sample = _sample(scores, total) if total > SAMPLE else np.empty(0)
    lines = {0: Line(-math.inf, 0)}
    margin = MARGIN
    while True:
        missing = [count for count in dict.fromkeys(counts) if count not in lines]
        brackets = [_Bracket(count, *_between(sample, count / total, margin)) for count in missing]
        for name, source in scores.items():
            for piece in source.pieces(scratch):
                if len(piece) and not piece.max() < math.inf:  # NaN is not, either
                    raise ValueError(f"{name} has values or scores that are NaN or infinite: no ranking")
                for bracket in brackets:
                    bracket.survey(piece, flags)
        lines |= {bracket.count: line for bracket in brackets if (line := bracket.line())}
        if all(count in lines for count in counts):
            return [lines[count] for count in counts]
        margin *= 4


def above(scores: ScoreMap, line: Line) -> Kept:
    """False for every group under the line; ties go by position: tensor order, then index."""
    scratch, ties = _scratch(scores), line.ties
    room = Room(sum(len(source) for source in scores.values()))
    for name, source in scores.items():
        kept, end = room.take(len(source), source.device), 0
        for piece in source.pieces(scratch):
            start, end = end, end + len(piece)
            relation = np.greater_equal if ties == 0 else np.greater
            keep = compare(relation, piece, line.value, as_array(kept[start:end]))
            if ties:
                equal = piece == line.value
                fallen = min(count_true(equal), ties)
                if fallen == ties:  # the last ones under the line are in this piece
                    keep[where_true(equal)[ties:]] = True
                ties -= fallen
        yield name, kept


class _Bracket:
    """Two scores that a line should lie between, and what a pass finds of the scores around them."""

    def __init__(self, count: int, low: float, high: float) -> None:
        self.count, self.low, self.high = count, low, high
        self.below = self.at_low = self.at_high = 0
        self.inside: list[np.ndarray] = []

    def survey(self, piece: Array, flags: np.ndarray) -> None:
        """Take some more scores into account."""
        not_below = compare(np.greater_equal, piece, self.low, flags[0])
        around = compare(np.not_equal, not_below, compare(np.greater, piece, self.high, flags[1]), flags[1])
        self.below += len(piece) - count_true(not_below)
        found = piece[where_true(around)]
        found = found.cpu().numpy() if isinstance(found, Tensor) else found
        self.inside.append(self._without_ends(found) if len(found) > len(piece) / 8 else found)

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
    """Sorted scores of groups that lie evenly over the network."""
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
    return torch.empty(PIECE, dtype=reduce(torch.promote_types, dtypes, torch.float32), device="cpu")


class Room:
    """Memory for `total` booleans; on the CPU in blocks, as large pages come far faster than small ones.

    So tensors may share a storage, though no entry of it.
    """

    def __init__(self, total: int) -> None:
        self.total, self.left = total, torch.empty(0, dtype=torch.bool, device="cpu")

    def take(self, count: int, device: torch.device) -> Tensor:
        """Some of it."""
        if device.type != "cpu":
            return torch.empty(count, dtype=torch.bool, device=device)
        if count > len(self.left):
            self.left = torch.from_numpy(np.empty(max(count, min(BLOCK, self.total)), bool))
        self.total -= count
        taken, self.left = self.left[:count], self.left[count:]
        return taken


def as_array(tensor: Tensor) -> Array:
    """The same memory for NumPy where that can be: it compares and counts several times as fast as torch."""
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def compare(relation: np.ufunc, array: Array, other: Array | float, out: Array) -> Array:
    """The booleans of `array relation other`, in the memory of `out` if that is on the same device."""
    if isinstance(array, np.ndarray):
        return relation(array, other, out=out[: len(array)])
    place = out if isinstance(out, Tensor) else None
    return getattr(torch, relation.__name__)(array, other, out=place)


def count_true(mask: Array) -> int:
    """Number of true entries."""
    return int(mask.count_nonzero() if isinstance(mask, Tensor) else np.count_nonzero(mask))


def where_true(mask: Array) -> Array:
    """Indices of true entries."""
    return mask.nonzero()[:, 0] if isinstance(mask, Tensor) else np.flatnonzero(mask)
