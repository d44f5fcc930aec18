"""Prunus prunes the weights of PyTorch networks and measures what that costs.

Every public name stands in `prunus.api`, which is loaded, and torch with it, when the first of them is used:
`prunus --help` answers at once.

>>> import prunus, torch
>>> net = prunus.global_prune(torch.nn.Conv2d(3, 16, 3), p_prune=0.5)
>>> int((net.weight == 0).sum())
216
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prunus.api import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name.startswith("__") and name != "__all__":  # what Python asks of every package
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    api = import_module("prunus.api")
    if name == "__all__" or name in api.__all__:
        return getattr(api, name)
    if name in globals():  # a subpackage, which has come with it
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *import_module("prunus.api").__all__])
