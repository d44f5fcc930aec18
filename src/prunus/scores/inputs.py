"""Evidence from what goes into the layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from prunus.modes import eval_mode
from prunus.scores.evidence import Batches, ByName, Loss, called, moved, wide
from prunus.weights import WeightTensor, conv1d, inputs_first, is_plain

Heard: TypeAlias = Callable[[str, nn.Module, Tensor], None]  # name of the weight, layer, its input


def inputs(model: nn.Module, weights: Sequence[WeightTensor], batches: Batches, loss: Loss) -> ByName:
    """The norm of all inputs that each weight was multiplied with, over batches and positions.

    Of a layer with a forward of its own, such as a recurrent one, there is none, nor of one never called. The
    outputs of a layer share one memory for theirs, but for groups.
    """
    squares: dict[str, Tensor] = {}

    def add(name: str, layer: nn.Module, x: Tensor) -> None:
        squares[name] = squares.get(name, 0) + _squares(layer, x)

    weights = [weight for weight in weights if all(map(_is_linear, weight.owners))]
    if weights:
        listen(model, weights, batches, add)
    shapes = {weight.name: weight.parameter.shape for weight in weights}
    return {name: _of_all_outputs(total.sqrt(), shapes[name]) for name, total in squares.items()}


def listen(model: nn.Module, weights: Sequence[WeightTensor], batches: Batches, heard: Heard) -> None:
    """Run the network on batches, and hand over what goes into the layers that hold these weights."""
    with ExitStack() as stack:
        for weight in weights:
            for layer in weight.owners:
                hook = partial(_hear, heard, weight.name)
                stack.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
        with eval_mode(model), torch.no_grad():
            for x, _ in moved(batches, weights[0].parameter.device):
                called(model, x)


def _hear(heard: Heard, name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    [x, *_] = (*args, *kwargs.values())
    heard(name, layer, x.detach())


def _is_linear(layer: nn.Module) -> bool:
    """Whether a layer gives its inputs times its weight, and no more but a bias."""
    return is_plain(layer) or isinstance(layer, (nn.Embedding, *conv1d()))


def has_patches(layer: nn.Module) -> bool:
    """Whether `patches` can tell what a layer's outputs are sums of."""
    return isinstance(layer, conv1d()) or (is_plain(layer) and not getattr(layer, "transposed", False))


def patches(layer: nn.Module, x: Tensor) -> Tensor:
    """What each output is a weighted sum of, shape (groups, places, positions of the kernel times inputs)."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if not isinstance(layer, nn.modules.conv._ConvNd):
        return x.reshape(1, -1, x.shape[-1])
    inputs, kernel = layer.weight.shape[1], layer.weight.shape[2:]
    size = inputs * kernel.numel()
    one = torch.eye(size, dtype=x.dtype, device=x.device).view(size, kernel.numel(), inputs)
    weight = one.mT.reshape(size, inputs, *kernel).repeat(layer.groups, *[1] * (1 + len(kernel)))
    found = _applied(layer, weight, x)
    channels = found.dim() - len(kernel) - 1
    return found.movedim(channels, -1).reshape(-1, layer.groups, size).transpose(0, 1)


def _squares(layer: nn.Module, x: Tensor) -> Tensor:
    """The sum of the squares of what each weight of the first output is multiplied with, of each group."""
    parameter = layer.get_parameter("weight")
    if isinstance(layer, nn.Embedding):  # 1 for a token that is there
        return torch.bincount(x.flatten(), minlength=len(parameter))[:, None]
    groups = getattr(layer, "groups", 1)
    first, second, *kernel = parameter.shape
    shape = (first, 1, *kernel) if inputs_first(layer) else (groups, second, *kernel)
    # The layer is linear in its weight: of the sum of what it gives for x², each weight's gradient is Σx²
    weight = torch.zeros(shape, dtype=wide(parameter), device=parameter.device, requires_grad=True)
    with torch.enable_grad():
        total = _applied(layer, weight, x.to(weight.dtype).square()).sum()
    [found] = torch.autograd.grad(total, weight)
    return found


def _applied(layer: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    """What a layer gives with another weight, of as many outputs as that has, and no bias."""
    plain: Any = copy.copy(layer)
    bias = weight.new_zeros(weight.shape[-1]) if isinstance(layer, conv1d()) else None  # it must have one
    vars(plain)["_parameters"] = {"weight": weight, "bias": bias}
    if isinstance(layer, conv1d()):
        plain.nf = weight.shape[-1]
    output: Tensor = plain.forward(x)
    return output


def _of_all_outputs(found: Tensor, shape: torch.Size) -> Tensor:
    """Values of the first output of each group as those of all."""
    groups, outputs = found.shape[0], shape[0]
    if groups in (1, outputs):
        return found.expand(shape)
    return found.repeat_interleave(outputs // groups, dim=0).expand(shape)
