"""What is kept?"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from prunus.files import whole_file
from prunus.table import Table
from prunus.weights import depth_outside, matrices


class Masks(Mapping[str, Tensor]):
    """Boolean tensors by weight name, each of its weight's shape; True = keep.

    Args:
        masks: name to boolean tensor.

    Raises:
        TypeError: a mask is not a boolean tensor, or its name no string.
        ValueError: a mask has bytes other than 0 and 1, as another program may have written them.

    Example:
        >>> a = Masks({"weight": torch.tensor([[True, False], [True, True]])})
        >>> b = Masks({"weight": torch.tensor([[False, False], [True, True]])})
        >>> a.sparsity, (a & b).sparsity, (a | b).sparsity
        (0.25, 0.5, 0.25)
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        for name, mask in masks.items():
            if not isinstance(name, str):
                raise TypeError(f"name of a mask must be a string, got {name!r}")
            if not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
                kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
                raise TypeError(f"mask of {name!r} must be a torch.bool tensor, got {kind}")
            _check_bytes(name, mask)
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
        return f"Masks({counted(len(self), 'tensor')}, {self.pruned:,} of {self.total:,} weights pruned)"

    @property
    def counts(self) -> dict[str, tuple[int, int]]:
        """(pruned, all) weights of every tensor."""
        return {name: (mask.numel() - int(mask.count_nonzero()), mask.numel()) for name, mask in self.items()}

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

    @classmethod
    def from_zeros(cls, model: nn.Module) -> Masks:
        """Masks that prune what is zero now: of a network that was pruned before, here or elsewhere.

        Args:
            model: any network. Weights of two or more dimensions count, of every kind of layer, where any
                entry is zero; the scale of a normalization layer, which often begins at zero, does not.

        Raises:
            ValueError: no such weight has a zero.

        Example:
            >>> net = torch.nn.Linear(2, 2)
            >>> with torch.no_grad():
            ...     net.weight[0, 1] = 0
            >>> Masks.from_zeros(net)["weight"].tolist()
            [[True, False], [True, True]]
        """
        kept = {name: weight.parameter.detach() != 0 for name, weight in matrices(model).items()}
        masks = {name: mask for name, mask in kept.items() if not mask.all()}
        if not masks:
            raise ValueError("no weight of the model is zero: there is nothing to take for pruned")
        return cls(masks)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all.

        Raises:
            FileNotFoundError: no such folder.
            OSError: the file cannot be written: a full disk, a read-only one.
        """
        if not Path(path).parent.is_dir():
            raise FileNotFoundError(f"no folder {os.fspath(Path(path).parent)!r} to save masks in")
        tensors = {
            name: mask.cpu().clone(memory_format=torch.contiguous_format) for name, mask in self.items()
        }
        # Not by save_file, which where it is killed leaves files of names of its own
        data = save(tensors)
        with whole_file(path) as partial:
            partial.write_bytes(data)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Masks:
        """Read masks that `save` wrote, onto the CPU.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a safetensors file of boolean tensors, a truncated one, or bytes in it but 0, 1.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no masks file {os.fspath(path)!r}")
        try:
            return cls(load_file(path))
        except Exception as error:  # damaged files make the reader raise nearly anything
            raise ValueError(f"{os.fspath(path)!r} is not a file of masks: {error!s:.300}") from error


def _check_bytes(name: str, mask: Tensor) -> None:
    """Refuse booleans that are neither 0 nor 1: torch takes them for true, but weights are masked by bits."""
    if not mask.numel() or mask.is_meta:
        return
    largest = int(mask.view(torch.uint8).max())
    if largest > 1:
        raise ValueError(f"mask of {name!r} has bytes that are not 0 or 1, such as {largest}: give mask != 0")


