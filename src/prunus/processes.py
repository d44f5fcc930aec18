"""Work divided among the processes of one `torchrun`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def several() -> bool:
    """Whether processes of `torch.distributed` have met."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def number() -> int:
    """Of this process among those that have met; 0 where none have."""
    return dist.get_rank() if several() else 0


def of_first(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Boolean tensors as the first process of `torch.distributed` has them; all must come here, or none.

    The same tensors, where no group of processes has been made.
    """
    if not several():
        yield from tensors
        return
    for name, tensor in tensors:
        sent = tensor.cuda() if dist.get_backend() == "nccl" else tensor.clone()
        dist.broadcast(sent.view(torch.uint8), 0)
        yield name, sent.to(tensor.device)


@dataclass(frozen=True)
class Process:
    """One process of several, or the only one.

    Args:
        number: from 0.
        count: how many there are.
        local: its number on this machine.
    """

    number: int = 0
    count: int = 1
    local: int = 0

    @classmethod
    def here(cls, backend: str | None = "gloo") -> Process:
        """As torchrun says in the environment; processes that it started meet here.

        Args:
            backend: of torch.distributed; None is its own choice for every kind of device.
        """
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group(backend, timeout=timedelta(days=30))  # the last may take long
        return cls(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_RANK"]))

    def mine(self, work: Sequence[T]) -> Sequence[T]:
        """The count-th part of the work.

        Example:
            >>> Process(1, 3).mine("abcdefg")
            'be'
        """
        return work[self.number :: self.count]

    def device(self, device: torch.device) -> torch.device:
        """The GPU of this process, where several have one each."""
        several = self.count > 1 and device.type == "cuda" and device.index in (None, 0)
        return torch.device("cuda", self.local % torch.cuda.device_count()) if several else device

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.count > 1:
            dist.barrier()
