"""`prunus report`."""

from __future__ import annotations

from pathlib import Path

import click

from prunus.cli.command import command, tell


@command("report")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def report_command(folder: Path) -> None:
    """One page of a results folder: curves, layers and a table to look into, offline in any browser.

    The commands that write such a folder write it too; this makes it anew, and for folders that are older.

    \b
    prunus sweep -o results
    prunus report results
    """
    from prunus.results.report import write_report

    made = str(write_report(folder))
    tell({"report": made}, made)
