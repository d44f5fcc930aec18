"""What should a person look at? Tables, CSV, JSON and pictures; and results that outlive a crash."""

from __future__ import annotations

import csv
import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.table import Table

from prunus.evaluation import Point, Result, Setting
from prunus.files import whole_file
from prunus.masks import Masks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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


class Record(Protocol):
    """A row of any results."""

    def cells(self) -> dict[str, Any]:
        """Every column of the CSV by name."""

    def stored(self) -> dict[str, Any]:
        """What the JSON keeps."""


R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Layout(Generic[R]):
    """How the rows of one kind of results are read, and which pictures and summary are made of them."""

    read: Callable[[Mapping[str, Any]], R]
    figures: Mapping[str, Callable[[Sequence[R]], Figure]]
    summary: Callable[[Sequence[R]], list[dict[str, Any]]] | None = None


class ResultsFolder(Generic[R]):
    """The rows measured so far, on disk after each addition.

    Args:
        path: a folder, made if missing.
        settings: all that decides the results; a folder holds those of one set of settings.
        layout: of the rows.
        part: where several processes write to one folder, the number of this one. Each has a file of its
            own until number 0, after all the others, finishes.

    Raises:
        ValueError: the folder holds results of other settings, or none that can be read.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], layout: Layout[R], part: int = 0) -> None:
        self.path, self.layout, self.part = path, layout, part
        # As JSON gives it back, so that it compares equal
        self.settings = json.loads(json.dumps({**settings, "versions": versions()}))
        self.rows = self.read()
        self._own = self._read(self._json(part))
        path.mkdir(parents=True, exist_ok=True)

    def _json(self, part: int) -> Path:
        return self.path / (f"results.part{part}.json" if part else "results.json")

    def read(self) -> list[R]:
        """The rows of all parts."""
        files = [self._json(0), *sorted(self.path.glob("results.part*.json"))]
        rows = [row for file in files for row in self._read(file)]
        # A row is in two files where a process was killed between writing the one and deleting the other
        return list({json.dumps(row.stored()): row for row in rows}.values())

    def _read(self, file: Path) -> list[R]:
        if not file.exists():
            return []
        try:
            stored = json.loads(file.read_text())
            before, points = stored["settings"], stored["points"]
            rows = [self.layout.read(point) for point in points]
            keys = sorted({*before, *self.settings})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} is not a results file of prunus: {error!r}") from error
        for key in keys:
            if before.get(key) != self.settings.get(key):
                raise ValueError(
                    f"{self.path} holds results of other settings: {key} was {before.get(key)!r}, "
                    f"now {self.settings.get(key)!r}; choose another folder with -o"
                )
        return rows

    def add(self, *rows: R) -> None:
        """Keep more rows: they are on disk when this returns, as JSON and (of a single process) CSV."""
        self.rows.extend(rows)
        self._own.extend(rows)
        self._write_json(self._own)
        if not self.part:
            self._write_csv("results", [row.cells() for row in self.rows])

    def _write_json(self, rows: Sequence[R]) -> None:
        points = [row.stored() for row in rows]
        with whole_file(self._json(self.part)) as partial:
            partial.write_text(json.dumps({"settings": self.settings, "points": points}, indent=1))

    def finish(self) -> None:
        """Write all that is made from the rows of all parts: the CSV, and the pictures as PNG and SVG."""
        self.rows = self.read()
        self._own = list(self.rows)
        self._write_json(self.rows)
        for part in self.path.glob("results.part*.json"):
            part.unlink()
        self._write_csv("results", [row.cells() for row in self.rows])
        if self.layout.summary:
            self._write_csv("summary", self.layout.summary(self.rows))
        for name, draw in self.layout.figures.items():
            figure = draw(self.rows)
            for suffix in ("png", "svg"):
                with whole_file(self.path / f"{name}.{suffix}") as partial:
                    figure.savefig(partial, dpi=150)

    def _write_csv(self, name: str, lines: Sequence[Mapping[str, Any]]) -> None:
        with whole_file(self.path / f"{name}.csv") as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, "torch": torch.__version__, "prunus": version("prunus")}


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


def varied(rows: Sequence[Row]) -> list[str]:
    """The settings, besides the ratio, in which the rows differ."""
    return [name for name in VARIED if len({row.cells()[name] for row in rows}) > 1]


def _curves(rows: Sequence[Row]) -> Iterator[tuple[str, list[str], list[Row]]]:
    """Rows that differ in ratio and seed alone: network, what sets them apart, and the rows."""
    apart = [name for name in varied(rows) if name != "seed"]
    curves: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        cells = row.cells()
        curves.setdefault((row.network, *(f"{cells[name]}" for name in apart)), []).append(row)
    for (network, *values), members in curves.items():
        names = [
            f"p_bern {value}" if name == "p_bern" else value
            for name, value in zip(apart, values, strict=True)
        ]
        yield network, names, members


def curve(rows: Sequence[Row]) -> Figure:
    """Top-1 accuracy against the pruned fraction: a colour a network, a line style a way to prune.

    Several seeds give the mean, and a band from the lowest to the highest.
    """
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    networks = list(dict.fromkeys(row.network for row in rows))
    ways = list(dict.fromkeys(" ".join(names) for _, names, _ in _curves(rows)))
    styles = ("-", "--", ":", "-.")
    for network, names, members in _curves(rows):
        way = ways.index(" ".join(names))
        _draw_curve(
            axes,
            members,
            label=" · ".join((network, *names)),
            color=f"C{networks.index(network) % 10}",
            linestyle=styles[way % 4],
            marker="os^Dv*"[way % 6],
        )
    axes.set_xlabel("pruned weights (%)")
    axes.set_ylabel("top-1 accuracy (%)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def _draw_curve(axes: Axes, rows: Sequence[Row], **style: Any) -> None:
    by_ratio: dict[float, list[Row]] = {}
    for row in rows:
        by_ratio.setdefault(row.point.setting.p_prune, []).append(row)
    ratios = sorted(by_ratio)
    tops = [[row.point.result.top1 for row in by_ratio[p]] for p in ratios]
    means = [sum(top) / len(top) for top in tops]
    pruned = [100 * sum(row.point.pruned_fraction for row in by_ratio[p]) / len(by_ratio[p]) for p in ratios]
    axes.plot(pruned, means, markersize=4, **style)
    if any(len(top) > 1 for top in tops):
        axes.fill_between(pruned, list(map(min, tops)), list(map(max, tops)), color=style["color"], alpha=0.2)


def layers(rows: Sequence[Row]) -> Figure:
    """Pruned fraction of every layer at every ratio (of the first seed): one panel a curve."""
    panels = list(_curves(rows))
    columns = min(len(panels), 4)
    lines = -(-len(panels) // columns)
    tallest = max(len(members[0].point.layers) for _, _, members in panels)
    figure = Figure(
        figsize=(1 + 3.4 * columns, (1.2 + min(0.14 * tallest + 0.6, 9)) * lines), layout="constrained"
    )
    grid = figure.subplots(lines, columns, squeeze=False)
    image = None
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (network, names, members) in zip(grid.flat, panels, strict=False):
        first = [row.point for row in members if row.point.setting.seed == members[0].point.setting.seed]
        first.sort(key=lambda point: point.setting.p_prune)
        axes.set_axis_on()
        fractions = [
            [pruned / max(1, weights) for pruned, weights in point.layers.values()] for point in first
        ]
        image = axes.imshow(np.array(fractions).T, vmin=0, vmax=1, aspect="auto", cmap="viridis")
        axes.set_title(" · ".join((network, *names)), fontsize=9)
        axes.set_xticks(range(len(first)), [f"{point.setting.p_prune:g}" for point in first], fontsize=7)
        axes.set_xlabel("p_prune", fontsize=8)
        labels = [name.removesuffix(".weight") for name in first[0].layers]
        axes.set_yticks(range(len(labels)), labels, fontsize=max(2.5, min(7, 400 / len(labels))))
    if image is not None:
        figure.colorbar(image, ax=grid, label="pruned fraction of the layer", shrink=0.8)
    return figure


SWEEP = Layout(Row.read, {"curve": curve, "layers": layers})
