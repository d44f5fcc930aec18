"""What optimizers remember of weights that fall, or begin anew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def optimizers_of(given: Optimizer | Sequence[Optimizer] | None) -> list[Optimizer]:
    """One, several or none, as a list.

    Raises:
        TypeError: something else.
    """
    if given is None or isinstance(given, Optimizer):
        return [given] if given else []
    if not isinstance(given, Sequence) or not all(isinstance(one, Optimizer) for one in given):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, or several, got {given!r}")
    return list(given)


@torch.no_grad()
def clear(optimizers: Iterable[Optimizer], model: nn.Module, kept: Mapping[str, Tensor]) -> None:
    """Set to zero what optimizers remember of entries that are not kept: momentum, moments, sums of squares.

    Args:
        optimizers: of whose state all tensors of a parameter's shape are meant.
        model: whose parameters they have.
        kept: booleans by parameter name.
    """
    for optimizer in optimizers:
        for name, flags in kept.items():
            parameter = model.get_parameter(name)
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value.masked_fill_(~flags.to(value.device), 0)
