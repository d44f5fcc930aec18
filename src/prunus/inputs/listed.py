"""Which images does a table list? The layouts of NIPS 2017 and of the benchmark TransferAttack."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MOST_CLASSES = 2**31


@dataclass(frozen=True)
class Listing:
    """A table of images to attack, ROOT/<table>, and the images in ROOT/images.

    Args:
        table: its file name.
        image, label, target: its columns: a file, its class, and the class that it is to be taken for.
        suffix: of file names, where the column leaves it out.
        first: what classes count from.
        targets: whether there must be such a column.
    """

    table: str
    image: str
    label: str
    target: str
    suffix: str = ""
    first: int = 0
    targets: bool = True


LISTINGS = (
    Listing("images.csv", "ImageId", "TrueLabel", "TargetClass", suffix=".png", first=1),
    Listing("labels.csv", "filename", "label", "targeted_label", targets=False),
)


@dataclass(frozen=True)
class Listed:
    """An image: its file, its class, the class that it is to be taken for, if that is said, and the line."""

    path: Path
    label: int
    target: int | None
    line: int

    @property
    def labels(self) -> tuple[int, ...]:
        """All that is said of it."""
        return (self.label,) if self.target is None else (self.label, self.target)


def find_listing(root: Path) -> Listing | None:
    """How this folder lists its images, if it does."""
    if not (root / "images").is_dir():  # folders of classes have tables of these names, too, of other things
        return None
    return next((listing for listing in LISTINGS if (root / listing.table).is_file()), None)


def read_listing(root: Path, listing: Listing) -> list[Listed]:
    """The images that a table lists, in its order.

    Raises:
        ValueError: it is no such table, or a line of it says what cannot be, by its number.
    """
    table = root / listing.table
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{table} is not a table of images: {error}") from error
    columns = {listing.image, listing.label} | ({listing.target} if listing.targets else set())
    missing = columns - set(rows[0] if rows else ())
    if missing:
        raise ValueError(f"{table} has no rows, or no column {min(missing)}")
    names = [name for name in (listing.label, listing.target) if name in rows[0]]
    return [_listed(root, listing, names, row, number) for number, row in enumerate(rows, 2)]


def _listed(
    root: Path, listing: Listing, names: Sequence[str], row: Mapping[str, str], number: int
) -> Listed:
    where, columns = f"{root / listing.table}, line {number}", " and ".join(names)
    try:
        labels = [int(row[name]) - listing.first for name in names]
    except (TypeError, ValueError):
        raise ValueError(f"{where}: {columns} must be numbers") from None
    if len(set(labels)) < len(labels) or min(labels) < 0 or max(labels) >= MOST_CLASSES:
        told = " and ".join(f"{row[name]:.20}" for name in names)
        differ = "differ and " * (len(labels) > 1)
        raise ValueError(f"{where}: {columns} must {differ}count from {listing.first}, got {told}")
    if not row[listing.image]:
        raise ValueError(f"{where}: no {listing.image}")
    path = root / "images" / f"{row[listing.image]}{listing.suffix}"
    return Listed(path, labels[0], labels[1] if len(labels) > 1 else None, number)
