"""Evidence from gradients of a loss over labelled batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from prunus.modes import eval_mode, requiring_grad
from prunus.scores.evidence import (
    Batches,
    ByName,
    Evidence,
    Loss,
    called,
    check_rereadable,
    moved,
    wide,
)
from prunus.weights import WeightTensor

Gradients: TypeAlias = Sequence[Tensor | None]


def gradients(model: nn.Module, weights: Sequence[WeightTensor], batches: Batches, loss: Loss) -> ByName:
    """The mean over batches of the loss gradient. Nothing is left in any `.grad`."""
    return _mean(model, weights, batches, lambda found: found, loss)


def squared_gradients(
    model: nn.Module, weights: Sequence[WeightTensor], batches: Batches, loss: Loss
) -> ByName:
    """The mean over batches of the squared loss gradient: the diagonal of the Fisher information.

    Of the images, where each is a batch of its own.
    """
    return _mean(
        model, weights, batches, lambda found: [None if g is None else g.square() for g in found], loss
    )


def hessian_gradients(
    model: nn.Module, weights: Sequence[WeightTensor], batches: Batches, loss: Loss
) -> ByName:
    """The Hessian of the mean loss over batches times its gradient, both by these weights alone.

    Raises:
        TypeError: the batches can be read only once: here they are read twice.
    """
    check_rereadable(batches)
    direction = [total.detach() for total in gradients(model, weights, batches, loss).values()]
    parameters = [weight.parameter for weight in weights]

    def product(found: Gradients) -> Gradients:
        pairs = [(g, d) for g, d in zip(found, direction, strict=True) if g is not None and g.requires_grad]
        if not pairs:  # the loss is linear in them all
            return [None] * len(parameters)
        along = torch.stack([(gradient.to(d.dtype) * d).sum() for gradient, d in pairs]).sum()
        return torch.autograd.grad(along, parameters, allow_unused=True)

    return _mean(model, weights, batches, product, loss, create_graph=True)


def _mean(
    model: nn.Module,
    weights: Sequence[WeightTensor],
    batches: Batches,
    of: Callable[[Gradients], Gradients],
    loss: Loss,
    create_graph: bool = False,
) -> ByName:
    """The mean over batches of what is made of the loss gradient. Nothing is left in any `.grad`."""
    parameters = [weight.parameter for weight in weights]
    sums, count = [torch.zeros_like(p, dtype=wide(p)) for p in parameters], 0
    with eval_mode(model), requiring_grad(parameters, True), torch.enable_grad():
        for images, targets in moved(batches, parameters[0].device):
            value = loss(called(model, images), targets)
            found = torch.autograd.grad(value, parameters, allow_unused=True, create_graph=create_graph)
            for total, gradient in zip(sums, of(found), strict=True):
                if gradient is not None:
                    total += gradient.detach()
            count += 1
    return {weight.name: total / count for weight, total in zip(weights, sums, strict=True)}


def of_grads(weights: Iterable[WeightTensor]) -> Evidence:
    """What `loss.backward()` or `fill_gradients` left in the parameters' `.grad`."""
    return Evidence(
        {gradients: {w.name: w.parameter.grad.to_dense() for w in weights if w.parameter.grad is not None}},
        hint="its .grad is None; call prunus.fill_gradients(model, batches) or loss.backward() first, or "
        "give evidence=prunus.evidence(model, batches)",
    )
