"""Names that an option can take, from the tables that have them.

Their modules import torch, which takes seconds: what `--help` and completion show is kept in a cache.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import prunus
from prunus.checks import names_of
from prunus.files import whole_file

IN_SESSION = "torch" in sys.modules  # and not in a process of the command's own


@dataclass(frozen=True)
class Known:
    """A table of names: in which module of the package, and what it is called there."""

    module: str
    table: str

    def __call__(self) -> Collection[str]:
        """The table itself."""
        found: Collection[str] = getattr(import_module(f"prunus.{self.module}"), self.table)
        return found

    @property
    def names(self) -> Sequence[str]:
        """Its names and their forms, as they were when this code was last asked for them.

        Where torch was there before, it saves no time, and the table itself has what a session added to it.
        """
        if IN_SESSION:
            return list(names_of(self()))
        cache, stamp, key = _cache(), _stamp(), f"{self.module}.{self.table}"
        held: dict[str, list[str]] = {}
        with suppress(OSError, ValueError, LookupError, TypeError):  # none, of other code, or damaged
            held = json.loads(cache.read_text(encoding="utf-8"))[stamp]
        if key not in held:
            held = {**held, key: list(names_of(self()))}
            with suppress(OSError):  # nothing is lost but time
                cache.parent.mkdir(parents=True, exist_ok=True)
                with whole_file(cache) as partial:
                    partial.write_text(json.dumps({stamp: held}), encoding="utf-8")
        return held[key]


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prunus" / "names.json"


def _stamp() -> str:
    """Of the code: where it is, and when it was last changed."""
    package = Path(prunus.__file__).parent
    return f"{package} {max(file.stat().st_mtime_ns for file in package.rglob('*.py'))}"
