"""Checks of arguments, with errors that name the argument, its value and what was expected."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from difflib import get_close_matches
from functools import wraps
from inspect import Parameter, signature
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeAlias, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

FORMER = {"generator": "seed", "seeds": "seed"}  # keywords, and what they are called now


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


Amount: TypeAlias = "float | Mapping[str, float]"  # a fraction of pieces, or fractions by name patterns


def check_amount(argument: str, value: object) -> Amount:
    """A number in [0, 1], or several by name pattern.

    Raises:
        TypeError, ValueError: as `check_fraction`, or there is no pattern at all.

    Example:
        >>> check_amount("p_prune", {"layer1.*": 0.5, "fc": 2})
        Traceback (most recent call last):
        ValueError: p_prune of 'fc' must be in [0, 1], got 2
    """
    if not isinstance(value, Mapping):
        return check_fraction(argument, value)
    if not value:
        raise ValueError(f"{argument} is empty: expected a fraction by each name pattern")
    return {str(name): check_fraction(f"{argument} of {name!r}", part) for name, part in value.items()}


def check_number(argument: str, value: object) -> float:
    """A number as a float.

    Raises:
        TypeError: something else.
        OverflowError: a whole number that no float can be.

    Example:
        >>> check_number("loss", "0.1")
        Traceback (most recent call last):
        TypeError: loss must be a number, got '0.1'
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{argument} must be a number, got {value!r}")
    return float(value)


def check_text(argument: str, value: object) -> str:
    """A str.

    Raises:
        TypeError: something else.
    """
    if not isinstance(value, str):
        raise TypeError(f"{argument} must be text, got {value!r}")
    return value


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


def check_seed(value: object) -> int:
    """A whole number that torch can be seeded with.

    Raises:
        ValueError: something else.
    """
    if (seed := check_whole("seed", value)) >= 2**64:
        raise ValueError(f"seed must be below 2**64, got {seed}")
    return seed


def check_flag(argument: str, value: object) -> bool:
    """True or False.

    Raises:
        TypeError: something else.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{argument} must be True or False, got {value!r}")
    return value


class Named(dict[str, T]):
    r"""A table of things by name, some of whose names have a form, such as 2:4 that of n:m.

    Example:
        >>> table = Named({"all": 1.0})
        >>> table.forms["n:m"] = re.compile(r"(\d+):(\d+)"), lambda n, m: n / m
        >>> table["2:4"], "2:4" in table, "2-4" in table, table.names
        (0.5, True, False, ('all', 'n:m'))
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.forms: dict[str, tuple[re.Pattern[str], Callable[..., T]]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """All names, and forms of names."""
        return (*self, *self.forms)

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and self._form(name) is not None)

    def __missing__(self, name: str) -> T:
        found = self._form(name)
        if found is None:
            raise KeyError(name)
        match, make = found
        return make(*map(int, match.groups()))

    def _form(self, name: str) -> tuple[re.Match[str], Callable[..., T]] | None:
        matches = ((pattern.fullmatch(name), make) for pattern, make in self.forms.values())
        return next(((match, make) for match, make in matches if match), None)


def names_of(table: Iterable[str]) -> tuple[str, ...]:
    """The names in a table, and their forms where it has some."""
    return table.names if isinstance(table, Named) else tuple(table)


def choose(argument: str, value: object, table: Mapping[str, T]) -> T:
    """The entry of this name.

    Raises:
        ValueError: no such name; the message lists them all.
    """
    if not isinstance(value, str) or value not in table:
        raise ValueError(f"{argument} must be one of {', '.join(names_of(table))}; got {value!r}")
    return table[value]


def chosen(argument: str, given: str | Callable[P, R], table: Mapping[str, Callable[P, R]]) -> Callable[P, R]:
    """The function of this name in a table, or the function itself where one was given.

    Raises:
        ValueError: no such name; the message lists them all.
    """
    return given if callable(given) else choose(argument, given, table)


def knows_keywords(choice: type | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function refuse unknown keywords in its own name, and not in that of one to which it passes them.

    Those that had another name before are taken under it too, with a DeprecationWarning.

    Args:
        choice: the TypedDict of its `**choice`, if it has that.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        named = [
            p.name for p in signature(function).parameters.values() if p.kind is not Parameter.VAR_KEYWORD
        ]
        allowed = [*named, *getattr(choice, "__annotations__", ())]
        verb = function.__qualname__.removesuffix(".__init__")

        @wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            for name in FORMER.keys() & kwargs.keys():
                _rename(verb, kwargs, name, allowed)
            check_keywords(verb, kwargs, allowed)
            return function(*args, **kwargs)

        return called

    return decorate


def _rename(verb: str, given: dict[str, Any], name: str, allowed: Sequence[str]) -> None:
    new = FORMER[name]
    if name in allowed or new not in allowed:
        return
    if new in given:
        raise TypeError(f"{verb}() got {name!r} and {new!r}: {name} is the former name of {new}")
    warnings.warn(f"{verb}({name}=) is now {verb}({new}=)", DeprecationWarning, stacklevel=3)
    given[new] = given.pop(name)


def check_keywords(verb: str, given: Mapping[str, object], allowed: Iterable[str]) -> None:
    """Refuse the first keyword that is none of a verb's.

    Raises:
        TypeError: names the verb, the keyword, and what was probably meant.

    Example:
        >>> check_keywords("prune", {"granularty": "kernel"}, ["model", "granularity"])
        Traceback (most recent call last):
        TypeError: prune() has no keyword 'granularty': did you mean 'granularity'?
    """
    allowed = [name for name in allowed if name != "self"]
    for name in given:
        if name in allowed:
            continue
        near = get_close_matches(name, allowed, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(allowed)}"
        raise TypeError(f"{verb}() has no keyword {name!r}: {hint}")


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
