"""Booleans made and counted in the memory of NumPy, which is several times as fast as torch on a CPU."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

CHUNK = 1 << 18  # values at a time: few enough for the cache
BLOCK = 1 << 24  # booleans that get their memory at once

Array: TypeAlias = Any  # np.ndarray on the CPU, Tensor elsewhere: compared, indexed and counted alike


class Room:
    """Memory for `total` booleans; on the CPU in blocks, as large pages come far faster than small ones.

    So tensors may share a storage, though no entry of it.
    """

    def __init__(self, total: int) -> None:
        self.total, self.left = total, torch.empty(0, dtype=torch.bool, device="cpu")

    def take(self, count: int, device: torch.device) -> Tensor:
        """The next `count` of them, on this device."""
        if device.type != "cpu":
            return torch.empty(count, dtype=torch.bool, device=device)
        if count > len(self.left):
            self.left = torch.from_numpy(np.empty(max(count, min(BLOCK, self.total)), bool))
        self.total -= count
        taken, self.left = self.left[:count], self.left[count:]
        return taken


def alias(tensor: Tensor) -> Tensor:
    """The same memory on the CPU under a storage of its own, for what may be a user's parameter.

    A storage whose memory NumPy was given can never be resized again, which is how FSDP frees and gathers
    parameters; the one that is spoilt so is then the alias's.
    """
    return from_dlpack(tensor) if tensor.device.type == "cpu" else tensor


def as_array(tensor: Tensor) -> Array:
    """The same memory for NumPy where that can be: it compares and counts several times as fast as torch.

    Of what may be a user's parameter, ask for that of an `alias`.
    """
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def compare(relation: np.ufunc, array: Array, other: Array | float, out: Array) -> Array:
    """The booleans of `array relation other`, in the memory of `out` if that is on the same device."""
    if isinstance(array, np.ndarray):
        return relation(array, other, out=out[: len(array)])
    place = out if isinstance(out, Tensor) else None
    return getattr(torch, relation.__name__)(array, other, out=place)


def count_true(mask: Array) -> int:
    """Number of true entries."""
    return int(mask.count_nonzero() if isinstance(mask, Tensor) else np.count_nonzero(mask))


def where_true(mask: Array) -> Array:
    """Indices of true entries."""
    return mask.nonzero()[:, 0] if isinstance(mask, Tensor) else np.flatnonzero(mask)
