"""Seconds side by side, and memory in a process of its own."""

from __future__ import annotations

import gc
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

import prunus

Call = Callable[[], object]


@dataclass(frozen=True)
class Task:
    """What is timed, and what is done after it, untimed."""

    run: Call
    tidy: Call = lambda: None


def by_turns(tasks: Mapping[str, Task], rounds: int, ours: str = "prunus") -> dict[str, dict[str, float]]:
    """Median seconds of each task, and medians over all turns of what `ours` took over what others took.

    The tasks take turns, so that what else the machine does meets all alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(rounds + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            result = task.run()
            elapsed = time.perf_counter() - start
            if turn:  # the first is for warming up
                seconds[name].append(elapsed)
            del result
            task.tidy()
    ratios = {
        name: statistics.median(mine / theirs for mine, theirs in zip(seconds[ours], times, strict=True))
        for name, times in seconds.items()
        if name != ours
    }
    return {
        "seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "times_the": ratios,
    }


def extra_memory(task: Call) -> tuple[int, object]:
    """Bytes by which the process grew at most while the task ran, and its result. Linux only."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    result = task()
    return _status("VmHWM") - before, result


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def in_fresh_process(function: Callable[..., Any], *args: object) -> Any:
    """The result of a function of some module, from a process that has done nothing else."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def machine() -> dict[str, object]:
    """What the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "prunus": prunus.__version__,
    }
