"""How far are the outputs of two networks apart, and on which inputs?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


def random_like(inputs: Any, generator: torch.Generator, scale: float = 1.0) -> Any:
    """Random inputs of the same kind; whole numbers from the same range, and flags as they are.

    Args:
        inputs: a tensor, or tensors in containers.
        generator: of random numbers, on the CPU.
        scale: standard deviation of what is no whole number.
    """

    def random(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.numel() or leaf.dtype == torch.bool:
            return leaf
        if not leaf.is_floating_point():  # such as numbers of words
            low, high = int(leaf.min()), int(leaf.max())
            return torch.randint(low, high + 1, leaf.shape, generator=generator).to(leaf)
        return (scale * torch.randn(leaf.shape, generator=generator)).to(leaf)

    return tree_map(random, inputs)


def apart(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The largest difference of two networks' outputs, each as a part of the largest entry of its tensor.

    Infinite where numbers or shapes of tensors differ, or whole numbers do. What is infinite, or no number,
    in both alike is the same.

    Example:
        >>> apart([torch.tensor([1.0, -4.0])], [torch.tensor([1.0, -3.0])])
        0.25
    """
    if [one.shape for one in wanted] != [other.shape for other in found]:
        return float("inf")
    return max((_apart(one, other) for one, other in zip(wanted, found, strict=True)), default=0.0)


def _apart(one: Tensor, other: Tensor) -> float:
    exact = not (one.is_floating_point() or one.is_complex())
    wide = torch.complex128 if one.is_complex() else torch.float64
    one, other = one.cpu().to(wide), other.cpu().to(wide)
    off = (one - other).abs()[~((one == other) | ((one != one) & (other != other)))]
    if not off.numel():
        return 0.0
    largest = float(one.abs().nan_to_num(0, 0, 0).max())
    part = float(off.max()) / max(largest, 1e-12)
    return float("inf") if exact or part != part else part
