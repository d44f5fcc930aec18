"""Masks put on a network, and taken off."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from prunus.application.bits import keep_only
from prunus.application.passes import OtherGradient, parts_for
from prunus.application.placed import Placed
from prunus.application.ruled import RuledLayer, ruled_layers
from prunus.application.state import PrunedWeight, owned, pruned_weights, shown
from prunus.application.together import Together, pruned_elsewhere
from prunus.weights import WeightTensor, check_dtype, check_one_name, layer_weights


def prune_by(model: nn.Module, placed: Mapping[str, Placed]) -> Together:
    """As `put_on`, of a network that may have been compiled."""
    together = put_on(model, placed)
    hooked = any(OtherGradient in state.kinds for state in together.states)
    if "torch._dynamo" in sys.modules and hooked:
        # A compiled graph does not look whether a layer has got a hook since.
        sys.modules["torch._dynamo"].reset()
    return together


def put_on(model: nn.Module, placed: Mapping[str, Placed]) -> Together:
    """Prune these weights, and no others. If that fails, the model stays pruned as it was."""
    weights = layer_weights(model)
    for name in placed:
        check_writable(weights[name])
    _check_one_mask(model, [weights[name] for name in placed])
    attention = {id(m.out_proj): m for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    together, states = Together(), []
    for name, masks in placed.items():
        own = masks.map(partial(owned, device=weights[name].parameter.device)).merged()
        users = [attention.get(id(layer), layer) for layer in weights[name].owners]
        kinds = parts_for(own)
        if OtherGradient in kinds:
            _check_unruled(weights[name])
        states.append((PrunedWeight(weights[name], users, kinds, together), own))
    before = take_off(model)
    try:
        _attach(states)
    except BaseException:
        take_off(model)
        _attach(before)
        raise
    return together


def zero(model: nn.Module, names: Iterable[str], masks: Iterable[tuple[str, Tensor]]) -> nn.Module:
    """Undo all pruning, then set what these masks prune to zero for good."""
    weights = layer_weights(model)
    for name in names:
        check_writable(weights[name])
    take_off(model)
    with torch.no_grad():
        for name, mask in masks:
            keep_only(weights[name].parameter, mask, out=weights[name].parameter)
    return model


def take_off(model: nn.Module) -> list[tuple[PrunedWeight, Placed]]:
    """Undo all pruning; what was in force, with its masks."""
    found = []
    for module in model.modules():
        for state in pruned_weights(module).values():
            found.append((state, state.placed))
            state.detach()
    return found


def masks_in_force(model: nn.Module) -> dict[str, Placed]:
    """By the names that the weights have in this model."""
    found = {}
    for name, weight in layer_weights(model).items():
        states = (pruned_weights(owner).get(weight.attribute) for owner in weight.owners)
        state = next(filter(None, states), None)
        if state:
            found[name] = state.placed
    return found


def _attach(states: Iterable[tuple[PrunedWeight, Placed]]) -> None:
    for state, placed in states:
        state.attach(placed)


@contextmanager
def unpruned(model: nn.Module) -> Iterator[nn.Module]:
    """Within the block the model is unpruned; whatever is done to it there, its pruning comes back."""
    before = take_off(model)
    try:
        yield model
    finally:
        take_off(model)
        _attach(before)


def _check_one_mask(model: nn.Module, weights: Sequence[WeightTensor]) -> None:
    """Refuse a parameter that is pruned through layers outside of this model."""
    other = next(pruned_elsewhere([weight.parameter for weight in weights], model.modules()), None)
    if other is None:
        return
    name = next(weight.name for weight in weights if weight.parameter is other.parameter)
    raise ValueError(
        f"{name} is pruned already, as {other.name} of another network that holds the same parameter: call "
        "prunus.restore on that first, prune a network that holds both, or give this a parameter of its own"
    )


def _check_unruled(weight: WeightTensor) -> None:
    """Refuse masks for dL/dx where rules of `sparse_backward` say how that is found."""
    if any(ruled_layers(owner) for owner in weight.owners):
        raise ValueError(
            f"{weight.name}: sparse_backward prunes the passes of its layer, so masks of one pass cannot act "
            "there: prunus.restore(model) first, or prune both passes"
        )


def rule(model: nn.Module, ruled: Sequence[RuledLayer]) -> None:
    """Let rules prune the passes of these layers, and of no others."""
    forget_rules(model)
    for one in ruled:
        one.attach()
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()


def forget_rules(model: nn.Module) -> list[RuledLayer]:
    """Let no rules prune any layer's passes; those that did."""
    found = list(ruled_layers(model).values())
    for one in found:
        one.detach()
    return found


def check_writable(weight: WeightTensor) -> None:
    """Raise a ValueError where zeros cannot be written into a weight, or no mask stand beside it."""
    check_one_name(weight)
    check_dtype(weight.name, weight.parameter)
    if weight.parameter.is_inference():
        raise ValueError(f"{weight.name} was made in inference mode and cannot be pruned: make it outside")
    if any(
        size > 1 and not stride
        for size, stride in zip(weight.parameter.shape, weight.parameter.stride(), strict=True)
    ):
        raise ValueError(f"{weight.name} is expanded: several of its entries share one memory")
    for owner in weight.owners:
        mask, backup = shown(weight.attribute)
        if (hasattr(owner, mask) or hasattr(owner, backup)) and weight.attribute not in pruned_weights(owner):
            raise ValueError(f"{weight.name}: its layer has a {mask} or {backup} of its own")
