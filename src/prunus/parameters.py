"""Kinds of values on the command line: lists of names, lists and ranges of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

import click


class Names(click.ParamType[Any]):
    """Comma-separated names, each of them one of `choices` where those are given."""

    def __init__(self, *choices: str) -> None:
        self.choices = choices
        self.name = "names"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """How `--help` shows the value."""
        return f"[{'|'.join(self.choices)}],…" if self.choices else "NAME,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A tuple without duplicates."""
        if not isinstance(value, str):
            return value
        names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
        for name in names:
            if self.choices and name not in self.choices:
                self.fail(f"{name!r} is not one of {', '.join(self.choices)}", param, ctx)
        if not names:
            self.fail("expected at least one name", param, ctx)
        return names


class Numbers(click.ParamType[Any]):
    """Comma-separated numbers and ranges FIRST:LAST:STEP, both ends included."""

    name = "numbers"

    def __init__(self, kind: type[int] | type[float] = float, count: int | None = None) -> None:
        self.kind, self.count = kind, count

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """How `--help` shows the value."""
        return "NUMBER,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A tuple."""
        if not isinstance(value, str):
            return value
        try:
            numbers = [number for part in value.split(",") for number in spread(part)]
        except InvalidOperation:
            self.fail(f"{value!r} is not a list of numbers", param, ctx)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if self.count not in (None, len(numbers)):
            self.fail(f"expected {self.count} numbers, got {len(numbers)}", param, ctx)
        if self.kind is int and any(number % 1 or abs(number) >= 2**63 for number in numbers):
            self.fail(f"{value!r} is not a list of whole numbers", param, ctx)
        return tuple(self.kind(number) for number in numbers)


def spread(text: str) -> Sequence[Decimal]:
    """The numbers of "0.3" or of "FIRST:LAST:STEP".

    In decimals, so that 0:0.7:0.1 holds 0.3 and not 0.30000000000000004.

    Raises:
        ValueError: not a range, or LAST is not a whole number of steps after FIRST.

    Example:
        >>> [float(number) for number in spread("0:0.4:0.2")]
        [0.0, 0.2, 0.4]
    """
    parts = [Decimal(part.strip()) for part in text.split(":")]
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
