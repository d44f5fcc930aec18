"""The page of a results folder that is there, whichever command made it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prunus.results.curves import SWEEP
from prunus.results.folder import Layout, ResultsFolder
from prunus.results.heat import SENSITIVITY
from prunus.results.trained import TRAINED
from prunus.results.transfers import TRANSFER

LAYOUTS: tuple[Layout[Any], ...] = (SWEEP, SENSITIVITY, TRAINED, TRANSFER)


class Stored(ResultsFolder[Any]):
    """A results folder as it is, of whatever settings and versions."""

    def __init__(self, path: Path, layout: Layout[Any]) -> None:
        self.path, self.layout, self.part = path, layout, 0
        self.settings = _settings(next(path.glob("results*.json")))
        self.rows = self.read()


def _settings(file: Path) -> Any:
    try:
        return {**json.loads(file.read_text(encoding="utf-8"))["settings"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not a results file of prunus: {error!r:.300}") from error


def write_report(path: Path) -> Path:
    """Write `report.html` into a results folder, from the results that it holds.

    Raises:
        ValueError: it holds none, or none that can be read.
        ImportError: a library is missing, with what to install.
    """
    if not any(path.glob("results*.json")):
        raise ValueError(
            f"{path} holds no results: there is no results.json, as sweep, sensitivity, train and "
            "transfer write it"
        )
    folder = _open(path)
    if not folder.rows:
        raise ValueError(f"{path} holds no results yet")
    folder.write_page()
    return folder.report


def _open(path: Path) -> Stored:
    """By the one layout that gives back each row as it is stored."""
    refused = []
    for layout in LAYOUTS:
        try:
            return Stored(path, layout)
        except ValueError as error:
            refused.append(error)
    raise refused[0]
