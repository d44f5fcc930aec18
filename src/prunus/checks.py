"""Checks of arguments, with errors that name the argument, its value and what was expected."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from numbers import Integral, Real
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def check_fraction(argument: str, value: object) -> float:
    """A number in [0, 1] as a float.

    Raises:
        TypeError: not a number.
        ValueError: outside [0, 1], or NaN.

    Example:
        >>> check_fraction("p_prune", 1.5)
        Traceback (most recent call last):
        ValueError: p_prune must be in [0, 1], got 1.5
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{argument} must be a number in [0, 1], got {value!r}")
    number = float(value)
    if math.isnan(number) or not 0 <= number <= 1:
        raise ValueError(f"{argument} must be in [0, 1], got {value!r}")
    return number


def check_whole(argument: str, value: object, least: int = 0) -> int:
    """A whole number, of Python or NumPy, as an int.

    Raises:
        ValueError: something else, or less than `least`.

    Example:
        >>> check_whole("seed", -1)
        Traceback (most recent call last):
        ValueError: seed must be a whole number from 0, got -1
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{argument} must be a whole number from {least}, got {value!r}")
    return int(value)


def choose(argument: str, value: object, table: Mapping[str, T]) -> T:
    """The entry of this name.

    Raises:
        ValueError: no such name; the message lists them all.
    """
    if not isinstance(value, str) or value not in table:
        raise ValueError(f"{argument} must be one of {', '.join(table)}; got {value!r}")
    return table[value]


def chosen(argument: str, given: str | Callable[P, R], table: Mapping[str, Callable[P, R]]) -> Callable[P, R]:
    """The function of this name in a table, or the function itself where one was given.

    Raises:
        ValueError: no such name; the message lists them all.
    """
    return given if callable(given) else choose(argument, given, table)


def spread(text: str) -> Sequence[Decimal]:
    """The numbers of "0.3" or of "FIRST:LAST:STEP".

    In decimals, so that 0:0.7:0.1 holds 0.3 and not 0.30000000000000004.

    Raises:
        ValueError: not a number, not a range, or LAST is not a whole number of steps after FIRST.

    Example:
        >>> [float(number) for number in spread("0:0.4:0.2")]
        [0.0, 0.2, 0.4]
    """
    try:
        parts = [Decimal(part.strip()) for part in text.split(":")]
    except InvalidOperation:
        raise ValueError(f"{text!r} is not a number or a range FIRST:LAST:STEP") from None
    if not all(part.is_finite() for part in parts):
        raise ValueError(f"{text!r} is not finite")
    if len(parts) == 1:
        return parts
    if len(parts) != 3:
        raise ValueError(f"{text!r} is not a range FIRST:LAST:STEP")
    first, last, step = parts
    if step <= 0 or last < first or (last - first) % step:
        raise ValueError(f"{text!r}: {last} is not a whole number of steps of {step} after {first}")
    return [first + index * step for index in range(int((last - first) / step) + 1)]
