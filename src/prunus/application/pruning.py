"""A handle on one pruning."""

from __future__ import annotations

from types import TracebackType

import torch
from torch import nn

from prunus.application.applying import prune_by
from prunus.masks import Masks
from prunus.processes import of_first
from prunus.selection.draw import Candidates


class Pruning:
    """A pruned model and the candidates it was pruned from; as a context manager, restores at the end.

    Attributes:
        model: the pruned network.
        masks: the masks drawn last, True = keep.
        candidates, p_bern, passes, generator: what they are drawn from, and how.
    """

    def __init__(
        self,
        model: nn.Module,
        candidates: Candidates,
        p_bern: float,
        passes: str,
        generator: torch.Generator | None,
    ) -> None:
        self.model, self.candidates, self.p_bern, self.passes = model, candidates, p_bern, passes
        self.generator = generator
        self.masks = self._draw()
        candidates.warn_of_emptied(self.masks)  # before anything is done, as it may be made an error
        self._together = prune_by(model, self.masks, passes)

    def __repr__(self) -> str:
        ended = "" if self._in_force else ", ended"
        return f"Pruning({self.masks!r}, passes={self.passes!r}, p_bern={self.p_bern:g}{ended})"

    @property
    def _in_force(self) -> bool:
        return bool(self._together.states)

    def _draw(self) -> Masks:
        masks = self.candidates.draw(self.p_bern, self.generator)
        return masks if self.generator else Masks(dict(of_first(masks.items())))

    def redraw(self) -> Masks:
        """Draw anew which of the same candidates fall, and prune by that.

        Nothing is ranked again, and what weights have learned since is kept. If it fails or is interrupted,
        the masks stay those that were.

        Raises:
            RuntimeError: the model has been restored, or pruned anew, since.
        """
        if not self._in_force:
            raise RuntimeError("the model has been restored or pruned anew since: this pruning has ended")
        masks = self._draw()
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

    def restore(self) -> nn.Module:
        """Undo this pruning; see `prunus.restore`. Nothing happens if another has taken its place."""
        for state in list(self._together.states):
            state.detach()
        return self.model

    def __enter__(self) -> Pruning:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()
