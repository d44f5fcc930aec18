"""By which steps is trained? A function from parameters, learning rate and weight decay to an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

MakeOptimizer = Callable[[Iterable[Tensor], float | None, float], Optimizer]


def sgd(parameters: Iterable[Tensor], lr: float | None, weight_decay: float) -> Optimizer:
    """With Nesterov's momentum of 0.9."""
    return SGD(parameters, lr or 0.1, momentum=0.9, nesterov=True, weight_decay=weight_decay)


def adam(parameters: Iterable[Tensor], lr: float | None, weight_decay: float) -> Optimizer:
    """As Kingma, Ba 2015."""
    return Adam(parameters, lr or 0.001, weight_decay=weight_decay)


def adamw(parameters: Iterable[Tensor], lr: float | None, weight_decay: float) -> Optimizer:
    """As Loshchilov, Hutter 2019."""
    return AdamW(parameters, lr or 0.001, weight_decay=weight_decay)


OPTIMIZERS: dict[str, MakeOptimizer] = {function.__name__: function for function in (sgd, adam, adamw)}
