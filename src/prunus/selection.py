"""Which groups are the lowest fraction?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Scores = Mapping[str, Tensor]


@dataclass(frozen=True)
class Line:
    """Where the lowest groups end: all that score below `value`, and the first `ties` that equal it."""

    value: Tensor | None
    ties: int


def draw_lines(scores: Scores, counts: Sequence[int]) -> list[Line]:
    """The line under which exactly `count` groups lie, for every count, from one ranking.

    Args:
        scores: 1-D tensors of group scores, any mixture of float dtypes and devices.
        counts: each in 0 to the number of groups.
    """
    device = next(iter(scores.values())).device
    ordered = torch.cat([score.to(device) for score in scores.values()]).sort().values
    lines = []
    for count in counts:
        value = ordered[count - 1] if count else None
        below = int(torch.searchsorted(ordered, value)) if value is not None else 0
        lines.append(Line(value, count - below))
    return lines


def below(scores: Scores, line: Line) -> dict[str, Tensor]:
    """True for every group under the line; ties go by position: tensor order, then index."""
    chosen, ties = {}, line.ties
    for name, score in scores.items():
        if line.value is None:
            chosen[name] = torch.zeros_like(score, dtype=torch.bool)
            continue
        value = line.value.to(score.device)
        score = score.to(value.dtype)
        chosen[name] = score < value
        if ties:
            equal = (score == value).nonzero()[:ties, 0]
            chosen[name][equal] = True
            ties -= len(equal)
    return chosen


def over_network(scores: Scores, fractions: Sequence[float]) -> list[dict[str, Tensor]]:
    """The lowest `int(p · N)` of all N groups together, for every fraction p."""
    total = sum(len(score) for score in scores.values())
    lines = draw_lines(scores, [int(p * total) for p in fractions])
    return [below(scores, line) for line in lines]


def over_layers(scores: Scores, fractions: Sequence[float]) -> list[dict[str, Tensor]]:
    """The lowest `int(p · N)` of the N groups in each tensor by itself, for every fraction p."""
    per_layer = [over_network({name: score}, fractions) for name, score in scores.items()]
    return [{name: t for layer in row for name, t in layer.items()} for row in zip(*per_layer, strict=True)]


Scope = Callable[[Scores, Sequence[float]], list[dict[str, Tensor]]]
SCOPES: dict[str, Scope] = {"global": over_network, "layer": over_layers}
