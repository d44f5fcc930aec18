"""For how long, by which steps, and at which of them pruned?"""

from __future__ import annotations

from dataclasses import dataclass

from prunus.training.learning_rates import LearningRate, cosine
from prunus.training.optimizers import MakeOptimizer, sgd


@dataclass(frozen=True)
class Recipe:
    """How networks train.

    Args:
        epochs: of a whole training.
        retrain_epochs: after each cut, where there are rounds of cutting and training: they are the last of a
            whole training; default all.
        batch_size: of all processes together.
        optimizer: see `prunus.training.optimizers`; with `lr` at first, default its own, and `weight_decay`.
        learning_rate: what comes of `lr`, see `prunus.training.learning_rates`.
        warmup: epochs over which the learning rate first rises from zero.
        augment: names of `prunus.training.batches.AUGMENTATIONS`.
        rate: the part of the rest that falls in each round of iterative pruning.
        cuts: number of steps at which is pruned, or at which weights regrow, in a training that does it
            meanwhile; they are spread evenly over its first part `until`.
        drop: the part of the survivors that regrowth exchanges at first.
    """

    epochs: int = 20
    retrain_epochs: int | None = None
    batch_size: int = 128
    optimizer: MakeOptimizer = sgd
    lr: float | None = None
    weight_decay: float = 5e-4
    learning_rate: LearningRate = cosine
    warmup: float = 0.0
    augment: tuple[str, ...] = ()
    rate: float = 0.2
    cuts: int = 100
    until: float = 0.75
    drop: float = 0.3

    def __post_init__(self) -> None:
        if self.retrain_epochs is not None and self.retrain_epochs > self.epochs:
            raise ValueError(f"retrain_epochs={self.retrain_epochs} is more than epochs={self.epochs}")

    @property
    def last(self) -> int:
        """Epochs of a round."""
        return self.epochs if self.retrain_epochs is None else self.retrain_epochs

    def steps(self, total: int) -> list[int]:
        """The steps of a training of so many at which it is pruned, from 1.

        Example:
            >>> Recipe(cuts=4, until=0.8).steps(10)
            [2, 4, 6, 8]
        """
        evenly = (round(total * self.until * (cut + 1) / self.cuts) for cut in range(self.cuts))
        return sorted({max(1, step) for step in evenly})


@dataclass(frozen=True)
class Plan:
    """The steps of a run: rounds, each of which is the end of a whole training.

    Args:
        whole: steps of a whole training.
        steps: of a round.
        rounds: how many.
        settled: at the last learning rate throughout, and not at that of a training's end.
        learning_rate: see `Recipe`.
        warmup: steps over which it rises.
    """

    whole: int
    steps: int
    rounds: int = 1
    settled: bool = False
    learning_rate: LearningRate = cosine
    warmup: float = 0.0

    @property
    def total(self) -> int:
        """Steps of all rounds."""
        return self.rounds * self.steps

    @property
    def start(self) -> int:
        """The step of a whole training that a round begins at."""
        return self.whole - self.steps

    def factor(self, step: int) -> float:
        """Of the learning rate, in the step of this number from 0.

        Example:
            >>> plan = Plan(whole=10, steps=5, rounds=2, learning_rate=lambda done: 1 - done)
            >>> [plan.factor(step) for step in range(6)]
            [0.5, 0.4, 0.30000000000000004, 0.19999999999999996, 0.09999999999999998, 0.5]
        """
        if self.settled:
            return self.learning_rate(1.0)
        now = self.start + step % self.steps
        rising = min(1.0, (now + 1) / self.warmup) if self.warmup else 1.0
        return rising * self.learning_rate(now / self.whole)
