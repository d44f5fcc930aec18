"""The linear map that a plain layer is, y = W x, and its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.weights import conv1d, inputs_first, is_plain

# Of input, weight and bias, or None for those that are not wanted
Gradients: TypeAlias = "Sequence[Tensor | None]"


@dataclass(frozen=True)
class Linear:
    """Of (..., inputs).

    Args:
        inputs_first: whether the weight's first axis is that of the inputs, as in a transformer's Conv1D.
    """

    inputs_first: bool = False
    groups = 1
    axis = -1  # of inputs, outputs and their gradients, that of the channels

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """W x, and the bias."""
        return F.linear(x, weight.T if self.inputs_first else weight, bias)

    def gradients(self, grad: Tensor, x: Tensor | None, weight: Tensor, wanted: list[bool]) -> Gradients:
        """From that of the output those of input, weight and bias, as far as they are wanted."""
        rows, of_weight = grad.reshape(-1, grad.shape[-1]), None
        if wanted[1] and x is not None:
            items = x.reshape(-1, x.shape[-1])
            of_weight = items.T @ rows if self.inputs_first else rows.T @ items
        back = weight.T if self.inputs_first else weight
        return grad @ back if wanted[0] else None, of_weight, rows.sum(0) if wanted[2] else None

    def macs(self, x: Tensor | None, weight: Tensor, y: Tensor) -> int:
        """Multiply-accumulates of W x; each of the two gradients takes as many."""
        return y.numel() * weight.numel() // y.shape[-1]


@dataclass(frozen=True)
class Convolution:
    """Of (batch, channels, ...), padded by zeros, as many on both sides."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    inputs_first: bool  # as those that are called transposed have their weight
    output_padding: Sequence[int]
    groups: int
    axis = 1

    @property
    def _geometry(self) -> tuple[Any, ...]:
        turned = self.inputs_first, self.output_padding
        return (self.stride, self.padding, self.dilation, *turned, self.groups)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """W x, and the bias."""
        # By these names, which autocast knows
        geometry: tuple[Any, ...] = self.stride, self.padding, self.dilation, self.groups
        turned: tuple[Any, ...] = self.stride, self.padding, self.output_padding, self.groups, self.dilation
        if self.inputs_first:
            back = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(self.stride) - 1]
            return back(x, weight, bias, *turned)
        return (F.conv1d, F.conv2d, F.conv3d)[len(self.stride) - 1](x, weight, bias, *geometry)

    def gradients(self, grad: Tensor, x: Tensor | None, weight: Tensor, wanted: list[bool]) -> Gradients:
        """From that of the output those of input, weight and bias, as far as they are wanted."""
        sizes = [grad.shape[1]]
        found: Gradients = torch.ops.aten.convolution_backward(
            grad, x, weight, sizes, *self._geometry, wanted
        )
        return found

    def macs(self, x: Tensor | None, weight: Tensor, y: Tensor) -> int:
        """Multiply-accumulates of W x; each of the two gradients takes as many."""
        assert x is not None
        return (x if self.inputs_first else y).numel() * weight[0].numel()


Operation: TypeAlias = "Linear | Convolution"


@dataclass(frozen=True)
class Call:
    """One call of a plain layer.

    Args:
        operation: what it does.
        x: to this, which is batched, and padded where the operation does not pad.
        batched: whether the input was batched; else the output's first item is what is asked for.
    """

    operation: Operation
    x: Tensor
    batched: bool = True

    def output(self, made: Tensor) -> Tensor:
        """Of the operation's output that of the layer."""
        return made if self.batched else made[0]


def call_of(layer: Any, x: Tensor, output_size: Sequence[int] | None = None) -> Call:
    """What `layer(x, output_size)` does, of a layer for which `has_operation`."""
    if layer.weight.dim() == 2:
        batched = x.dim() > 1
        return Call(Linear(inputs_first(layer)), x if batched else x[None], batched)
    batched = x.dim() == layer.weight.dim()
    x = x if batched else x[None]
    output_padding, padding = layer.output_padding, _padding(layer)
    if layer.transposed and output_size is not None:
        sides = layer.stride, layer.padding, layer.kernel_size, len(layer.kernel_size), layer.dilation
        output_padding = layer._output_padding(x, list(output_size), *sides)
    if padding is None:
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode)
        padding = [0] * len(layer.kernel_size)
    geometry = layer.dilation, layer.transposed, output_padding, layer.groups
    return Call(Convolution(layer.stride, padding, *geometry), x, batched)


def _padding(layer: Any) -> Sequence[int] | None:
    """Zeros on either side along each axis; None where the two sides differ, or are not of zeros."""
    if layer.padding_mode != "zeros":
        return None
    if not isinstance(layer.padding, str):
        return tuple(layer.padding)
    if layer.padding == "valid":
        return [0] * len(layer.kernel_size)
    both = [reach * (size - 1) for reach, size in zip(layer.dilation, layer.kernel_size, strict=True)]
    return None if any(total % 2 for total in both) else [total // 2 for total in both]


def has_operation(layer: nn.Module) -> bool:
    """Whether a layer runs the forward of torch's own convolution or linear layer, or that of a Conv1D."""
    kinds = conv1d()
    own = isinstance(layer, kinds) and any(type(layer).forward is kind.forward for kind in kinds)
    return is_plain(layer) or (own and "forward" not in vars(layer))


def outputs_first(layer: Any, weight: Tensor) -> Tensor:
    """The weight, or a mask of it, as (outputs, inputs of one group, ...): itself, where it is so."""
    if not inputs_first(layer):
        return weight
    groups = getattr(layer, "groups", 1)
    return weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)


def as_it_is(layer: Any, weight: Tensor) -> Tensor:
    """Back from `outputs_first`."""
    return outputs_first(layer, weight)  # inputs and outputs change places once more


def sums(operation: Operation, grad: Tensor) -> Tensor:
    """The gradient of the bias."""
    return grad.movedim(operation.axis, 0).flatten(1).sum(1)
