"""The lowest fraction of every row of a table, all rows at once."""

from __future__ import annotations

import torch
from torch import Tensor


def keep_rows(scores: Tensor, p_prune: float) -> Tensor:
    """False for the lowest `int(p_prune · N)` of the N scores in each row, ties by position.

    Example:
        >>> keep_rows(torch.tensor([[3.0, 1.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]]), 0.25).int()
        tensor([[1, 0, 1, 1],
                [0, 1, 1, 1]], dtype=torch.int32)
    """
    count = int(p_prune * scores.shape[1])
    if not count:
        return torch.ones_like(scores, dtype=torch.bool)
    line = scores.kthvalue(count, dim=1, keepdim=True).values
    kept, at = scores > line, scores == line
    ties = count - (~kept & ~at).sum(1, keepdim=True)
    if (at.sum(1, keepdim=True) > ties).any():
        kept |= at & (at.cumsum(1) > ties)
    return kept
