"""Pieces that no line reaches, and pieces that every line reaches first, whatever the scope."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from prunus.selection.line import above, draw_lines
from prunus.selection.scored import Moved, Scored


def first(tensors: Sequence[Scored], kept: Mapping[str, Tensor]) -> list[Scored]:
    """The same tensors; what is not kept by these booleans, one a piece, scores minus infinity.

    So the lowest pieces are those, and then the lowest of the others.
    """
    return [
        replace(tensor, scores=Moved(tensor.scores, _places(~kept[tensor.name]), -math.inf))
        for tensor in tensors
    ]


def protect(tensors: Sequence[Scored], least: int) -> list[Scored]:
    """The same tensors; of each, the `least` highest pieces (of equal ones the last) score infinitely.

    So the lowest pieces are found among the others, and counts and ties stay what they are.

    Raises:
        ValueError: a score is NaN or infinite.
    """
    return (
        [replace(tensor, scores=_protected(tensor, least)) for tensor in tensors] if least else list(tensors)
    )


def _protected(tensor: Scored, least: int) -> Moved:
    scores = {tensor.name: tensor.scores}
    [line] = draw_lines(scores, [max(0, len(tensor.scores) - least)])
    [(_, highest)] = above(scores, line)
    return Moved(tensor.scores, _places(highest), math.inf)


def _places(flags: Tensor) -> np.ndarray:
    return np.flatnonzero(flags.cpu().numpy())
