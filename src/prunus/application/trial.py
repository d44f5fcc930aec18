"""Which way a layer's passes are fastest: dense, pruned by dense products, or by sparse ones."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from prunus.application.operations import Gradients, Linear
from prunus.application.passing import Pass
from prunus.application.places import Places
from prunus.application.products import Kept
from prunus.application.tallies import Tally
from prunus.processes import of_first

T = TypeVar("T")
LASTING = 100  # steps for which masks count as the same that were asked for in each, and never changed
TRIES = 6  # backward passes in which all ways are timed, of which the first is for warming up
GAIN = 0.95  # of the time of the dense way, at most, or it is no gain that one can count on


class Trial:
    """What the ways of one layer took.

    Args:
        every: so many steps have the same mask, and share what it takes to make that.

    Attributes:
        way: the fastest, once it is known: "dense", "pruned" or "sparse"; "" until then.
        seconds: by way, of one step.
    """

    def __init__(self, every: int) -> None:
        self.every, self.way = every, ""
        self._times: dict[str, list[float]] = {}
        self._masks: list[Kept] = []
        self.seconds: dict[str, float] = {}

    def of(self, run: Pass, asking: float) -> Tried:
        """The same call by all ways.

        Args:
            run: as it is pruned by dense products.
            asking: seconds that the rules of the weight took.
        """
        self._masks += [kept for kept in run.kept.values() if kept not in self._masks]
        apart = replace(run, tally=Tally())
        ways = {"dense": replace(run, places=Places(), kept={}), "pruned": apart}
        if run.kept and isinstance(run.operation, Linear):
            ways["sparse"] = replace(apart, by_sparse=True)
        return Tried(self, ways, asking / self.every)

    def add(self, spent: Mapping[str, float]) -> None:
        """One more step was made, and took so long."""
        for way, seconds in spent.items():
            self._times.setdefault(way, []).append(seconds)

    def settle(self) -> None:
        """Decide, if enough is known: all processes for what the first of them has found."""
        if self.way or len(self._times.get("dense", ())) < TRIES:
            return
        lasting = self.every == 1 and len(self._masks) <= 3  # one for each place
        steps, self._masks = LASTING if lasting else self.every, []
        for way, (first, *rest) in self._times.items():
            usual = statistics.median(rest)
            timed = way == "sparse" and steps > 1 and usual < math.inf
            once = max(0.0, first - usual) if timed else 0.0  # for indices
            self.seconds[way] = usual + once / steps
        names = ("dense", "pruned", "sparse")
        best = min(self.seconds, key=self.seconds.__getitem__)
        best = best if self.seconds[best] < GAIN * self.seconds["dense"] else "dense"
        [(_, flags)] = of_first([("way", torch.tensor([name == best for name in names]))])
        self.way = names[int(flags.int().argmax())]


@dataclass(frozen=True)
class Tried:
    """One call by all ways, of which the dense one counts.

    Args:
        trial: to which the times go.
        ways: by name.
        asking: seconds to be added to those of all but the dense way.
    """

    trial: Trial
    ways: Mapping[str, Pass]
    asking: float
    spent: dict[str, float] = field(default_factory=dict)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """W x."""
        if not any("forward" in run.kept for run in self.ways.values()):
            return self.ways["dense"].forward(x, weight, bias)
        return self._timed(lambda run: run.forward(x, weight, bias))

    def gradients(self, grad: Tensor, x: Tensor | None, weight: Tensor, wanted: list[bool]) -> Gradients:
        """Of x, weight and bias."""
        found = self._timed(lambda run: run.gradients(grad, x, weight, wanted))
        self.trial.add({way: seconds + self.asking * (way != "dense") for way, seconds in self.spent.items()})
        return found

    def _timed(self, task: Callable[[Pass], T]) -> T:
        """What the dense way gives; a way that fails takes forever."""
        made: T
        for way, run in self.ways.items():
            begun = _now()
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", ".*Sparse CSR")  # as torch says of them, once
                    result = task(run)
            except RuntimeError:
                if way != "sparse":
                    raise
                self.spent[way] = math.inf
            self.spent[way] = self.spent.get(way, 0.0) + _now() - begun
            if way == "dense":
                made = result
        return made


def _now() -> float:
    """The time at which all that was begun is done."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
    return time.perf_counter()
