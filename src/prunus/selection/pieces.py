"""What is pruned as one piece?

Every weight tensor is seen as four axes: (convolution groups, first, second, kernel), where
(first, second) is (out, in) of each convolution group, and (in, out) for a transposed
convolution. A granularity says which of these axes vary *within* one piece; the other axes
number the pieces, in the order of the tensor. A Linear layer has one group and a kernel of one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

GROUP, FIRST, SECOND, KERNEL = range(4)


@dataclass(frozen=True)
class Granularity:
    """The axes inside one piece, for a convolution or linear layer and for a transposed one."""

    axes: tuple[int, ...]
    transposed_axes: tuple[int, ...]


GRANULARITIES: dict[str, Granularity] = {
    "weight": Granularity((), ()),
    "kernel": Granularity((KERNEL,), (KERNEL,)),
    "filter": Granularity((SECOND, KERNEL), (FIRST, KERNEL)),
    "channel": Granularity((FIRST, KERNEL), (SECOND, KERNEL)),
}


@dataclass(frozen=True)
class Partition:
    """How one weight tensor falls into pieces: `count` of them, `members` weights each.

    Example:
        >>> partition = Partition.of(nn.Conv2d(3, 8, 5), GRANULARITIES["kernel"])
        >>> partition.count, partition.members, tuple(partition.grid(torch.arange(24)).shape)
        (24, 25, (8, 3, 1))
    """

    shape: torch.Size
    blocks: tuple[int, int, int, int]
    transposed: bool
    inside: tuple[int, ...]

    @classmethod
    def of(cls, layer: nn.Module, granularity: Granularity) -> Partition:
        """The partition of the weight of this layer."""
        weight = layer.get_parameter("weight")
        groups = int(getattr(layer, "groups", 1))
        first, second, *kernel = (*weight.shape, 1, 1)[: max(2, weight.dim())]
        transposed = bool(getattr(layer, "transposed", False))
        return cls(
            shape=weight.shape,
            blocks=(groups, first // groups, second, math.prod(kernel)),
            transposed=transposed,
            inside=granularity.transposed_axes if transposed else granularity.axes,
        )

    @property
    def _sizes(self) -> tuple[int, ...]:
        """The four axes, those inside a piece as 1."""
        return tuple(1 if axis in self.inside else size for axis, size in enumerate(self.blocks))

    @property
    def count(self) -> int:
        """Number of pieces."""
        return math.prod(self._sizes)

    @property
    def members(self) -> int:
        """Number of weights in each piece."""
        return math.prod(self.blocks[axis] for axis in self.inside)

    def table(self, tensor: Tensor) -> Tensor:
        """A tensor of the weight's shape as (count, members), a row a piece; a view where strides allow."""
        outside = tuple(axis for axis in range(4) if axis not in self.inside)
        return tensor.reshape(self.blocks).permute(outside + self.inside).reshape(self.count, self.members)

    def expand(self, pieces: Tensor) -> Tensor:
        """One value a piece, shape (count,), as a new contiguous tensor of the weight's shape."""
        return pieces.reshape(self._sizes).expand(self.blocks).reshape(self.shape).contiguous()

    def grid(self, pieces: Tensor) -> Tensor:
        """One value a piece, shape (count,), as (outputs, inputs, positions of the kernel).

        Each convolution group has outputs of its own. An axis that lies inside a piece is 1 long.
        """
        groups, first, second, kernel = self._sizes
        if self.transposed:
            split = pieces.reshape(groups, first, second, kernel).transpose(1, 2)
            return split.reshape(groups * second, first, kernel)
        return pieces.reshape(groups * first, second, kernel)

    def flat(self, grid: Tensor) -> Tensor:
        """Back from `grid`, in any number of axes, to shape (count,)."""
        if self.transposed:
            groups, first, second, kernel = self._sizes
            return grid.reshape(groups, second, first, kernel).transpose(1, 2).reshape(-1)
        return grid.reshape(-1)


def pool_sum(scores: Tensor) -> Tensor:
    """Sum of each row, shape (pieces,): the L1 norm when the scores are magnitudes."""
    if scores.shape[1] == 1:
        return scores[:, 0]
    # Sums in float64 hardly depend on the order of addition, so every device draws the same line.
    wide = torch.float32 if scores.device.type == "mps" else torch.float64
    return scores.sum(1, dtype=wide).to(torch.promote_types(scores.dtype, torch.float32))


def pool_mean(scores: Tensor) -> Tensor:
    """Mean of each row, shape (pieces,): pieces of different sizes compared fairly."""
    return pool_sum(scores) / max(1, scores.shape[1])


NORMS = {"l1": pool_sum, "mean": pool_mean}
