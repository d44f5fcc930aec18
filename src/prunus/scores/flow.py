"""Evidence without data: what flows through a network whose weights are their own magnitudes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prunus.scores.evidence import Batches, ByName, Loss, Renewed, moved
from prunus.weights import WeightTensor


def flow(model: nn.Module, weights: Sequence[WeightTensor], batches: Batches, loss: Loss) -> ByName:
    """The derivative by |w| of R, the sum of what the network gives for an input of ones.

    All its parameters and buffers are their magnitudes, in float64, and it is in eval mode (Tanaka, Kunin,
    Yamins, Ganguli 2020, arXiv 2006.05467; as in the authors' program). Of the
    batches, only the shape of one image is read, and the loss is not.
    """
    images = next(iter(moved(batches, weights[0].parameter.device)))[0][:1]
    ones = torch.ones_like(images, dtype=torch.float64 if images.is_floating_point() else None)
    network = copy.deepcopy(model).eval().requires_grad_(False)
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.data = tensor.data.abs().double() if tensor.is_floating_point() else tensor.data
    return Flow(network, {weight.name: network.get_parameter(weight.name) for weight in weights}, ones)


class Flow(Renewed):
    """By weight name, derivatives of R by magnitudes, all in float64.

    Args:
        network: of magnitudes, a copy of its own.
        magnitudes: those that R is derived by.
        ones: the input.
        masks: by which they are pruned.
    """

    def __init__(
        self, network: nn.Module, magnitudes: ByName, ones: Tensor, masks: ByName | None = None
    ) -> None:
        self.network, self.magnitudes, self.ones = network, magnitudes, ones
        weights = dict(magnitudes)
        for name, mask in (masks or {}).items():
            values = weights[name] if name in weights else network.get_parameter(name)
            weights[name] = values * mask.to(values.device)
        leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        with torch.enable_grad():
            total = _output(functional_call(network, leaves, (ones,))).sum()
            found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        super().__init__(
            (name, torch.zeros_like(leaves[name]) if gradient is None else gradient)
            for name, gradient in zip(leaves, found, strict=True)
        )

    def under(self, masks: ByName) -> Flow:
        """The same where weights are pruned by these masks."""
        return Flow(self.network, self.magnitudes, self.ones, masks)


def _output(output: Any) -> Tensor:
    """The tensor that a network gives, or its logits."""
    tensor = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(tensor, Tensor):
        raise TypeError(f"the model gives {type(output).__name__}; expected a tensor, or .logits")
    return tensor
