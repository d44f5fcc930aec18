"""Sparse from the start: some weights fall at some steps, and as many grow elsewhere."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from prunus.application.applying import prune_by
from prunus.application.placed import by_passes
from prunus.application.state import PrunedWeight
from prunus.checks import check_fraction, knows_keywords
from prunus.masks import Masks
from prunus.processes import of_first, several
from prunus.randomness import Seed, generator_of
from prunus.selection.line import keep_highest
from prunus.selection.scope import Scope
from prunus.selection.scored import check_finite
from prunus.training.moments import clear, optimizers_of
from prunus.training.steps import Counter
from prunus.verbs import make_masks
from prunus.weights import Which

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Regrowing(ABC):
    """Prune at random at once, and from then on drop the smallest survivors and let as many grow.

    Call `step()` after every `optimizer.step()`. Every layer keeps its number of weights. At the cut t of T,
    the part `drop`/2·(1 + cos(πt/T)) of a layer's survivors falls, those of least magnitude, and as many of
    what is pruned then grow. They start at zero, and what optimizers remember of both is cleared.

    Args:
        model: the network, at its initialization or later.
        sparsity: fraction of the weights that are pruned, in [0, 1].
        steps: numbers of steps, from 1, rising; best up to three quarters of the training.
        drop: the part of the survivors that falls at first.
        scope: how the fraction is allotted; see `prunus.rank`.
        optimizer: one or several.
        seed: of random masks and growth, see `prunus.rank`. Of several processes the first decides.
        **which: `layers`, `include` and `exclude` of `prunus.rank`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
    """

    @knows_keywords(Which)
    def __init__(
        self,
        model: nn.Module,
        sparsity: float,
        steps: Sequence[int],
        *,
        optimizer: Optimizer | Sequence[Optimizer],
        drop: float = 0.3,
        scope: str | Scope = "erk",
        seed: Seed | None = None,
        **which: Unpack[Which],
    ) -> None:
        generator = generator_of(seed)
        self.model, self.drop = model, check_fraction("drop", drop)
        self._optimizers, self._counter = optimizers_of(optimizer), Counter(steps, generator)
        masks = make_masks(
            model,
            check_fraction("sparsity", sparsity),
            criterion="random",
            scope=scope,
            seed=generator,
            **which,
        )
        self._shapes = {name: mask.shape for name, mask in masks.items()}
        self._prune(Masks(dict(of_first(masks.items()))))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(step {self._counter.now}, {self.masks!r})"

    @property
    def masks(self) -> Masks:
        """Those in force."""
        return Masks({state.name: state.mask for state in self._together.states})

    def _check_in_force(self) -> None:
        if not self._together.states:
            raise RuntimeError("the model has been restored or pruned anew since: nothing can grow")

    def _prune(self, masks: Masks) -> None:
        self._together = prune_by(self.model, by_passes(masks, "both"))
        clear(self._optimizers, self.model, masks)
        self._prepare()

    def step(self) -> bool:
        """One more step has been made; whether it was one at which weights fell and grew.

        Raises:
            RuntimeError: the model has been restored, or pruned by others, since.
        """
        self._check_in_force()
        cut = self._counter.next
        if cut is not None:
            self._move(self.drop / 2 * (1 + math.cos(math.pi * cut / self._counter.cuts)))
        self._counter.step()
        self._prepare()
        return cut is not None

    def _move(self, part: float) -> None:
        moves = [(state, *self._planned(state, part)) for state in self._together.states]
        for state, new, begun in moves:
            state.exchange(new)
            with torch.no_grad():
                state.parameter.masked_fill_(begun, 0)
            clear(self._optimizers, self.model, {state.name: new & ~begun})

    def _planned(self, state: PrunedWeight, part: float) -> tuple[Tensor, Tensor]:
        """What is kept of a weight from now on, and what of that begins anew."""
        mask, values = state.mask, state.parameter.detach().abs()
        check_finite(state.name, values)
        count = min(int(part * int(mask.sum())), int((~mask).sum()))
        kept = mask & _lowest_gone(values.masked_fill(~mask, math.inf), count)
        grown = ~_lowest_gone(self._growth(state).masked_fill(kept, -math.inf).neg(), count)
        [(_, new)] = of_first([(state.name, kept | grown)])
        return new, new & ~kept

    def _prepare(self) -> None:  # noqa: B027
        """Before a step is made."""

    @abstractmethod
    def _growth(self, state: PrunedWeight) -> Tensor:
        """Of each entry of a weight, how much it should grow; the highest do."""

    def state_dict(self) -> dict[str, Any]:
        """What a training that is resumed needs, beside the states of the model and of the optimizer.

        Raises:
            RuntimeError: the model has been restored, or pruned by others, since.
        """
        self._check_in_force()
        masks = {name: mask.clone() for name, mask in self.masks.items()}
        return {**self._counter.state_dict(), "masks": masks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another one was, of the same arguments.

        The model's and the optimizer's states are loaded after it; or before, and then a warning says that
        the model had been pruned by other masks, which are those that this loads.

        Raises:
            ValueError: it is of other steps, or of another network. Nothing has changed then.
        """
        self._counter.check(state)
        masks = Masks(state["masks"])
        if {name: mask.shape for name, mask in masks.items()} != self._shapes:
            raise ValueError("the state is of another network, or of other weights of it")
        self._prune(masks)
        self._counter.load_state_dict(state)
        self._prepare()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy, of its own copy of the network."""
        vars(self).update(state)
        self._prepare()


class SET(Regrowing):
    """What grows is drawn at random (Mocanu et al. 2018, arXiv 1707.04780).

    Args, raises: as `Regrowing`.

    Example:
        >>> import prunus, torch
        >>> net = nn.Linear(10, 10)
        >>> optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        >>> pruner = prunus.SET(net, 0.8, range(1, 4), optimizer=optimizer, layers="Linear")
        >>> for _ in range(5):
        ...     net(torch.randn(4, 10)).square().sum().backward()
        ...     optimizer.step()
        ...     moved = pruner.step()
        >>> pruner
        SET(step 5, Masks(1 tensor, 80 of 100 weights pruned))
    """

    def _growth(self, state: PrunedWeight) -> Tensor:
        generator = self._counter.generator
        device = generator.device if generator else "cpu"
        drawn = torch.rand(state.mask.shape, generator=generator, device=device, dtype=torch.float64)
        return drawn.to(state.mask.device)


class RigL(Regrowing):
    """What grows has the largest gradient (Evci et al. 2020, arXiv 1911.11134).

    The gradient of what is pruned is taken in the backward pass of a step at which weights grow, and is not
    kept. Where it is not finite then, as when a gradient scaler skips a step, nothing falls or grows.

    Args, raises: as `Regrowing`.

    Example:
        >>> import prunus, torch
        >>> net = nn.Linear(10, 10)
        >>> optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        >>> pruner = prunus.RigL(net, 0.8, range(1, 4), optimizer=optimizer, layers="Linear")
        >>> for _ in range(5):
        ...     net(torch.randn(4, 10)).square().sum().backward()
        ...     optimizer.step()
        ...     moved = pruner.step()
        >>> pruner
        RigL(step 5, Masks(1 tensor, 80 of 100 weights pruned))
    """

    def _prepare(self) -> None:
        """Take the whole gradient in the next step, if it is needed."""
        self._gradients: dict[str, Tensor] = {}
        for state in self._together.states:
            state.listen(None if self._counter.next is None else partial(self._add, state.name))

    def _add(self, name: str, gradient: Tensor) -> None:
        known = self._gradients.get(name)
        gradient = gradient.detach().to_dense() if gradient.layout is not torch.strided else gradient.detach()
        self._gradients[name] = gradient.clone() if known is None else known + gradient

    def _growth(self, state: PrunedWeight) -> Tensor:
        return self._gradients[state.name].abs()

    def _move(self, part: float) -> None:
        missing = [state.name for state in self._together.states if state.name not in self._gradients]
        if missing and not several():  # of several processes, one may not have come to a layer
            raise RuntimeError(
                f"{missing[0]} has got no gradient in this step: call step() after each backward pass and "
                "optimizer.step(), once"
            )
        for state in self._together.states:
            found = self._gradients.setdefault(state.name, torch.zeros_like(state.parameter))
            if several():
                dist.all_reduce(found)
        if all(bool(gradient.isfinite().all()) for gradient in self._gradients.values()):
            super()._move(part)


def _lowest_gone(scores: Tensor, count: int) -> Tensor:
    """False for so many of the lowest."""
    return keep_highest(scores.reshape(1, -1), count).view(scores.shape)
