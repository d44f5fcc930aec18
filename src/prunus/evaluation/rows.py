"""The rows of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from prunus.checks import check_number, check_text, check_whole
from prunus.evaluation.evaluate import Result
from prunus.evaluation.sweep import Point, Setting

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
    "keep_at_least",
    "passes",
    "seed",
    "coupled",
    "p_prune_of",
)


# What a table has columns of, and a picture curves, where rows differ in it
VARIED = (
    "schedule",
    "rewind",
    "granularity",
    "criterion",
    "scope",
    "norm",
    "keep_at_least",
    "coupled",
    "p_prune_of",
    "passes",
    "p_bern",
    "seed",
)
# The settings that rows tell by themselves, by which a results folder can grow; and what it is told in parts
GROWS = ("p_prune", *(name for name in VARIED if name not in ("schedule", "rewind")))
PARTS = ("networks", "training images")
WORDS = ("schedule", "rewind", "granularity", "criterion", "scope", "norm", "passes")


@dataclass(frozen=True)
class SweepRow:
    """One point, and the name of the network that it was measured on."""

    network: str
    point: Point

    @property
    def item(self) -> tuple[str, Setting]:
        """The network and the setting."""
        return self.network, self.point.setting

    def columns(self) -> dict[str, Any]:
        """Every column of the CSV by name."""
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
        """What `read` makes the row of, as JSON can keep it."""
        return {**self.columns(), "layers": self.point.layers}

    @classmethod
    def read(cls, columns: Mapping[str, Any]) -> SweepRow:
        """The row of which `stored` gave this.

        Raises:
            KeyError, TypeError, ValueError: `stored` gives no such thing.
        """
        for name in ("seed", "images", "correct", "correct5"):
            check_whole(name, columns[name])
        check_number("loss", columns["loss"])
        result = Result(**{name: columns[name] for name in Result.__dataclass_fields__ if name in columns})
        lacking = {"keep_at_least": 0, "coupled": False, "p_prune_of": ""}  # in rows of earlier versions
        known = {**lacking, **columns}
        setting = Setting(**{name: known[name] for name in Setting.__dataclass_fields__})
        layers = {
            name: (check_whole(name, pruned), check_whole(name, weights))
            for name, (pruned, weights) in columns["layers"].items()
        }
        return cls(check_text("network", columns["network"]), Point(setting, result, layers))


AnyRow = TypeVar("AnyRow", bound=SweepRow)


@dataclass(frozen=True)
class ProbeRow(SweepRow):
    """A point at which one group of weights was pruned alone; of the group "", the unpruned network.

    Args:
        group: the name of a weight, or a name pattern.
        predicted: the share of the network's score that fell.
    """

    group: str
    predicted: float

    @property
    def item(self) -> Any:
        """The network, the group and the setting."""
        return self.network, self.group, self.point.setting

    def columns(self) -> dict[str, Any]:
        """Every column of the CSV by name."""
        columns = super().columns()
        first = {"network": columns.pop("network"), "group": self.group, "predicted": self.predicted}
        return {**first, **columns}

    @classmethod
    def read(cls, columns: Mapping[str, Any]) -> ProbeRow:
        """The row of which `stored` gave this.

        Raises:
            KeyError, TypeError, ValueError: `stored` gives no such thing.
        """
        row = SweepRow.read(columns)
        group, predicted = (
            check_text("group", columns["group"]),
            check_number("predicted", columns["predicted"]),
        )
        return cls(row.network, row.point, group, predicted)


def varied(rows: Sequence[SweepRow]) -> list[str]:
    """The settings, besides the ratio, in which the rows differ."""
    return [name for name in VARIED if len({row.columns().get(name) for row in rows}) > 1]


def in_order(rows: Sequence[AnyRow], names: Sequence[str] = ("network", *VARIED, "group")) -> list[AnyRow]:
    """As one run would have measured them: by these columns, values as they came, and by ratio."""
    lines = [row.columns() for row in rows]
    first = {
        name: {value: at for at, value in enumerate(dict.fromkeys(line.get(name) for line in lines))}
        for name in names
    }

    def place(at: int) -> tuple[float, ...]:
        return (*(first[name][lines[at].get(name)] for name in names), lines[at]["p_prune"])

    return [rows[at] for at in sorted(range(len(rows)), key=place)]


def worded(name: str, value: object) -> str:
    """A value of a setting in a title or legend: what is a word stands alone."""
    return f"{value}" if name in WORDS else f"{name} {value}"
