"""The five places at which the passes through a layer y = W x may be pruned by rules, as they run.

- forward: the W that gives y.
- input_grad: the W that gives dL/dx.
- weight_grad: which entries of W get a gradient.
- output_grad: which entries of dL/dy go on, to dL/dx and to dL/dW.
- activation: which entries of x are kept for dL/dW.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True)
class About:
    """What a rule may ask about the values that it is given.

    Args:
        axis: that of the layer's outputs.
        groups: into which the layer's outputs fall.
        generator: gives a generator for random numbers on a device; to all rules of one weight at a time
            the same, so that what they draw agrees.
        in_force: gives the mask by which the weight is pruned besides at a place, None where it is not.
    """

    axis: int
    groups: int
    generator: Callable[[torch.device], torch.Generator]
    in_force: Callable[[str], Tensor | None]


# From values to booleans that are spread over them, True = keep, or to the values that take their place.
# Weights come as (outputs, inputs of one group, ...), and booleans of their shape are asked for.
Rule: TypeAlias = Callable[[Tensor, About], Tensor]

# From a weight and, by place, the booleans in force, to what is added to the weight's gradient before a step.
Penalty: TypeAlias = Callable[[Tensor, "dict[str, Tensor]"], Tensor]


@dataclass(frozen=True)
class Places:
    """A rule for each place that is pruned.

    Args:
        forward: of the weight, for y.
        input_grad: of the weight, for dL/dx; None takes that of the forward.
        weight_grad: of the weight, for which of its entries get a gradient; None gives all of them one.
        output_grad: of dL/dy.
        activation: of x, for dL/dW.
        penalty: what is added to the weight's gradient once a step of an optimizer.
        anew: whether the rules of the weight are asked in every step, whatever `every` is.
    """

    forward: Rule | None = None
    input_grad: Rule | None = None
    weight_grad: Rule | None = None
    output_grad: Rule | None = None
    activation: Rule | None = None
    penalty: Penalty | None = None
    anew: bool = False

    def of_weight(self) -> dict[str, Rule]:
        """The rules of the weight, by place."""
        rules = {place: getattr(self, place) for place in ("forward", "input_grad", "weight_grad")}
        return {place: rule for place, rule in rules.items() if rule}

    @property
    def used(self) -> list[str]:
        """The places that have a rule."""
        return [f.name for f in fields(self) if f.name not in ("penalty", "anew") and getattr(self, f.name)]
