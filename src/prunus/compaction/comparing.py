"""How far are the outputs of two networks apart, and on which inputs?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map


def random_like(inputs: Any, generator: torch.Generator, scale: float = 1.0, loose: bool = False) -> Any:
    """Random inputs of the same kind; whole numbers from the same range, and flags as they are.

    Args:
        inputs: a tensor, or tensors in containers.
        generator: of random numbers, on the CPU.
        scale: standard deviation of what is no whole number.
        loose: whether whole numbers begin at 0, and flags are random too, which a network may refuse.
    """

    def random(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.numel():
            return leaf
        if leaf.dtype == torch.bool:
            drawn = torch.rand(leaf.shape, generator=generator) < 0.5
            return drawn.to(leaf) if loose else leaf
        if not leaf.is_floating_point():  # such as numbers of words
            low, high = 0 if loose else int(leaf.min()), int(leaf.max())
            low = min(low, high)
            return torch.randint(low, high + 1, leaf.shape, generator=generator).to(leaf)
        return (scale * torch.randn(leaf.shape, generator=generator)).to(leaf)

    return tree_map(random, inputs)


def shorter(inputs: Any) -> list[Any]:
    """The same inputs, one less along all axes that are as long as each other: for each length, not the first
    axes'.
    """
    leaves = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    sizes = dict.fromkeys(size for leaf in leaves for size in leaf.shape[1:] if size > 1)

    def cut(size: int, leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            for axis in range(1, leaf.dim()):
                leaf = leaf.narrow(axis, 0, size - 1) if leaf.shape[axis] == size else leaf
        return leaf

    return [tree_map(partial(cut, size), inputs) for size in sizes]


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
