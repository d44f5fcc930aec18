"""How large is the learning rate, as a part of the first, after which part of the training?

Each is a function from the part that is done, in [0, 1], to a factor. To add one, write it here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

LearningRate = Callable[[float], float]


def cosine(done: float) -> float:
    """From 1 to 1/100 along a cosine (Loshchilov, Hutter 2017, arXiv 1608.03983, without restarts).

    Example:
        >>> [round(cosine(done), 3) for done in (0, 0.5, 1)]
        [1.0, 0.505, 0.01]
    """
    return 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2


def steps(done: float) -> float:
    """A tenth from the half on, and a hundredth from three quarters on (He et al. 2015, section 4.2).

    Example:
        >>> [steps(done) for done in (0, 0.5, 0.75)]
        [1.0, 0.1, 0.01]
    """
    return 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01


def linear(done: float) -> float:
    """From 1 to 1/100 along a line."""
    return 1 - 0.99 * done


def constant(done: float) -> float:
    """Always the same."""
    return 1.0


LEARNING_RATES: dict[str, LearningRate] = {
    function.__name__: function for function in (cosine, steps, linear, constant)
}
