"""Networks in eval mode, and run as they are written, for a while."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Within the block every module is in eval mode; after it, each in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def as_written() -> Iterator[None]:
    """Within the block modules run one by one: no encoder in one operation, nothing that was compiled."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def requiring_grad(parameters: Iterable[nn.Parameter], wanted: bool) -> Iterator[None]:
    """Within the block these parameters require a gradient, or none; after it, those that did."""
    others = [parameter for parameter in parameters if parameter.requires_grad != wanted]
    try:
        for parameter in others:
            parameter.requires_grad_(wanted)
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(not wanted)
