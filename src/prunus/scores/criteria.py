"""How important is each weight?

A criterion is a function from `Groups` to scores: one for every weight, shape (groups, members),
or one for every group, shape (groups, 1). Lower means less important. Scores of one group are
then summed or averaged (`norm`). To add one, write the function and name it in `CRITERIA`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True)
class Groups:
    """What a criterion sees of one weight tensor, seen as (groups, members)."""

    name: str
    values: Tensor
    maybe_gradients: Tensor | None = None
    generator: torch.Generator | None = None

    @property
    def gradients(self) -> Tensor:
        """The parameter's `.grad`, same shape as `values`.

        Raises:
            ValueError: the parameter has no `.grad`.
        """
        if self.maybe_gradients is None:
            raise ValueError(
                f"{self.name} has no .grad, which this criterion needs: "
                "call prunus.fill_gradients(model, batches) or loss.backward() first"
            )
        return self.maybe_gradients


Criterion: TypeAlias = Callable[[Groups], Tensor]


def magnitude(groups: Groups) -> Tensor:
    """|w| (Han et al. 2015, arXiv 1506.02626, section 3)."""
    return groups.values.abs()


def random(groups: Groups) -> Tensor:
    """One uniform number a group whatever its size: the control any other criterion must beat."""
    count, generator = len(groups.values), groups.generator
    device = generator.device if generator else "cpu"
    return torch.rand((count, 1), generator=generator, device=device, dtype=torch.float64)


def gradient(groups: Groups) -> Tensor:
    """|g|, from the parameter's `.grad`."""
    return groups.gradients.abs()


def taylor(groups: Groups) -> Tensor:
    """|w·g|: first-order change of the loss without w (Molchanov et al. 2019, arXiv 1906.10771, eq. 8)."""
    wide = torch.promote_types(groups.values.dtype, torch.float32)  # the product of two halfs underflows
    return (groups.values.to(wide) * groups.gradients).abs()


CRITERIA: dict[str, Criterion] = {
    "magnitude": magnitude,
    "random": random,
    "gradient": gradient,
    "taylor": taylor,
}

GRADIENT_CRITERIA = ("gradient", "taylor")
