"""What is kept at a place: rules, each made by a function of how much.

Counts are `int(k · n)` of n entries, and one at least; ties are kept by position, the last first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from prunus.application.places import About, Rule
from prunus.checks import check_whole, chosen
from prunus.masks import counted
from prunus.selection.line import keep_highest

Score: TypeAlias = Callable[[Tensor, About], Tensor]  # of each entry; the highest are kept


def magnitude(values: Tensor, about: About) -> Tensor:
    """|v|."""
    return values.abs()


def random(values: Tensor, about: About) -> Tensor:
    """Numbers that say nothing: the control of every other score."""
    generator = about.generator(values.device)
    return torch.rand(values.shape, generator=generator, device=values.device)


SCORES: dict[str, Score] = {"magnitude": magnitude, "random": random}


def largest(k: float, score: str | Score = magnitude) -> Rule:
    """The k-th part of all entries that scores highest."""
    return partial(_largest, k, function_of(score))


def _largest(k: float, score: Score, values: Tensor, about: About) -> Tensor:
    return _highest(score(values, about).reshape(1, -1), k).view(values.shape)


def largest_of_each(k: float, score: str | Score = magnitude) -> Rule:
    """The k-th part of the entries of each item that scores highest: of each row of a linear layer."""
    return partial(_largest_of_each, k, function_of(score))


def _largest_of_each(k: float, score: Score, values: Tensor, about: About) -> Tensor:
    scores = score(values, about)
    rows = scores.reshape(-1, values.shape[-1]) if about.axis == -1 else scores.flatten(1)
    return _highest(rows, k).view(values.shape)


def channels(k: float, score: str | Score = magnitude) -> Rule:
    """The k-th part of the output channels, in each group, whose sums of |v| over the batch score highest."""
    return partial(_channels, k, function_of(score))


def _channels(k: float, score: Score, values: Tensor, about: About) -> Tensor:
    others = [axis for axis in range(values.dim()) if axis != about.axis % values.dim()]
    each = score(values.abs().sum(others), about)
    shape = [1] * values.dim()
    shape[about.axis] = -1
    return _highest(each.view(about.groups, -1), k).view(shape)


def in_force(place: str) -> Rule:
    """What the masks keep at a place by which the weight is pruned."""
    return partial(_in_force, place)


def _in_force(place: str, values: Tensor, about: About) -> Tensor:
    mask = about.in_force(place)
    return torch.ones_like(values, dtype=torch.bool) if mask is None else mask


def n_of_m(n: int, m: int, score: str | Score = magnitude, axis: int = 1) -> Rule:
    """Of every m neighbours along an axis of the weight (0: outputs, 1: inputs), the n that score highest.

    Raises:
        ValueError: n is not between 0 and m; then, of the rule: that axis is no multiple of m.
    """
    check_whole("m", m, least=2)
    if check_whole("n", n, least=1) >= m:
        raise ValueError(f"n must be less than m={m}, got {n!r}")
    return partial(_n_of_m, n, m, function_of(score), axis)


def _n_of_m(n: int, m: int, score: Score, axis: int, values: Tensor, about: About) -> Tensor:
    count, what = values.shape[axis], ("outputs", "inputs")[axis]
    if count % m:
        raise ValueError(f"its {counted(count, what[:-1])} are no multiple of {m}: exclude it")
    scores = score(values, about).movedim(axis, -1)
    return keep_highest(scores.reshape(-1, m), m - n).view(scores.shape).movedim(-1, axis)


def dithered(k: float) -> Rule:
    """Rounded down to multiples of a step, after uniform noise as wide: mostly zero, and right in the mean.

    The step is that at which about the k-th part does not become zero, as found from some of the entries.
    """
    return partial(_dithered, k)


def _dithered(k: float, values: Tensor, about: About) -> Tensor:
    generator = about.generator(values.device)
    wide = values.to(torch.promote_types(values.dtype, torch.float32))  # half of it cannot tell small chances
    step = _step(_some(wide.flatten(), generator), k)
    if not step:
        return values
    noise = torch.rand(wide.shape, generator=generator, device=wide.device, dtype=wide.dtype)
    return ((wide / step + noise).floor() * step).to(values.dtype)


SAMPLE = 4096


def _some(values: Tensor, generator: torch.Generator) -> Tensor:
    """Entries drawn at random: at even distances there could be those of one channel alone."""
    if len(values) <= SAMPLE:
        return values
    return values[torch.randint(len(values), (SAMPLE,), generator=generator, device=values.device)]


def _step(some: Tensor, k: float) -> float:
    """The s at which the mean of min(1, |v|/s), the chance that v does not become zero, is k; 0 for none."""
    some = some.abs().double()
    rising = some[some > 0].sort().values
    if k * len(some) >= len(rising):
        return 0.0
    sums, above = rising.cumsum(0), torch.arange(len(rising) - 1, -1, -1, device=some.device)
    at = int((above + sums / rising >= k * len(some)).sum()) - 1  # s is between this one and the next
    return float(sums[at] / (k * len(some) - above[at]))


def function_of(score: str | Score) -> Score:
    """The score of this name, or the function itself."""
    return chosen("score", score, SCORES)


def _highest(rows: Tensor, k: float) -> Tensor:
    return keep_highest(rows, rows.shape[1] - max(1, int(k * rows.shape[1])))
