"""Libraries that only some commands need."""

from __future__ import annotations

import importlib
from typing import Any


def need(module: str, extra: str) -> Any:
    """Import a module, or say which extra of Prunus brings it.

    Raises:
        ImportError: with the command that installs it.

    Example:
        >>> need("no_such_library", "eval")
        Traceback (most recent call last):
        ImportError: no_such_library is not installed: pip install "prunus[eval]"
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        library = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != library:
            raise
        raise ImportError(f'{library} is not installed: pip install "prunus[{extra}]"') from error
