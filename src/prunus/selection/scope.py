"""Where does the budget hold?

A scope is a function from `Scored` weight tensors and fractions to what is kept: for every fraction one
stream of (weight name, one boolean a piece), in the order of the tensors. `Scored.grid` gives the scores of a
tensor by output, input and position, and `Partition.flat` leads back. To add one, write the function here,
under `@scope(name)`; `rank(scope=function)` takes any as it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from prunus.selection.line import above, draw_lines
from prunus.selection.scored import Kept, Scored

Scope: TypeAlias = Callable[[Sequence[Scored], Sequence[float]], Iterator[Kept]]
SCOPES: dict[str, Scope] = {}  # by name, in the order of this file


def scope(name: str) -> Callable[[Scope], Scope]:
    """Make a scope known by this name."""

    def know(function: Scope) -> Scope:
        SCOPES[name] = function
        return function

    return know


@scope("global")
def over_network(tensors: Sequence[Scored], fractions: Sequence[float]) -> Iterator[Kept]:
    """For every fraction p, all N pieces of the network but the lowest `int(p · N)`."""
    scores = {tensor.name: tensor.scores for tensor in tensors}
    total = sum(len(source) for source in scores.values())
    lines = draw_lines(scores, [int(p * total) for p in fractions])
    return (above(scores, line) for line in lines)


@scope("layer")
def over_layers(tensors: Sequence[Scored], fractions: Sequence[float]) -> Iterator[Kept]:
    """The same with the N pieces of each tensor by itself."""
    layers = [over_network([tensor], fractions) for tensor in tensors]
    return (itertools.chain(*parts) for parts in zip(*layers, strict=True))
