"""The products of a layer whose weights and gradients are pruned: of whole, smaller or sparse matrices."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from prunus.application.detour import StandIn
from prunus.application.operations import Gradients, Linear, Operation
from prunus.application.reused import Reused


class Kept:
    """Which entries of a weight count.

    Args:
        mask: True = keep.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask, self._version = mask, mask._version

    @cached_property
    def share(self) -> float:
        """How many of all."""
        return float(self.mask.count_nonzero()) / max(self.mask.numel(), 1)

    def is_of(self, mask: Tensor) -> bool:
        """Whether that is this mask, unchanged."""
        memory = mask.data_ptr() == self.mask.data_ptr() and mask.stride() == self.mask.stride()
        return memory and mask.shape == self.mask.shape and mask._version == self._version

    def to(self, device: torch.device) -> Kept:
        """The same there."""
        return self if self.mask.device == device else Kept(self.mask.to(device))

    def __call__(self, weight: Tensor) -> Tensor:
        """The weight, zero where it is not kept."""
        return StandIn(self.mask)(weight)

    @cached_property
    def rows(self) -> Index:
        """Of a matrix as it is."""
        return Index(self.mask, turned=False)

    @cached_property
    def columns(self) -> Index:
        """Of its transpose."""
        return Index(self.mask, turned=True)


class Index:
    """Where the kept entries of a matrix are, for torch's CSR format with indices of int32.

    Args:
        mask: of the matrix.
        turned: whether the sparse matrix is its transpose.
    """

    def __init__(self, mask: Tensor, turned: bool) -> None:
        matrix = mask.T if turned else mask
        self.shape = matrix.shape
        row, column = matrix.nonzero(as_tuple=True)
        self.begins = F.pad(matrix.sum(1).cumsum(0), (1, 0)).int()
        self.column = column.int()
        self.places = (column, row) if turned else (row, column)
        self.flat = self.places[0] * mask.shape[1] + self.places[1]

    def matrix(self, values: Tensor) -> Tensor:
        """A sparse matrix of these values."""
        return torch.sparse_csr_tensor(self.begins, self.column, values, self.shape, check_invariants=False)

    def of(self, weight: Tensor) -> Tensor:
        """What it keeps of a weight as it is."""
        flat = weight.view(-1) if weight.is_contiguous() else weight.reshape(-1)
        return self.matrix(flat.index_select(0, self.flat))


def whole(
    operation: Operation,
    grad: Tensor,
    x: Tensor | None,
    weight: Tensor,
    wanted: list[bool],
    for_input: Kept | None,
    for_weight: Kept | None,
) -> Gradients:
    """All gradients, by products as large as those of the dense layer."""
    used = for_input(weight) if for_input and wanted[0] else weight
    to_input, to_weight, to_bias = operation.gradients(grad, x, used.to(grad.dtype), wanted)
    return to_input, for_weight(to_weight) if for_weight and to_weight is not None else to_weight, to_bias


def of_channels(
    operation: Operation,
    grad: Tensor,
    x: Tensor | None,
    weight: Tensor,
    wanted: list[bool],
    for_input: Kept | None,
    for_weight: Kept | None,
    kept: Tensor,
    memory: Reused,
) -> Gradients:
    """The same but for the bias, of some output channels, in smaller dense products.

    Args:
        kept: indices of the channels, as many of each group; the weight has its outputs first, or one group.
        memory: for the gradient of the weight.
    """
    axis = 1 if operation.inputs_first else 0
    used = for_input(weight) if for_input and wanted[0] else weight
    some = used.index_select(axis, kept).to(grad.dtype)
    some_grad = grad.index_select(operation.axis, kept)
    to_input, to_weight, _ = operation.gradients(some_grad, x, some, [*wanted[:2], False])
    if to_weight is not None:
        to_weight = _zeros(memory, weight, to_weight.dtype).index_copy_(axis, kept, to_weight)
        to_weight = for_weight(to_weight) if for_weight else to_weight
    return to_input, to_weight, None


def sparse_forward(operation: Linear, x: Tensor, weight: Tensor, bias: Tensor | None, kept: Kept) -> Tensor:
    """W x by a sparse matrix; `operation.forward` is the dense one."""
    index = kept.columns if operation.inputs_first else kept.rows
    made = (index.of(weight) @ x.reshape(-1, x.shape[-1]).T).T.contiguous()  # or what comes next is slow
    made = made if bias is None else made + bias
    return made.reshape(*x.shape[:-1], index.shape[0])


def sparse(
    operation: Linear,
    grad: Tensor,
    x: Tensor | None,
    weight: Tensor,
    wanted: list[bool],
    for_input: Kept | None,
    for_weight: Kept | None,
    memory: Reused,
) -> Gradients:
    """As `whole`, of a linear layer, by sparse matrices where the weight's entries are chosen."""
    rows, to_input, to_weight = grad.reshape(-1, grad.shape[-1]), None, None
    if wanted[0] and for_input:
        index = for_input.rows if operation.inputs_first else for_input.columns
        to_input = (index.of(weight) @ rows.T).T.contiguous().view(*grad.shape[:-1], index.shape[0])
    if wanted[1] and for_weight and x is not None:
        items, index = x.reshape(-1, x.shape[-1]), for_weight.rows
        left, right = (items, rows) if operation.inputs_first else (rows, items)
        at = index.matrix(left.new_zeros(len(index.column)))
        found = torch.sparse.sampled_addmm(at, left.T, right, beta=0.0).values()
        to_weight = _zeros(memory, weight, found.dtype)
        to_weight.view(-1).index_copy_(0, index.flat, found)
    rest = [wanted[0] and to_input is None, wanted[1] and to_weight is None, wanted[2]]
    dense = operation.gradients(grad, x, weight, rest)
    return to_input if dense[0] is None else dense[0], to_weight if dense[1] is None else dense[1], dense[2]


def _zeros(memory: Reused, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """As many as a weight has, one after another, for its gradient."""
    plain = weight.detach()
    alike = plain.dtype == dtype and plain.is_contiguous()
    return (memory.like("gradient", plain) if alike else plain.new_empty(plain.shape, dtype=dtype)).zero_()
