"""What is pruned as one piece?

Every weight tensor is seen as four axes: (convolution groups, first, second, kernel), where
(first, second) is (out, in) of each convolution group, and (in, out) for a transposed
convolution, an embedding and the Conv1D of transformers. A tile cuts the first two: (groups, first tiles,
first in a tile, second tiles, second in a tile, kernel). A granularity says which of these six vary *within*
one piece; the others number the pieces, in the order of the tensor. A linear layer has one group and a kernel
of one. To add a granularity, add it to the table.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.checks import Named
from prunus.weights import inputs_first

GROUP, FIRST, IN_FIRST, SECOND, IN_SECOND, KERNEL = range(6)


@dataclass(frozen=True)
class Granularity:
    """The axes inside one piece, for a convolution or linear layer and for a transposed one.

    Args:
        axes, transposed_axes: as above.
        tile: (outputs, inputs) of a block.
        scope: where the budget of such pieces holds, unless told otherwise; None is where the criterion says.
    """

    axes: tuple[int, ...]
    transposed_axes: tuple[int, ...]
    tile: tuple[int, int] = (1, 1)
    scope: str | None = None


GRANULARITIES: Named[Granularity] = Named(
    weight=Granularity((), ()),
    kernel=Granularity((KERNEL,), (KERNEL,)),
    filter=Granularity((SECOND, KERNEL), (FIRST, KERNEL), scope="layer"),
    channel=Granularity((FIRST, KERNEL), (SECOND, KERNEL), scope="layer"),
)


def blocks(outputs: int, inputs: int) -> Granularity:
    """Blocks of so many outputs and inputs, at all positions of the kernel.

    Raises:
        ValueError: one of the two is 0.
    """
    if not outputs or not inputs:
        raise ValueError(f"granularity='{outputs}x{inputs}' is a block of nothing")
    axes = (IN_FIRST, IN_SECOND, KERNEL)
    return Granularity(axes, axes, tile=(outputs, inputs))


GRANULARITIES.forms["RxC"] = re.compile(r"(\d+)x(\d+)"), blocks


class Part(Protocol):
    """What falls into pieces: a tensor, or a bundle of several."""

    @property
    def count(self) -> int:
        """Number of pieces."""

    @property
    def members(self) -> int:
        """Number of weights in each."""

    @property
    def size(self) -> int:
        """Number of entries of parameters that fall with all pieces."""

    @property
    def shape(self) -> Sequence[int]:
        """Sides: outputs, inputs, kernel."""

    def tables(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors of its weights' shapes as (count, members), a row a piece."""

    def sizes(self) -> Tensor | None:
        """How many weights each piece holds, shape (count,); None where that is `members` for all."""

    def grid(self, pieces: Tensor) -> Tensor:
        """One value a piece, shape (count,), as (outputs, inputs, positions of the kernel)."""

    def flat(self, grid: Tensor) -> Tensor:
        """Back from `grid`, in any number of axes, to shape (count,)."""


