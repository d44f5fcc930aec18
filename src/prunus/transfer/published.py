"""Numbers that others published, to be shown beside ours."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from prunus.transfer.rows import GOALS


@dataclass(frozen=True)
class PublishedRow:
    """One attack on one surrogate, as published.

    Args:
        attack: what it is called there.
        like: the method here that it is to be compared with, or "".
        rates: fraction of images that fool each target.
    """

    attack: str
    like: str
    targeted: bool
    eps: float
    surrogate: str
    rates: Mapping[str, float]

    @property
    def name(self) -> str:
        """As it is shown."""
        return f"{self.attack} (as {self.like})" if self.like else self.attack


@dataclass(frozen=True)
class Published:
    """Rows, and where they are from."""

    source: str
    rows: Sequence[PublishedRow]

    def of(
        self, targeted: bool, eps: float, surrogates: Sequence[str], targets: Sequence[str]
    ) -> list[PublishedRow]:
        """Those with this goal and eps on one of these surrogates, against any of these targets."""
        return [
            row
            for row in self.rows
            if (row.targeted, round(255 * row.eps, 6)) == (targeted, round(255 * eps, 6))
            and row.surrogate in surrogates
            and any(target in row.rates for target in targets)
        ]


def read_published(name: str) -> Published:
    """The numbers of a file beside this one: a line `# ...` that says where they are from, and a table.

    The table is in percent, with a column for every target.
    """
    source, *lines = (files("prunus.transfer") / name).read_text(encoding="utf-8").splitlines()
    return Published(source.removeprefix("# "), [_row(line) for line in csv.DictReader(lines)])


def _row(line: dict[str, str]) -> PublishedRow:
    known = {name: line.pop(name) for name in ("goal", "eps_255", "surrogate", "attack", "like")}
    return PublishedRow(
        attack=known["attack"],
        like=known["like"],
        targeted=GOALS[known["goal"]],
        eps=float(known["eps_255"]) / 255,
        surrogate=known["surrogate"],
        rates={target: float(percent) / 100 for target, percent in line.items() if percent},
    )
