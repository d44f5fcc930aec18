"""What an attack is run on, by name: the network itself, or a surrogate of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import InvalidOperation
from typing import Any

from torch import Tensor, nn

from prunus.arguments import check_fraction, check_whole, choose
from prunus.masks import bernoulli
from prunus.mup import MUP
from prunus.parameters import spread
from prunus.surrogate import Diversified, Surrogate, stream
from prunus.weights import Layers, Patterns, find_weights


class Ghost(Surrogate):
    """Dropout after every layer while gradients are asked for (Li et al. 2020, arXiv 1812.03413).

    Args:
        model: the network.
        rate: chance that a value is dropped, in [0, 1).
        seed: of all draws, as in `Diversified`.
        layers: whose outputs; likewise `include` and `exclude`. See `prunus.rank`.
    """

    draws: int
    _rate: float
    _seed: int
    _layers: list[str]

    def __init__(
        self,
        model: nn.Module,
        rate: float,
        *,
        seed: int = 0,
        layers: Layers = (nn.Conv2d,),
        include: Patterns | None = None,
        exclude: Patterns | None = (),
    ) -> None:
        super().__init__(model)
        if check_fraction("rate", rate) == 1:
            raise ValueError("rate must be below 1, or nothing is left")
        owners = [owner for w in find_weights(model, layers, include, exclude).values() for owner in w.owners]
        names = [name for name, module in model.named_modules() if module in owners]
        vars(self).update(draws=0, _rate=rate, _seed=check_whole("seed", seed), _layers=names)

    def _changed(self, *args: Any, **kwargs: Any) -> Any:
        self.draws += 1
        generator, copy = stream(self._seed, self.draws), self._copy()

        def drop(module: nn.Module, args: object, output: Tensor) -> Tensor:
            dropped = bernoulli(output.numel(), self._rate, generator).view(output.shape).to(output.device)
            return output.masked_fill(dropped, 0) / (1 - self._rate)

        for name in self._layers:
            copy.get_submodule(name).register_forward_hook(drop, prepend=True)
        return copy(*args, **kwargs)


@dataclass(frozen=True)
class Build:
    """What every method is built from."""

    p_bern: float = 0.5
    layers: Layers = (nn.Conv2d,)
    include: Patterns | None = None
    exclude: Patterns | None = ()

    @property
    def which(self) -> dict[str, Any]:
        """The weights it acts on."""
        return {"layers": self.layers, "include": self.include, "exclude": self.exclude}

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
        cost: gradients of the network taken for each that is given.
    """

    make: Callable[[Build], Callable[[nn.Module, float, int], nn.Module]]
    strength: float | None
    cost: int = 1


KINDS: dict[str, Kind] = {
    "plain": Kind(lambda build: lambda model, p, seed: model, None),
    "dwp": Kind(lambda build: build.diversified(), 0.7),
    "dwp-kernel": Kind(lambda build: build.diversified(granularity="kernel"), 0.3),
    "backward": Kind(lambda build: build.diversified(passes="backward"), 0.7),
    "random": Kind(lambda build: build.diversified(criterion="random"), 0.7),
    "random-kernel": Kind(lambda build: build.diversified(criterion="random", granularity="kernel"), 0.3),
    "ghost": Kind(lambda build: lambda model, p, seed: Ghost(model, p, seed=seed, **build.which), 0.01),
    "mup": Kind(lambda build: lambda model, p, seed: MUP(model, p, **build.which), 0.15, cost=2),
}
CONTROLS: Mapping[str, str] = {"dwp": "random", "backward": "random", "dwp-kernel": "random-kernel"}
DETERMINISTIC = ("plain", "mup")


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
        return self.kind not in DETERMINISTIC

    @property
    def control(self) -> Method | None:
        """Random pruning of the same amount, where this is pruning by score."""
        return Method(CONTROLS[self.kind], self.strength) if self.kind in CONTROLS else None

    def build(self, model: nn.Module, shared: Build, seed: int) -> nn.Module:
        """What the attack is run on."""
        return KINDS[self.kind].make(shared)(model, self.strength or 0.0, seed)


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
        except InvalidOperation:
            raise ValueError(f"methods: {name!r} is not {kind}:P or {kind}:FIRST:LAST:STEP") from None
        found += [Method(kind, strength) for strength in strengths]
    return list(dict.fromkeys(found))
