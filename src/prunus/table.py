"""A table: as text, and as HTML for notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Table:
    """Rows of cells under a head. Nothing is cut: a cut number would be a wrong one.

    Args:
        head: names of the columns.
        rows: a cell for each column.
        named: so many columns, the first, hold names, which start at the left; numbers end at the right.
        title: above, or none.
        totals: rows of all others together, set apart below.

    Example:
        >>> print(Table(("layer", "weights"), [("conv1", "27"), ("fc", "5,120")], totals=[("all", "5,147")]))
        layer  weights
        conv1       27
        fc       5,120
        <BLANKLINE>
        all      5,147
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    named: int = 1
    title: str = ""
    totals: Sequence[Sequence[str]] = ()

    def __str__(self) -> str:
        lines = [self.head, *self.rows, *self.totals]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        told = ["  ".join(self._padded(line, widths)).rstrip() for line in lines]
        if self.totals:
            told.insert(-len(self.totals), "")
        return "\n".join([self.title, *told] if self.title else told)

    def _padded(self, line: Sequence[str], widths: Sequence[int]) -> list[str]:
        return [
            cell.ljust(width) if number < self.named else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]

    def html(self) -> str:
        """The same; what stands in cells is shown, never run."""
        title = f"<caption>{escape(self.title)}</caption>" if self.title else ""
        parts = (("thead", "th", [self.head]), ("tbody", "td", self.rows), ("tfoot", "td", self.totals))
        body = "".join(
            f"<{part}>{''.join(self._line(line, tag) for line in lines)}</{part}>"
            for part, tag, lines in parts
            if lines
        )
        return f"<table>{title}{body}</table>"

    def _line(self, line: Sequence[str], tag: str) -> str:
        sides = ("left" if number < self.named else "right" for number in range(len(line)))
        cells = (
            f'<{tag} align="{side}">{escape(cell)}</{tag}>' for cell, side in zip(line, sides, strict=True)
        )
        return f"<tr>{''.join(cells)}</tr>"
