"""Which images are attacked? Those that every network classifies correctly, or all."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from prunus.inputs.images import (
    ImageFolder,
    Images,
    ListedImages,
    Source,
    classes_of,
    first_image,
    read_dataset,
)
from prunus.inputs.networks import Network, Preprocessing
from prunus.transfer.pixels import own_size, predict


@dataclass(frozen=True)
class Victims:
    """Images to attack.

    Args:
        images: in [0, 1], of 256 levels, (count, channels, height, width).
        labels: their classes, which every network answers unless all images are taken.
        targets: for targeted attacks, another class for each.
        seen: how many images were looked at until there were enough.
    """

    images: Tensor
    labels: Tensor
    targets: Tensor
    seen: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over images, labels and targets."""
        digest = hashlib.sha256()
        for tensor in ((255 * self.images).round().byte(), self.labels, self.targets):
            digest.update(f"{tuple(tensor.shape)}".encode() + tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()


def find_victims(
    networks: Sequence[Network],
    models: Mapping[str, nn.Module],
    source: Source,
    count: int,
    every: bool = False,
) -> Victims:
    """The first images, in an order that is random but always the same, that all networks get right.

    Of synthetic images, which have no class, all are taken, and what the first network answers is
    taken for their label.

    Args:
        networks: how images are read for them.
        models: what takes pixels in [0, 1] for each, all on one device.
        source: folder val/<class>/*, images that a table lists or synthetic ones, where the networks have
            none bundled with them.
        count: how many; fewer where there are not as many.
        every: take also images that a network gets wrong.

    Raises:
        ValueError: there is none, or the networks read different images or tell other classes apart.
    """
    sizes = [size for network in networks if (size := own_size(network))]
    source = replace(source, size=source.size or max(sizes, default=None))
    bundled = any(network.bundled for network in networks)
    transform = None if bundled else Preprocessing(source.size).transform()
    dataset = read_dataset(networks, source, transform, targeted=True)
    total, classes = len(dataset), _same_classes(networks, models, dataset)
    generator = torch.Generator().manual_seed(0)
    order, chances = torch.randperm(total, generator=generator), torch.rand(total, generator=generator)
    images = Images(
        Subset(dataset, order.tolist()),
        batch_size=source.batch_size,
        workers=0 if bundled else source.workers,  # which are in memory
        skip_bad=source.skip_bad,
    )
    found, seen = list[tuple[Tensor, ...]](), 0
    given: list[Tensor]
    for batch, labels, *given in images:
        pixels = (255 * batch).round() / 255
        logits = [predict(model, pixels) for model in models.values()]
        labels = logits[0].argmax(1) if source.dummy else labels
        right = torch.stack([each.argmax(1) == labels for each in logits]).all(0) | source.dummy | every
        other = labels + 1 + (chances[seen : seen + len(labels)] * (classes - 1)).long()
        targets = given[0] if given else other % classes
        left = count - sum(len(each) for _, each, _ in found)
        places = right.nonzero()[:left, 0]
        found.append((pixels[places], labels[places], targets[places]))
        seen += len(labels) if len(places) < left else int(places[-1]) + 1
        if len(places) == left:
            break
    images.report("attacks")
    columns = [torch.cat(column) for column in zip(*found, strict=True)]
    if not columns or not len(columns[0]):
        raise ValueError(f"none of {seen} images is classified correctly by all of {', '.join(models)}")
    return Victims(columns[0], columns[1], columns[2], seen)


def _same_classes(networks: Sequence[Network], models: Mapping[str, nn.Module], dataset: Any) -> int:
    """How many classes all networks tell apart, and the images have."""
    image = first_image(dataset)
    counts = {
        network.name: classes_of(replace(network, model=models[network.name]), image) for network in networks
    }
    if isinstance(dataset, ImageFolder):
        counts[str(dataset.root)] = dataset.classes
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ValueError(f"networks and images must have the same number of classes, got {told}")
    if isinstance(dataset, ListedImages):
        dataset.check(counts[networks[0].name])
    return counts[networks[0].name]
