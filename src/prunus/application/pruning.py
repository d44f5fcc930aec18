"""A handle on one pruning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import nn

from prunus.application.applying import prune_by
from prunus.application.placed import by_passes
from prunus.application.together import Together
from prunus.checks import Amount, check_amount
from prunus.masks import Masks, emptied, table_of, warn_of_emptied
from prunus.processes import of_first
from prunus.scores.evidence import Evidence
from prunus.selection.draw import Candidates
from prunus.table import Table

if TYPE_CHECKING:
    from typing_extensions import Self


class Restoring(ABC):
    """What restores a network; as a context manager, at the end."""

    @abstractmethod
    def restore(self) -> nn.Module:
        """Undo it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()


class Handle(Restoring):
    """A network that is pruned by one call; as a context manager, restores at the end."""

    model: nn.Module
    masks: Masks
    _together: Together

    @property
    def _in_force(self) -> bool:
        return bool(self._together.states)

    def restore(self) -> nn.Module:
        """Undo this pruning; see `prunus.restore`. Nothing happens if another has taken its place."""
        for state in list(self._together.states):
            state.detach()
        return self.model


class Pruning(Handle):
    """A pruned model and the candidates it was pruned from; as a context manager, restores at the end.

    Printed, it is a table of its weight tensors, in which emptied ones are flagged; so it is in a notebook.

    Attributes:
        model: the pruned network.
        masks: the masks drawn last, True = keep.
        candidates, p_bern, passes, generator: what they are drawn from, and how.

    Example:
        >>> import prunus
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 1))
        >>> with prunus.prune(net, 0.5, scope="layer") as pruning:
        ...     print(pruning)
        Pruning(Masks(2 tensors, 34 of 68 weights pruned), passes='both', p_bern=1)
        layer             shape  weights  pruned  fraction
        0         4 x 1 x 3 x 3       36      18    0.5000
        1         8 x 4 x 1 x 1       32      16    0.5000
        <BLANKLINE>
        2 layers                      68      34    0.5000
    """

    def __init__(
        self,
        model: nn.Module,
        candidates: Candidates,
        p_bern: float,
        passes: str,
        generator: torch.Generator | None,
        deeper: Callable[[nn.Module, Amount, Candidates, Evidence | None], Candidates],
    ) -> None:
        self.model, self.p_bern, self.passes = model, p_bern, passes
        self.generator, self._deeper = generator, deeper
        self.candidates = self._agreed(candidates)
        self.masks = self._draw(self.candidates)
        self.candidates.warn_of_emptied(self.masks)  # before anything is done, as it may be made an error
        self._together = prune_by(model, by_passes(self.masks, passes))

    def __repr__(self) -> str:
        ended = "" if self._in_force else ", ended"
        return f"Pruning({self.masks!r}, passes={self.passes!r}, p_bern={self.p_bern:g}{ended})"

    def __str__(self) -> str:
        return str(self._table)

    def _repr_html_(self) -> str:
        return self._table.html()

    @property
    def _table(self) -> Table:
        shapes = {name: mask.shape for name, mask in self.masks.items()}
        return table_of(repr(self), shapes, self.masks.counts)

    def _agreed(self, candidates: Candidates) -> Candidates:
        """Those of the first process: others may have other evidence, or random numbers of their own."""
        if self.generator:
            return candidates
        return replace(candidates, kept=dict(of_first(candidates.kept.items())))

    def _draw(self, candidates: Candidates) -> Masks:
        masks = candidates.draw(self.p_bern, self.generator)
        return masks if self.generator else Masks(dict(of_first(masks.items())))

    def redraw(self) -> Masks:
        """Draw anew which of the same candidates fall, and prune by that.

        Nothing is ranked again, and what weights have learned since is kept. If it fails or is interrupted,
        the masks stay those that were.

        Raises:
            RuntimeError: the model has been restored, or pruned anew, since.
        """
        self._check_in_force()
        return self._exchange(self._draw(self.candidates))

    def deepen(self, p_prune: Amount, *, evidence: Evidence | None = None) -> Masks:
        """Prune more, and only among what survives: masks nest, and nothing that fell comes back.

        Scores are those of the weights as they are now. Candidates of before stay candidates, and what was
        drawn for them stands; those that join them are drawn.

        Args:
            p_prune: fraction of all pieces, those of before included, that are candidates then; or fractions
                by name pattern.
            evidence: what the criterion reads beside the weights, from `prunus.evidence`; default what was
                given to `prune`.

        Returns:
            The masks then in force.

        Raises:
            RuntimeError: the model has been restored, or pruned anew, since.
            ValueError: `p_prune` is less than before. Nothing has changed then.

        Example:
            >>> import prunus
            >>> pruning = prunus.prune(nn.Conv2d(3, 16, 3), 0.25)
            >>> pruning.deepen(0.5)
            Masks(1 tensor, 216 of 432 weights pruned)
        """
        self._check_in_force()
        amount = check_amount("p_prune", p_prune)
        candidates = self._agreed(self._deeper(self.model, amount, self.candidates, evidence))
        drawn, masks = self._draw(candidates), {}
        decided = candidates.layout.masks((name, ~kept) for name, kept in self.candidates.kept.items())
        for name, before in decided:
            mask = self.masks[name]
            masks[name] = mask & (drawn[name].to(mask.device) | before.to(mask.device))
        gone = emptied(masks.items())
        new = {name: count for name, count in gone.items() if name not in emptied(self.masks.items())}
        warn_of_emptied(new if p_prune != 1 else {}, len(masks))
        self._exchange(Masks(masks))
        self.candidates = candidates
        return self.masks

    def _check_in_force(self) -> None:
        if not self._in_force:
            raise RuntimeError("the model has been restored or pruned anew since: this pruning has ended")

    def _exchange(self, masks: Masks) -> Masks:
        before = [(state, state.mask) for state in self._together.states]
        try:
            for state, _ in before:
                state.exchange(masks[state.name])
        except BaseException:
            for state, mask in before:
                if state.mask is not mask:
                    state.exchange(mask)
            raise
        self.masks = masks
        return masks
