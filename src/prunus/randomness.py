"""What is drawn from: what `seed=` stands for, and streams that depend on what they are for alone."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch

from prunus.checks import check_seed

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
    return torch.Generator().manual_seed(check_seed(seed))


def number_of(seed: Seed) -> int:
    """The seed as a number, for what numbers its draws or records them; of a generator, one drawn from it.

    Raises:
        ValueError: neither a whole number nor a generator.
    """
    if isinstance(seed, torch.Generator):
        return int(torch.randint(2**62, (), generator=seed, device=seed.device))
    return check_seed(seed)


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
