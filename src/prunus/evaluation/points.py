"""One way to prune, and what it costs: of the whole network, or of a part alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from prunus.application.placed import PASSES
from prunus.checks import Amount, check_fraction, check_whole, choose
from prunus.evaluation.evaluate import Result
from prunus.scores.criteria import Criterion
from prunus.scores.evidence import Evidence
from prunus.selection.patterns import read_fractions, with_others
from prunus.selection.pieces import NORMS
from prunus.selection.ranking import Choice, settle_scope
from prunus.selection.scope import Scope
from prunus.weights import Which


@dataclass(frozen=True)
class Setting:
    """One way to prune: arguments of `prunus.prune`, the scope settled, and the seed of its generator."""

    p_prune: float
    p_bern: float = 1.0
    granularity: str = "weight"
    criterion: str | Criterion = "magnitude"
    scope: str | Scope | None = None
    norm: str = "l1"
    passes: str = "both"
    seed: int = 0
    keep_at_least: int = 0
    coupled: bool = False
    p_prune_of: str = ""  # other fractions by name pattern, see `prunus.selection.patterns`

    def __post_init__(self) -> None:
        check_fraction("p_prune", self.p_prune)
        check_fraction("p_bern", self.p_bern)
        choose("norm", self.norm, NORMS)
        choose("passes", self.passes, PASSES)
        check_whole("keep_at_least", self.keep_at_least)
        read_fractions(self.p_prune_of)
        object.__setattr__(self, "scope", settle_scope(self.criterion, self.granularity, self.scope))

    @property
    def amount(self) -> Amount:
        """The fraction, or fractions by name pattern, as `prunus.prune` takes them."""
        return with_others(self.p_prune, self.p_prune_of)

    def choice(
        self,
        which: Which,
        *,
        generator: torch.Generator,
        evidence: Evidence | None = None,
        example_inputs: Any = None,
    ) -> Choice:
        """All keyword arguments of `prunus.rank`."""
        return {
            "criterion": self.criterion,
            "granularity": self.granularity,
            "scope": self.scope,
            "norm": self.norm,
            "keep_at_least": self.keep_at_least,
            "coupled": self.coupled,
            "seed": generator,
            "evidence": evidence,
            "example_inputs": example_inputs,
            **which,
        }

    @property
    def ranked_by(self) -> Setting:
        """Settings that agree in this share one ranking."""
        return replace(self, p_prune=0.0, p_bern=1.0, passes="both", p_prune_of="")


def setting_of(choice: Choice) -> Setting:
    """The setting, at ratio 0, of these arguments of `prunus.rank`."""
    seed = choice.get("seed")
    number = seed.initial_seed() if isinstance(seed, torch.Generator) else seed or 0
    named = [field.name for field in fields(Setting) if field.name != "seed"]
    return Setting(0.0, seed=number, **{name: choice[name] for name in named if name in choice})  # type: ignore[literal-required]


@dataclass(frozen=True)
class Function:
    """A criterion or scope that is a function, by name: all that a table or a file can hold of it.

    Args:
        name: unlike that of others that are shown with it.
    """

    name: str

    def __str__(self) -> str:
        return f"{self.name}()"

    def __call__(self, *args: Any) -> Any:
        """Nothing can be pruned by it."""
        raise TypeError(f"{self} is known by name only: give the function itself")

    @classmethod
    def read(cls, text: str) -> str | Function:
        """What str() gave, or another name."""
        return cls(text[:-2]) if text.endswith("()") else text


def by_name(settings: Sequence[Setting]) -> list[Setting]:
    """The same settings, with names in place of functions; different functions have different names."""
    names: dict[Any, Function] = {}
    for one in (part for setting in settings for part in (setting.criterion, setting.scope)):
        if callable(one) and one not in names:
            name = one.name if isinstance(one, Function) else getattr(one, "__qualname__", type(one).__name__)
            again = sum(other.name.partition("#")[0] == name for other in names.values())
            names[one] = Function(f"{name}#{again + 1}" if again else name)
    return [
        replace(
            setting,
            criterion=names.get(setting.criterion, setting.criterion),
            scope=names.get(setting.scope, setting.scope),
        )
        for setting in settings
    ]


@dataclass(frozen=True, repr=False)
class Point:
    """What one setting costs, and the (pruned, all) weights of every layer."""

    setting: Setting
    result: Result
    layers: dict[str, tuple[int, int]]

    def __repr__(self) -> str:
        setting, result = self.setting, self.result
        how = f"p_prune={setting.p_prune:g}, p_bern={setting.p_bern:g}, {setting.granularity!r}"
        found = f"top-1 {result.top1:.2f}%" if result.correct is not None else f"metric {result.metric}"
        return f"Point({how}: {self.pruned:,} of {self.weights:,} weights pruned, {found})"

    @property
    def pruned(self) -> int:
        """Number of pruned weights."""
        return sum(pruned for pruned, _ in self.layers.values())

    @property
    def weights(self) -> int:
        """Number of prunable weights."""
        return sum(weights for _, weights in self.layers.values())

    @property
    def pruned_fraction(self) -> float:
        """`pruned / weights`."""
        return self.pruned / max(1, self.weights)


@dataclass(frozen=True)
class Probe:
    """One group of weights pruned alone, and all others whole.

    Args:
        group: the name of a weight, or a name pattern of several.
        p_prune: the fraction of its pieces that was pruned.
        pruned, weights: pruned weights of the group, and all that it has.
        predicted: the share of the network's score that fell, by the criterion, before anything was measured.
        result: what the network is worth then.
    """

    group: str
    p_prune: float
    pruned: int
    weights: int
    predicted: float
    result: Result
