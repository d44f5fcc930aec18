"""Which candidates fall?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from prunus.checks import check_fraction, knows_keywords
from prunus.masks import Masks, emptied, warn_of_emptied
from prunus.randomness import Seed, generator_of
from prunus.selection.arrays import CHUNK, Room, as_array, compare
from prunus.selection.pieces import Part, Partition


class Layout(Protocol):
    """What falls into pieces, by name, and what becomes of tensors where some of its pieces fall."""

    @property
    def parts(self) -> Mapping[str, Part]: ...  # noqa: D102

    @property
    def names(self) -> Sequence[str]: ...  # noqa: D102

    def weights_of(self, name: str) -> Sequence[str]:
        """The weights whose parts make these pieces."""

    def masks(self, survivors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """From what survives of all parts, in their order, one boolean a piece: masks by parameter name."""


@dataclass(frozen=True)
class Separate:
    """The layout of tensors each of which falls into pieces of its own.

    Args:
        parts: by weight name, how its tensor falls into pieces.
        devices: by weight name, where its mask is wanted.
    """

    parts: Mapping[str, Partition]
    devices: Mapping[str, torch.device]

    @property
    def names(self) -> Sequence[str]:
        """Of the weights that have masks."""
        return list(self.parts)

    def weights_of(self, name: str) -> Sequence[str]:
        """That one."""
        return [name]

    def masks(self, survivors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """A mask of the weight's shape for each, one after another."""
        return ((name, self.parts[name].expand(flags.to(self.devices[name]))) for name, flags in survivors)


@dataclass(frozen=True)
class Candidates:
    """The lowest-scored pieces of a network: what a draw may prune.

    Args:
        kept: by name, one boolean a piece, False = candidate.
        layout: how the pieces lie in tensors.
    """

    kept: Mapping[str, Tensor]
    layout: Layout

    @knows_keywords()
    def draw(self, p_bern: float = 1.0, seed: Seed | None = None) -> Masks:
        """Prune every candidate with chance `p_bern`, independently; no random number is used at 0 or 1.

        Raises:
            TypeError: `p_bern` is not a number.
            ValueError: `p_bern` is outside [0, 1].
        """
        p_bern = check_fraction("p_bern", p_bern)
        fallen = fall(self.kept.items(), self.layout, p_bern, generator_of(seed))
        return Masks(dict(self.layout.masks(fallen)))

    def warn_of_emptied(self, masks: Masks) -> None:
        """Say, once a call and not at every draw, which tensors keep nothing, unless all was asked for."""
        if any(flags.any() for flags in self.kept.values()):
            warn_of_emptied(emptied(masks.items()), len(masks))


def fall(
    kept: Iterable[tuple[str, Tensor]],
    layout: Layout,
    p_bern: float,
    generator: torch.Generator | None,
) -> Iterator[tuple[str, Tensor]]:
    """One draw over candidates as they come: which pieces survive it."""
    room = Room(sum(part.count for part in layout.parts.values()))
    for name, pieces in kept:
        survivors = pieces if p_bern == 1 else room.take(len(pieces), pieces.device)
        if p_bern < 1:
            for some, place in zip(torch.split(pieces, CHUNK), torch.split(survivors, CHUNK), strict=True):
                fallen = bernoulli(len(some), p_bern, generator).to(pieces.device)
                # Kept, or else not fallen
                compare(np.greater_equal, as_array(some), as_array(fallen), as_array(place))
        yield name, survivors


def bernoulli(count: int, p: float, generator: torch.Generator | None = None) -> Tensor:
    """`count` booleans, each True with chance p exactly, on the device of the generator.

    The binary digits of p are compared with random bits, eight at a time; at p = 1/2 the first one decides.
    On other devices than the CPU, torch draws.

    Example:
        >>> bool(bernoulli(100, 0.0).any()), bool(bernoulli(100, 1.0).all())
        (False, True)
    """
    device = generator.device if generator else torch.device("cpu")
    if p in (0, 1):
        return torch.full((count,), bool(p), device=device)
    if device.type != "cpu":
        return torch.empty(count, dtype=torch.bool, device=device).bernoulli_(p, generator=generator)
    first, rest = divmod(p * 256, 1)
    digits = f"{int(first):08b}" if rest else f"{int(first):08b}".rstrip("0")
    words = torch.empty(len(digits), -(-count // 64), dtype=torch.int64, device="cpu")
    same = words.random_(-(2**63), None, generator=generator).numpy()  # whether the digits are
    fallen, undecided = np.zeros_like(same[0]), ~np.zeros_like(same[0])
    for digit, bits in zip(digits, same, strict=True):
        if digit == "1":
            fallen |= undecided & ~bits
        undecided &= bits
    drawn = _booleans(fallen, count)
    if rest:
        places = np.flatnonzero(_booleans(undecided, count))
        drawn[places] = bernoulli(len(places), rest, generator).numpy()
    return torch.from_numpy(drawn)


def _booleans(words: np.ndarray, count: int) -> np.ndarray:
    return np.unpackbits(words.view(np.uint8), count=count).view(np.bool_)
