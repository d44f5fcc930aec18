"""What an attack is run on, by name: the network itself, or a surrogate of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from prunus.checks import check_fraction, choose, spread
from prunus.surrogates.diversified import Diversified
from prunus.surrogates.ghost import Ghost
from prunus.surrogates.mup import MUP
from prunus.weights import Which


@dataclass(frozen=True)
class Build:
    """What every method is built from."""

    p_bern: float = 0.5
    which: Which = field(default_factory=Which)  # weights it acts on

    def diversified(self, **choice: Any) -> Callable[[nn.Module, float, int], nn.Module]:
        """A maker of surrogates that differ in strength and seed."""
        return lambda model, p, seed: Diversified(
            model, p, self.p_bern, seed=seed, **{**self.which, **choice}
        )


@dataclass(frozen=True)
class Kind:
    """A method whose strength is open.

    Args:
        make: from what all methods share, to a function of network, strength and seed.
        strength: default; None where there is none.
        control: the kind that prunes as much at random, where this prunes by score.
        cost: gradients of the network taken for each that is given.
        is_random: whether seeds change anything.
    """

    make: Callable[[Build], Callable[[nn.Module, float, int], nn.Module]]
    strength: float | None
    control: str | None = None
    cost: int = 1
    is_random: bool = True


KINDS: dict[str, Kind] = {
    "plain": Kind(lambda build: lambda model, p, seed: model, None, is_random=False),
    "dwp": Kind(lambda build: build.diversified(), 0.7, "random"),
    "dwp-kernel": Kind(lambda build: build.diversified(granularity="kernel"), 0.3, "random-kernel"),
    "backward": Kind(lambda build: build.diversified(passes="backward"), 0.7, "random"),
    "random": Kind(lambda build: build.diversified(criterion="random"), 0.7),
    "random-kernel": Kind(lambda build: build.diversified(criterion="random", granularity="kernel"), 0.3),
    "ghost": Kind(lambda build: lambda model, p, seed: Ghost(model, p, seed=seed, **build.which), 0.01),
    "mup": Kind(
        lambda build: lambda model, p, seed: MUP(model, p, **build.which), 0.15, cost=2, is_random=False
    ),
}


@dataclass(frozen=True)
class Method:
    """A kind and its strength: the fraction that is pruned or dropped."""

    kind: str
    strength: float | None

    @property
    def name(self) -> str:
        """As it is written on the command line."""
        return self.kind if self.strength is None else f"{self.kind}:{self.strength:g}"

    @property
    def cost(self) -> int:
        """Gradients of the network taken for each that is given."""
        return KINDS[self.kind].cost

    @property
    def is_random(self) -> bool:
        """Whether seeds change anything."""
        return KINDS[self.kind].is_random

    @property
    def control(self) -> Method | None:
        """Random pruning of the same amount, where this is pruning by score."""
        control = KINDS[self.kind].control
        return Method(control, self.strength) if control else None

    def build(self, model: nn.Module, shared: Build, seed: int) -> nn.Module:
        """What an attack is run on: a surrogate of the network, or the network itself."""
        return KINDS[self.kind].make(shared)(model, self.strength or 0.0, seed)


PLAIN = Method("plain", None)


def methods(names: Sequence[str]) -> list[Method]:
    """Methods from "KIND", "KIND:STRENGTH" or "KIND:FIRST:LAST:STEP".

    Raises:
        ValueError: no such kind, or a strength outside [0, 1].

    Example:
        >>> [method.name for method in methods(["plain", "dwp", "random:0.1:0.5:0.2"])]
        ['plain', 'dwp:0.7', 'random:0.1', 'random:0.3', 'random:0.5']
    """
    found: list[Method] = []
    for name in names:
        kind, _, given = name.partition(":")
        default = choose("methods", kind, KINDS).strength
        if given and default is None:
            raise ValueError(f"methods: {kind} has no strength, got {name!r}")
        try:
            strengths = [check_fraction(kind, float(p)) for p in spread(given)] if given else [default]
        except ValueError as error:
            raise ValueError(f"methods: {name!r}: {error}") from None
        found += [Method(kind, strength) for strength in strengths]
    return list(dict.fromkeys(found))
