"""`prunus` and `python -m prunus`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, or say what it needs."""
    try:
        from prunus.cli.main import main as run
    except ModuleNotFoundError as error:
        sys.exit(f'prunus: the command line needs {error.name}: pip install "prunus[cli]"')
    sys.exit(run())


if __name__ == "__main__":
    main()
