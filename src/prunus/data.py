"""On which images? Folders of classes, synthetic images, and the built-in digits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate

from prunus import digits
from prunus.extras import need
from prunus.networks import Network

Example = tuple[Tensor, int] | str
Batch = tuple[Tensor, Tensor]
SYNTHETIC = 1000  # images, as many as the original research script made


class BadImageError(ValueError):
    """An image file that cannot be read."""


class ImageFolder(Dataset[Example]):
    """ROOT/<class>/*, classes in alphabetical order. An unreadable image gives its error message."""

    def __init__(self, root: Path, transform: Callable[[Any], Tensor]) -> None:
        datasets = need("torchvision.datasets", "eval")
        if not root.is_dir():
            raise ValueError(f"no folder {str(root)!r}: expected images in {root}/<class>/*")
        try:
            self.folder = datasets.ImageFolder(str(root))
        except FileNotFoundError as error:  # no class folder, or one without images
            raise ValueError(f"{root}: {str(error).splitlines()[0]}") from error
        self.classes, self.transform = len(self.folder.classes), transform

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> Example:
        path, label = self.folder.samples[index]
        try:
            image = self.folder.loader(path)
        except Exception as error:  # Pillow raises many kinds
            return f"{path} ({type(error).__name__}: {error})"
        return self.transform(image), label

    def first_image(self) -> Tensor:
        """The first image that can be read.

        Raises:
            ValueError: there is none.
        """
        for index in range(len(self)):
            example = self[index]
            if not isinstance(example, str):
                return example[0]
        raise ValueError(f"{self.folder.root}: none of its {len(self)} images can be read")


class Images:
    """Batches of a data set; counts the images that could not be read.

    Args:
        dataset: examples; a string stands for an image that could not be read.
        classes: number of classes.
        skip_bad: leave such images out instead of raising.
        subset: number of images to take, at random but always the same; default all.
    """

    def __init__(
        self,
        dataset: Dataset[Example],
        classes: int,
        *,
        batch_size: int,
        workers: int = 0,
        skip_bad: bool = False,
        subset: int | None = None,
    ) -> None:
        self.size: int = len(dataset)  # type: ignore[arg-type]
        if subset is not None and subset < self.size:
            chosen = torch.randperm(self.size, generator=torch.Generator().manual_seed(0))[:subset]
            dataset, self.size = Subset(dataset, chosen.tolist()), subset
        self.classes, self.skip_bad, self.bad = classes, skip_bad, dict[str, None]()
        self.loader = DataLoader(
            dataset,
            batch_size,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
        )

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Batch]:
        """Batches (images, labels).

        Raises:
            BadImageError: an image cannot be read and `skip_bad` is off.
        """
        for batch, bad in self.loader:
            if bad and not self.skip_bad:
                raise BadImageError(f"cannot read image {bad[0]}; --skip-bad-images goes on without it")
            self.bad.update(dict.fromkeys(bad))
            if batch is not None:
                yield batch


def _collate(examples: Iterable[Example]) -> tuple[Batch | None, list[str]]:
    examples = list(examples)
    good = [example for example in examples if not isinstance(example, str)]
    bad = [example for example in examples if isinstance(example, str)]
    return (tuple(default_collate(good)) if good else None), bad


@dataclass(frozen=True)
class Source:
    """Where images come from.

    Args:
        data: folder with val/<class>/*, and train/<class>/* for criteria that need gradients.
        dummy: synthetic images in place of data.
        size: of synthetic images.
        skip_bad: leave unreadable images out instead of raising.
        calibration: number of training images that gradients are taken on.
    """

    data: Path | None = None
    dummy: bool = False
    size: int | None = None
    skip_bad: bool = False
    calibration: int = 512
    batch_size: int = 256
    workers: int = 0


def open_images(network: Network, source: Source, train: bool = False) -> Images:
    """The images that a network is measured on, or those that it takes gradients on.

    Raises:
        ValueError: no images, or images of another number of classes than the network tells apart.
    """
    dataset, classes, workers = _dataset(network, source, train)
    return Images(
        dataset,
        classes,
        batch_size=source.batch_size,
        workers=workers,
        skip_bad=source.skip_bad,
        subset=source.calibration if train else None,
    )


def _dataset(network: Network, source: Source, train: bool) -> tuple[Dataset[Example], int, int]:
    if network.transform is None:
        if source.data or source.dummy:
            raise ValueError(f"{network.name} reads the built-in digits: leave out --data and --dummy")
        need("sklearn", "eval")
        return TensorDataset(*digits.load_images(train)), 10, 0  # type: ignore[return-value]
    if source.dummy:
        size = source.size or 224
        classes = _classes_of(network, torch.zeros(3, size, size))
        fake = need("torchvision.datasets", "eval").FakeData
        return fake(SYNTHETIC, (3, size, size), classes, network.transform), classes, source.workers
    if source.data is None:
        raise ValueError(f"{network.name} needs images: --data DIR with DIR/val/<class>/*, or --dummy")
    folder = ImageFolder(source.data / ("train" if train else "val"), network.transform)
    classes = _classes_of(network, folder.first_image())
    if classes != folder.classes:
        raise ValueError(
            f"{source.data} has {folder.classes} class folders, but {network.name} tells {classes} apart"
        )
    return folder, classes, source.workers


def _classes_of(network: Network, image: Tensor) -> int:
    with torch.no_grad():
        return int(network.model(image[None]).shape[-1])
