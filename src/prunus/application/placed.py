"""By which masks one weight is pruned: at each place of a layer where it acts, by one or by none.

A layer y = W x has three: `forward`, the weights that give y; `input_grad`, those that give the gradient of
x; and `weight_grad`, those that get a gradient. Without a mask, all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Placed:
    """The masks of one weight, True = keep. Where places have the same mask, it is one tensor."""

    forward: Tensor | None = None
    input_grad: Tensor | None = None
    weight_grad: Tensor | None = None

    @property
    def masks(self) -> list[Tensor]:
        """Each mask once."""
        found = (self.forward, self.input_grad, self.weight_grad)
        return list({id(mask): mask for mask in found if mask is not None}.values())

    def map(self, change: Callable[[Tensor], Tensor]) -> Placed:
        """The same places by other masks, made of these."""
        made = {id(mask): change(mask) for mask in self.masks}

        def of(mask: Tensor | None) -> Tensor | None:
            return None if mask is None else made[id(mask)]

        return Placed(of(self.forward), of(self.input_grad), of(self.weight_grad))

    def merged(self) -> Placed:
        """The same, with one tensor for all masks that are equal."""
        masks = self.masks
        return self.map(lambda mask: next(one for one in masks if one is mask or torch.equal(one, mask)))


PLACES: dict[str, Callable[[Placed], Tensor | None]] = {
    "forward": lambda placed: placed.forward,
    "input_grad": lambda placed: placed.input_grad,
    "weight_grad": lambda placed: placed.weight_grad,
}
PASSES: dict[str, Callable[[Tensor], Placed]] = {
    "both": lambda mask: Placed(mask, mask, mask),
    "backward": lambda mask: Placed(input_grad=mask),
    "forward": lambda mask: Placed(forward=mask),
}


def by_passes(masks: Mapping[str, Tensor], passes: str) -> dict[str, Placed]:
    """By name, each mask at the places that its passes mean."""
    return {name: PASSES[passes](mask) for name, mask in masks.items()}


def by_place(places: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Placed]:
    """By name, the masks that these have at any place."""
    names = dict.fromkeys(name for masks in places.values() for name in masks)
    return {
        name: Placed(**{place: masks[name] for place, masks in places.items() if name in masks})
        for name in names
    }
