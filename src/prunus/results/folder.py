"""Results that outlive a crash: rows as JSON and CSV, and the pictures made of them."""

from __future__ import annotations

import csv
import json
import platform
import warnings
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from matplotlib.figure import Figure

from prunus.evaluation.rows import check_stored
from prunus.files import whole_file
from prunus.results.page import Page, write_page


class Row(Protocol):
    """A row of any results."""

    @property
    def item(self) -> Hashable:
        """What was measured: an item has one row or several."""

    def columns(self) -> dict[str, Any]:
        """Every column of the CSV by name."""

    def stored(self) -> dict[str, Any]:
        """What the JSON keeps, and the layout reads."""


R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class Layout(Generic[R]):
    """How the rows of one kind of results are read, and which pictures, summary and page are made of them."""

    read: Callable[[Mapping[str, Any]], R]
    figures: Mapping[str, Callable[..., Figure]]  # of rows
    page: Callable[[Sequence[R]], Page]
    summary: Callable[[Sequence[R]], list[dict[str, Any]]] | None = None
    check: Callable[[Sequence[R]], None] | None = None  # raises where rows do not go together
    order: Callable[[Sequence[R]], Sequence[R]] = list  # what is shown, however the folder came to it
    grows: Collection[str] = ()  # settings that every row tells by itself: a folder may hold several of each
    parts: Collection[str] = ()  # those of which another run may know another part, as of some networks


class ResultsFolder(Generic[R]):
    """The rows measured so far, on disk after each addition.

    Args:
        path: a folder, made if missing.
        settings: all that decides the results; but for those by which the layout lets it grow, a folder
            holds results of the same.
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
        with _reading(file):
            stored = json.loads(file.read_text(encoding="utf-8"))
            before, points = {**stored["settings"]}, [*stored["points"]]
        self.settings = self._joined(before)  # first, since rows of another version may look different
        with _reading(file):
            rows = [self._row(point) for point in points]
            if self.layout.check:
                self.layout.check(rows)
        return rows

    def _row(self, point: Mapping[str, Any]) -> R:
        """A row that can be shown and written again as it is."""
        row = self.layout.read(point)
        row.columns()
        check_stored(row.stored(), point)
        if row.item not in {row.item}:
            raise ValueError("a row that was changed by hand")
        return row

    def _joined(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of what the folder holds and of what comes, where they go together."""
        now, joined = self.settings, {**before, **self.settings}
        for key in sorted({*before, *now}):
            was, comes = before.get(key), now.get(key)
            if key in self.layout.grows:
                joined[key] = was if was == comes else _either(was, comes)
            elif key in self.layout.parts and _agree(was, comes):
                joined[key] = {**was, **comes} if isinstance(was, dict) and comes else comes or was
            elif was != comes:
                raise ValueError(
                    f"{self.path} holds results of other settings: {key:.50} was {was!r:.300}, "
                    f"now {comes!r:.300}; choose another folder"
                )
        return joined

    def add(self, *rows: R) -> None:
        """Keep more rows: they are on disk when this returns, as JSON and (of a single process) CSV."""
        self.rows.extend(rows)
        self._own.extend(rows)
        self._write_json(self._own)
        if not self.part:
            write_csv(self.path / "results.csv", [row.columns() for row in self.rows])

    def _write_json(self, rows: Sequence[R]) -> None:
        points = [row.stored() for row in rows]
        with whole_file(self._json(self.part)) as partial:
            text = json.dumps({"settings": self.settings, "points": points}, indent=1)
            partial.write_text(text, encoding="utf-8")

    def replace(self, rows: Sequence[R]) -> None:
        """Hold these rows and no others, and finish."""
        self.rows, self._own = [], []
        self.add(*rows)
        self.finish()

    def finish(self) -> None:
        """Write all that is made from the rows of all parts: the CSV, and the pictures as PNG and SVG."""
        self.rows = list(self.layout.order(self.read()))
        self._own = list(self.rows)
        self._write_json(self.rows)
        for part in self.path.glob("results.part*.json"):
            part.unlink()
        write_csv(self.path / "results.csv", [row.columns() for row in self.rows])
        if self.layout.summary:
            write_csv(self.path / "summary.csv", self.layout.summary(self.rows))
        for name, draw in self.layout.figures.items():
            write_picture(self.path / name, draw(self.rows))
        self._page_or_warning()

    def _page_or_warning(self) -> None:
        """All else is written by now: without a page, a command still ends well."""
        try:
            self.write_page()
        except OSError:
            raise
        except Exception as error:
            self.report.unlink(missing_ok=True)  # rather none than that of other rows
            warnings.warn(f"{self.report} is not written: {error!s:.300}", stacklevel=2)

    @property
    def report(self) -> Path:
        """Where the page is."""
        return self.path / "report.html"

    def write_page(self) -> None:
        """Write one page of all that there is to see."""
        names = ["results.csv", "summary.csv", "results.json", "config.toml"]
        names += [f"{name}.{suffix}" for name in self.layout.figures for suffix in ("png", "svg")]
        beside = {name: self.path / name for name in names if (self.path / name).is_file()}
        config = beside["config.toml"].read_text(encoding="utf-8") if "config.toml" in beside else ""
        write_page(self.report, self.layout.page(self.rows), self.settings, config, list(beside))


def write_csv(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """A table, of the columns of its first line."""
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def write_picture(path: Path, figure: Figure) -> None:
    """As PNG and SVG, by their suffixes."""
    for suffix in ("png", "svg"):
        with whole_file(path.parent / f"{path.name}.{suffix}") as partial:
            figure.savefig(partial, dpi=150)


def _either(was: Any, comes: Any) -> list[Any]:
    """One value or several of each, together."""
    first, second = ([] if v is None else v if isinstance(v, list) else [v] for v in (was, comes))
    return [*first, *(value for value in second if value not in first)]


def _agree(was: Any, comes: Any) -> bool:
    """Whether two are the same in what both know."""
    if isinstance(was, dict) and isinstance(comes, dict):
        return all(value == comes[name] for name, value in was.items() if name in comes)
    return was is None or comes is None or was == comes


def write_config(folder: Path, config: str) -> None:
    """Keep the options of a run, as `--config` takes them."""
    with whole_file(folder / "config.toml") as partial:
        # Names of files need not be text
        partial.write_text(config, encoding="utf-8", errors="backslashreplace")


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # damaged files make for nearly any
        raise ValueError(f"{file} is not a results file of prunus: {error!r:.300}") from error


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, "torch": torch.__version__, "prunus": version("prunus")}
