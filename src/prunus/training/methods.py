"""By which way does a network come to its sparsity?

A method prunes either between trainings, in rounds that each cut, go back and train, or while it trains. To
add one, write it into the table at the end of this file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from prunus.checks import check_fraction
from prunus.evaluation.points import Setting
from prunus.masks import Masks
from prunus.scores.evidence import Evidence
from prunus.training.gradual import Gradual
from prunus.training.recipe import Recipe
from prunus.training.regrowth import SET, Regrowing, RigL
from prunus.training.schedules import Cubic, Cyclic, Exponential, Iterative, Linear, OneShot, Schedule
from prunus.weights import Which


class Pruner(Protocol):
    """What prunes at steps: `Gradual`, or one that regrows."""

    @property
    def masks(self) -> Masks:
        """Those in force."""

    def step(self) -> bool:
        """One more step has been made."""

    def state_dict(self) -> dict[str, Any]:
        """What goes into a checkpoint."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""


@dataclass(frozen=True)
class Subject:
    """What is pruned, as what, and by what is known of it.

    Args:
        model: the network.
        optimizer: of it.
        setting: how much, and what ranks.
        which: weights.
        collect: evidence for a criterion that needs some.
        example_inputs: for coupled filters.
    """

    model: nn.Module
    optimizer: Optimizer
    setting: Setting
    which: Which = field(default_factory=Which)
    collect: Callable[[], Evidence] | None = None
    example_inputs: Any = None

    def gradual(self, steps: Sequence[int], schedule: Schedule) -> Gradual:
        """A pruner of it."""
        return Gradual(
            self.model,
            self.setting.amount,
            steps,
            schedule=schedule,
            optimizer=self.optimizer,
            collect=self.collect,
            **self.setting.choice(self.which, generator=self._generator, example_inputs=self.example_inputs),
        )

    def regrowing(self, kind: type[Regrowing], steps: Sequence[int], drop: float) -> Regrowing:
        """A pruner that regrows."""
        return kind(
            self.model,
            self.setting.p_prune,
            steps,
            drop=drop,
            scope=self.setting.scope or "erk",
            optimizer=self.optimizer,
            seed=self._generator,
            **self.which,
        )

    @property
    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.setting.seed)


class Method(ABC):
    """A way to a sparsity."""

    between = False  # trainings is pruned, and not while one runs

    def rounds(self, setting: Setting, recipe: Recipe) -> int:
        """Of cutting and training."""
        return 1

    def settle(self, setting: Setting) -> Setting:
        """The same without what the method does not look at."""
        return setting

    @abstractmethod
    def begin(self, subject: Subject, recipe: Recipe, steps: int) -> Pruner:
        """A pruner, whose `step` is called after every step of so many, or before each round."""


@dataclass(frozen=True)
class Between(Method):
    """Cut, go back, train: in rounds, the first of which has a network that has been trained."""

    schedule: Callable[[Recipe], Schedule]
    criterion: str | None = None  # in place of that which is asked for
    between = True

    def settle(self, setting: Setting) -> Setting:
        """By its criterion, if it has one."""
        return replace(setting, criterion=self.criterion) if self.criterion else setting

    def rounds(self, setting: Setting, recipe: Recipe) -> int:
        """As many as the schedule needs.

        Raises:
            ValueError: no number is enough.
        """
        amount, schedule = setting.amount, self.schedule(recipe)
        to = max(amount.values()) if isinstance(amount, Mapping) else amount
        if to == 1 and isinstance(schedule, Iterative) and schedule.rate < 1:
            raise ValueError(
                "p_prune is 1, which no number of rounds comes to: each leaves a part of the rest"
            )
        most = 1
        while schedule(0.0, to, most - 1, most) < to:
            most += 1
        return most

    def begin(self, subject: Subject, recipe: Recipe, steps: int) -> Pruner:
        """One whose steps are the rounds."""
        rounds = self.rounds(subject.setting, recipe)
        return subject.gradual(range(1, rounds + 1), self.schedule(recipe))


@dataclass(frozen=True)
class During(Method):
    """More and more while it trains."""

    schedule: Schedule

    def begin(self, subject: Subject, recipe: Recipe, steps: int) -> Pruner:
        """One that cuts at steps of the training."""
        return subject.gradual(recipe.steps(steps), self.schedule)


@dataclass(frozen=True)
class Regrown(Method):
    """Sparse from the start, by random masks that ERK allots unless the scope is "layer" or "uniform"."""

    kind: type[Regrowing]
    drop: float | None = None

    def settle(self, setting: Setting) -> Setting:
        """Random single weights.

        Raises:
            ValueError: there are fractions by name.
        """
        if setting.p_prune_of:
            raise ValueError("fractions by name are not for methods that regrow: scope allots them")
        scope = setting.scope if setting.scope in ("layer", "uniform") else "erk"
        return Setting(setting.p_prune, criterion="random", scope=scope, seed=setting.seed)

    def begin(self, subject: Subject, recipe: Recipe, steps: int) -> Pruner:
        """One that regrows at steps of the training."""
        drop = recipe.drop if self.drop is None else self.drop
        return subject.regrowing(self.kind, recipe.steps(steps), check_fraction("drop", drop))


METHODS: dict[str, Method] = {
    "one-shot": Between(lambda recipe: OneShot()),
    "random": Between(lambda recipe: OneShot(), criterion="random"),
    "iterative": Between(lambda recipe: Iterative(recipe.rate)),
    "gradual": During(Cubic()),
    "linear": During(Linear()),
    "exponential": During(Exponential()),
    "cyclic": During(Cyclic()),
    "rigl": Regrown(RigL),
    "set": Regrown(SET),
    "static": Regrown(SET, drop=0.0),
}
