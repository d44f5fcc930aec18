"""Weights, criterion and granularity put together: the scores of a network, to be cut at any fraction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from prunus.application.pruned import original_values
from prunus.checks import check_fraction, choose
from prunus.scores.criteria import CRITERIA, Criterion, Groups, magnitude
from prunus.selection.draw import Candidates, fall
from prunus.selection.line import Array, Scores, Stored
from prunus.selection.pieces import GRANULARITIES, NORMS, Grouping
from prunus.selection.scope import SCOPES, Scope
from prunus.weights import Layers, Patterns, Weight, find_weights


class Choice(TypedDict, total=False):
    """The keyword arguments of `rank`, which every verb passes on."""

    criterion: str | Criterion
    granularity: str
    scope: str
    norm: str
    layers: Layers
    include: Patterns | None
    exclude: Patterns | None
    generator: torch.Generator | None


@dataclass(frozen=True)
class Ranking:
    """The scores of a network's groups: ranked once, cut at any number of fractions.

    Single weights are scored by magnitude when they are read, so train only after all cuts are made;
    pruning in between does no harm.
    """

    scores: dict[str, Scores]
    groupings: dict[str, Grouping]
    devices: dict[str, torch.device]
    scope: Scope

    def candidates(self, fractions: Sequence[float]) -> Iterator[Candidates]:
        """The lowest fraction of groups, for each fraction in [0, 1]."""
        cuts = self.scope(self.scores, [check_fraction("p_prune", p) for p in fractions])
        return (Candidates(dict(kept), self.groupings, self.devices) for kept in cuts)

    def masks(
        self, p_prune: float, p_bern: float = 1.0, generator: torch.Generator | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """One draw over the lowest fraction of groups, weight by weight: not all masks exist at once."""
        [kept] = self.scope(self.scores, [check_fraction("p_prune", p_prune)])
        return fall(kept, self.groupings, self.devices, check_fraction("p_bern", p_bern), generator)


def rank(
    model: nn.Module,
    *,
    criterion: str | Criterion = "magnitude",
    granularity: str = "weight",
    scope: str = "global",
    norm: str = "l1",
    layers: Layers = (nn.Conv2d,),
    include: Patterns | None = None,
    exclude: Patterns | None = (),
    generator: torch.Generator | None = None,
) -> Ranking:
    """Score the weights of a network, which is left untouched.

    Args:
        model: any network; of a pruned one, the original weights are scored.
        criterion: "magnitude" |w|, "random", "gradient" |g|, "taylor" |w·g| (the last two read the
            parameters' `.grad`), or a function from `prunus.Groups`, which holds a weight tensor seen as
            (groups, members), to scores of that shape or of shape (groups, 1); lower goes first.
        granularity: what is pruned as one piece: "weight"; "kernel", one k×k slice of a
            convolution; "filter", one output channel; "channel", one input channel.
        scope: "global", the lowest fraction over all layers together; "layer", of every layer.
        norm: scores of one piece are summed ("l1") or averaged ("mean", so that small pieces are
            not pruned first merely for being small).
        layers: a layer type, several, or "all" for every convolution, transposed convolution and Linear.
        include: name patterns of the weights to take, default all of those layers. A pattern is a
            shell wildcard for a weight ("conv1.weight") or a module around it ("layer4.*").
        exclude: name patterns of the weights to leave out.
        generator: source of random scores; default the global one.

    Returns:
        The scores, to be cut by `.candidates(fractions)`.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an unknown name, a pattern that matches nothing, nothing to prune, weights or
            scores that are NaN or infinite, or a criterion without the `.grad` it needs.

    Example:
        >>> import prunus
        >>> ranking = prunus.rank(nn.Conv2d(3, 16, 3), granularity="filter")
        >>> [candidates.draw().pruned for candidates in ranking.candidates([0, 0.25, 0.5])]
        [0, 108, 216]
    """
    if not isinstance(generator, torch.Generator | None):
        raise TypeError(f"generator must be a torch.Generator, got {generator!r}")
    pool = choose("norm", norm, NORMS)
    pieces = choose("granularity", granularity, GRANULARITIES)
    cut = choose("scope", scope, SCOPES)
    score = criterion if callable(criterion) else choose("criterion", criterion, CRITERIA)
    weights = find_weights(model, layers, include, exclude)
    groupings = {name: Grouping.of(weight.owners[0], pieces) for name, weight in weights.items()}
    scores = {
        name: _scores(weight, groupings[name], score, pool, generator) for name, weight in weights.items()
    }
    devices = {name: weight.parameter.device for name, weight in weights.items()}
    return Ranking(scores, groupings, devices, cut)


def _scores(
    weight: Weight,
    grouping: Grouping,
    criterion: Criterion,
    pool: Callable[[Tensor], Tensor],
    generator: torch.Generator | None,
) -> Scores:
    if criterion is magnitude and grouping.members == 1:
        return Magnitudes(weight)
    values, grad = original_values(weight), weight.parameter.grad
    gradients = None if grad is None else grouping.rows(grad)
    groups = Groups(weight.name, grouping.rows(values), gradients, generator)
    _check_finite(weight.name, values)
    scores = criterion(groups)
    shape = tuple(scores.shape)
    if shape not in ((grouping.count, grouping.members), (grouping.count, 1)):
        raise ValueError(
            f"criterion gave scores of shape {shape} for {weight.name}; "
            f"expected {(grouping.count, grouping.members)} or {(grouping.count, 1)}"
        )
    pooled = pool(scores.detach())
    _check_finite(weight.name, pooled)
    return Stored(pooled)


def _check_finite(name: str, tensor: Tensor) -> None:
    if tensor.numel() and not torch.isfinite(torch.stack(tensor.aminmax())).all():
        raise ValueError(f"{name} has values or scores that are NaN or infinite: no ranking")


@dataclass(frozen=True)
class Magnitudes:
    """Absolute values of the original weights, made piece by piece when read: they are never copied."""

    weight: Weight

    @property
    def dtype(self) -> torch.dtype:
        """Of the scores."""
        return self.weight.parameter.dtype

    def __len__(self) -> int:
        return self.weight.parameter.numel()

    @property
    def device(self) -> torch.device:
        """Of the scores."""
        return self.weight.parameter.device

    def pieces(self, scratch: Tensor) -> Iterator[Array]:
        """All of them in order."""
        for values in _flat(original_values(self.weight), len(scratch)):
            if values.device != scratch.device:
                yield values.to(scratch.dtype).abs()
            else:
                place = scratch[: len(values)]
                plain = values if values.dtype is place.dtype else place.copy_(values)
                yield np.abs(plain.numpy(), out=place.numpy())

    def every(self, first: int, step: int) -> Tensor:
        """Some of them."""
        values = original_values(self.weight)
        if values.is_contiguous():
            return values.view(-1)[first::step].abs()
        places = torch.arange(min(first, len(self)), len(self), step, device=values.device)
        return values[torch.unravel_index(places, values.shape)].abs()


def _flat(tensor: Tensor, size: int) -> Iterator[Tensor]:
    """The entries in row-major order, up to `size` at a time; at other strides only some rows are copied."""
    if tensor.is_contiguous():
        flat = tensor.view(-1)
        yield from (flat,) if tensor.numel() <= size else torch.split(flat, size)
        return
    for rows in torch.split(tensor, max(1, size // tensor[0].numel())):
        yield from torch.split(rows.reshape(-1), size)
