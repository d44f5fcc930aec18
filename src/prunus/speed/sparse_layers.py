"""Layers whose weight is a sparse matrix, for inference on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.speed.products import Convolution


class _SparseLayer(nn.Module):
    """What both have: a CSR matrix of (outputs, inputs).

    Args:
        weight: dense, (outputs, inputs, ...).
        bias: (outputs,), or None.
        convolution: that of `products` which is used.
    """

    rows: Tensor
    columns: Tensor
    values: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, convolution: Convolution) -> None:
        super().__init__()
        matrix = weight.detach().flatten(1)
        held = matrix != 0
        self.convolution = convolution
        self.shape = weight.shape
        self.register_buffer("rows", F.pad(held.sum(1).cumsum(0), (1, 0)).int())
        self.register_buffer("columns", held.nonzero()[:, 1].int())
        self.register_buffer("values", matrix[held])
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.eval()

    def _convolved(
        self,
        x: Tensor,
        kernel: Sequence[int] = (1, 1),
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int] = (0, 0, 0, 0),
        dilation: Sequence[int] = (1, 1),
    ) -> Tensor:
        matrix = (self.rows, self.columns, self.values, self.bias)
        return self.convolution(x, *matrix, kernel, stride, padding, dilation)

    @property
    def weight(self) -> Tensor:
        """Dense, made anew, for a forward that reads it."""
        outputs = torch.arange(self.shape[0])
        of = torch.repeat_interleave(outputs, self.rows.diff(), output_size=len(self.values))
        made = self.values.new_zeros(self.shape).flatten(1)
        return made.index_put((of, self.columns.long()), self.values).view(self.shape)

    def extra_repr(self) -> str:
        return f"{'x'.join(map(str, self.shape))}, {len(self.values):,} of {self.shape.numel():,} weights"


class SparseLinear(_SparseLayer):
    """A linear layer whose weight is sparse.

    Args:
        weight: (out_features, in_features).
        bias: (out_features,), or None.
        convolution: of `products`.

    Example:
        >>> from prunus.speed.products import csr_conv2d
        >>> dense = nn.Linear(3, 2)
        >>> x = torch.randn(4, 5, 3)
        >>> torch.allclose(SparseLinear(dense.weight, dense.bias, csr_conv2d)(x), dense(x), atol=1e-6)
        True
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, convolution: Convolution) -> None:
        super().__init__(weight, bias, convolution)
        self.out_features, self.in_features = weight.shape

    def forward(self, x: Tensor) -> Tensor:
        """Of (..., in_features), (..., out_features)."""
        if x.shape[-1] != self.shape[1]:
            raise ValueError(f"expected {self.shape[1]} features, got an input of {tuple(x.shape)}")
        columns = x.reshape(-1, x.shape[-1]).T.contiguous()  # a pixel for each vector
        made = self._convolved(columns[None, :, None])[0, :, 0]
        return made.T.reshape(*x.shape[:-1], self.shape[0])


class SparseConv1D(SparseLinear):
    """The same for transformers' Conv1D, whose weight is (in_features, out_features)."""

    def __init__(self, weight: Tensor, bias: Tensor | None, convolution: Convolution) -> None:
        super().__init__(weight.T, bias, convolution)
        self.nx, self.nf = weight.shape

    @property
    def weight(self) -> Tensor:
        """Dense, made anew, for a forward that reads it."""
        return super().weight.T


class SparseConv2d(_SparseLayer):
    """A convolution whose weight is sparse.

    Args:
        layer: with one group, padded by zeros.
        convolution: of `products`.

    Example:
        >>> from prunus.speed.products import csr_conv2d
        >>> dense = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        >>> x = torch.randn(2, 3, 9, 9)
        >>> torch.allclose(SparseConv2d(dense, csr_conv2d)(x), dense(x), atol=1e-6)
        True
    """

    def __init__(self, layer: nn.Conv2d, convolution: Convolution) -> None:
        super().__init__(layer.weight, layer.bias, convolution)
        self.in_channels, self.out_channels, self.groups = layer.in_channels, layer.out_channels, layer.groups
        self.kernel_size, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        self.padding, self.padding_mode = layer.padding, layer.padding_mode
        self.reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        self.sides = _padding(layer.padding, self.reach)

    def forward(self, x: Tensor) -> Tensor:
        """Of (N, in_channels, H, W), (N, out_channels, H', W'); both may be without N.

        Raises:
            ValueError: another number of channels, or an image smaller than the kernel.
        """
        if x.dim() == 3:
            return self.forward(x[None])[0]
        top, bottom, left, right = self.sides
        fits = x.shape[2] + top + bottom > self.reach[0] and x.shape[3] + left + right > self.reach[1]
        if x.shape[1] != self.shape[1] or not fits:
            wanted = f"{self.shape[1]} channels, no smaller than the kernel"
            raise ValueError(f"expected images of {wanted}, got {tuple(x.shape)}")
        return self._convolved(x, self.kernel_size, self.stride, self.sides, self.dilation)


def _padding(padding: str | tuple[int, ...], reach: Sequence[int]) -> tuple[int, ...]:
    """Above, below, left and right."""
    if padding == "same":
        return tuple(part for r in reach for part in (r // 2, r - r // 2))
    return (0, 0, 0, 0) if isinstance(padding, str) else tuple(pad for pad in padding for _ in range(2))
