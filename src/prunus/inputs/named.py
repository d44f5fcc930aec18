"""Data sets of torchvision by name, where they are on disk: `FashionMNIST:ROOT`."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
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
    named = colon and root and len(name) > 1 and name.isidentifier() and not data.exists()
    return (name, Path(root)) if named else None


def open_named(name: str, root: Path, transform: Callable[[Any], Tensor], train: bool) -> Any:
    """A data set of torchvision that has a training split and another; nothing is downloaded.

    Raises:
        ValueError: there is none of that name, it has no such splits, or it is not on disk.
    """
    datasets = need("torchvision.datasets", "eval")
    kinds = {one: getattr(datasets, one) for one in datasets.__all__}
    fitting = {one: splits for one, kind in kinds.items() if (splits := _splits(kind, train))}
    if name not in fitting:
        raise ValueError(f"no data set {name!r} of torchvision with images and splits: {', '.join(fitting)}")
    errors = []
    for split in fitting[name]:
        try:
            return kinds[name](str(root), transform=transform, **split)
        except (RuntimeError, ValueError, OSError) as error:  # not found, or a split that it does not have
            errors.append(str(error).splitlines()[0] if str(error) else repr(error))
    raise ValueError(f"{name} cannot be read from {root}: {errors[-1]}")


def _splits(kind: Any, train: bool) -> list[dict[str, Any]]:
    """The arguments that ask a data set for a split, best first; none where it has not two."""
    takes = signature(kind).parameters if isinstance(kind, type) else {}
    if "transform" not in takes:
        return []
    if "train" in takes:
        return [{"train": train}]
    return [{"split": name} for name in (("train",) if train else SPLITS)] if "split" in takes else []
