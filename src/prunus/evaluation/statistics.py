"""Rates over images, and with what certainty they are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from prunus.extras import need

Z = 1.959964  # of a 95% interval
Shares: TypeAlias = NDArray[np.float64]  # one number in [0, 1] an image


def wilson(success: float, count: int) -> tuple[float, float]:
    """95% interval of a rate (Wilson 1927, without correction for continuity).

    Seeds share their images, so it is images that count, and `success`, a mean over seeds, may be a fraction.

    Example:
        >>> [round(end, 3) for end in wilson(5, 10)]
        [0.237, 0.763]
    """
    rate, z2 = success / count, Z**2
    middle = rate + z2 / (2 * count)
    reach = Z * math.sqrt(rate * (1 - rate) / count + z2 / (4 * count**2))
    low, high = ((middle + side * reach) / (1 + z2 / count) for side in (-1, 1))
    # An end that is the rate itself, at 0 or 1, may come out on its wrong side
    return max(0.0, min(low, rate)), min(1.0, max(high, rate))


def gain(first: Shares, second: Shares) -> tuple[float, float, float]:
    """First rate minus second, and its 95% interval over the paired differences of images.

    The interval is that of Bonett and Price (2012): normal, after one image was added that only the first
    fools and one that only the second does, so that few images never give a narrow interval.

    Example:
        >>> [round(number, 2) for number in gain(np.array([1, 1, 0, 1]), np.array([0, 1, 0, 1]))]
        [0.25, -0.38, 0.72]
    """
    paired = first - second
    added = np.append(paired, [1, -1])
    middle, reach = float(added.mean()), Z * float(added.std()) / len(added) ** 0.5
    return float(paired.mean()), max(-1.0, middle - reach), min(1.0, middle + reach)


def mean_over(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and how far its 95% interval reaches (Student's t); 0 of a single value.

    Example:
        >>> [round(number, 2) for number in mean_over([1.0, 2.0, 3.0])]
        [2.0, 2.48]
    """
    mean, count = sum(values) / len(values), len(values)
    if count == 1:
        return mean, 0.0
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    of_t = need("scipy.stats", "eval").t.ppf(0.975, count - 1)
    return mean, float(of_t) * spread / math.sqrt(count)