def table_of(
    title: str,
    shapes: Mapping[str, Sequence[int]],
    counts: Mapping[str, tuple[int, int]],
    more: Mapping[str, Sequence[int | None]] | None = None,
) -> Table:
    """Weight tensors: shape, weights, pruned count and fraction; and which of them are emptied.

    Args:
        title: above.
        shapes, counts: by name; counts as in `Masks.counts`.
        more: further columns, a number a tensor, None where it is not known.
    """
    more = more or {}
    gone = [pruned == weights > 0 for pruned, weights in counts.values()]
    lines = [
        [
            name.removesuffix(".weight"),
            " x ".join(map(str, shapes[name])),
            *_cells([count]),
            *("" if column[at] is None else f"{column[at]:,}" for column in more.values()),
            *(["emptied" if gone[at] else ""] if any(gone) else []),
        ]
        for at, (name, count) in enumerate(counts.items())
    ]
    sums = (f"{sum(number or 0 for number in column):,}" for column in more.values())
    flags = [f"{sum(gone):,} emptied"] if any(gone) else []
    total = [counted(len(counts), "layer"), "", *_cells(list(counts.values())), *sums, *flags]
    head = ("layer", "shape", "weights", "pruned", "fraction", *more, *([""] if any(gone) else []))
    return Table(head, lines, title=title, totals=[total])


def _cells(counts: Sequence[tuple[int, int]]) -> list[str]:
    pruned, weights = sum(pruned for pruned, _ in counts), sum(weights for _, weights in counts)
    return [f"{weights:,}", f"{pruned:,}", f"{pruned / max(1, weights):.4f}"]


SHOWN = 5  # names in a warning


def emptied(masks: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
    """The number of weights of each tensor that keeps none, by its name."""
    # NumPy stops at the first that is kept, which is over a hundred times as fast
    found = ((name, mask, mask.numpy() if mask.device.type == "cpu" else mask) for name, mask in masks)
    return {name: mask.numel() for name, mask, array in found if mask.numel() and not array.any()}


def warn_of_emptied(found: Mapping[str, int], layers: int, when: str = "") -> None:
    """One warning about all tensors that lose every weight: nothing passes through such a layer any more."""
    if found:
        names = ", ".join(
            f"{name} ({counted(total, 'weight')})" for name, total in list(found.items())[:SHOWN]
        )
        more = f" and {len(found) - SHOWN:,} more" if len(found) > SHOWN else ""
        warnings.warn(
            f"pruning empties {len(found):,} of {counted(layers, 'layer')}{when}, all of whose weights fall: "
            f"{names}{more}; keep_at_least=1 leaves a piece of each",
            stacklevel=depth_outside(),
        )


def counted(count: int, what: str) -> str:
    """A number of things in words: 1 tensor, 2 tensors."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def check_same_weights(masks: Masks, shapes: Mapping[str, torch.Size], whole: bool = False) -> None:
    """Refuse masks that do not fit weights of these names and shapes.

    Raises:
        ValueError: names the first mask that fits no weight (or, if `whole`, the reverse).
    """
    for name, mask in masks.items():
        if name not in shapes:
            hint = _hint(masks, shapes) if not whole else ""
            raise ValueError(f"masks belong to another network: it has no weight {name!r}{hint}")
        if mask.shape != shapes[name]:
            raise ValueError(
                f"masks belong to another network: mask of {name!r} has shape {tuple(mask.shape)}, "
                f"its weight {tuple(shapes[name])}"
            )
    if whole and (missing := shapes.keys() - masks.keys()):
        raise ValueError(f"masks belong to different weights: no mask for {min(missing)!r}")


def _hint(masks: Masks, shapes: Mapping[str, torch.Size]) -> str:
    """What to do where names differ only by what a wrapper of the network puts before them."""
    first = next(iter(masks))
    outer = [name.removesuffix(first) for name in shapes if name.endswith(f".{first}")]
    outer = [prefix for prefix in outer if all(prefix + name in shapes for name in masks)]
    if outer:
        wrapped = " or ".join(map(_written, outer))
        return f"; the names differ by the prefix {' or '.join(map(repr, outer))}: apply them to {wrapped}"
    heads = [first[: at + 1] for at, letter in enumerate(first) if letter == "."]
    for head in heads:
        if all(name.startswith(head) and name.removeprefix(head) in shapes for name in masks):
            bare = f"prunus.Masks({{name.removeprefix({head!r}): m for name, m in masks.items()}})"
            return f"; the names differ by the prefix {head!r}, which those of the masks have: apply {bare}"
    return ""


def _written(prefix: str) -> str:
    """As code, the part of `model` whose weights have this prefix."""
    parts = prefix.removesuffix(".").split(".")
    return "model" + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in parts)