@dataclass(frozen=True)
class Partition:
    """How one weight tensor falls into pieces: `count` of them, up to `members` weights each.

    Example:
        >>> partition = Partition.of(nn.Conv2d(3, 8, 5), GRANULARITIES["kernel"])
        >>> partition.count, partition.members, tuple(partition.grid(torch.arange(24)).shape)
        (24, 25, (8, 3, 1))
    """

    shape: torch.Size
    axes: tuple[int, int, int, int]
    transposed: bool
    inside: tuple[int, ...]
    tile: tuple[int, int] = (1, 1)

    @classmethod
    def of(cls, layer: nn.Module, granularity: Granularity, attribute: str = "weight") -> Partition:
        """The partition of a parameter of this layer."""
        weight = layer.get_parameter(attribute)
        groups, shape = int(getattr(layer, "groups", 1)), tuple(weight.shape)
        if len(shape) == 3 and attribute != "weight":  # a matrix of each expert
            groups, shape = shape[0], (shape[0] * shape[1], shape[2])
        first, second, *kernel = (*shape, 1, 1)[: max(2, len(shape))]
        groups = groups if first % groups == 0 and len(shape) > 1 else 1
        transposed = inputs_first(layer) and len(shape) > 1
        outputs, inputs = granularity.tile
        return cls(
            shape=weight.shape,
            axes=(groups, first // groups, second, math.prod(kernel)),
            transposed=transposed,
            inside=granularity.transposed_axes if transposed else granularity.axes,
            tile=(inputs, outputs) if transposed else (outputs, inputs),
        )

    @property
    def _blocks(self) -> tuple[int, ...]:
        """All six axes; tiles at the edges as large as the others."""
        groups, first, second, kernel = self.axes
        down, across = self.tile
        return groups, -(-first // down), down, -(-second // across), across, kernel

    @property
    def _sizes(self) -> tuple[int, ...]:
        """The same, those inside a piece as 1."""
        return tuple(1 if axis in self.inside else size for axis, size in enumerate(self._blocks))

    @property
    def count(self) -> int:
        """Number of pieces."""
        return math.prod(self._sizes)

    @property
    def members(self) -> int:
        """Number of weights in each piece; of those at ragged edges, as if they were whole."""
        return math.prod(self._blocks[axis] for axis in self.inside)

    @property
    def ragged(self) -> bool:
        """Whether blocks at the edges hold fewer weights than the others."""
        return any(size % side for size, side in zip(self.axes[1:3], self.tile, strict=True))

    @property
    def inputs_axis(self) -> int:
        """The axis of the tensor along which its inputs lie."""
        stack = len(self.shape) == 3 and self.axes[0] * self.axes[1] != self.shape[0]
        return 0 if self.transposed else 2 if stack else 1

    @property
    def size(self) -> int:
        """Number of weights of all pieces."""
        return self.shape.numel()

    def table(self, tensor: Tensor) -> Tensor:
        """A tensor of the weight's shape as (count, members), a row a piece; a view where that can be.

        What a piece at a ragged edge lacks is zero.
        """
        outside = tuple(axis for axis in range(6) if axis not in self.inside)
        whole = tensor.reshape(self.axes)
        if self.ragged:
            down, across = (-size % side for size, side in zip(self.axes[1:3], self.tile, strict=True))
            whole = F.pad(whole, (0, 0, 0, across, 0, down))
        return whole.reshape(self._blocks).permute(outside + self.inside).reshape(self.count, self.members)

    def tables(self, tensors: Sequence[Tensor]) -> Tensor:
        """The same of the one tensor there is."""
        [tensor] = tensors
        return self.table(tensor)

    def sizes(self) -> Tensor | None:
        """How many weights each piece holds, shape (count,); None where that is `members` for all."""
        return self.table(torch.ones(self.shape)).sum(1) if self.ragged else None

    def expand(self, pieces: Tensor) -> Tensor:
        """One value a piece, shape (count,), as a new contiguous tensor of the weight's shape."""
        groups, first, second, kernel = self.axes
        whole = pieces.reshape(self._sizes).expand(self._blocks)
        if self.ragged:
            padded = whole.reshape(groups, -1, math.prod(self._blocks[SECOND : IN_SECOND + 1]), kernel)
            whole = padded[:, :first, :second]
        return whole.reshape(self.shape).contiguous()

    def whole(self) -> Partition:
        """That of the same tensor into single weights."""
        return replace(self, inside=(), tile=(1, 1))

    def grid(self, pieces: Tensor) -> Tensor:
        """One value a piece, shape (count,), as (outputs, inputs, positions of the kernel).

        Each convolution group has outputs of its own. An axis that lies inside a piece is 1 long.
        """
        groups, first, second, kernel = self._grid
        if self.transposed:
            split = pieces.reshape(groups, first, second, kernel).transpose(1, 2)
            return split.reshape(groups * second, first, kernel)
        return pieces.reshape(groups * first, second, kernel)

    def flat(self, grid: Tensor) -> Tensor:
        """Back from `grid`, in any number of axes, to shape (count,)."""
        if self.transposed:
            groups, first, second, kernel = self._grid
            return grid.reshape(groups, second, first, kernel).transpose(1, 2).reshape(-1)
        return grid.reshape(-1)

    @property
    def _grid(self) -> tuple[int, int, int, int]:
        """The pieces along (groups, first, second, kernel)."""
        groups, first, in_first, second, in_second, kernel = self._sizes
        return groups, first * in_first, second * in_second, kernel


def pool_sum(scores: Tensor, sizes: Tensor | None = None) -> Tensor:
    """Sum of each row, shape (pieces,): the L1 norm when the scores are magnitudes."""
    if scores.shape[1] == 1:
        return scores[:, 0]
    # Sums in float64 hardly depend on the order of addition, so every device draws the same line.
    wide = torch.float32 if scores.device.type == "mps" else torch.float64
    return scores.sum(1, dtype=wide).to(torch.promote_types(scores.dtype, torch.float32))


def pool_mean(scores: Tensor, sizes: Tensor | None = None) -> Tensor:
    """Mean of each row, shape (pieces,), of so many values: pieces of different sizes compared fairly."""
    if sizes is None or scores.shape[1] == 1:
        return pool_sum(scores) / max(1, scores.shape[1])
    return pool_sum(scores) / sizes.to(scores.device)


NORMS = {"l1": pool_sum, "mean": pool_mean}
