"""Pruned more and more while it trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from prunus.application.pruning import Pruning
from prunus.checks import Amount, check_amount, check_fraction, knows_keywords
from prunus.masks import Masks
from prunus.scores.evidence import Evidence
from prunus.selection.ranking import Choice, seeded
from prunus.training.moments import clear, optimizers_of
from prunus.training.schedules import Cubic, Schedule
from prunus.training.steps import Counter
from prunus.verbs import prune, resume

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Gradual:
    """Prune at some steps of a training, more each time and only among what survives, so that masks nest.

    Where a schedule falls, as `Cyclic` does, what had fallen comes back first, as zeros.

    Call `step()` after every `optimizer.step()`. Where n is among `steps`, the n-th call prunes: weights fall
    by their scores then, counts are exact, and momentum of what falls is cleared. The default schedule is
    that of Zhu, Gupta 2017 (arXiv 1710.01878); a single step is one-shot pruning.

    Args:
        model: the network.
        to: fraction of pieces that are pruned at the end, in [0, 1], or fractions by name pattern.
        steps: numbers of steps, from 1, rising; such as `range(1000, 8000, 100)`.
        schedule: how much at each of them; see `prunus.training.schedules`.
        start: the fraction that the schedule starts from.
        optimizer: whose state of what falls is set to zero; several may be given. Without it nothing moves a
            zero either, but what is stale stays in it.
        collect: of a criterion that reads more than the weights, what gives its evidence at every cut, as
            `lambda: prunus.evidence(model, batches)` does. It must be the same in all processes of a group.
        **choice: keyword arguments of `prunus.rank`.

    Attributes:
        pruning: the handle, from the first cut on.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range; `steps` that do not suffice for
            the schedule.

    Example:
        >>> import prunus, torch
        >>> net = nn.Linear(8, 8)
        >>> optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        >>> pruner = prunus.Gradual(net, to=0.75, steps=range(2, 9, 2), optimizer=optimizer, layers="Linear")
        >>> for _ in range(10):
        ...     net(torch.randn(4, 8)).square().sum().backward()
        ...     optimizer.step()
        ...     cut = pruner.step()
        >>> pruner
        Gradual(step 10, 48 of 64 weights pruned)
        >>> int((net.weight == 0).sum())
        48
    """

    @knows_keywords(Choice)
    def __init__(
        self,
        model: nn.Module,
        to: Amount,
        steps: Sequence[int],
        *,
        schedule: Schedule | None = None,
        start: float = 0.0,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        collect: Callable[[], Evidence] | None = None,
        **choice: Unpack[Choice],
    ) -> None:
        self.model, self.to, self.start = model, check_amount("to", to), check_fraction("start", start)
        self.schedule = schedule or Cubic()
        self._choice, generator = seeded(choice)
        self._counter, self._collect = Counter(steps, generator), collect
        self._optimizers = optimizers_of(optimizer)
        self.pruning: Pruning | None = None
        self._check_amounts()

    def _check_amounts(self) -> None:
        targets = self.to if isinstance(self.to, Mapping) else {"": self.to}
        for name, to in targets.items():
            of = f" of {name!r}" if name else ""
            if self.start > to:
                raise ValueError(f"start={self.start:g} is more than to={to:g}{of}")
            last = self.schedule(self.start, to, self._counter.cuts - 1, self._counter.cuts)
            if not math.isclose(last, to, abs_tol=1e-9):
                few = f"{self._counter.cuts} steps are too few"
                raise ValueError(f"{few}: {self.schedule} comes to {last:g}{of}, not to {to:g}")

    def __repr__(self) -> str:
        masks = self.masks
        return f"Gradual(step {self._counter.now}, {masks.pruned:,} of {masks.total:,} weights pruned)"

    @property
    def masks(self) -> Masks:
        """Those in force; none before the first cut."""
        return self.pruning.masks if self.pruning else Masks({})

    def amount(self, cut: int) -> Amount:
        """What is pruned after the cut of this number, from 0."""
        if isinstance(self.to, Mapping):
            return {name: self._part(to, cut) for name, to in self.to.items()}
        return self._part(self.to, cut)

    def _part(self, to: float, cut: int) -> float:
        part = self.schedule(self.start, to, cut, self._counter.cuts)
        return to if cut == self._counter.cuts - 1 else min(to, max(self.start, part))

    def step(self) -> bool:
        """One more step has been made; whether it was one at which is pruned.

        Raises:
            RuntimeError: the model has been restored, or pruned by others, since the last cut.
        """
        cut = self._counter.next
        if cut is not None:
            self._cut(cut)
        self._counter.step()
        return cut is not None

    def _cut(self, cut: int) -> None:
        known = self._collect() if self._collect else self._choice.get("evidence")
        choice = Choice(**{**self._choice, "evidence": known})
        if self.pruning is None:
            self.pruning = prune(self.model, self.amount(cut), **choice)
        elif self._falls(cut):
            self.pruning = self._anew(self.pruning, self.amount(cut), choice)
        else:
            self.pruning.deepen(self.amount(cut), evidence=known)
        clear(self._optimizers, self.model, self.masks)

    def _falls(self, cut: int) -> bool:
        """Whether less is pruned after this cut than before it."""
        before, after = self.amount(cut - 1), self.amount(cut)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            return any(after[name] < part for name, part in before.items())
        return after < before  # type: ignore[operator]

    def _anew(self, before: Pruning, amount: Amount, choice: Choice) -> Pruning:
        """Another pruning in place of one, of which all that fell comes back, as zeros."""
        before.restore()
        with torch.no_grad():
            for name, kept in before.masks.items():
                parameter = self.model.get_parameter(name)
                parameter.masked_fill_(~kept.to(parameter.device), 0)
        try:
            return prune(self.model, amount, **choice)
        except BaseException:
            self.pruning = resume(self.model, before.candidates.kept, self._choice)
            raise

    def state_dict(self) -> dict[str, Any]:
        """What a training that is resumed needs, beside the states of the model and of the optimizer."""
        candidates = self.pruning.candidates.kept if self.pruning else {}
        kept = {name: flags.clone() for name, flags in candidates.items()}
        return {**self._counter.state_dict(), "kept": kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another one was, of the same arguments.

        The model's and the optimizer's states may be loaded before or after.

        Raises:
            ValueError: it is of other steps, or of another network. Nothing has changed then.
        """
        self._counter.check(state)
        if state["kept"]:
            self.pruning = resume(self.model, state["kept"], self._choice)
            clear(self._optimizers, self.model, self.masks)
        elif self.pruning:
            self.pruning.restore()
            self.pruning = None
        self._counter.load_state_dict(state)
