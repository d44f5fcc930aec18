"""Memory that is taken again, once nobody else holds it: the system gives fresh pages slowly.

A network's masked weights are as large as the network, and each step makes them anew.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

import torch
from torch import Tensor

from prunus.application.calls import observed


class Reused:
    """A tensor for each name, in memory that is given out again when no tensor or graph has it any more.

    That is what the storage's own count says. Where torch has no such count, while a call is traced or
    transformed, and on other devices than the CPU, whose allocators keep what is freed, all memory is fresh.
    A copy of this holds nothing.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}
        self._lock = Lock()  # of two threads one takes it

    def __reduce__(self) -> tuple[Callable[[], Reused], tuple[()]]:
        return Reused, ()

    def like(self, name: str, tensor: Tensor) -> Tensor:
        """One of this tensor's shape, strides, dtype and device, with any values."""
        if tensor.device.type != "cpu" or observed():
            return torch.empty_like(tensor)
        with self._lock, torch.inference_mode(False):
            kept = self._kept.get(name)
            if kept is None or not _alike(kept, tensor) or not _alone(kept):
                kept = self._kept[name] = torch.empty_like(tensor)
            return kept.detach()  # what is kept is itself given to nobody


def _alike(kept: Tensor, tensor: Tensor) -> bool:
    return (kept.shape, kept.stride(), kept.dtype) == (tensor.shape, tensor.stride(), tensor.dtype)


def _alone(tensor: Tensor) -> bool:
    """Whether no other tensor has its storage, as far as that can be known."""
    address, uses = getattr(torch._C, "_storage_address", None), getattr(torch._C, "_storage_Use_Count", None)
    return bool(address and uses and uses(address(tensor)) == 1)
