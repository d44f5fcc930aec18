"""Diversified Weight Pruning: a network that is pruned anew as it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from prunus.application.applying import put_on
from prunus.application.bits import keep_only
from prunus.application.calls import observed
from prunus.application.detour import StandIn
from prunus.application.placed import PASSES, by_passes
from prunus.application.reused import Reused
from prunus.checks import check_fraction, check_whole, choose, knows_keywords
from prunus.masks import Masks
from prunus.randomness import Seed, number_of, stream
from prunus.selection.draw import Candidates
from prunus.selection.ranking import Unseeded, rank
from prunus.surrogates.recomputed import Drawn
from prunus.surrogates.surrogate import Surrogate

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True)
class Plan:
    """The arguments of a `Diversified`; `every` so many gradients it draws, and with 0 never by itself."""

    candidates: Candidates
    p_bern: float
    passes: str
    every: int
    predicts_pruned: bool
    seed: int


class Diversified(Surrogate):
    """Diversified Weight Pruning (Wang, Wu, Chen 2022, arXiv 2208.08677, section 3.2).

    Weights are ranked once. Whenever a gradient with respect to an input is being asked for (grad mode is
    on and an input requires grad), every candidate falls with chance `p_bern` in a new draw, whatever the
    mode; otherwise the network answers as it is. Masked weights are made beside those of the network, so
    that every graph keeps its own; those of "both" take, on a CPU, memory that no graph has any more. The
    gradient reaches inputs, never parameters.

    Args:
        model: the network, which may back several surrogates at once, also in threads.
        p_prune: fraction of pieces that become candidates, in [0, 1].
        p_bern: chance that a candidate is pruned, in [0, 1].
        passes: where pruned weights count as zero: "both" (DWP), "backward" (only gradients are
            diversified) or "forward".
        redraw: when masks change: "forward", before every forward that asks for a gradient; an integer
            k, before every k-th of them (attacks that call the network k times a step); "manual", only
            by `.redraw()`.
        predict: "unpruned", or "pruned" under one fixed mask where no gradient is asked for.
        seed: of all draws, see `prunus.rank`. Mask number n depends on seed and n alone, on every device.
        **choice: keyword arguments of `prunus.rank`.

    Attributes:
        wrapped: the network.
        masks: the masks drawn last, True = keep; None before the first draw.
        draws: how many were drawn. Set to n, the next are masks number n + 1.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range, see `prunus.rank`; a network that is compiled or pruned.

    Example:
        >>> import prunus, torch
        >>> net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Flatten(), nn.MaxPool1d(36), nn.Linear(16, 10)).eval()
        >>> surrogate = prunus.Diversified(net, 0.7, seed=0)
        >>> x = torch.rand(2, 3, 8, 8, requires_grad=True)
        >>> for step in range(3):
        ...     gradient, = torch.autograd.grad(surrogate(x).sum(), x)
        >>> surrogate.draws, torch.equal(surrogate(x), net(x)), torch.equal(surrogate(x.detach()), net(x))
        (3, False, True)
    """

    @knows_keywords(Unseeded)
    def __init__(
        self,
        model: nn.Module,
        p_prune: float,
        p_bern: float = 0.5,
        *,
        passes: str = "both",
        redraw: str | int = "forward",
        predict: str = "unpruned",
        seed: Seed = 0,
        **choice: Unpack[Unseeded],
    ) -> None:
        super().__init__(model)
        p_prune, p_bern = check_fraction("p_prune", p_prune), check_fraction("p_bern", p_bern)
        choose("passes", passes, PASSES)
        number = number_of(seed)
        [candidates] = rank(model, seed=stream(number), **choice).candidates([p_prune])
        self._plan = Plan(
            candidates,
            p_bern,
            passes,
            every=_interval(redraw),
            predicts_pruned=choose("predict", predict, {"unpruned": False, "pruned": True}),
            seed=number,
        )
        self.masks: Masks | None = None
        self._draws = self._used = 0
        self._drawn = Drawn[Masks]()
        self._memory = Reused()

    def __repr__(self) -> str:
        plan, name = self._plan, type(self.wrapped).__name__
        masks = "no mask yet" if self.masks is None else repr(self.masks)
        return (
            f"Diversified({name}, p_bern={plan.p_bern:g}, passes={plan.passes!r}, seed={plan.seed}, "
            f"draws={self.draws}, {masks})"
        )

    @property
    def draws(self) -> int:
        """How many masks were drawn."""
        return self._draws

    @draws.setter
    def draws(self, number: int) -> None:
        self._draws, self.masks = check_whole("draws", number), None

    def redraw(self) -> Masks:
        """Draw the next masks now."""
        self._draws, self._used = self._draws + 1, 0
        self.masks = self._draw(self._draws)
        return self.masks

    def _draw(self, number: int) -> Masks:
        return self._plan.candidates.draw(self._plan.p_bern, stream(self._plan.seed, number))

    def _changed(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the network under the masks that are due."""
        masks = self._due() if not self._plan.every and self.masks else self._drawn.once(self._due)
        return self._run(masks, *args, **kwargs)

    def _due(self) -> Masks:
        masks = self.masks
        if masks is None or (self._plan.every and self._used >= self._plan.every):
            masks = self.redraw()
        self._used += 1
        return masks

    def _unchanged(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the network, or with `predict="pruned"` that under mask number 0."""
        if self._plan.predicts_pruned:
            return self._run(self._draw(0), *args, **kwargs)
        return super()._unchanged(*args, **kwargs)

    def _run(self, masks: Masks, *args: Any, **kwargs: Any) -> Any:
        if self._plan.passes == "both":
            weights: dict[str, Tensor] = {name: self._shell.get_parameter(name) for name in masks}
            swap = {
                weight: self._masked(name, weight.detach(), masks[name]) for name, weight in weights.items()
            }
            return self._copy(swap)(*args, **kwargs)
        private: dict[Tensor, Tensor] = {
            p: nn.Parameter(p.detach().clone(), requires_grad=False) for p in self.parameters()
        }
        copy = self._copy(private)
        put_on(copy, by_passes(masks, self._plan.passes))
        return copy(*args, **kwargs)

    def _masked(self, name: str, weight: Tensor, mask: Tensor) -> Tensor:
        mask = mask.to(weight.device)
        if observed():
            return StandIn(mask)(weight)
        masked = self._memory.like(name, weight)
        keep_only(weight, mask, out=masked)
        return masked


def _interval(redraw: str | int) -> int:
    """How many forwards share a mask; 0 for all of them."""
    if isinstance(redraw, str):
        return choose("redraw", redraw, {"forward": 1, "manual": 0})
    return check_whole("redraw", redraw, least=1)
