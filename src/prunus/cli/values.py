"""Kinds of values on the command line: lists of names, lists and ranges of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import click
from click.shell_completion import CompletionItem

from prunus.checks import names_of, spread
from prunus.cli.names import Known


class Value(click.ParamType[Any]):
    """A kind of value; none is converted while a shell completes a line, as that may import torch."""

    def __call__(
        self, value: Any, param: click.Parameter | None = None, ctx: click.Context | None = None
    ) -> Any:
        """The value in the type that the command takes."""
        return value if ctx and ctx.resilient_parsing else super().__call__(value, param, ctx)


class Name(Value):
    """One of the names in a table, or what `also` has in place of other words."""

    name = "name"

    def __init__(self, choices: Known, also: Mapping[str, str | None] | None = None) -> None:
        self.choices, self.also = choices, also or {}

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """How `--help` shows the value."""
        return f"[{'|'.join(self.choices.names)}]"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The names that begin so."""
        return _beginning(incomplete, self.choices)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The name, if it is one of them, in the spelling that the command takes for it."""
        if ctx and ctx.token_normalize_func:
            value = ctx.token_normalize_func(value)
        if value in self.also:
            return self.also[value]
        if value not in (choices := self.choices()):
            self.fail(f"{value!r} is not one of {', '.join(names_of(choices))}", param, ctx)
        return value


class Names(Value):
    """Comma-separated names, each of them one of a table where one is given; `also` as of `Name`."""

    name = "names"

    def __init__(self, choices: Known | None = None, also: Mapping[str, str | None] | None = None) -> None:
        self.choices, self.also = choices, also or {}

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """How `--help` shows the value."""
        return f"[{'|'.join(self.choices.names)}],…" if self.choices else "NAME,…"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """What was given before the last comma, with the names that may follow."""
        before, comma, last = incomplete.rpartition(",")
        return _beginning(last, self.choices, before + comma) if self.choices else []

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A tuple without duplicates."""
        if not isinstance(value, str):
            return value
        given = [name.strip() for name in value.split(",") if name.strip()]
        names = tuple(dict.fromkeys(self.also.get(name) or name for name in given))
        choices = self.choices() if self.choices else None
        for name in names:
            if choices and name not in choices:
                self.fail(f"{name!r} is not one of {', '.join(names_of(choices))}", param, ctx)
        if not names:
            self.fail("expected at least one name", param, ctx)
        return names


def _beginning(text: str, choices: Known, before: str = "") -> list[CompletionItem]:
    return [CompletionItem(before + name) for name in choices.names if name.startswith(text)]


class FractionsOf(Value):
    """Comma-separated PATTERN=FRACTION, as one text without spaces, in which each is checked."""

    name = "PATTERN=FRACTION,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The same text."""
        from prunus.selection.patterns import read_fractions

        try:
            read_fractions(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return value


class Rules(Value):
    """Comma-separated rules that prune passes, see `prunus.training.named_rules`, each of them checked."""

    name = "rules"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """How `--help` shows the value."""
        return f"[none|{'|'.join(Known('training.named_rules', 'RULES').names)}][:K][:random],…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A tuple of the same texts without duplicates."""
        from prunus.training.named_rules import read_rules

        texts = Names().convert(value, param, ctx)
        try:
            for text in texts:
                read_rules(text)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return texts


class Numbers(click.ParamType[Any]):
    """Comma-separated numbers and ranges FIRST:LAST:STEP, both ends included."""

    name = "numbers"

    def __init__(self, kind: type[int] | type[float] = float, count: Sequence[int] | None = None) -> None:
        self.kind, self.count = kind, count

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """How `--help` shows the value."""
        return "NUMBER,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A tuple of numbers, ranges written out."""
        if not isinstance(value, str):
            return value
        try:
            numbers = [number for part in value.split(",") for number in spread(part)]
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if self.count and len(numbers) not in self.count:
            self.fail(f"expected {' or '.join(map(str, self.count))} numbers, got {len(numbers)}", param, ctx)
        if self.kind is int and any(number % 1 or abs(number) >= 2**63 for number in numbers):
            self.fail(f"{value!r} is not a list of whole numbers", param, ctx)
        return tuple(self.kind(number) for number in numbers)


class Pixels(click.ParamType[Any]):
    """Changes of a pixel in [0, 1], as 8/255 or 0.03, with commas between several."""

    name = "pixels"

    def __init__(self, several: bool) -> None:
        self.several = several

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """How `--help` shows the value."""
        return "8/255,…" if self.several else "2/255"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A tuple of fractions of the range of a pixel."""
        if not isinstance(value, str):
            return value
        try:
            numbers = [_ratio(part) for part in value.split(",")]
        except (ValueError, ZeroDivisionError):
            self.fail(f"{value!r} is not a number such as 8/255 or 0.03", param, ctx)
        if len(numbers) > 1 and not self.several:
            self.fail(f"expected one number, got {value!r}", param, ctx)
        if not all(0 < number <= 1 for number in numbers):
            self.fail(f"{value!r} is not in (0, 1]: pixels are in [0, 1]", param, ctx)
        return tuple({f"{255 * number:g}": number for number in numbers}.values())


def _ratio(text: str) -> float:
    above, _, below = text.partition("/")
    return float(Fraction(above.strip()) / Fraction(below.strip() or 1))
