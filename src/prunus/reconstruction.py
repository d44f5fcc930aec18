"""What should survivors be, so that a layer gives nearly what it gave? Weights solved anew from inputs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from prunus.application.applying import check_writable, prune_by, unpruned
from prunus.application.placed import by_passes
from prunus.application.pruning import Handle
from prunus.application.together import Together
from prunus.checks import Amount, Named, check_amount, check_number, check_whole, choose, knows_keywords
from prunus.masks import Masks
from prunus.scores.evidence import Batches, check_rereadable
from prunus.scores.inputs import has_patches, listen, patches
from prunus.selection.line import keep_highest
from prunus.selection.patterns import fractions
from prunus.selection.pieces import GRANULARITIES, Partition
from prunus.selection.scope import check_groups, check_ratio, check_some
from prunus.selection.scored import check_finite
from prunus.weights import Layers, Patterns, WeightTensor, aliases_of, find_weights

Cut: TypeAlias = Callable[[Tensor, float, int], Tensor]  # (scores, p, columns before) to what is kept


@dataclass(frozen=True)
class Budget:
    """Where the fraction holds while columns are solved from left to right.

    Args:
        keep: from scores of some columns, shape (groups, rows, columns), the fraction, and how many columns
            have been solved before, to what is kept of them.
        width: how many columns are chosen among at once; None is a whole block.
        check: refuses, of a weight by name, a number of inputs or a fraction.
    """

    keep: Cut
    width: int | None = None
    check: Callable[[str, int, float], None] = lambda name, inputs, p: None


def _of_layer(scores: Tensor, p: float, before: int) -> Tensor:
    rows, after = scores[..., 0].numel(), before + scores.shape[-1]
    count = int(p * (rows * after)) - int(p * (rows * before))
    return keep_highest(scores.reshape(1, -1), count).view(scores.shape)


def _of_rows(scores: Tensor, p: float, before: int) -> Tensor:
    count = int(p * (before + scores.shape[-1])) - int(p * before)
    return keep_highest(scores.flatten(0, 1), count).view(scores.shape)


def _n_of_m(n: int, m: int) -> Budget:
    check_some(n, m)

    def keep(scores: Tensor, p: float, before: int) -> Tensor:
        return keep_highest(scores.flatten(0, 1), m - n if p else 0).view(scores.shape)

    def check(name: str, inputs: int, p: float) -> None:
        check_ratio(n, m, p)
        check_groups(n, m, name, inputs)

    return Budget(keep, m, check)


BUDGETS: Named[Budget] = Named(layer=Budget(_of_layer), row=Budget(_of_rows))
BUDGETS.forms["n:m"] = re.compile(r"(\d+):(\d+)"), _n_of_m


class Reconstruction(Handle):
    """A network whose weights were pruned and solved anew; as a context manager, restores at the end.

    Attributes:
        model: the network.
        masks: what was pruned, True = keep.
        errors: by weight name, the squared error of the layer's outputs on the batches, as a part of their
            squares; biases left out.
    """

    def __init__(
        self,
        model: nn.Module,
        masks: Masks,
        errors: Mapping[str, float],
        together: Together,
    ) -> None:
        self.model, self.masks, self.errors, self._together = model, masks, dict(errors), together

    def __repr__(self) -> str:
        worst = max(self.errors, key=self.errors.__getitem__)
        return f"Reconstruction({self.masks!r}, largest error {self.errors[worst]:.3g} of {worst})"


@knows_keywords()
def sparsegpt(
    model: nn.Module,
    batches: Batches,
    p_prune: Amount,
    *,
    scope: str = "layer",
    block: int = 128,
    dampening: float = 0.01,
    layers: Layers = (nn.Conv2d,),
    include: Patterns | None = None,
    exclude: Patterns | None = (),
) -> Reconstruction:
    """Prune, and let survivors make up for it: SparseGPT (Frantar, Alistarh 2023, arXiv 2301.00774).

    To restore undoes both, and what survivors have learned since.

    Layer by layer, in the order in which they are called, each on what the pruned ones before it give:
    columns are solved from left to right; weights with the least w²/[H⁻¹] fall, H being the sum of products
    of inputs, and columns to the right make up for them exactly. One layer's H is in memory at a time; the
    network is run once a layer. A convolution, unless transposed, is a linear layer of patches, group by
    group.

    Args:
        model: the network, pruned in place, forward and backward; its original weights, if it is pruned.
        batches: (inputs, targets), of which only inputs are read, moved to the model's device.
        p_prune: fraction of the weights, in [0, 1], or fractions by name pattern; see `prunus.make_masks`.
        scope: "layer": `int(p · n)` of each tensor, chosen block of columns by block; "row": of every output;
            "n:m", such as "2:4", along the inputs.
        block: how many columns are chosen among at once; with "n:m", m are.
        dampening: what is added to the diagonal of H, as a part of its mean. More is more cautious.
        layers, include, exclude: which weights; see `prunus.rank`.

    Returns:
        A handle: `.masks`, `.errors`, `.restore()`; also a context manager that restores.

    Raises:
        TypeError: `batches` can be read only once.
        ValueError: an argument out of range, no batches, a layer that is not linear or never called, or
            inputs that are not finite. The model is left as it was.

    Example:
        >>> import prunus, torch
        >>> net, x = nn.Linear(8, 4), torch.randn(64, 8)
        >>> before = net.weight.clone()
        >>> with prunus.sparsegpt(net, [(x, torch.zeros(64))], 0.5, scope="2:4", layers="Linear") as solved:
        ...     solved.masks, bool(solved.errors["weight"] < 0.5)
        (Masks(1 tensor, 16 of 32 weights pruned), True)
        >>> torch.equal(net.weight, before)
        True
    """
    check_rereadable(batches)
    amount, budget = check_amount("p_prune", p_prune), choose("scope", scope, BUDGETS)
    block, dampening = check_whole("block", block, 1), check_number("dampening", dampening)
    if not 0 < dampening < float("inf"):
        raise ValueError(f"dampening must be above 0, got {dampening!r}")
    weights = find_weights(model, layers, include, exclude)
    for name, weight in weights.items():
        check_writable(weight)
        check_finite(name, weight.values)
    aliases = aliases_of(model)
    parts = fractions(amount, {name: aliases[name] for name in weights})
    partitions = {name: _single(weight) for name, weight in weights.items()}
    inputs = {name: _inputs(part) for name, part in partitions.items()}
    for name, weight in weights.items():
        _check_linear(weight)
        budget.check(name, inputs[name], parts[name])
    masks, errors, solved = {}, {}, {}
    with unpruned(model), _put_back() as before:
        for name in _in_order(model, weights, batches):
            weight, partition = weights[name], partitions[name]
            gram = _gram(model, weight, batches)
            rows = _columns(weight.parameter.detach().to(gram.dtype), partition, len(gram))
            try:
                new, kept = solve(rows, gram, parts[name], budget, block, dampening)
            except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
                raise ValueError(f"{name}: its inputs cannot be solved for; give more dampening") from error
            errors[name] = _error(rows, new, gram)
            masks[name], new = (_from_columns(of, partition, inputs[name]) for of in (kept, new))
            solved[name] = new.to(weight.parameter.dtype)
            before[name] = weight.parameter, weight.parameter.detach().clone()
            with torch.no_grad():
                weight.parameter.copy_(solved[name])
    together = prune_by(model, by_passes(masks, "both"))
    for state in together.states:
        state.replace(solved[state.name])
    return Reconstruction(model, Masks(masks), errors, together)


def solve(
    rows: Tensor, gram: Tensor, p: float, budget: Budget, block: int = 128, dampening: float = 0.01
) -> tuple[Tensor, Tensor]:
    """What is left of weights, and which are kept.

    Args:
        rows: shape (groups, outputs, inputs), of float32 or wider.
        gram: sums of products of inputs, shape (groups, inputs, inputs).
        p: the fraction that falls.
        budget: where that holds.
        block, dampening: as of `sparsegpt`.
    """
    rows, kept = rows.clone(), torch.ones_like(rows, dtype=torch.bool)
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    mean = diagonal.mean(-1, keepdim=True)
    added = torch.diag_embed((dampening * torch.where(mean > 0, mean, 1.0)).expand(diagonal.shape))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram + added))
    upper = torch.linalg.cholesky(inverse, upper=True)  # whose row i is that of [H from i on]⁻¹, scaled
    scales = upper.diagonal(dim1=-2, dim2=-1)
    width = budget.width or block
    step = width * max(1, block // width)
    for first in range(0, rows.shape[-1], step):
        last = min(first + step, rows.shape[-1])
        part, errors = rows[..., first:last], torch.zeros_like(rows[..., first:last])
        for column in range(first, last):
            if (column - first) % width == 0:
                end = min(column + width, last)
                scores = (rows[..., column:end] / scales[:, None, column:end]).square()
                kept[..., column:end] = budget.keep(scores, p, column)
            gone = torch.where(kept[..., column], 0.0, rows[..., column]) / scales[:, None, column]
            part[..., column - first :] -= gone[..., None] * upper[:, None, column, column:last]
            errors[..., column - first] = gone
            rows[..., column].mul_(kept[..., column])
        rows[..., last:] -= errors @ upper[:, first:last, last:]
    return rows, kept


def _single(weight: WeightTensor) -> Partition:
    return Partition.of(weight.owners[0], GRANULARITIES["weight"], weight.attribute)


def _inputs(partition: Partition) -> int:
    """How many inputs each output of a layer reads, at one position of the kernel."""
    return partition.grid(torch.empty(partition.count, device="meta")).shape[1]


def _check_linear(weight: WeightTensor) -> None:
    others = [owner for owner in weight.owners if weight.attribute != "weight" or not has_patches(owner)]
    if others:
        kind = type(others[0]).__name__
        raise ValueError(f"{weight.name} is of a {kind}, which is not solved for: exclude it")


@contextmanager
def _put_back() -> Iterator[dict[str, tuple[nn.Parameter, Tensor]]]:
    """By name parameters and their values, which they have again after the block."""
    before: dict[str, tuple[nn.Parameter, Tensor]] = {}
    try:
        yield before
    finally:
        with torch.no_grad():
            for parameter, values in before.values():
                parameter.copy_(values)


def _in_order(model: nn.Module, weights: Mapping[str, WeightTensor], batches: Batches) -> Sequence[str]:
    """The names, in the order in which the layers are called first."""
    found: dict[str, None] = {}
    some = itertools.takewhile(lambda _: len(found) < len(weights), batches)
    listen(model, list(weights.values()), some, lambda name, layer, x: found.setdefault(name))
    missing = [name for name in weights if name not in found]
    if missing:
        raise ValueError(
            f"{missing[0]} is of a layer that is never called (as an nn.MultiheadAttention does not call its "
            "out_proj): exclude it"
        )
    return list(found)


def _gram(model: nn.Module, weight: WeightTensor, batches: Batches) -> Tensor:
    """Sums of products of the inputs, shape (groups, inputs, inputs), over batches and positions."""
    total: list[Tensor] = []

    def add(name: str, layer: nn.Module, x: Tensor) -> None:
        columns = patches(layer, x)
        product = (columns.mT @ columns).to(_widest(x.device))
        total[:] = [total[0] + product if total else product]

    listen(model, [weight], batches, add)
    if not total[0].isfinite().all():
        raise ValueError(f"{weight.name} has inputs that are NaN or infinite")
    return total[0]


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _columns(tensor: Tensor, partition: Partition, groups: int) -> Tensor:
    """A tensor of the weight's shape as (groups, outputs, positions of the kernel times inputs)."""
    grid = partition.grid(tensor.reshape(-1)).mT  # outputs, positions, inputs
    return grid.reshape(groups, -1, grid.shape[1] * grid.shape[2])


def _from_columns(columns: Tensor, partition: Partition, inputs: int) -> Tensor:
    """Back to the weight's shape."""
    return partition.flat(columns.reshape(-1, columns.shape[-1] // inputs, inputs).mT).reshape(
        partition.shape
    )


def _error(rows: Tensor, new: Tensor, gram: Tensor) -> float:
    """The squared error of outputs, as a part of their squares."""
    change, whole = (float(((of @ gram) * of).sum()) for of in (rows - new, rows))
    return change / whole if whole else 0.0
