"""Where does the budget hold?

A scope is a function from `Scored` weight tensors and fractions to what is kept: for every fraction one
stream of (weight name, one boolean a piece), in the order of the tensors. `Scored.grid` gives the scores of a
tensor by output, input and position, and `Partition.flat` leads back. To add one, write the function and
name it in `SCOPES`; `rank(scope=function)` takes it as it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from prunus.checks import choose
from prunus.selection.line import above, draw_lines
from prunus.selection.scored import Kept, Scored

Scope: TypeAlias = Callable[[Sequence[Scored], Sequence[float]], Iterator[Kept]]


def over_network(tensors: Sequence[Scored], fractions: Sequence[float]) -> Iterator[Kept]:
    """For every fraction p, all N pieces of the network but the lowest `int(p · N)`."""
    scores = {tensor.name: tensor.scores for tensor in tensors}
    total = sum(len(source) for source in scores.values())
    lines = draw_lines(scores, [int(p * total) for p in fractions])
    return (above(scores, line) for line in lines)


def over_layers(tensors: Sequence[Scored], fractions: Sequence[float]) -> Iterator[Kept]:
    """The same with the N pieces of each tensor by itself."""
    layers = [over_network([tensor], fractions) for tensor in tensors]
    return (itertools.chain(*parts) for parts in zip(*layers, strict=True))


SCOPES: dict[str, Scope] = {"global": over_network, "layer": over_layers}


def scope_of(given: str | Scope) -> Scope:
    """The scope of this name, or the function itself.

    Raises:
        ValueError: no such name; the message lists them all.
    """
    return given if callable(given) else choose("scope", given, SCOPES)
