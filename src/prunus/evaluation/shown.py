"""What was measured shows itself: as a table, a picture, a data frame, files."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunus.checks import choose
from prunus.extras import need
from prunus.table import Table

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from prunus.evaluation.rows import SweepRow
    from prunus.results.folder import Layout


class Shown(ABC):
    """What was measured, to look at. Printed, it is its table; in a notebook too."""

    @abstractmethod
    def rows(self) -> Sequence[SweepRow]:
        """As rows of a results folder."""

    @abstractmethod
    def _tables(self) -> Iterable[Table]: ...

    @abstractmethod
    def _layout(self) -> Layout[Any]:
        """Of a results folder. Needs matplotlib."""

    def table(self) -> str:
        """All of it as text, in columns. Nothing has to be installed for that."""
        return "\n\n".join(map(str, self._tables()))

    def __str__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        return "".join(table.html() for table in self._tables())

    def plot(self, picture: str | None = None, *, size: tuple[float, float] | None = None) -> Figure:
        """A picture of it, by matplotlib (the extra `cli`), to look at or to `.savefig("x.pdf")`.

        Args:
            picture: its name, where there are several; default the first. See each class.
            size: width and height in inches; default as large as what it holds needs.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: no such picture, or nothing was measured.
        """
        need("matplotlib", "cli")
        rows = self._some_rows()
        figures = self._layout().figures
        draw = choose("picture", next(iter(figures)) if picture is None else picture, figures)
        return draw(rows, size=size)

    def to_pandas(self) -> pandas.DataFrame:
        """A data frame: a line for each measurement, with the columns of results.csv.

        Raises:
            ImportError: pandas is not installed.
        """
        frame: pandas.DataFrame = need("pandas", "pandas").DataFrame([row.columns() for row in self.rows()])
        return frame

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the results folder that the command of this name writes: CSV, JSON and pictures.

        What was saved there before is replaced; criteria and scopes that are functions are saved by name.

        Raises:
            ImportError: matplotlib is not installed.
            TypeError: a metric that is no number.
            ValueError: nothing was measured, or the folder holds results of a command, or others.
        """
        need("matplotlib", "cli")
        rows = self._some_rows()
        from prunus.results.folder import ResultsFolder

        made = {"made_by": f"prunus.{type(self).__name__}"}
        ResultsFolder(Path(folder), made, self._layout()).replace(rows)

    def _some_rows(self) -> Sequence[SweepRow]:
        rows = self.rows()
        if not rows:
            raise ValueError("nothing was measured: there is nothing to show")
        return rows
