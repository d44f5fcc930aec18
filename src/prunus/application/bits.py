"""Zeros written, and values taken over, bit by bit."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from prunus.selection.arrays import CHUNK


def keep_only(values: Tensor, mask: Tensor, out: Tensor) -> None:
    """Into `out`, values where the mask is true, else zero, whatever they were."""
    for source, chosen, place in _bits(values, mask, out):
        torch.bitwise_and(source, chosen, out=place)


def take_over(values: Tensor, others: Tensor, mask: Tensor) -> None:
    """Overwrite values by others where the mask is true."""
    for others_, chosen, place in _bits(others, mask, values):
        change = torch.bitwise_xor(place, others_).bitwise_and_(chosen)
        place.bitwise_xor_(change)


def _bits(values: Tensor, mask: Tensor, out: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Three tensors of one shape as integers, the mask as all ones or none; a chunk at a time.

    On the CPU this is several times as fast as `torch.where`, and as exact.
    """
    if values.is_complex():  # as `.to()` may have made it: two numbers to each boolean
        mask = mask.unsqueeze(-1).expand(*mask.shape, 2)
        values, out = torch.view_as_real(values), torch.view_as_real(out)
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.itemsize]
    place = out.view(whole)
    tensors, size = [place if values is out else values.view(whole), mask.view(torch.int8), place], CHUNK
    if values.numel() <= CHUNK or values.device.type != "cpu":  # where a call costs more than memory
        yield tensors[0], tensors[1].neg(), place
        return
    if all(tensor.is_contiguous() for tensor in tensors):
        tensors = [tensor.view(-1) for tensor in tensors]
    else:
        size = max(1, CHUNK // values[0].numel())
    for source, flags, place in zip(*(torch.split(tensor, size) for tensor in tensors), strict=True):
        yield source, flags.neg(), place
