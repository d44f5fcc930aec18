"""How far are we?"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")


class Monitor:
    """Progress on standard error: bars on a terminal, elsewhere a line for each item.

    Args:
        what: items in the plural.
        count: how many there are.
        done: how many were done before.
    """

    def __init__(self, what: str, count: int, done: int) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.items = self.bars.add_task(what, total=count, completed=done)
        self.images = self.bars.add_task("images", total=None)

    def __enter__(self) -> Monitor:
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def track(self, batches: Iterable[T], images: int, size: Callable[[T], int]) -> Iterator[T]:
        """The same batches, whose passing moves the bar of so many images."""
        self.bars.reset(self.images, total=images)
        for batch in batches:
            yield batch
            self.bars.advance(self.images, size(batch))

    def done(self, line: str) -> None:
        """One more item, of which this line tells."""
        self.bars.advance(self.items)
        if self.bars.disable:
            print(line, file=sys.stderr)
