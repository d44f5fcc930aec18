"""How important is each weight?

A criterion is a function from `Pieces` to scores: one for every weight, shape (pieces, members), or one
for every piece, shape (pieces, 1). Lower means less important. Scores of one piece are then summed or
averaged (`norm`). To add one, write the function here, under `@criterion(...)` with the evidence that it
needs: its name is then known wherever criteria are chosen by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from prunus.checks import chosen
from prunus.scores.evidence import Need, gradients, inputs


@dataclass(frozen=True)
class Pieces:
    """What a criterion sees of one weight tensor: a row a piece.

    Args:
        name: of the weight tensor.
        values: its values before pruning, shape (pieces, members); single weights have one member.
        evidence: by kind, a tensor of the same shape.
        generator: the source of random scores; default the global one.
        hint: how to come by evidence that is missing.
    """

    name: str
    values: Tensor
    evidence: Mapping[Need, Tensor] = field(default_factory=dict)
    generator: torch.Generator | None = None
    hint: str = "it is not to be had here"

    def of(self, kind: Need) -> Tensor:
        """Evidence of this kind, same shape as `values`.

        Raises:
            ValueError: there is none.
        """
        if kind not in self.evidence:
            raise ValueError(f"{self.name} has no {kind.__name__}, which this criterion needs: {self.hint}")
        return self.evidence[kind]

    @property
    def gradients(self) -> Tensor:
        """The gradients of a loss: `of(gradients)`."""
        return self.of(gradients)

    @property
    def inputs(self) -> Tensor:
        """The norms of the inputs that the weights are multiplied with: `of(inputs)`."""
        return self.of(inputs)


Criterion: TypeAlias = Callable[[Pieces], Tensor]
CRITERIA: dict[str, Criterion] = {}  # by name, in the order of this file
NEEDS: dict[Criterion, Sequence[Need]] = {}


def criterion(*needs: Need) -> Callable[[Criterion], Criterion]:
    """Make a criterion known by the name of its function, and say what evidence it needs."""

    def know(function: Criterion) -> Criterion:
        CRITERIA[function.__name__], NEEDS[function] = function, needs
        return function

    return know


@criterion()
def magnitude(pieces: Pieces) -> Tensor:
    """|w| (Han et al. 2015, arXiv 1506.02626, section 3)."""
    return pieces.values.abs()


@criterion()
def random(pieces: Pieces) -> Tensor:
    """One uniform number a piece whatever its size: the control any other criterion must beat."""
    count, generator = len(pieces.values), pieces.generator
    device = generator.device if generator else "cpu"
    return torch.rand((count, 1), generator=generator, device=device, dtype=torch.float64)


@criterion(gradients)
def gradient(pieces: Pieces) -> Tensor:
    """|g|, the gradient of the loss."""
    return pieces.gradients.abs()


@criterion(gradients)
def taylor(pieces: Pieces) -> Tensor:
    """|w·g|: first-order change of the loss without w (Molchanov et al. 2019, arXiv 1906.10771, eq. 8)."""
    wide = torch.promote_types(pieces.values.dtype, torch.float32)  # the product of two halfs underflows
    return (pieces.values.to(wide) * pieces.gradients).abs()


def declared(function: Criterion) -> Sequence[Need] | None:
    """The needs of a criterion that is known by name; None of another, which may read all there is."""
    return next((needs for known, needs in NEEDS.items() if known is function), None)


def needs_of(criteria: Iterable[str | Criterion]) -> Sequence[Need]:
    """What evidence these criteria need, each kind once."""
    every = [kind for needs in NEEDS.values() for kind in needs]
    found = [declared(chosen("criterion", given, CRITERIA)) for given in criteria]
    return list(dict.fromkeys(kind for needs in found for kind in (every if needs is None else needs)))


def score(pieces: Pieces, criterion: Criterion, pool: Callable[[Tensor], Tensor]) -> Tensor:
    """One score a piece, shape (pieces,).

    Raises:
        TypeError: the criterion gave something else than a tensor.
        ValueError: it gave scores of another shape.
    """
    scores: object = criterion(pieces)
    right = dict.fromkeys((tuple(pieces.values.shape), (len(pieces.values), 1)))
    expected = " or ".join(map(str, right))
    if not isinstance(scores, Tensor):
        raise TypeError(
            f"criterion gave {type(scores).__name__} for {pieces.name}; expected a tensor of shape {expected}"
        )
    if tuple(scores.shape) not in right:
        raise ValueError(
            f"criterion gave scores of shape {tuple(scores.shape)} for {pieces.name}; expected {expected}"
        )
    return pool(scores.detach())
