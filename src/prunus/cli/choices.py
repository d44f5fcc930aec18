"""Names that options can take. Each is read from where it is defined, and only when it is asked for: that
imports torch, which `--help` and a mistyped option shall not wait for.
"""

from __future__ import annotations

from collections.abc import Iterable


def granularities() -> Iterable[str]:
    """What can be pruned as one piece."""
    from prunus.selection.pieces import GRANULARITIES

    return GRANULARITIES


def criteria() -> Iterable[str]:
    """What a score can be."""
    from prunus.scores.criteria import CRITERIA

    return CRITERIA


def scopes() -> Iterable[str]:
    """Where the budget can hold."""
    from prunus.selection.scope import SCOPES

    return SCOPES


def norms() -> Iterable[str]:
    """How scores of one piece can be put together."""
    from prunus.selection.pieces import NORMS

    return NORMS


def layers() -> Iterable[str]:
    """Types of layers that can be pruned."""
    from prunus.weights import ALL_LAYERS

    return "all", *(kind.__name__ for kind in ALL_LAYERS)


def methods() -> Iterable[str]:
    """What can be done to a surrogate."""
    from prunus.transfer.methods import KINDS

    return KINDS


def losses() -> Iterable[str]:
    """What an attack can follow."""
    from prunus.transfer.attacks import LOSSES

    return LOSSES


def goals() -> Iterable[str]:
    """Where an attack can lead to."""
    from prunus.transfer.rows import GOALS

    return GOALS
