"""An experiment, item by item, into a results folder; started again, it goes on where it stopped."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

from prunus.files import only_writer
from prunus.processes import Process
from prunus.progress import Monitor
from prunus.results.folder import Layout, ResultsFolder, Row, write_config

ItemT = TypeVar("ItemT", bound=Hashable)
RowT = TypeVar("RowT", bound=Row)


class Experiment(Protocol[ItemT, RowT]):
    """What `run` can run: items, each of which gives rows."""

    what: str  # its items are called, in the plural
    together: bool  # whether several processes work on each item; else they divide the items

    def record(self) -> Mapping[str, Any]:
        """All that decides the results besides the options: fingerprints of what is read."""

    def items(self) -> Sequence[ItemT]:
        """All that is to be measured, in order; the same in every process."""

    def measure(self, items: Sequence[ItemT], monitor: Monitor) -> Iterator[Sequence[RowT]]:
        """The rows of each of these items, in this order; working together, of the first process only.

        It is asked for none, too, where all are held: a run that was killed may have left things to clear.
        """

    def line(self, rows: Sequence[RowT]) -> str:
        """One line about an item that was done."""


def run(
    experiment: Experiment[ItemT, RowT],
    layout: Layout[RowT],
    output: Path | None,
    options: Mapping[str, Any],
    process: Process | None = None,
    config: str = "",
) -> Sequence[RowT]:
    """Measure every item; with an output folder, every item that it does not hold yet.

    Args:
        experiment: what to run.
        layout: of the results folder.
        output: results folder, made if missing; each item is on disk as soon as it is measured.
        options: by which, and by `experiment.record()`, the folder knows that the results are the same.
        process: of several, this one, which does its part, by default all; number 0 finishes the folder.
        config: the options as a file, see `prunus.cli.config`, which the folder keeps.

    Returns:
        All rows that the folder holds, those of earlier runs too.

    Raises:
        KeyboardInterrupt: when interrupted; its message says what is saved, and where.
        ValueError: the folder holds results of something else, or another process is writing to it.
    """
    process = process or Process()
    with ExitStack() as alone:
        if output and process.number == 0:  # or rows that it does not know of would be lost
            output.mkdir(parents=True, exist_ok=True)
            alone.enter_context(only_writer(output))
        return _run(experiment, layout, output, options, process, config)


def _run(
    experiment: Experiment[ItemT, RowT],
    layout: Layout[RowT],
    output: Path | None,
    options: Mapping[str, Any],
    process: Process,
    config: str,
) -> Sequence[RowT]:
    record = {**options, **experiment.record()}
    part = 0 if experiment.together else process.number
    folder = ResultsFolder(output, record, layout, part) if output else None
    if folder and config and process.number == 0:
        write_config(folder.path, config)
    rows = list(folder.rows) if folder else []
    held = {row.item for row in rows}
    # Divided before what is done is left out, or the processes would not divide the same list
    mine = experiment.items() if experiment.together else process.mine(experiment.items())
    left = [item for item in mine if item not in held]
    try:
        with Monitor(experiment.what, len(mine), len(mine) - len(left)) as monitor:
            if experiment.together:
                process.wait()  # until all have read what the first one is about to add to
            for made in experiment.measure(left, monitor):
                rows += made
                if folder and made:
                    folder.add(*made)
                if made:
                    monitor.done(experiment.line(made))
    except BaseException as error:
        if folder and folder.rows and process.count == 1:
            with suppress(Exception):  # which would hide the error
                folder.finish()
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(_saved(folder, mine, experiment.what, str(error))) from None
        raise
    process.wait()
    if folder and process.number == 0:
        folder.finish()
        return folder.rows
    return rows


def _saved(folder: ResultsFolder[Any] | None, items: Sequence[Any], what: str, besides: str) -> str:
    """What an interrupted run has left behind.

    Args:
        folder: results folder, if there is one.
        items: all that were to be measured.
        what: they are called.
        besides: what is saved of the one under way, if something is.
    """
    if folder is None:
        return "Nothing is saved without a results folder, -o."
    held = {row.item for row in folder.rows}
    count = sum(item in held for item in items)
    if not count and not besides:
        return "Nothing was saved yet."
    also = f", and {besides}" if besides else ""
    return f"{count:,} of {len(items):,} {what} are saved in {folder.path}{also}; run again to go on."
