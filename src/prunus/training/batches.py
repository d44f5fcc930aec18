"""In which order, and how changed, does a training see its images?

All that is random about a batch follows from the seed and the number of the batch, so that a training can go
on at any batch, with any number of processes that read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, TensorDataset

from prunus.extras import need
from prunus.inputs.images import Batch, Images, collate
from prunus.processes import Process
from prunus.randomness import mixed

Augmentation = Callable[[Tensor], Tensor]


def flip(side: int) -> Augmentation:
    """Left to right, every other time."""
    made: Augmentation = need("torchvision.transforms.v2", "eval").RandomHorizontalFlip()
    return made


def shift(side: int) -> Augmentation:
    """By up to an eighth of the side each way, zeros coming in: four pixels of 32 (He et al. 2015)."""
    made: Augmentation = need("torchvision.transforms.v2", "eval").RandomCrop(side, padding=max(1, side // 8))
    return made


def zoom(side: int) -> Augmentation:
    """A part of 8 to 100% of the image, resized (Szegedy et al. 2014)."""
    made: Augmentation = need("torchvision.transforms.v2", "eval").RandomResizedCrop(side, antialias=True)
    return made


AUGMENTATIONS: Mapping[str, Callable[[int], Augmentation]] = {
    function.__name__: function for function in (flip, shift, zoom)
}


class Order(Sampler[list[int]]):
    """Whole batches of an epoch, shuffled; the rest of the images, less than a batch, is left out of it.

    Args:
        count: of images.
        batch_size: of all processes together.
        seed: of the order.
        process: whose part of every batch it gives.

    Raises:
        ValueError: fewer images a batch than processes.

    Example:
        >>> order = Order(7, 3, seed=0)
        >>> order.start(epoch=2, batch=1)
        >>> [[key // 7 for key in batch] for batch in order]
        [[2, 2, 2]]
    """

    def __init__(self, count: int, batch_size: int, seed: int, process: Process | None = None) -> None:
        self.count, self.batch_size, self.seed = count, min(batch_size, count), seed
        self.process = process or Process()
        self.epoch = self.first = 0
        if self.batch_size < self.process.count:
            raise ValueError(f"batches of {self.batch_size} images for {self.process.count} processes")

    def __len__(self) -> int:
        return self.count // self.batch_size

    def start(self, epoch: int, batch: int) -> None:
        """What comes next is this batch of this epoch."""
        self.epoch, self.first = epoch, batch

    def __iter__(self) -> Iterator[list[int]]:
        """For each batch, of each image the epoch times the count plus the index."""
        generator = torch.Generator().manual_seed(mixed(self.seed, self.epoch))
        shuffled = torch.randperm(self.count, generator=generator)
        batches = torch.split(shuffled, self.batch_size)[: len(self)]
        for batch in batches[self.first :]:
            yield [self.epoch * self.count + index for index in self.process.mine(batch.tolist())]


class Shuffled(Dataset[Any]):
    """Batches of a data set by what `Order` gives; every image is augmented by random numbers of its own."""

    def __init__(self, dataset: Any, augmentations: list[Augmentation], seed: int) -> None:
        self.dataset, self.augmentations, self.seed = dataset, augmentations, seed
        self.count = len(dataset)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, keys: list[int]) -> Any:
        if isinstance(self.dataset, TensorDataset) and not self.augmentations:  # all at once
            return self.dataset[torch.tensor(keys) % self.count], [], []
        return collate([self._example(key) for key in keys])

    def _example(self, key: int) -> Any:
        example = self.dataset[key % self.count]
        if isinstance(example, str) or not self.augmentations:
            return example
        image, label = example
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mixed(self.seed, key))
            for augmentation in self.augmentations:
                image = augmentation(image)
        return image, label


class Batches:
    """A training split in batches, epoch by epoch."""

    def __init__(self, images: Images, order: Order) -> None:
        self.images, self.order = images, order

    def __len__(self) -> int:
        return len(self.order)

    def of(self, epoch: int, batch: int) -> Iterator[Batch]:
        """Those of an epoch, from this one on."""
        self.order.start(epoch, batch)
        return iter(self.images)


def shuffled(
    dataset: Any,
    augmentations: list[Augmentation],
    batch_size: int,
    seed: int,
    process: Process,
    *,
    workers: int,
    skip_bad: bool,
) -> Batches:
    """The batches of a training.

    Args:
        dataset: of examples (image, label), or all of them in tensors.
        augmentations: one after the other.
        batch_size: of all processes together.
        seed: of the order and of augmentations.
        process: of several, this one.
        workers: processes that read.
        skip_bad: leave out images that cannot be read.
    """
    order = Order(len(dataset), batch_size, seed, process)
    read = Shuffled(dataset, augmentations, seed)
    images = Images(read, batch_size=batch_size, workers=workers, skip_bad=skip_bad, order=order)
    return Batches(images, order)
