"""On which images? Folders of classes, those that a table lists, synthetic images, or those of a network."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset, TensorDataset, default_collate

from prunus.extras import need
from prunus.inputs.listed import LISTINGS, find_listing, read_listing
from prunus.inputs.named import open_named, split_name
from prunus.inputs.networks import Network
from prunus.weights import depth_outside

Example = tuple[Tensor, int] | str
Batch = tuple[Tensor, Tensor]
SYNTHETIC, DUMMY_SIDE = 256, 224  # images, and their side where none is given


class BadImageError(ValueError):
    """An image file that cannot be read."""


def read_image(path: str | Path, transform: Callable[[Any], Tensor], *labels: int) -> Any:
    """An example (image, *labels), or where the file cannot be read, its path and why."""
    load = need("torchvision.datasets.folder", "eval").default_loader
    try:
        image = load(str(path))
    except Exception as error:  # Pillow raises many kinds
        return f"{path} ({type(error).__name__}: {error})"
    return transform(image), *labels


class ImageFolder(Dataset[Example]):
    """ROOT/<class>/*, classes in alphabetical order. An unreadable image gives its error message."""

    def __init__(self, root: Path, transform: Callable[[Any], Tensor]) -> None:
        folder = need("torchvision.datasets.folder", "eval")
        if not root.is_dir():
            raise ValueError(f"no folder {str(root)!r}: expected images in {root}/<class>/*")
        names = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
        try:
            if not names:
                raise FileNotFoundError("no class folder in it")
            numbers = {name: number for number, name in enumerate(names)}
            self.samples = folder.make_dataset(str(root), numbers, folder.IMG_EXTENSIONS)
        except FileNotFoundError as error:  # or a class without images
            raise ValueError(f"{root}: {str(error).splitlines()[0]}") from error
        self.root, self.classes, self.transform = root, len(names), transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        path, label = self.samples[index]
        return read_image(path, self.transform, label)


def first_image(dataset: Dataset[Any]) -> Tensor:
    """The first image that can be read.

    Raises:
        ValueError: there is none.
    """
    total: int = len(dataset)  # type: ignore[arg-type]
    for index in range(total):
        example = dataset[index]
        if not isinstance(example, str):
            image: Tensor = example[0]
            return image
    raise ValueError(f"none of the {total} images can be read")


def first_inputs(images: Images) -> Tensor:
    """The first image, as a batch."""
    return next(iter(images))[0][:1]


class Images:
    """Batches of a data set; counts the images that could not be read.

    Args:
        dataset: examples; a string stands for an image that could not be read.
        skip_bad: leave such images out instead of raising.
        subset: number of images to take, at random but always the same; default all.
        order: of whole batches, which `dataset` then gives itself, collated, for each thing in the order.
    """

    def __init__(
        self,
        dataset: Dataset[Example],
        *,
        batch_size: int,
        workers: int = 0,
        skip_bad: bool = False,
        subset: int | None = None,
        order: Sampler[Any] | None = None,
    ) -> None:
        self.size: int = len(dataset)  # type: ignore[arg-type]
        if subset is not None and subset < self.size:
            chosen = torch.randperm(self.size, generator=torch.Generator().manual_seed(0))[:subset]
            dataset, self.size = Subset(dataset, chosen.tolist()), subset
        self.skip_bad, self.bad = skip_bad, dict[str, None]()
        self.loader = DataLoader(
            dataset,
            None if order else batch_size,
            sampler=order,
            num_workers=workers,
            generator=torch.Generator(),  # or each pass would take a number of the global one
            collate_fn=None if order else collate,
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
        for batch, bad, shapes in self.loader:
            if len(shapes) > 1:
                raise ValueError(f"images differ in size ({', '.join(shapes[:3])}): give --image-size")
            if bad and not self.skip_bad:
                raise BadImageError(f"cannot read image {bad[0]}; --skip-bad-images goes on without it")
            self.bad.update(dict.fromkeys(bad))
            if batch is not None:
                yield batch

    def report(self, what: str) -> None:
        """Name and count, as warnings, what could not be read for this."""
        for bad in self.bad:
            warnings.warn(f"skipped unreadable image {bad}", stacklevel=depth_outside())
        if self.bad:
            told = f"{what}: {len(self.bad)} unreadable images skipped"
            warnings.warn(told, stacklevel=depth_outside())


def in_memory(images: Images) -> TensorDataset:
    """All that can be read, in the order of the data set: pixels (count, ...) and labels (count,)."""
    pixels, labels = zip(*images, strict=True)
    return TensorDataset(torch.cat(pixels), torch.cat(labels))


def collate(examples: Iterable[Example]) -> tuple[Batch | None, list[str], list[str]]:
    """A batch of what can be read, messages about the rest, and the shapes there are."""
    examples = list(examples)
    good = [example for example in examples if not isinstance(example, str)]
    bad = [example for example in examples if isinstance(example, str)]
    shapes = list(dict.fromkeys(str(tuple(image.shape)) for image, *_ in good))
    # Errors are raised in the main process: from a worker they come with a traceback for a message.
    return (tuple(default_collate(good)) if len(shapes) == 1 else None), bad, shapes


@dataclass(frozen=True)
class Source:
    """Where images come from.

    Args:
        data: folder with val/<class>/*, and train/<class>/* for criteria that need gradients; or NAME:ROOT,
            a data set of torchvision.
        dummy: synthetic images in place of data.
        size: of synthetic images, and of those that are read for several networks at once.
        skip_bad: leave unreadable images out instead of raising.
        calibration: number of training images that gradients are taken on; None is all.
    """

    data: Path | None = None
    dummy: bool = False
    size: int | None = None
    skip_bad: bool = False
    calibration: int | None = 512
    batch_size: int = 256
    workers: int = 0

    def fingerprint(self, split: str) -> str:
        """SHA-256 over the names and sizes of the image files: the same images, or others."""
        digest = hashlib.sha256()
        named = split_name(self.data) if self.data else None
        folder = named[1] if named else self.data / split if self.data else None
        for path in sorted(folder.rglob("*")) if folder else ():
            if path.is_file():
                digest.update(f"{path.relative_to(folder or path)} {path.stat().st_size}".encode())
        return digest.hexdigest()


class ListedImages(Dataset[Any]):
    """The images that a table lists, see `prunus.inputs.listed`: ROOT/images.csv or ROOT/labels.csv.

    Raises:
        ValueError: there is no table, or it is none of images.
    """

    def __init__(self, root: Path, transform: Callable[[Any], Tensor]) -> None:
        listing = find_listing(root)
        if listing is None:
            tables = " or ".join(known.table for known in LISTINGS)
            raise ValueError(f"{root} must hold {tables}, and images/")
        self.root, self.listing, self.transform = root, listing, transform
        self.examples = read_listing(root, listing)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Any:
        example = self.examples[index]
        return read_image(example.path, self.transform, *example.labels)

    def check(self, classes: int) -> None:
        """Raise a ValueError where a class is none of so many, by its line."""
        for example in self.examples:
            for name, label in zip((self.listing.label, self.listing.target), example.labels, strict=False):
                if label >= classes:
                    raise ValueError(
                        f"{self.root / self.listing.table}, line {example.line}: {name} "
                        f"{label + self.listing.first} is none of {classes} classes"
                    )


def example_image(network: Network, source: Source) -> Tensor:
    """An image as the network takes it, as a batch: of those that come with it, or a synthetic one.

    A network of a file brings no size: the first of DATA/val has it, or else a warning says what is taken.
    """
    read = bool(network.bundled or (network.code and source.data and (source.data / "val").is_dir()))
    if network.code and not read and source.size is None:
        size = f"3x{DUMMY_SIDE}x{DUMMY_SIDE}"
        told = f"{network.name} is run on an image of {size}: give its --image-size, or --data"
        warnings.warn(told, stacklevel=depth_outside())
    made = source if read else replace(source, data=None, dummy=True)
    return first_image(read_dataset([network], made, network.transform))[None]


def open_images(network: Network, source: Source, train: bool = False) -> Images:
    """The images that a network is measured on, or those that it takes gradients on.

    Raises:
        ValueError: no images, or images of another number of classes than the network tells apart.
    """
    dataset = read_dataset([network], source, network.transform, train)
    classes = classes_of(network, first_image(dataset))
    if source.dummy:
        dataset.num_classes = classes
    elif (there := _classes(dataset)) not in (None, classes):
        raise ValueError(f"{source.data} has {there} classes, but {network.name} tells {classes} apart")
    return Images(
        dataset,
        batch_size=source.batch_size,
        workers=0 if network.bundled else source.workers,  # which are in memory
        skip_bad=source.skip_bad,
        subset=source.calibration if train else None,
    )


def _classes(dataset: Any) -> int | None:
    """How many it has, if it says so."""
    classes = getattr(dataset, "classes", None)
    return len(classes) if isinstance(classes, Sequence) else classes


def read_dataset(
    networks: Sequence[Network],
    source: Source,
    transform: Callable[[Any], Tensor] | None,
    train: bool = False,
    targeted: bool = False,
) -> Any:
    """The data set that all these networks read, as examples (image, label).

    Args:
        networks: some may have images bundled with them; then all must, and those are read.
        source: else where images come from.
        transform: from a PIL image to a tensor; None where all images are bundled.
        train: the training split.
        targeted: whether a list will do, whose examples may have a target class too.

    Raises:
        ValueError: no images, or not the same for all networks.
    """
    split, bundled = "train" if train else "val", [network for network in networks if network.bundled]
    if bundled:
        return _bundled(bundled, networks, source, train)
    assert transform is not None
    if source.dummy:
        size = (3, source.size or DUMMY_SIDE, source.size or DUMMY_SIDE)
        return need("torchvision.datasets", "eval").FakeData(SYNTHETIC, size, 2, transform)
    if source.data is None:
        tables = "".join(f" or DIR/{listing.table}" for listing in LISTINGS if targeted)
        layouts = f"DIR/{split}/<class>/*{tables}, NAME:DIR"
        raise ValueError(f"{networks[0].name} needs images: --data DIR with {layouts}, or --dummy")
    if targeted and find_listing(source.data):
        return ListedImages(source.data, transform)
    if (named := split_name(source.data)) is not None:
        return open_named(*named, transform, train)
    return ImageFolder(source.data / split, transform)


def _bundled(bundled: Sequence[Network], networks: Sequence[Network], source: Source, train: bool) -> Any:
    names = ", ".join(network.name for network in bundled)
    if len(bundled) < len(networks):
        raise ValueError(f"{names} read the images bundled with them, and the other networks do not")
    if source.data or source.dummy:
        raise ValueError(f"{names} reads the images bundled with it: leave out --data and --dummy")
    read = bundled[0].bundled
    assert read is not None
    return read(train)


def classes_of(network: Network, image: Tensor) -> int:
    """The number of classes the network tells apart, found by running it."""
    place = next(network.model.parameters(), image).device
    try:
        with torch.no_grad():
            logits = network.model(image[None].to(place))
    except Exception as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise ValueError(
            f"{network.name} cannot run on an image of shape {tuple(image.shape)}: {reason}"
        ) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"{network.name} must give logits (batch, classes), got {shape}")
    return logits.shape[1]
