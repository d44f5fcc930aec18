"""How far are we?"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from prunus.inputs.images import Batch, Images

T = TypeVar("T")


class Monitor:
    """Progress on standard error: bars on a terminal, elsewhere one line for each of `what`."""

    def __init__(self, what: str, count: int, done: int) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.points = self.bars.add_task(what, total=count, completed=done)
        self.images = self.bars.add_task("images", total=None)

    def __enter__(self) -> Monitor:
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def watch(self, images: Images) -> Watched:
        """The same images, seen passing."""
        return Watched(images, self)

    def track(self, batches: Iterable[T], images: int, size: Callable[[T], int]) -> Iterator[T]:
        """The same batches, whose passing moves a bar."""
        self.bars.reset(self.images, total=images)
        for batch in batches:
            yield batch
            self.bars.advance(self.images, size(batch))

    def done(self, line: str) -> None:
        """One more."""
        self.bars.advance(self.points)
        if self.bars.disable:
            print(line, file=sys.stderr)


@dataclass(frozen=True)
class Watched:
    """Images whose passing moves a progress bar."""

    images: Images
    monitor: Monitor

    def __iter__(self) -> Iterator[Batch]:
        return self.monitor.track(self.images, len(self.images), lambda batch: len(batch[1]))
