"""Data sets of torchvision by name, where they are on disk: `FashionMNIST:ROOT`."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from torch import Tensor

from prunus.extras import need

SPLITS = ("val", "test")  # by what the split that is not trained on goes, where a data set has names for them


def split_name(data: Path) -> tuple[str, Path] | None:
    """The name of a data set and its root; None of a folder of images.

    Example:
        >>> split_name(Path("CIFAR10:/data"))
        ('CIFAR10', PosixPath('/data'))
        >>> split_name(Path("/data"))
    """
    name, colon, root = str(data).partition(":")
    # A folder may have a colon in its name, and on Windows a drive has
    return (name, Path(root)) if colon and name.isidentifier() and len(name) > 1 and root else None


def open_named(name: str, root: Path, transform: Callable[[Any], Tensor], train: bool) -> Any:
    """A data set of torchvision that has a training split and another; nothing is downloaded.

    Raises:
        ValueError: there is none of that name, it has no such splits, or it is not on disk.
    """
    datasets = need("torchvision.datasets", "eval")
    kind = getattr(datasets, name, None) if name in datasets.__all__ else None
    takes = signature(kind).parameters if kind else {}
    splits = [split for split in (_split(takes, train)) if split]
    if kind is None or not splits or "transform" not in takes:
        fitting = [one for one in datasets.__all__ if _has_splits(getattr(datasets, one))]
        raise ValueError(f"no data set {name!r} of torchvision with images, labels and splits: {fitting}")
    more = {"download": False} if "download" in takes else {}
    errors = []
    for split in splits:
        try:
            return kind(str(root), transform=transform, **split, **more)
        except (RuntimeError, ValueError, OSError) as error:  # not found, or a split that it does not have
            errors.append(str(error).splitlines()[0] if str(error) else repr(error))
    raise ValueError(f"{name} cannot be read from {root}: {errors[-1]}")


def _has_splits(kind: Any) -> bool:
    takes = signature(kind).parameters if isinstance(kind, type) else {}
    return "transform" in takes and ("train" in takes or "split" in takes)


def _split(takes: Any, train: bool) -> list[dict[str, Any]]:
    """The arguments that ask for it, best first."""
    if isinstance(takes.get("train"), Parameter):
        return [{"train": train}]
    if "split" in takes:
        return [{"split": name} for name in (("train",) if train else SPLITS)]
    return []
