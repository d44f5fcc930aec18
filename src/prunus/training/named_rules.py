"""Which rules of `prunus.sparse_backward` does a text name?"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter, signature

from prunus.application.places import Places
from prunus.backward.presets import PRESETS, Preset, static
from prunus.backward.rules import random
from prunus.checks import choose

NO_RULES = "none"
# What follows masks of the weights has none to follow where the weights stay dense
RULES: Mapping[str, Preset] = {name: preset for name, preset in PRESETS.items() if preset is not static}


def read_rules(text: str) -> Places | None:
    """The rules of a text such as "meprop:0.1", "srste:2:4" or "channels:0.5:random"; None of "none".

    Args:
        text: a preset, and after colons values of its settings in their order, the others by default; at
            last "random", where scores that say nothing are to take the place of its own.

    Raises:
        ValueError: it names none.

    Example:
        >>> read_rules("meprop:0.1").used, read_rules("swat:0.1:random").used
        (['output_grad'], ['forward', 'activation'])
        >>> read_rules("meprop:0")
        Traceback (most recent call last):
        ValueError: 'meprop:0': k must be in (0, 1], got 0.0
    """
    if text == NO_RULES:
        return None
    name, *values = text.split(":")
    preset = choose("rules", name, {NO_RULES: None, **RULES})
    assert preset is not None
    settings = dict(signature(preset).parameters)
    score = settings.pop("score", None)
    by_chance = values[-1:] == ["random"]
    try:
        if by_chance and score is None:
            raise ValueError(f"{name} has no score that could be random")
        numbers = values[:-1] if by_chance else values
        if len(numbers) > len(settings):
            raise ValueError(f"expected {name}, and by colons at most its {', '.join(settings)}")
        given = zip(settings.items(), numbers, strict=False)
        found = {setting: _number(parameter, value) for (setting, parameter), value in given}
        return preset(**found, **({"score": random} if by_chance else {}))
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None


def _number(setting: Parameter, value: str) -> float:
    """The value of a setting, whole where its default is."""
    kind: type[float] = type(setting.default)
    try:
        return kind(value)
    except ValueError:
        whole = "a whole number" if kind is int else "a number"
        raise ValueError(f"{setting.name} must be {whole}, got {value!r}") from None
