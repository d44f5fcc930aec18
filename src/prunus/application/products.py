"""The products of a layer whose weights and gradients are pruned: of whole, smaller or sparse matrices."""

from __future__ import annotations

from dataclasses import dataclass
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


def sparse_forward(operation: Linear, x: Tensor, weight: Tensor, bias: Tensor | None, kept: Kept) -> Tensor:
    """W x by a sparse matrix; `operation.forward` is the dense one."""
    index = kept.columns if operation.inputs_first else kept.rows
    made = (index.of(weight) @ x.reshape(-1, x.shape[-1]).T).T.contiguous()  # or what comes next is slow
    made = made if bias is None else made + bias
    return made.reshape(*x.shape[:-1], index.shape[0])


@dataclass(frozen=True)
class Wanted:
    """The gradients that a layer's backward pass asks for.

    Args:
        operation: of the layer.
        grad: dL/dy.
        x: where the weight's gradient is wanted, or the operation reads it.
        weight: all of it.
        of: of x, weight and bias, which are wanted.
        for_input: what counts of the weight for dL/dx.
        for_weight: what counts of dL/dW.
    """

    operation: Operation
    grad: Tensor
    x: Tensor | None
    weight: Tensor
    of: list[bool]
    for_input: Kept | None
    for_weight: Kept | None

    @property
    def _used(self) -> Tensor:
        """The weight of dL/dx."""
        return self.for_input(self.weight) if self.for_input and self.of[0] else self.weight

    def whole(self) -> Gradients:
        """By products as large as those of the dense layer."""
        used, mask = self._used.to(self.grad.dtype), self.for_weight
        to_input, to_weight, to_bias = self.operation.gradients(self.grad, self.x, used, self.of)
        return to_input, mask(to_weight) if mask and to_weight is not None else to_weight, to_bias

    def of_channels(self, kept: Tensor, memory: Reused) -> Gradients:
        """The same but for the bias, of some output channels, in smaller dense products.

        Args:
            kept: indices of the channels, as many of each group; a weight that has its inputs first has
                one group.
            memory: for the gradient of the weight.
        """
        operation, axis = self.operation, 1 if self.operation.inputs_first else 0
        some = self._used.index_select(axis, kept).to(self.grad.dtype)
        some_grad = self.grad.index_select(operation.axis, kept)
        to_input, to_weight, _ = operation.gradients(some_grad, self.x, some, [*self.of[:2], False])
        if to_weight is not None:
            to_weight = _zeros(memory, self.weight, to_weight.dtype).index_copy_(axis, kept, to_weight)
            to_weight = self.for_weight(to_weight) if self.for_weight else to_weight
        return to_input, to_weight, None

    def sparse(self, memory: Reused) -> Gradients:
        """As `whole`, of a linear layer, by sparse matrices where the weight's entries are chosen."""
        operation, grad, x = self.operation, self.grad, self.x
        rows, to_input, to_weight = grad.reshape(-1, grad.shape[-1]), None, None
        if self.of[0] and self.for_input:
            index = self.for_input.rows if operation.inputs_first else self.for_input.columns
            to_input = (index.of(self.weight) @ rows.T).T.contiguous().view(*grad.shape[:-1], index.shape[0])
        if self.of[1] and self.for_weight and x is not None:
            items, index = x.reshape(-1, x.shape[-1]), self.for_weight.rows
            one, other = (items, rows) if operation.inputs_first else (rows, items)
            at = index.matrix(one.new_zeros(len(index.column)))
            found = torch.sparse.sampled_addmm(at, one.T, other, beta=0.0).values()
            to_weight = _zeros(memory, self.weight, found.dtype)
            to_weight.view(-1).index_copy_(0, index.flat, found)
        left = [self.of[0] and to_input is None, self.of[1] and to_weight is None, self.of[2]]
        dense = operation.gradients(grad, x, self.weight, left)
        made = (to_input, dense[0]), (to_weight, dense[1])
        first, second = (found if found is not None else rest for found, rest in made)
        return first, second, dense[2]


def _zeros(memory: Reused, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """As many as a weight has, one after another, for its gradient."""
    plain = weight.detach()
    alike = plain.dtype == dtype and plain.is_contiguous()
    return (memory.like("gradient", plain) if alike else plain.new_empty(plain.shape, dtype=dtype)).zero_()
