"""Which groups are the lowest fraction?

Exactly, and without sorting, copying or concatenating all scores: a random sample tells between which
two scores the line must lie; one streaming pass counts what is below them and collects the few scores
in between. In the rare case that the line lies elsewhere, a wider bracket takes another pass. A last
pass tells every group on which side of the line it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

PIECE = 1 << 18  # scores at a time: few enough for the cache
SAMPLE = 1 << 16  # scores that the brackets are made from
MARGIN = 5.0  # half the width of a bracket, in standard deviations of a sampled rank


class Scores(Protocol):
    """The scores of one tensor's groups, which may be made anew whenever they are read."""

    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102

    def __len__(self) -> int: ...

    def __getitem__(self, groups: slice | Tensor) -> Tensor: ...


ScoreMap = Mapping[str, Scores]


class Line(NamedTuple):
    """Where the lowest groups end: all that score below `value`, and the first `ties` that equal it."""

    value: float
    ties: int


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
    """The line under which exactly `count` groups lie, for every count."""
    total = sum(len(source) for source in scores.values())
    sample = _sample(scores, total) if total > SAMPLE else torch.empty(0, dtype=torch.float64)
    lines: dict[int, Line] = {0: Line(-math.inf, 0)}
    margin = MARGIN
    while missing := [count for count in dict.fromkeys(counts) if count not in lines]:
        brackets = [_Bracket(count, *_between(sample, count / total, margin)) for count in missing]
        for piece in _pieces(scores):
            for bracket in brackets:
                bracket.survey(piece)
        lines |= {bracket.count: line for bracket in brackets if (line := bracket.line())}
        margin *= 4
    return [lines[count] for count in counts]


def above(scores: ScoreMap, line: Line) -> dict[str, Tensor]:
    """False for every group under the line; ties go by position: tensor order, then index."""
    kept = {name: torch.empty(len(source), dtype=torch.bool) for name, source in scores.items()}
    wide, ties = _widest(scores), line.ties
    for name, source in scores.items():
        for start in range(0, len(source), PIECE):
            piece = source[start : start + PIECE].to(wide)
            if kept[name].device != piece.device:
                kept[name] = kept[name].to(piece.device)
            keep = kept[name][start : start + PIECE]
            if not ties:
                torch.ge(piece, line.value, out=keep)
                continue
            torch.gt(piece, line.value, out=keep)
            equal = piece == line.value
            fallen = min(_count(equal), ties)
            if fallen == ties:  # the last ones under the line are in this piece
                keep[_indices(equal)[ties:]] = True
            ties -= fallen
    return kept


class _Bracket:
    """Two scores that a line should lie between, and what a pass finds of the scores around them."""

    def __init__(self, count: int, low: float, high: float) -> None:
        self.count, self.low, self.high = count, low, high
        self.below = self.at_low = self.at_high = 0
        self.inside: list[Tensor] = []

    def survey(self, piece: Tensor) -> None:
        """Take some more scores into account."""
        over_low = piece > self.low
        not_below = _count(piece >= self.low)
        self.below += len(piece) - not_below
        self.at_low += not_below - _count(over_low)
        self.at_high += _count(piece == self.high)
        self.inside.append(piece[_indices(over_low.logical_and_(piece < self.high))].double().cpu())

    def line(self) -> Line | None:
        """The line, where it lies within the bracket."""
        inside = torch.cat(self.inside).sort().values
        rest = self.count - self.below
        if rest <= 0:
            return None
        if rest <= self.at_low:
            return Line(self.low, rest)
        rest -= self.at_low
        if rest <= len(inside):
            value = inside[rest - 1]
            return Line(value.item(), rest - int(torch.searchsorted(inside, value)))
        rest -= len(inside)
        return Line(self.high, rest) if rest <= self.at_high else None


def _between(sample: Tensor, fraction: float, margin: float) -> tuple[float, float]:
    """Two scores of a sorted sample around its quantile at `fraction`, or infinities beyond its ends."""
    middle, deviation = fraction * len(sample), math.sqrt(fraction * (1 - fraction) * len(sample))
    low, high = math.floor(middle - margin * deviation) - 1, math.ceil(middle + margin * deviation)
    return (
        sample[low].item() if low >= 0 else -math.inf,
        sample[high].item() if high < len(sample) else math.inf,
    )


def _sample(scores: ScoreMap, total: int) -> Tensor:
    """Sorted scores of groups drawn at random, always the same ones: the result does not depend on them."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(total, (SAMPLE,), generator=generator).sort().values
    parts, start = [], 0
    for source in scores.values():
        first, last = torch.searchsorted(drawn, torch.tensor([start, start + len(source)])).tolist()
        if first < last:
            parts.append(source[drawn[first:last] - start].double().cpu())
        start += len(source)
    return torch.cat(parts).sort().values


def _pieces(scores: ScoreMap) -> Iterator[Tensor]:
    wide = _widest(scores)
    for source in scores.values():
        for start in range(0, len(source), PIECE):
            yield source[start : start + PIECE].to(wide)


def _widest(scores: ScoreMap) -> torch.dtype:
    return reduce(torch.promote_types, (source.dtype for source in scores.values()))


def _count(mask: Tensor) -> int:
    return int(mask.count_nonzero())


def _indices(mask: Tensor) -> Tensor:
    if mask.device.type == "cpu":  # NumPy is faster than torch at this
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.nonzero()[:, 0]
