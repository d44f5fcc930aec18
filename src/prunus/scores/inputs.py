"""Evidence from what goes into the layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from prunus.modes import eval_mode
from prunus.scores.evidence import Batches, ByName, Loss, moved, wide
from prunus.weights import WeightTensor, conv1d, inputs_first, is_plain


def inputs(model: nn.Module, weights: Sequence[WeightTensor], batches: Batches, loss: Loss) -> ByName:
    """The norm of all inputs that each weight was multiplied with, over batches and positions.

    Of a layer with a forward of its own, such as a recurrent one, there is none.

    Raises:
        ValueError: a layer is never called.
    """
    weights = [weight for weight in weights if all(map(_is_linear, weight.owners))]
    squares: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for weight in weights:
            for layer in weight.owners:
                handle = layer.register_forward_pre_hook(_add_to(squares, weight.name), with_kwargs=True)
                stack.callback(handle.remove)
        with eval_mode(model), torch.no_grad():
            for images, _ in moved(batches, weights[0].parameter.device) if weights else ():
                model(images)
    missing = [weight.name for weight in weights if weight.name not in squares]
    if missing:
        raise ValueError(f"{missing[0]}: its layer was not called, so its inputs are not known")
    return {name: total.sqrt() for name, total in squares.items()}


def _is_linear(layer: nn.Module) -> bool:
    """Whether a layer gives its inputs times its weight, and no more but a bias."""
    return is_plain(layer) or inputs_first(layer)


def _add_to(squares: dict[str, Tensor], name: str) -> Callable[..., None]:
    def add(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        [x, *_] = (*args, *kwargs.values())
        # The layer is linear in its weight: of the sum of what it gives for x², each weight's gradient is Σx²
        plain, parameter = copy.copy(layer), layer.get_parameter("weight")
        weight = parameter.detach().to(wide(parameter)).requires_grad_()
        bias = weight.new_zeros(weight.shape[-1]) if isinstance(layer, conv1d()) else None  # it must have one
        vars(plain)["_parameters"] = {"weight": weight, "bias": bias}
        # What an embedding is multiplied with is 0 or 1, whose squares they are
        given = x.detach().to(weight.dtype).square() if x.is_floating_point() else x
        with torch.enable_grad():
            total = plain.forward(given).sum()
        [found] = torch.autograd.grad(total, weight)
        squares[name] = squares.get(name, 0) + found

    return add
