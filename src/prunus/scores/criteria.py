"""How important is each weight?

A criterion is a function from `Pieces` to scores: one for every weight, shape (pieces, members), or one
for every piece, shape (pieces, 1). Lower means less important. Scores of one piece are then summed or
averaged (`norm`). To add one, write the function here, under `@criterion(...)` with the evidence that it
needs: its name is then known wherever criteria are chosen by name. A new kind of evidence is a function
beside those of `gradients.py`, `inputs.py` and `flow.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from prunus.checks import chosen
from prunus.scores.evidence import Need
from prunus.scores.flow import flow
from prunus.scores.gradients import gradients, hessian_gradients, squared_gradients
from prunus.scores.inputs import inputs


@dataclass(frozen=True)
class Pieces:
    """What a criterion sees of one weight tensor: a row a piece.

    Args:
        name: of the weight tensor.
        values: its values before pruning, shape (pieces, members); single weights have one member.
        evidence: by kind, a tensor of the same shape.
        generator: the source of random scores; default the global one.
        hint: how to come by evidence that is missing.
        sizes: the number of weights of each piece, shape (pieces,), where some hold fewer than members.
    """

    name: str
    values: Tensor
    evidence: Mapping[Need, Tensor] = field(default_factory=dict)
    generator: torch.Generator | None = None
    hint: str = "it is not to be had here"
    sizes: Tensor | None = None

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


@dataclass(frozen=True)
class Traits:
    """What is known of a criterion that has a name.

    Args:
        needs: the evidence that it reads.
        asked: whether that is collected only for who asks for the criterion, since it costs more.
        rounds: in how many cuts it is used, each by scores of what the former ones left: the fraction that is
            kept falls by the same factor in each.
        scope: where its budget holds, unless told otherwise.
    """

    needs: Sequence[Need] = ()
    asked: bool = False
    rounds: int = 1
    scope: str = "global"


TRAITS: dict[Criterion, Traits] = {}


def criterion(
    *needs: Need, asked: bool = False, rounds: int = 1, scope: str = "global"
) -> Callable[[Criterion], Criterion]:
    """Make a criterion known by the name of its function, and what it needs; see `Traits`."""

    def know(function: Criterion) -> Criterion:
        CRITERIA[function.__name__], TRAITS[function] = function, Traits(needs, asked, rounds, scope)
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


@criterion()
def lamp(pieces: Pieces) -> Tensor:
    """w² over the sum of all w² of its layer that are no smaller (Lee et al. 2021, arXiv 2010.07611).

    So budgets of layers follow from one global line. Of larger pieces, w² is the sum of their squares.
    """
    squares = _wide(pieces.values).double().square().sum(1)
    order = squares.argsort(stable=True)
    ranked = squares[order]
    left = ranked.flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(squares)
    scores[order] = (ranked / left).nan_to_num(0)  # zeros, and all of a layer of zeros
    return scores[:, None]


@criterion()
def fpgm(pieces: Pieces) -> Tensor:
    """The distances to all other pieces of the layer, summed: filters near their geometric median go first.

    He et al. 2019, arXiv 1811.00250. The pieces are vectors: filters, channels or blocks.
    """
    if pieces.values.shape[1] == 1:
        raise ValueError(f"{pieces.name}: fpgm compares pieces of several weights: give granularity='filter'")
    vectors = _wide(pieces.values)
    exact = "donot_use_mm_for_euclid_dist"  # which does not cancel where two are near
    some = torch.split(vectors, max(1, (1 << 24) // max(1, len(vectors))))
    sums = [torch.cdist(part, vectors, compute_mode=exact).sum(1, dtype=torch.float64) for part in some]
    return torch.cat(sums)[:, None]


@criterion(gradients)
def gradient(pieces: Pieces) -> Tensor:
    """|g|, the gradient of the loss."""
    return pieces.gradients.abs()


@criterion(gradients)
def taylor(pieces: Pieces) -> Tensor:
    """|w·g|: first-order change of the loss without w (Molchanov et al. 2019, arXiv 1906.10771, eq. 8)."""
    return (_wide(pieces.values) * pieces.gradients).abs()


@criterion(gradients)
def snip(pieces: Pieces) -> Tensor:
    """|Σ w·g|: how the loss changes with one factor of the whole piece (Lee et al. 2019, arXiv 1810.02340).

    Of single weights it is "taylor"; their sum over the network, by which the paper divides, ranks nothing.
    """
    return (_wide(pieces.values) * pieces.gradients).double().sum(1, keepdim=True).abs()


@criterion(hessian_gradients, asked=True)
def grasp(pieces: Pieces) -> Tensor:
    """w·Hg: half the gradient flow ‖g‖² that is lost without w (Wang, Zhang, Grosse 2020, arXiv 2002.07376).

    The paper removes what has the highest −w·Hg; lowest goes first here, so that what harms flow least does.
    The scores have signs: those below zero hinder it.
    """
    return _wide(pieces.values) * pieces.of(hessian_gradients)


@criterion(squared_gradients, asked=True)
def fisher(pieces: Pieces) -> Tensor:
    """w²·E[g²]/2: second-order change of the loss without w (Theis et al. 2018, arXiv 1801.05787)."""
    return _wide(pieces.values).square() * pieces.of(squared_gradients) / 2


@criterion(flow, asked=True, rounds=100)
def synflow(pieces: Pieces) -> Tensor:
    """|w|·∂R/∂|w|: synaptic flow (Tanaka et al. 2020, arXiv 2006.05467), without data.

    The cuts are 100. In fewer cuts it empties whole layers, as every criterion that ranks globally may.
    """
    return pieces.values.abs().double() * pieces.of(flow)


@criterion(inputs, scope="row")
def wanda(pieces: Pieces) -> Tensor:
    """|w|·‖x‖, of the inputs that w is multiplied with (Sun et al. 2023, arXiv 2306.11695).

    The paper compares weights within an output, which is the scope unless another is given.
    """
    return _wide(pieces.values).abs() * pieces.inputs


def _wide(values: Tensor) -> Tensor:
    """In a dtype in which products of two halfs do not underflow."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def traits(function: Criterion) -> Traits | None:
    """What is known of a criterion with a name; None of another, which may read all there is."""
    return next((known for own, known in TRAITS.items() if own is function), None)


def needs_of(criteria: Iterable[str | Criterion]) -> Sequence[Need]:
    """What evidence these criteria need, each kind once."""
    usual = [kind for known in TRAITS.values() if not known.asked for kind in known.needs]
    found = [traits(chosen("criterion", given, CRITERIA)) for given in criteria]
    return list(dict.fromkeys(kind for known in found for kind in (known.needs if known else usual)))


def score(pieces: Pieces, criterion: Criterion, pool: Callable[[Tensor, Tensor | None], Tensor]) -> Tensor:
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
    return pool(scores.detach(), pieces.sizes)
