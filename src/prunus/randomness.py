"""Random numbers that depend on what they are for, and on nothing that was drawn before."""

from __future__ import annotations

import numpy as np
import torch


def mixed(*numbers: int) -> int:
    """A seed made of several numbers, such that others make another.

    Example:
        >>> mixed(0, 1) == mixed(0, 1), mixed(0, 1) == mixed(1, 0)
        (True, False)
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def stream(*numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for these numbers (but for zeros at the end)."""
    return torch.Generator(device).manual_seed(mixed(*numbers))
