"""The rows of a sweep, and their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from prunus.evaluation.evaluate import Result
from prunus.evaluation.sweep import Point, Setting
from prunus.masks import Masks


COLUMNS = (
    "network",
    "granularity",
    "p_prune",
    "p_bern",
    "pruned_fraction",
    "acc1",
    "acc5",
    "loss",
    "correct",
    "images",
    "correct5",
    "pruned",
    "weights",
    "criterion",
    "scope",
    "norm",
    "passes",
    "seed",
)


VARIED = ("granularity", "criterion", "scope", "p_bern", "seed")


@dataclass(frozen=True)
class Row:
    """One point of one network."""

    network: str
    point: Point

    def cells(self) -> dict[str, Any]:
        """Every column by name."""
        point, result = self.point, self.point.result
        values = {
            "network": self.network,
            "pruned_fraction": round(point.pruned_fraction, 6),
            "acc1": round(result.top1, 4),
            "acc5": round(result.top5, 4),
            "pruned": point.pruned,
            "weights": point.weights,
            **asdict(result),
            **asdict(point.setting),
        }
        return {column: values[column] for column in COLUMNS}

    def stored(self) -> dict[str, Any]:
        """All there is to keep."""
        return {**self.cells(), "layers": self.point.layers}

    @classmethod
    def read(cls, cells: Mapping[str, Any]) -> Row:
        """A row from what was stored."""
        result = Result(**{name: cells[name] for name in Result.__dataclass_fields__})
        setting = Setting(**{name: cells[name] for name in Setting.__dataclass_fields__})
        layers = {name: (pruned, weights) for name, (pruned, weights) in cells["layers"].items()}
        return cls(cells["network"], Point(setting, result, layers))


def table(rows: Sequence[Row]) -> Table:
    """Network, p_prune, pruned fraction, acc@1, acc@5, loss, and whatever else varies."""
    extra = varied(rows)
    made = Table(box=None, header_style="bold", pad_edge=False)
    made.add_column("network", no_wrap=True)
    for name in (*extra, "p_prune", "fraction", "acc@1", "acc@5", "loss"):
        made.add_column(name, justify="left" if name in extra else "right", no_wrap=True)
    for row in rows:
        cells = row.cells()
        made.add_row(
            row.network,
            *(str(cells[name]) for name in extra),
            f"{cells['p_prune']:g}",
            f"{cells['pruned_fraction']:.4f}",
            f"{cells['acc1']:.2f}",
            f"{cells['acc5']:.2f}",
            f"{cells['loss']:.4f}",
        )
    return made


def varied(rows: Sequence[Row]) -> list[str]:
    """The settings, besides the ratio, in which the rows differ."""
    return [name for name in VARIED if len({row.cells()[name] for row in rows}) > 1]


def mask_table(title: str, masks: Masks) -> Table:
    """Shape, weights, pruned count and fraction of every layer, and of all."""
    made = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    made.add_column("layer", no_wrap=True)
    for column in ("shape", "weights", "pruned", "fraction"):
        made.add_column(column, justify="right", no_wrap=True)
    for name, (pruned, weights) in masks.counts.items():
        shape = " x ".join(map(str, masks[name].shape))
        layer = name.removesuffix(".weight")
        made.add_row(layer, shape, f"{weights:,}", f"{pruned:,}", f"{pruned / max(1, weights):.4f}")
    made.add_section()
    made.add_row(f"{len(masks)} layers", "", f"{masks.total:,}", f"{masks.pruned:,}", f"{masks.sparsity:.4f}")
    return made
