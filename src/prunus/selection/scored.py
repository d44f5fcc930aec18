"""The scores of pieces: kept, or made anew whenever they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from prunus.selection.arrays import Array, alias, as_array
from prunus.selection.pieces import Part
from prunus.weights import WeightTensor


class Scores(Protocol):
    """The scores of one tensor's pieces, which may be made anew whenever they are read."""

    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102

    @property
    def device(self) -> torch.device: ...  # noqa: D102

    def __len__(self) -> int: ...

    def chunks(self, scratch: Tensor) -> Iterator[Array]:
        """All of them in order, `len(scratch)` at a time or fewer, in its dtype.

        Each must be read before the next: on the CPU it may have been made in that memory.
        """

    def every(self, first: int, step: int) -> Tensor:
        """The score at position `first`, and then one in `step`."""


class Held:
    """Scores that are held in `scores`, whose dtype, device and length they have."""

    scores: Any

    @property
    def dtype(self) -> torch.dtype:
        """Of the scores held."""
        dtype: torch.dtype = self.scores.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        """Of the scores held."""
        device: torch.device = self.scores.device
        return device

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class Stored(Held):
    """Scores that are kept in a 1-D tensor."""

    scores: Tensor

    def chunks(self, scratch: Tensor) -> Iterator[Array]:
        """Views of the tensor, converted where the dtypes differ."""
        chunks = torch.split(alias(self.scores), len(scratch))  # scores may be the weights themselves
        return (as_array(chunk.to(scratch.dtype)) for chunk in chunks)

    def every(self, first: int, step: int) -> Tensor:
        """A view of the same memory."""
        return alias(self.scores)[first::step]


@dataclass(frozen=True)
class Magnitudes:
    """Absolute values of a weight tensor before pruning, made chunk by chunk: they are never copied whole."""

    weight: WeightTensor

    @property
    def dtype(self) -> torch.dtype:
        """Of the weight tensor."""
        return self.weight.parameter.dtype

    @property
    def device(self) -> torch.device:
        """Of the weight tensor."""
        return self.weight.parameter.device

    def __len__(self) -> int:
        return self.weight.parameter.numel()

    def chunks(self, scratch: Tensor) -> Iterator[Array]:
        """Made in the memory of `scratch` where that is on the same device."""
        for values in _flat(alias(self.weight.values), len(scratch)):
            if values.device != scratch.device:
                yield values.to(scratch.dtype).abs()
            else:
                place = scratch[: len(values)]
                plain = values if values.dtype is place.dtype else place.copy_(values)
                yield np.abs(plain.numpy(), out=place.numpy())

    def every(self, first: int, step: int) -> Tensor:
        """A copy."""
        values = self.weight.values
        if values.is_contiguous():
            return values.view(-1)[first::step].abs()
        places = torch.arange(min(first, len(self)), len(self), step, device=values.device)
        return values[torch.unravel_index(places, values.shape)].abs()


@dataclass(frozen=True)
class Moved(Held):
    """Finite scores, those at some sorted places moved to an infinity."""

    scores: Scores
    places: np.ndarray
    value: float

    def chunks(self, scratch: Tensor) -> Iterator[Array]:
        """Copies where there is something to move: what lies beneath may be the scores themselves."""
        end = 0
        for chunk in self.scores.chunks(scratch):
            start, end = end, end + len(chunk)
            first, last = np.searchsorted(self.places, (start, end))
            yield self._moved(chunk, self.places[first:last] - start) if first < last else chunk

    def every(self, first: int, step: int) -> Tensor:
        """A copy where there is something to move."""
        after = self.places[self.places >= first] - first
        moved: Tensor = self._moved(self.scores.every(first, step), after[after % step == 0] // step)
        return moved

    def _moved(self, values: Array, places: np.ndarray) -> Array:
        copied = values.clone() if isinstance(values, Tensor) else values.copy()
        where = torch.from_numpy(places).to(values.device) if isinstance(values, Tensor) else places
        copied[where] = self.value
        return copied


def protected(scores: Scores) -> int:
    """How many pieces no line may reach."""
    return len(scores.places) if isinstance(scores, Moved) and scores.value > 0 else 0


def fallen(scores: Scores) -> int:
    """How many pieces every line reaches first."""
    if not isinstance(scores, Moved):
        return 0
    return fallen(scores.scores) + (len(scores.places) if scores.value < 0 else 0)


def _flat(tensor: Tensor, size: int) -> Iterator[Tensor]:
    """The entries in row-major order, up to `size` at a time; at other strides only some rows are copied."""
    if tensor.is_contiguous():
        flat = tensor.view(-1)
        yield from (flat,) if tensor.numel() <= size else torch.split(flat, size)
        return
    for rows in torch.split(tensor, max(1, size // tensor[0].numel())):
        yield from torch.split(rows.reshape(-1), size)


@dataclass(frozen=True)
class Scored:
    """One weight tensor for a scope: the scores of its pieces, and how the pieces lie in it."""

    name: str
    scores: Scores
    partition: Part

    def grid(self) -> Tensor:
        """All scores at once, as (outputs, inputs, positions of the kernel); see `Partition.grid`.

        Raises:
            ValueError: a score is NaN or infinite.
        """
        own = self.scores
        while isinstance(own, Moved):
            own = own.scores
        scores = own.every(0, 1)
        check_finite(self.name, scores)
        return self.partition.grid(scores if own is self.scores else self.scores.every(0, 1))


Kept: TypeAlias = Iterator[tuple[str, Tensor]]  # by weight name, one boolean a piece, True = keep
ScoreMap: TypeAlias = Mapping[str, Scores]


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise a ValueError where a value is NaN or infinite."""
    if tensor.numel() and not torch.isfinite(torch.stack(tensor.aminmax())).all():
        raise not_finite(name)


def not_finite(name: str) -> ValueError:
    """The error of a weight tensor that cannot be ranked."""
    return ValueError(f"{name} has values or scores that are NaN or infinite: no ranking")
