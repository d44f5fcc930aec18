"""Where does the budget hold?"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

from prunus.selection.line import Kept, ScoreMap, above, draw_lines


def over_network(scores: ScoreMap, fractions: Sequence[float]) -> Iterator[Kept]:
    """For every fraction p, all N groups but the lowest `int(p · N)`."""
    total = sum(len(source) for source in scores.values())
    lines = draw_lines(scores, [int(p * total) for p in fractions])
    return (above(scores, line) for line in lines)


def over_layers(scores: ScoreMap, fractions: Sequence[float]) -> Iterator[Kept]:
    """The same with the N groups of each tensor by itself."""
    layers = [over_network({name: source}, fractions) for name, source in scores.items()]
    return (itertools.chain(*parts) for parts in zip(*layers, strict=True))


Scope = Callable[[ScoreMap, Sequence[float]], Iterator[Kept]]


SCOPES: dict[str, Scope] = {"global": over_network, "layer": over_layers}
