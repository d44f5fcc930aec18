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
from prunus.weights import WeightTensor, conv1d, is_plain


def inputs(model: nn.Module, weights: Sequence[WeightTensor], batches: Batches, loss: Loss) -> ByName:
    """The norm of all inputs that each weight was multiplied with, over batches and positions.

    Of a layer with a forward of its own, such as a recurrent one, there is none, nor of one never called.
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
    return {name: total.sqrt() for name, total in squares.items()}


def _is_linear(layer: nn.Module) -> bool:
    """Whether a layer gives its inputs times its weight, and no more but a bias."""
    return is_plain(layer) or isinstance(layer, (nn.Embedding, *conv1d()))


def _add_to(squares: dict[str, Tensor], name: str) -> Callable[..., None]:
    def add(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        [x, *_] = (*args, *kwargs.values())
        squares[name] = squares.get(name, 0) + _squares(layer, x.detach())

    return add


def _squares(layer: nn.Module, x: Tensor) -> Tensor:
    """The sum of the squares of what each weight is multiplied with."""
    parameter = layer.get_parameter("weight")
    if isinstance(layer, nn.Embedding):  # 1 for a token that is there
        return torch.bincount(x.flatten(), minlength=len(parameter))[:, None].expand_as(parameter)
    # The layer is linear in its weight: of the sum of what it gives for x², each weight's gradient is Σx²
    plain, weight = copy.copy(layer), parameter.detach().to(wide(parameter)).requires_grad_()
    bias = weight.new_zeros(weight.shape[-1]) if isinstance(layer, conv1d()) else None  # it must have one
    vars(plain)["_parameters"] = {"weight": weight, "bias": bias}
    with torch.enable_grad():
        total = plain.forward(x.to(weight.dtype).square()).sum()
    [found] = torch.autograd.grad(total, weight)
    return found
