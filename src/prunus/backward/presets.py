"""Which rule stands at which place: methods from papers, and ours, by name.

A preset is a function from its settings to `Places`; `k`, where it has one, is the fraction that is kept, and
`score` is "magnitude", "random" (the control), or a function of values and what is known about them. To
add one, write it here, under `@preset(name)`; `sparse_backward` takes any such function as it is, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from prunus.application.places import About, Penalty, Places, Rule
from prunus.backward.rules import (
    Score,
    channels,
    dithered,
    function_of,
    in_force,
    largest,
    largest_of_each,
    magnitude,
    n_of_m,
)
from prunus.checks import check_fraction, check_whole

Preset: TypeAlias = Callable[..., Places]
PRESETS: dict[str, Preset] = {}  # by name, in the order of this file


def preset(name: str) -> Callable[[Preset], Preset]:
    """Make a preset known by this name."""

    def know(function: Preset) -> Preset:
        PRESETS[name] = function
        return function

    return know


def _part(argument: str, value: float) -> float:
    if not check_fraction(argument, value):
        raise ValueError(f"{argument} must be in (0, 1], got {value!r}")
    return float(value)


@preset("meprop")
def meprop(k: float = 0.1, score: str | Score = magnitude) -> Places:
    """The largest entries of dL/dy, of each row or image (Sun et al. 2017, arXiv 1706.06197, section 2.1).

    The authors leave the output layer dense.
    """
    return Places(output_grad=largest_of_each(_part("k", k), score))


@preset("channels")
def output_channels(k: float = 0.5, score: str | Score = magnitude) -> Places:
    """The output channels with the largest sums of |dL/dy| over a batch: smaller dense products.

    Of linear layers it is the unified top-k of meProp (section 4.8).
    """
    return Places(output_grad=channels(_part("k", k), score))


@preset("dither")
def dither(k: float = 0.1) -> Places:
    """dL/dy rounded after noise, so that it is right in the mean (Wiedemann et al. 2020, arXiv 2004.04729).

    There a step of so many standard deviations is given; here the step that keeps the k-th part is found.
    """
    return Places(output_grad=dithered(_part("k", k)))


@preset("swat")
def swat(k: float = 0.1, score: str | Score = magnitude) -> Places:
    """The largest weights for y and dL/dx, the largest x for dL/dW (Raihan, Aamodt 2020, arXiv 2001.01969).

    The gradient of the weight is of all entries. The authors leave the first convolution dense.
    """
    rule = largest(_part("k", k), score)
    return Places(forward=rule, activation=rule)


@preset("topkast")
def topkast(
    k: float = 0.1, wider: float = 0.1, decay: float = 1e-4, score: str | Score = magnitude
) -> Places:
    """The largest weights for y and dL/dx; more get a gradient (Jayakumar et al. 2020, arXiv 2106.03517).

    Args:
        k: kept in the forward.
        wider: besides these, this fraction of all weights gets a gradient.
        decay: of the first, times the weight; of the others, divided by k, as the paper's penalty does.
        score: of each weight.
    """
    part = _part("k", k)
    more = largest(min(1.0, part + check_fraction("wider", wider)), score)
    penalty = partial(_of_all, decay, part) if check_fraction("decay", decay) else None
    return Places(forward=largest(part, score), weight_grad=more, penalty=penalty)


def _of_all(decay: float, part: float, weight: Tensor, kept: dict[str, Tensor]) -> Tensor:
    strength = torch.where(kept["forward"], 1.0, 1.0 / part) * kept["weight_grad"]
    return decay * strength.to(weight.dtype) * weight


@preset("srste")
def srste(n: int = 2, m: int = 4, decay: float = 2e-4, score: str | Score = magnitude) -> Places:
    """n of m weights along the inputs for y and dL/dx (Zhou et al. 2021, arXiv 2102.04010).

    The gradient of the weight is of all entries. The authors leave the output layer dense.

    Args:
        n, m: of each m neighbours n are kept.
        decay: λ times the weight is added to the gradient of what is not kept; 0 is the plain
            straight-through estimator.
        score: of each weight.
    """
    return Places(forward=n_of_m(n, m, score), penalty=_of_fallen(decay))


@preset("bimask")
def bimask(
    n: int = 2, m: int = 4, decay: float = 2e-4, tries: int = 10, score: str | Score = magnitude
) -> Places:
    """As "srste", but of what is kept n of m outputs for dL/dx (Zhang et al. 2023, arXiv 2302.06058).

    Args:
        n, m: of each m neighbours n are kept.
        decay: as in "srste".
        tries: random orders of the outputs, of which that one counts which leaves most weights for dL/dx;
            tried whenever the masks are found (the authors try 100 every 100 steps).
        score: of each weight.
    """
    rows = n_of_m(n, m, score)
    columns = n_of_m(n, m, partial(_among_kept, score), axis=0)
    both = partial(_both, rows, columns, check_whole("tries", tries, least=1))
    return Places(forward=rows, input_grad=both, penalty=_of_fallen(decay))


def _among_kept(score: str | Score, values: Tensor, about: About) -> Tensor:
    """Scores of what is not zero: the rest has fallen, and is to be chosen last."""
    return function_of(score)(values, about).masked_fill(values == 0, -math.inf)


def _both(rows: Rule, columns: Rule, tries: int, values: Tensor, about: About) -> Tensor:
    kept, generator = rows(values, about), about.generator(values.device)
    left, best = values * kept, torch.zeros_like(kept)
    for _ in range(tries):
        order = torch.randperm(len(values), generator=generator, device=values.device)
        found = (columns(left[order], about) & kept[order])[order.argsort()]
        best = max(best, found, key=torch.count_nonzero)
    return best


@preset("magnitude")
def largest_for_inputs(k: float = 0.1, score: str | Score = magnitude) -> Places:
    """The largest weights for dL/dx alone: backward-only pruning, as `gradient_prune` has it, layer by layer.

    With `random` for a score and `every=1` the masks are redrawn in each step.
    """
    return Places(input_grad=largest(_part("k", k), score))


@preset("static")
def static() -> Places:
    """For y, dL/dx and dL/dW what the masks keep that a layer is pruned by: with `faster`, sparse products.

    As of `global_prune`, `Gradual` or `RigL`; where that asks for whole gradients, it gets them. `every` has
    no meaning: masks are followed in the step in which they change.
    """
    return Places(in_force("forward"), in_force("input_grad"), in_force("weight_grad"), anew=True)


def _of_fallen(decay: float) -> Penalty | None:
    """Decay of the weights that the forward does not see."""
    return partial(_fallen, decay) if check_fraction("decay", decay) else None


def _fallen(decay: float, weight: Tensor, kept: dict[str, Tensor]) -> Tensor:
    return decay * ~kept["forward"] * weight
