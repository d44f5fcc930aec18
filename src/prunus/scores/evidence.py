"""What may a criterion need to know beside the weights? A kind of evidence is the function that collects it.

To add one, write that function here: from the network, its weight tensors, labelled batches and a loss to a
tensor of the weight's shape by each weight's name. A criterion then names it in its decorator.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from prunus.masks import counted
from prunus.modes import eval_mode
from prunus.weights import WeightTensor, is_plain

Batches: TypeAlias = Iterable[tuple[Tensor, Tensor]]
Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
ByName: TypeAlias = Mapping[str, Tensor]
Need: TypeAlias = Callable[[nn.Module, Sequence[WeightTensor], Batches, Loss], ByName]


@dataclass(frozen=True, repr=False)
class Evidence:
    """What criteria may read beside the weights.

    Args:
        found: by kind and weight name, tensors of the weight's shape.
        hint: how to come by what is missing.
    """

    found: Mapping[Need, ByName]
    hint: str = "collect it with prunus.evidence(model, batches, criterion=..., layers=...)"

    def __repr__(self) -> str:
        kinds = (f"{kind.__name__} of {counted(len(by), 'tensor')}" for kind, by in self.found.items())
        return f"Evidence({', '.join(kinds)})"

    def about(self, weight: WeightTensor) -> dict[Need, Tensor]:
        """All that is known of one weight tensor, on its device.

        Raises:
            ValueError: the evidence is of another network.
        """
        known = {kind: by[weight.name] for kind, by in self.found.items() if weight.name in by}
        for tensor in known.values():
            if tensor.shape != weight.parameter.shape:
                raise ValueError(
                    f"evidence belongs to another network: that of {weight.name} has shape "
                    f"{tuple(tensor.shape)}, its weight {tuple(weight.parameter.shape)}"
                )
        return {kind: tensor.to(weight.parameter.device) for kind, tensor in known.items()}


def gradients(model: nn.Module, weights: Sequence[WeightTensor], batches: Batches, loss: Loss) -> ByName:
    """The mean over batches of the loss gradient. Nothing is left in any `.grad`."""
    parameters = [weight.parameter for weight in weights]
    sums, count = [torch.zeros_like(p, dtype=_wide(p)) for p in parameters], 0
    with eval_mode(model), _thawed(parameters), torch.enable_grad():
        for images, targets in _moved(batches, parameters[0].device):
            found = torch.autograd.grad(loss(model(images), targets), parameters, allow_unused=True)
            for total, gradient in zip(sums, found, strict=True):
                if gradient is not None:
                    total += gradient
            count += 1
    return {weight.name: total / count for weight, total in zip(weights, sums, strict=True)}


def inputs(model: nn.Module, weights: Sequence[WeightTensor], batches: Batches, loss: Loss) -> ByName:
    """The norm of all inputs that each weight was multiplied with, over batches and positions.

    Raises:
        ValueError: a layer with a forward of its own, or one that is never called.
    """
    squares: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for weight in weights:
            for layer in weight.owners:
                if not is_plain(layer):
                    raise ValueError(f"{weight.name}: its {type(layer).__name__} has a forward of its own")
                handle = layer.register_forward_pre_hook(_add_to(squares, weight.name), with_kwargs=True)
                stack.callback(handle.remove)
        with eval_mode(model), torch.no_grad():
            for images, _ in _moved(batches, weights[0].parameter.device):
                model(images)
    missing = [weight.name for weight in weights if weight.name not in squares]
    if missing:
        raise ValueError(f"{missing[0]}: its layer was not called, so its inputs are not known")
    return {name: total.sqrt() for name, total in squares.items()}


def of_grads(weights: Iterable[WeightTensor]) -> Evidence:
    """What `loss.backward()` or `fill_gradients` left in the parameters' `.grad`."""
    return Evidence(
        {gradients: {w.name: w.parameter.grad for w in weights if w.parameter.grad is not None}},
        hint="its .grad is None; call prunus.fill_gradients(model, batches) or loss.backward() first, or "
        "give evidence=prunus.evidence(model, batches)",
    )


def _add_to(squares: dict[str, Tensor], name: str) -> Callable[..., None]:
    def add(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        [x, *_] = (*args, *kwargs.values())
        # The layer is linear in its weight: of the sum of what it gives for x², each weight's gradient is Σx²
        plain, parameter = copy.copy(layer), layer.get_parameter("weight")
        weight = parameter.detach().to(_wide(parameter)).requires_grad_()
        vars(plain)["_parameters"] = {"weight": weight, "bias": None}
        with torch.enable_grad():
            total = plain.forward(x.detach().to(weight.dtype).square()).sum()
        [found] = torch.autograd.grad(total, weight)
        squares[name] = squares.get(name, 0) + found

    return add


def _wide(parameter: Tensor) -> torch.dtype:
    """A dtype in which many values can be summed."""
    return torch.promote_types(parameter.dtype, torch.float32)


def _moved(batches: Batches, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches on this device; there must be one."""
    empty = True
    for images, targets in batches:
        yield images.to(device), targets.to(device)
        empty = False
    if empty:
        raise ValueError("batches is empty: expected at least one (inputs, targets)")


@contextmanager
def _thawed(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Within the block these parameters require a gradient."""
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
