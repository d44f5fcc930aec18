"""Blocks that pruning emptied: a residual branch of zeros, which leaves what came in as it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn


class Skipped(nn.Module):
    """In the place of a block that gives back what it is given."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What is given."""
        return x


@contextmanager
def watching(model: nn.Module) -> Iterator[set[str]]:
    """Within the block, modules with weights of zeros that give something else than they are given fall out.

    What is left of the names are modules that have given back every input.
    """
    found: set[str] = set()
    called: set[str] = set()

    def look(path: str, module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        called.add(path)
        x = args[0] if args else next(iter(kwargs.values()), None)
        same = isinstance(x, Tensor) and isinstance(output, Tensor) and torch.equal(x, output)
        if not same:
            found.discard(path)

    with ExitStack() as stack:
        for path, module in model.named_modules():
            named = module.named_parameters()
            if path and any(_is_off(name, p) for name, p in named) and not _remembers(module):
                found.add(path)
                hook = module.register_forward_hook(partial(look, path), with_kwargs=True)
                stack.callback(hook.remove)
        yield found
    found &= called


def _remembers(module: nn.Module) -> bool:
    """Whether it takes a cache, in which layers have numbers."""
    return any("cache" in name or "past" in name for name in signature(module.forward).parameters)


def _is_off(name: str, parameter: Tensor) -> bool:
    """Whether a weight or a scale is zero; new biases are anyway."""
    return not name.endswith("bias") and bool(parameter.numel()) and not parameter.any()


def outermost(paths: Iterable[str]) -> list[str]:
    """Those that are within none of the others."""
    kept: list[str] = []
    for path in sorted(paths, key=lambda path: path.split(".")):
        if not kept or not path.startswith(f"{kept[-1]}."):
            kept.append(path)
    return kept


def skip(model: nn.Module, paths: Iterable[str]) -> None:
    """Take these blocks out, wherever the network has them.

    Raises:
        ValueError: it has no such block.
    """
    for path in paths:
        try:
            block = model.get_submodule(path)
        except AttributeError as error:
            raise ValueError(f"there is no block {path}") from error
        for parent in list(model.modules()):
            for name, child in list(parent._modules.items()):
                if child is block:
                    parent._modules[name] = Skipped()


def skipped(model: nn.Module) -> list[str]:
    """The names of those that are out."""
    return [path for path, module in model.named_modules() if isinstance(module, Skipped)]
