"""What was kept at each place of a layer, and which multiplications that saves."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch._C import _functorch as functorch

Share = float | Tensor  # of entries that are kept, or of multiplications that are left


class Tally:
    """Sums over the passes of one layer.

    Attributes:
        passes: how many, by place.
        macs, left: multiply-accumulates by product, of dense passes and what is left of them where every zero
            is skipped, and zeros lie as if at random.
    """

    def __init__(self) -> None:
        self.passes: dict[str, int] = {}
        self._shares: dict[str, Share] = {}
        self.macs: dict[str, int] = {}
        self._left: dict[str, Share] = {}

    def keep(self, place: str, share: Share) -> None:
        """This share of the entries was kept in one more pass."""
        self.passes[place] = self.passes.get(place, 0) + 1
        self._shares[place] = self._shares.get(place, 0.0) + share

    def multiply(self, product: str, macs: int, *shares: Share) -> None:
        """A product was made of factors of which these shares are left."""
        left: Share = float(macs)
        for share in shares:
            left = left * share
        self.macs[product] = self.macs.get(product, 0) + macs
        self._left[product] = self._left.get(product, 0.0) + left

    @property
    def density(self) -> dict[str, float]:
        """By place, the share of entries that was kept, as a mean over passes."""
        return {place: float(total) / self.passes[place] for place, total in self._shares.items()}

    @property
    def left(self) -> Mapping[str, float]:
        """By product, the multiply-accumulates that are left."""
        return {product: float(left) for product, left in self._left.items()}


def share_of(values: Tensor) -> Share:
    """How many entries are not zero, of all; on the values' device, so that nothing waits for it."""
    return values.detach().count_nonzero().double() / max(values.numel(), 1)


def counts() -> bool:
    """Whether what runs has values that can be counted: those within vmap, traces and their like are not."""
    traced = torch._C._get_tracing_state() is not None or torch.compiler.is_compiling()
    return functorch.peek_interpreter_stack() is None and not traced
