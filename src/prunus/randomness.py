"""What is drawn from: what `seed=` stands for, and streams that depend on what they are for alone."""

from __future__ import annotations

from numbers import Integral
from typing import TypeAlias

import numpy as np
import torch

Seed: TypeAlias = int | torch.Generator  # what `seed=` is everywhere


def generator_of(seed: Seed | None) -> torch.Generator | None:
    """What to draw from: a generator of this seed, the generator itself, or None for torch's global one.

    Raises:
        ValueError: something else.

    Example:
        >>> generator_of(3).initial_seed(), generator_of(None)
        (3, None)
    """
    if seed is None or isinstance(seed, torch.Generator):
        return seed
    return torch.Generator().manual_seed(number_of(seed))


def number_of(seed: Seed) -> int:
    """The seed as a number, for what numbers its draws or records them; of a generator, one drawn from it.

    Raises:
        ValueError: neither a whole number that torch takes nor a generator.
    """
    if isinstance(seed, torch.Generator):
        return int(torch.randint(2**62, (), generator=seed, device=seed.device))
    if not isinstance(seed, Integral) or isinstance(seed, bool) or not 0 <= seed < 2**64:
        raise ValueError(
            f"seed must be a whole number from 0, below 2**64, or a torch.Generator, got {seed!r}"
        )
    return int(seed)


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
