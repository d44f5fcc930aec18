"""What optimizers remember of weights that fall, or begin anew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer


def optimizers_of(given: Optimizer | Sequence[Optimizer] | None) -> list[Optimizer]:
    """One, several or none, as a list.

    Raises:
        TypeError: something else.
        ValueError: one whose state cannot be cleared.
    """
    given = [] if given is None else [given] if isinstance(given, Optimizer) else given
    if not isinstance(given, Sequence) or not all(isinstance(one, Optimizer) for one in given):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, or several, got {given!r}")
    flat = next((one for one in given if isinstance(one, LBFGS)), None)
    if flat:
        raise ValueError("LBFGS remembers all weights in one vector, of which what falls cannot be cleared")
    return list(given)


@torch.no_grad()
def clear(optimizers: Iterable[Optimizer], model: nn.Module, kept: Mapping[str, Tensor]) -> None:
    """Set to zero what optimizers remember of entries that are not kept: momentum, moments, sums of squares.

    So is their gradient, which may be there for a step to come.

    Args:
        optimizers: of whose state all tensors of a parameter's shape are meant.
        model: whose parameters they have.
        kept: booleans by parameter name.
    """
    for name, flags in kept.items():
        parameter = model.get_parameter(name)
        if parameter.grad is not None:
            parameter.grad = _cleared(parameter.grad, flags)
        for optimizer in optimizers:
            state = optimizer.state.get(parameter, {})
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    state[key] = _cleared(value, flags)


def _cleared(values: Tensor, flags: Tensor) -> Tensor:
    """Zero where the flags are not; in place, where the layout allows."""
    gone = ~flags.to(values.device)
    if values.layout is not torch.strided:  # as of an embedding
        return values.to_dense().masked_fill(gone, 0).to_sparse(values.sparse_dim())
    return values.masked_fill_(gone, 0)
