"""Which groups are the lowest fraction?

Exactly, and without sorting, copying or concatenating all scores: a random sample tells between which
two scores the line must lie; one streaming pass counts what is below them and collects the few scores
in between. In the rare case that the line lies elsewhere, a wider bracket takes another pass. A last
pass tells every group on which side of the line it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

PIECE = 1 << 18  # scores at a time: few enough for the cache
SAMPLE = 1 << 15  # scores that the brackets are made from
MARGIN = 5.0  # half the width of a bracket, in standard deviations of a sampled rank


class Scores(Protocol):
    """The scores of one tensor's groups, which may be made anew whenever they are read."""

    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102

    def __len__(self) -> int: ...

    def pieces(self, size: int) -> Iterator[Tensor]:
        """All of them in order, 1-D tensors of up to `size`."""

    def at(self, indices: Tensor) -> Tensor:
        """Some of them."""


@dataclass(frozen=True)
class Stored:
    """Scores that are kept in a 1-D tensor."""

    scores: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """Of the scores."""
        return self.scores.dtype

    def __len__(self) -> int:
        return len(self.scores)

    def pieces(self, size: int) -> Iterator[Tensor]:
        """All of them in order."""
        return iter(torch.split(self.scores, size))

    def at(self, indices: Tensor) -> Tensor:
        """Some of them."""
        return self.scores[indices]


ScoreMap = Mapping[str, Scores]
Array: TypeAlias = Any  # np.ndarray on the CPU, Tensor elsewhere: compared, indexed and counted alike


class Line(NamedTuple):
    """Where the lowest groups end: all that score below `value`, and the first `ties` (None: all) at it."""

    value: float
    ties: int | None


def over_network(scores: ScoreMap, fractions: Sequence[float]) -> Iterator[dict[str, Tensor]]:
    """For every fraction p, all N groups but the lowest `int(p · N)`: by tensor, True = keep."""
    total = sum(len(source) for source in scores.values())
    lines = draw_lines(scores, [int(p * total) for p in fractions])
    return (above(scores, line) for line in lines)


def over_layers(scores: ScoreMap, fractions: Sequence[float]) -> Iterator[dict[str, Tensor]]:
    """The same with the N groups of each tensor by itself."""
    layers = [over_network({name: source}, fractions) for name, source in scores.items()]
    for parts in zip(*layers, strict=True):
        yield {name: kept for part in parts for name, kept in part.items()}


Scope = Callable[[ScoreMap, Sequence[float]], Iterator[dict[str, Tensor]]]
SCOPES: dict[str, Scope] = {"global": over_network, "layer": over_layers}


def draw_lines(scores: ScoreMap, counts: Sequence[int]) -> list[Line]:
    """The line under which exactly `count` groups lie, for every count.

    Raises:
        ValueError: a score is NaN or infinite.
    """
    total, wide = sum(len(source) for source in scores.values()), _widest(scores)
    sample = _sample(scores, total) if total > SAMPLE else np.empty(0)
    lines = {0: Line(-math.inf, 0)}
    margin = MARGIN
    while True:
        missing = [count for count in dict.fromkeys(counts) if count not in lines]
        brackets = [_Bracket(count, *_between(sample, count / total, margin)) for count in missing]
        for name, source in scores.items():
            for piece in (as_array(piece.to(wide)) for piece in source.pieces(PIECE)):
                if len(piece) and not (-math.inf < piece.min() and piece.max() < math.inf):
                    raise ValueError(f"{name} has values or scores that are NaN or infinite: no ranking")
                for bracket in brackets:
                    bracket.survey(piece)
        lines |= {bracket.count: line for bracket in brackets if (line := bracket.line())}
        if all(count in lines for count in counts):
            return [lines[count] for count in counts]
        margin *= 4


def above(scores: ScoreMap, line: Line) -> dict[str, Tensor]:
    """False for every group under the line; ties go by position: tensor order, then index."""
    wide, ties = _widest(scores), line.ties
    kept = {}
    for name, source in scores.items():
        parts = []
        for piece in source.pieces(PIECE):
            scored = as_array(piece.to(wide))
            keep = scored >= line.value if ties == 0 else scored > line.value
            if ties:
                equal = scored == line.value
                fallen = min(count_true(equal), ties)
                if fallen == ties:  # the last ones under the line are in this piece
                    keep[where_true(equal)[ties:]] = True
                ties -= fallen
            parts.append(torch.as_tensor(keep))
        kept[name] = torch.cat(parts)
    return kept


class _Bracket:
    """Two scores that a line should lie between, and what a pass finds of the scores around them."""

    def __init__(self, count: int, low: float, high: float) -> None:
        self.count, self.low, self.high = count, low, high
        self.below = self.at_low = self.at_high = 0
        self.inside: list[Array] = []

    def survey(self, piece: Array) -> None:
        """Take some more scores into account."""
        over_low = piece > self.low
        not_below = count_true(piece >= self.low)
        self.below += len(piece) - not_below
        self.at_low += not_below - count_true(over_low)
        if self.high > self.low:
            self.at_high += count_true(piece == self.high)
        inside = piece[where_true(over_low & (piece < self.high))]
        self.inside.append(inside.cpu().numpy() if isinstance(inside, Tensor) else inside)

    def line(self) -> Line | None:
        """The line, where it lies within the bracket."""
        rest = self.count - self.below
        if rest <= 0:
            return None
        if rest <= self.at_low:
            return _line(self.low, rest, self.at_low)
        rest -= self.at_low
        inside = np.concatenate(self.inside)
        if rest <= len(inside):
            value = np.partition(inside, rest - 1)[rest - 1]
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
    """Sorted scores of groups drawn at random, always the same ones: the result does not depend on them."""
    drawn = np.sort(np.random.default_rng(0).integers(total, size=SAMPLE))
    ends = np.cumsum([len(source) for source in scores.values()])
    parts = np.split(drawn, np.searchsorted(drawn, ends[:-1]))
    found = [
        source.at(torch.from_numpy(part - (end - len(source)))).double().cpu().numpy()
        for source, part, end in zip(scores.values(), parts, ends, strict=True)
        if len(part)
    ]
    return np.sort(np.concatenate(found))


def _widest(scores: ScoreMap) -> torch.dtype:
    return reduce(torch.promote_types, (source.dtype for source in scores.values()), torch.float32)


def as_array(tensor: Tensor) -> Array:
    """The same memory for NumPy where that can be: it compares and counts several times as fast as torch."""
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def count_true(mask: Array) -> int:
    """Number of true entries."""
    return int(mask.count_nonzero() if isinstance(mask, Tensor) else np.count_nonzero(mask))


def where_true(mask: Array) -> Array:
    """Indices of true entries."""
    return mask.nonzero()[:, 0] if isinstance(mask, Tensor) else np.flatnonzero(mask)
