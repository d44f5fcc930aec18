"""Which weights is a name pattern for, and which fraction of each is then meant?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from glob import escape
from typing import TypeAlias

from prunus.checks import Amount, check_fraction
from prunus.weights import matches

KnownAs: TypeAlias = Mapping[str, Sequence[str]]  # all names of each weight, or of the weights of a bundle


def matching(pattern: str, known: KnownAs) -> list[str]:
    """The names of the weights that a pattern is for, by any of their names; or of that very bundle.

    Raises:
        ValueError: there are none.
    """
    exact = [name for name in known if pattern in (name, escape(name))]
    found = exact or [name for name, others in known.items() if any(matches(one, pattern) for one in others)]
    if not found:
        raise ValueError(f"{pattern!r} matches no weight; names are like {', '.join(list(known)[:3])}")
    return found


def taken(patterns: Iterable[str], known: KnownAs) -> dict[str, list[str]]:
    """The weights of each pattern: those that it matches, and no earlier pattern has.

    Raises:
        ValueError: a pattern is left without any.
    """
    found: dict[str, list[str]] = {}
    for pattern in patterns:
        meant = matching(pattern, known)
        earlier = [other for other, names in found.items() if set(meant) & set(names)]
        gone = {name for other in earlier for name in found[other]}
        found[pattern] = [name for name in meant if name not in gone]
        if not found[pattern]:
            raise ValueError(
                f"{pattern!r} matches no weight that {', '.join(map(repr, earlier))} has not taken"
            )
    return found


def read_fractions(text: str) -> dict[str, float]:
    """Fractions by name pattern of a text such as "layer1.*=0.3,fc=0.5"; none of an empty one.

    Raises:
        ValueError: it is none.

    Example:
        >>> read_fractions("layer1.*=0.3,fc=0.5")
        {'layer1.*': 0.3, 'fc': 0.5}
    """
    found: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        pattern, _, number = part.rpartition("=")
        try:
            found[pattern] = check_fraction(f"p_prune of {pattern!r}", float(number))
        except ValueError as error:
            raise ValueError(f"{part!r} is not PATTERN=FRACTION: {error}") from None
        if not pattern:
            raise ValueError(f"{part!r} is not PATTERN=FRACTION: it has no pattern")
    return found


def with_others(p_prune: float, text: str) -> Amount:
    """A fraction, and others by name pattern of a text; see `read_fractions`.

    Example:
        >>> with_others(0.5, "fc=0"), with_others(0.5, "")
        ({'fc': 0.0, '*': 0.5}, 0.5)
    """
    others = read_fractions(text)
    return {**others, "*": p_prune} if others else p_prune


def fractions(amount: Amount, known: KnownAs) -> dict[str, float]:
    """The fraction that an amount means for each weight by itself, 0 of what no pattern matches.

    Raises:
        ValueError: as `taken`.
    """
    if not isinstance(amount, Mapping):
        return dict.fromkeys(known, amount)
    found = dict.fromkeys(known, 0.0)
    for pattern, names in taken(amount, known).items():
        found |= dict.fromkeys(names, amount[pattern])
    return found
