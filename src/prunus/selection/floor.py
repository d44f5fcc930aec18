"""What every weight tensor keeps, however low it scores: no scope reaches its highest pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from prunus.selection.line import above, draw_lines
from prunus.selection.scored import Protected, Scored


def protect(tensors: Sequence[Scored], least: int) -> list[Scored]:
    """The same tensors; of each, the `least` highest pieces (of equal ones the last) score infinitely.

    So the lowest pieces are found among the others, and counts and ties stay what they are.

    Raises:
        ValueError: a score is NaN or infinite.
    """
    return (
        [replace(tensor, scores=_protected(tensor, least)) for tensor in tensors] if least else list(tensors)
    )


def _protected(tensor: Scored, least: int) -> Protected:
    scores = {tensor.name: tensor.scores}
    [line] = draw_lines(scores, [max(0, len(tensor.scores) - least)])
    [(_, highest)] = above(scores, line)
    return Protected(tensor.scores, np.flatnonzero(highest.cpu().numpy()))
