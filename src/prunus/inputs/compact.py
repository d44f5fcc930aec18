"""A network that was cut, from its file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, overload

from torch import nn

from prunus.checks import knows_keywords
from prunus.compaction.checkpoints import load_cut
from prunus.inputs.networks import load_network

ModelT = TypeVar("ModelT", bound=nn.Module)


@overload
def load_compact(build: Callable[[], ModelT], path: str | os.PathLike[str]) -> ModelT: ...
@overload
def load_compact(build: str, path: str | os.PathLike[str]) -> nn.Module: ...
@knows_keywords()
def load_compact(build: Callable[[], nn.Module] | str, path: str | os.PathLike[str]) -> nn.Module:
    """A network as it was cut, with nothing unpickled.

    Args:
        build: gives the whole network, as `lambda: torchvision.models.resnet18()` does; or its name, as
            `--arch` takes it: "resnet18", "timm:NAME", "FILE.py:callable".
        path: of a file that `save_compact` wrote.

    Returns:
        The whole network, cut to the shapes of the file, with its weights in their dtypes.

    Raises:
        TypeError: `build` gives no module.
        ValueError: another file, or one of another network; no such name.

    Example:
        >>> import prunus, tempfile, torch
        >>> build = lambda: nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3))
        >>> net, x = build(), torch.randn(1, 3, 8, 8)
        >>> pruning = prunus.prune(net, 0.5, granularity="filter", coupled=True, example_inputs=x)
        >>> small = prunus.compact(net, x).model
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     prunus.save_compact(small, f"{folder}/small.safetensors")
        ...     again = prunus.load_compact(build, f"{folder}/small.safetensors")
        >>> torch.equal(again(x), small(x)), again[0]
        (True, Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1)))
    """
    if not isinstance(build, str):
        return load_cut(build, Path(path))
    return load_cut(lambda: load_network(build, "none").model, Path(path))
