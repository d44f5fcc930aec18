"""What is added to gradients right before an optimizer's step, once, whoever makes the step."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook


class Penalized(Protocol):
    """A layer whose weight's gradient has a penalty to get."""

    layer: Any

    def penalize(self, scale: float | Tensor) -> None:
        """Add the penalty to the gradient that the weight has got, times this."""


# Those through which gradients came since the last step, so that copies of layers, too, are known. torch
# calls the hooks of every optimizer in one place, and so there is one hook.
_due: weakref.WeakSet[Penalized] = weakref.WeakSet()


def due(layer: Penalized) -> None:
    """The next step that moves this layer's weight adds its penalty before."""
    _due.add(layer)


def _penalize(optimizer: Optimizer) -> None:
    moved = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    now = [one for one in list(_due) if id(one.layer.weight) in moved]
    _due.difference_update(now)
    # Where an optimizer is to undo the scaling of gradients itself, as fused ones do, it says by how much
    scale = getattr(optimizer, "grad_scale", None)
    for weight, one in {one.layer.weight: one for one in now}.items():  # tied ones once
        if weight.grad is not None:
            one.penalize(1.0 if scale is None else scale)


@torch._disable_dynamo  # type: ignore[attr-defined]  # as the optimizer's own methods that are not for graphs
def _before_step(
    optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Add what is due, now or where a closure has found the gradients."""
    itself, *given = args
    if given and given[0] is not None:
        return (itself, _then_penalized(given[0], optimizer), *given[1:]), kwargs
    if kwargs.get("closure") is not None:
        return args, {**kwargs, "closure": _then_penalized(kwargs["closure"], optimizer)}
    _penalize(optimizer)
    return None


def _then_penalized(closure: Callable[[], Any], optimizer: Optimizer) -> Callable[[], Any]:
    def found() -> Any:
        loss = closure()
        _penalize(optimizer)
        return loss

    return found


register_optimizer_step_pre_hook(_before_step)
