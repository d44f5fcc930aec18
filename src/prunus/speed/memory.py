"""How much more memory does a call take while it runs?"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")


def extra_memory(task: Callable[[], T], device: torch.device) -> tuple[int | None, T]:
    """Bytes by which memory grew at most while the task ran, and its result.

    Args:
        task: what is run.
        device: whose memory. On CUDA that is what torch has taken; elsewhere it is that of this process,
            which only Linux tells: None where it is not told.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = task()
        return torch.cuda.max_memory_allocated(device) - before, result
    try:
        _give_back()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _status("VmRSS")
    except OSError:
        return None, task()
    result = task()
    return max(0, _status("VmHWM") - before), result


def _give_back() -> None:
    """What was freed goes back to the system, or the next call would take it without growth."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # of glibc
        trim(0)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))
