"""The rows of a sweep."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from prunus.checks import check_number, check_text, check_whole, choose
from prunus.evaluation.evaluate import Result
from prunus.evaluation.points import Function, Point, Probe, Setting

COLUMNS = (
    "network",
    "granularity",
    "p_prune",
    "p_bern",
    "pruned_fraction",
    "acc1",
    "acc5",
    "loss",
    "metric",
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
GROWS = tuple(field.name for field in fields(Setting))
PARTS = ("networks", "training images")
WORDS = ("network", "schedule", "rewind", "granularity", "criterion", "scope", "norm", "passes")


@dataclass(frozen=True)
class SweepRow:
    """One point, and the name of the network that it was measured on."""

    network: str
    point: Point

    @property
    def item(self) -> tuple[str, Setting]:
        """The network and the setting."""
        return self.network, self.point.setting

    @property
    def value(self) -> float:
        """Top-1 accuracy in percent, or the metric."""
        return value_of(self.point.result)

    def columns(self) -> dict[str, Any]:
        """Every column of the CSV by name."""
        point, result = self.point, self.point.result
        values = {
            "network": self.network,
            "pruned_fraction": round(point.pruned_fraction, 6),
            "pruned": point.pruned,
            "weights": point.weights,
            **_measured(result),
            **{field.name: _plain(getattr(point.setting, field.name)) for field in fields(point.setting)},
        }
        return {column: values[column] for column in COLUMNS if column in values}

    def stored(self) -> dict[str, Any]:
        """What `read` makes the row of, as JSON can keep it."""
        return {**self.columns(), "layers": self.point.layers}

    @classmethod
    def read(cls, columns: Mapping[str, Any]) -> SweepRow:
        """The row of which `stored` gave this.

        Raises:
            KeyError, TypeError, ValueError: `stored` gives no such thing.
        """
        counted = () if "metric" in columns else ("correct", "correct5")
        for name in ("seed", "images", *counted):
            check_whole(name, columns[name])
        what = "loss" if counted else "metric"
        check_number(what, columns[what])
        known: dict[str, Any] = {field.name: columns.get(field.name) for field in fields(Result)}
        result = Result(**known)
        lacking = {"keep_at_least": 0, "coupled": False, "p_prune_of": ""}  # in rows of earlier versions
        known = {**lacking, **columns}
        given = {name: known[name] for name in Setting.__dataclass_fields__}
        for name in ("criterion", "scope"):
            given[name] = Function.read(check_text(name, given[name]))
        setting = Setting(**given)
        layers = {
            name: (check_whole(name, pruned), check_whole(name, weights))
            for name, (pruned, weights) in columns["layers"].items()
        }
        return cls(check_text("network", columns["network"]), Point(setting, result, layers))


AnyRow = TypeVar("AnyRow", bound=SweepRow)


def _plain(value: Any) -> Any:
    return str(value) if callable(value) else value


def value_of(result: Result) -> float:
    """Top-1 accuracy in percent, or the metric.

    Raises:
        TypeError, ValueError: a metric that is no number.
    """
    return result.top1 if result.metric is None else float(result.metric)


def _measured(result: Result) -> dict[str, Any]:
    if result.metric is not None:
        return {"images": result.images, "metric": result.metric}
    counts = {field.name: getattr(result, field.name) for field in fields(result)[:4]}
    return {"acc1": round(result.top1, 4), "acc5": round(result.top5, 4), **counts}


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
    def probe(self) -> Probe:
        """What was found, without the network and the setting."""
        point = self.point
        p_prune = point.setting.p_prune
        return Probe(self.group, p_prune, point.pruned, point.weights, self.predicted, point.result)

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


def check_stored(stored: Mapping[str, Any], point: Mapping[str, Any]) -> None:
    """Refuse a point of a file that its row would not be stored as, but for columns of later versions.

    Raises:
        ValueError: it was changed, or the row is of another kind.
    """
    known = {name: value for name, value in stored.items() if name in point}
    if json.dumps(known) != json.dumps(point):
        raise ValueError("a row that was changed by hand, or of other results")


RowT = TypeVar("RowT", bound=SweepRow)


def read_rows(
    folder: Path, read: Callable[[Mapping[str, Any]], RowT], network: str | None
) -> tuple[str, list[RowT]]:
    """The name of a network, and its rows of a results folder that is finished.

    Args:
        folder: its path.
        read: one row.
        network: of those of the folder; default the only one.

    Raises:
        FileNotFoundError: there is no results.json.
        ValueError: these are other results, or damaged; several networks, or not this one.
    """
    file = folder / "results.json"
    text = file.read_text(encoding="utf-8")
    try:
        points = json.loads(text)["points"]
        rows = [read(point) for point in points]
        for row, point in zip(rows, points, strict=True):
            check_stored(row.stored(), point)
    except Exception as error:  # damaged files make for nearly any
        raise ValueError(f"{file} does not hold such results: {error!r:.300}") from error
    by_network: dict[str, list[RowT]] = {}
    for row in rows:
        by_network.setdefault(row.network, []).append(row)
    if network is None and len(by_network) > 1:
        raise ValueError(f"{file} holds several networks: give network=, one of {', '.join(by_network)}")
    name = next(iter(by_network), "") if network is None else network
    return name, choose("network", name, by_network)


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


def by_ratio(rows: Sequence[AnyRow]) -> dict[float, list[AnyRow]]:
    """The rows of each ratio, from the lowest."""
    found: dict[float, list[AnyRow]] = {}
    for row in sorted(rows, key=lambda row: row.point.setting.p_prune):
        found.setdefault(row.point.setting.p_prune, []).append(row)
    return found


def worded(name: str, value: object) -> str:
    """A value of a setting in a title or legend: what is a word stands alone."""
    return f"{value}" if name in WORDS else f"{name} {value}"


def titled(told: Mapping[str, str]) -> str:
    """What settings say of a curve or a panel, each as it is `worded`."""
    return " · ".join(worded(*setting) for setting in told.items())
