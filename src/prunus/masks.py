"""Which candidates fall?"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from prunus.arguments import check_fraction
from prunus.files import whole_file
from prunus.granularity import Grouping
from prunus.selection import PIECE, Room, as_array, compare


class Masks(Mapping[str, Tensor]):
    """Boolean tensors by weight name, each of its weight's shape; True = keep.

    Args:
        masks: name to boolean tensor.

    Raises:
        TypeError: a mask is not a boolean tensor.

    Example:
        >>> a = Masks({"weight": torch.tensor([[True, False], [True, True]])})
        >>> b = Masks({"weight": torch.tensor([[False, False], [True, True]])})
        >>> a.sparsity, (a & b).sparsity, (a | b).sparsity
        (0.25, 0.5, 0.25)
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        for name, mask in masks.items():
            if not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
                kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
                raise TypeError(f"mask of {name!r} must be a torch.bool tensor, got {kind}")
        self._masks = dict(masks)

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __eq__(self, other: object) -> bool:
        """Whether both keep the same weights of the same names."""
        if not isinstance(other, Masks):
            return NotImplemented
        return self.keys() == other.keys() and all(
            torch.equal(mask, other[name].to(mask.device)) for name, mask in self.items()
        )

    def __repr__(self) -> str:
        return f"Masks({len(self)} weights, {self.pruned:,} of {self.total:,} pruned)"

    @property
    def counts(self) -> dict[str, tuple[int, int]]:
        """(pruned, all) weights of every tensor."""
        return {name: (int((~mask).sum()), mask.numel()) for name, mask in self.items()}

    @property
    def pruned(self) -> int:
        """Number of pruned weights."""
        return sum(pruned for pruned, _ in self.counts.values())

    @property
    def total(self) -> int:
        """Number of weights the masks cover."""
        return sum(mask.numel() for mask in self.values())

    @property
    def sparsity(self) -> float:
        """Pruned fraction, `pruned / total`."""
        return self.pruned / self.total if self.total else 0.0

    def __and__(self, other: Masks) -> Masks:
        """Keep what both keep.

        Raises:
            ValueError: the two cover other weights or shapes.
        """
        return self._combine(other, torch.logical_and)

    def __or__(self, other: Masks) -> Masks:
        """Keep what either keeps.

        Raises:
            ValueError: the two cover other weights or shapes.
        """
        return self._combine(other, torch.logical_or)

    def _combine(self, other: Masks, rule: Callable[[Tensor, Tensor], Tensor]) -> Masks:
        if not isinstance(other, Masks):
            return NotImplemented
        check_same_weights(self, {name: mask.shape for name, mask in other.items()}, whole=True)
        return Masks({name: rule(mask, other[name].to(mask.device)) for name, mask in self.items()})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all.

        Raises:
            FileNotFoundError: no such folder.
        """
        if not Path(path).parent.is_dir():
            raise FileNotFoundError(f"no folder {os.fspath(Path(path).parent)!r} to save masks in")
        tensors = {
            name: mask.cpu().clone(memory_format=torch.contiguous_format) for name, mask in self.items()
        }
        with whole_file(path) as temporary:
            save_file(tensors, temporary)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Masks:
        """Read masks that `save` wrote, onto the CPU.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a safetensors file of boolean tensors, or a truncated one.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no masks file {os.fspath(path)!r}")
        try:
            return cls(load_file(path))
        except (SafetensorError, TypeError) as error:
            raise ValueError(f"{os.fspath(path)!r} is not a file of masks: {error}") from error


def check_same_weights(masks: Masks, shapes: Mapping[str, torch.Size], whole: bool = False) -> None:
    """Refuse masks that do not fit weights of these names and shapes.

    Raises:
        ValueError: names the first mask that fits no weight (or, if `whole`, the reverse).
    """
    for name, mask in masks.items():
        if name not in shapes:
            raise ValueError(f"masks belong to another network: it has no weight {name!r}")
        if mask.shape != shapes[name]:
            raise ValueError(
                f"masks belong to another network: mask of {name!r} has shape {tuple(mask.shape)}, "
                f"its weight {tuple(shapes[name])}"
            )
    if whole and (missing := shapes.keys() - masks.keys()):
        raise ValueError(f"masks belong to different weights: no mask for {min(missing)!r}")


@dataclass(frozen=True)
class Candidates:
    """The lowest-scored groups of a network: what a draw may prune.

    Args:
        kept: by weight name, one boolean a group, False = candidate.
        groupings: by weight name, how its tensor falls into groups.
        devices: by weight name, where its mask is wanted.
    """

    kept: Mapping[str, Tensor]
    groupings: Mapping[str, Grouping]
    devices: Mapping[str, torch.device]

    def draw(self, p_bern: float = 1.0, generator: torch.Generator | None = None) -> Masks:
        """Prune every candidate with chance `p_bern`, independently; no random number is used at 0 or 1.

        Raises:
            TypeError: `p_bern` is not a number.
            ValueError: `p_bern` is outside [0, 1].
        """
        p_bern = check_fraction("p_bern", p_bern)
        return Masks(dict(fall(self.kept.items(), self.groupings, self.devices, p_bern, generator)))


def fall(
    kept: Iterable[tuple[str, Tensor]],
    groupings: Mapping[str, Grouping],
    devices: Mapping[str, torch.device],
    p_bern: float,
    generator: torch.Generator | None,
) -> Iterator[tuple[str, Tensor]]:
    """One draw over candidates as they come: a mask of the weight's shape each."""
    room = Room(sum(grouping.count for grouping in groupings.values()))
    for name, groups in kept:
        survivors = groups if p_bern == 1 else room.take(len(groups), groups.device)
        if p_bern < 1:
            for some, place in zip(torch.split(groups, PIECE), torch.split(survivors, PIECE), strict=True):
                fallen = bernoulli(len(some), p_bern, generator).to(groups.device)
                # Kept, or else not fallen
                compare(np.greater_equal, as_array(some), as_array(fallen), as_array(place))
        yield name, groupings[name].expand(survivors.to(devices[name]))


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
