"""Where does the budget hold?

A scope is a function from `Scored` weight tensors and fractions to what is kept: for every fraction one
stream of (weight name, one boolean a piece), in the order of the tensors. `Scored.grid` gives the scores of a
tensor by output, input and position, and `Partition.flat` leads back. To add one, write the function here,
under `@scope(name)`; `rank(scope=function)` takes any as it is.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
from torch import Tensor

from prunus.checks import Named
from prunus.selection.line import above, draw_lines, keep_highest
from prunus.selection.scored import Kept, Scored, fallen, protected

Scope: TypeAlias = Callable[[Sequence[Scored], Sequence[float]], Iterator[Kept]]
SCOPES: Named[Scope] = Named()  # by name, in the order of this file


def scope(name: str) -> Callable[[Scope], Scope]:
    """Make a scope known by this name."""

    def know(function: Scope) -> Scope:
        SCOPES[name] = function
        return function

    return know


@scope("global")
def over_network(tensors: Sequence[Scored], fractions: Sequence[float]) -> Iterator[Kept]:
    """For every fraction p, all N pieces of the network but the lowest `int(p · N)`."""
    scores = {tensor.name: tensor.scores for tensor in tensors}
    total = sum(len(source) for source in scores.values())
    lines = draw_lines(scores, [int(p * total) for p in fractions])
    return (above(scores, line) for line in lines)


@scope("layer")
def over_layers(tensors: Sequence[Scored], fractions: Sequence[float]) -> Iterator[Kept]:
    """The same with the N pieces of each tensor by itself."""
    return by_counts(tensors, [[int(p * len(tensor.scores)) for tensor in tensors] for p in fractions])


@scope("uniform")
def uniform(tensors: Sequence[Scored], fractions: Sequence[float]) -> Iterator[Kept]:
    """`int(p · N)` of the network's N pieces, the same fraction of every tensor, to a piece."""
    sizes = np.array([len(tensor.scores) for tensor in tensors])
    return by_counts(tensors, [_apportion(tensors, p * sizes, int(p * sizes.sum())) for p in fractions])


@scope("erk")
def erdos_renyi_kernel(tensors: Sequence[Scored], fractions: Sequence[float]) -> Iterator[Kept]:
    """`int(p · N)` of the network's N pieces; of what is kept, large tensors keep a smaller fraction.

    The fraction that a tensor keeps goes as the sum of its sides (outputs, inputs, kernel) by their product,
    and is at most 1 (Mocanu et al. 2018, arXiv 1707.04780; with kernels Evci et al. 2020, arXiv 1911.11134,
    section 3).
    """
    sizes = np.array([len(tensor.scores) for tensor in tensors])
    sides = [[s for s in tensor.partition.shape if s] for tensor in tensors]
    raw = np.array([sum(side) / math.prod(side) for side in sides])

    def of_all(p: float) -> list[int]:
        count = int(p * sizes.sum())
        return _apportion(tensors, sizes * (1 - _densities(sizes, raw, sizes.sum() - count)), count)

    return by_counts(tensors, [of_all(p) for p in fractions])


@scope("row")
def over_rows(tensors: Sequence[Scored], fractions: Sequence[float]) -> Iterator[Kept]:
    """All n pieces of every output but its lowest `int(p · n)`."""

    def rows(tensor: Scored, p: float) -> Tensor:
        grid = tensor.grid().flatten(1)
        if grid.shape[1] == 1 and 0 < p < 1:
            raise ValueError(
                f"scope='row': each output of {tensor.name} is one piece, of which no fraction can fall: "
                "give another scope or granularity, or exclude it"
            )
        return _keep(tensor, grid, int(p * grid.shape[1]))

    return (by_tensor(tensors, lambda tensor, p=p: rows(tensor, p)) for p in fractions)  # type: ignore[misc]


def n_of_m(n: int, m: int) -> Scope:
    """Of every m neighbours along the inputs, at the same output and position, the n highest are kept.

    2:4 is what sparse tensor cores take (Mishra et al. 2021, arXiv 2104.08378).

    Raises:
        ValueError: n is not between 0 and m; then, of each use: a fraction other than 0 and 1 - n/m, or a
            tensor whose inputs are no multiple of m.
    """
    check_some(n, m)

    def groups(tensor: Scored) -> Tensor:
        grid = tensor.grid().movedim(1, 2)
        check_groups(n, m, tensor.name, grid.shape[2])
        return _keep(tensor, grid.reshape(-1, m), m - n).reshape(grid.shape).movedim(2, 1)

    def scope(tensors: Sequence[Scored], fractions: Sequence[float]) -> Iterator[Kept]:
        for p in fractions:
            check_ratio(n, m, p)
        everything = [[0] * len(tensors)]
        return (by_tensor(tensors, groups) if p else next(by_counts(tensors, everything)) for p in fractions)

    return scope


def check_some(n: int, m: int) -> None:
    """Raise a ValueError where n of m is none, or all."""
    if not 0 < n < m:
        raise ValueError(f"scope='{n}:{m}' must keep some of each {m} pieces, and not all")


def check_ratio(n: int, m: int, p: float) -> None:
    """Raise a ValueError where n of m leaves another fraction than this, and it is not 0."""
    if p and not math.isclose(p, 1 - n / m, abs_tol=1e-9):
        raise ValueError(f"scope='{n}:{m}' prunes {1 - n / m:g} or nothing: p_prune must be that, got {p:g}")


def check_groups(n: int, m: int, name: str, inputs: int) -> None:
    """Raise a ValueError where so many inputs fall into no groups of m."""
    if inputs % m:
        raise ValueError(
            f"scope='{n}:{m}': the {inputs:,} inputs of {name} are no multiple of {m}: exclude it"
        )


SCOPES.forms["n:m"] = re.compile(r"(\d+):(\d+)"), n_of_m


def by_counts(tensors: Sequence[Scored], counts: Sequence[Sequence[int]]) -> Iterator[Kept]:
    """For every list of counts, one a tensor, all pieces of each tensor but so many of its lowest."""
    layers = []
    for tensor, lowest in zip(tensors, zip(*counts, strict=True), strict=True):
        scores = {tensor.name: tensor.scores}
        layers.append([above(scores, line) for line in draw_lines(scores, lowest)])
    return (itertools.chain(*parts) for parts in zip(*layers, strict=True))


def by_tensor(tensors: Sequence[Scored], keep: Callable[[Scored], Tensor]) -> Kept:
    """What a function keeps of each tensor, as booleans in the order of its grid."""
    return ((tensor.name, tensor.partition.flat(keep(tensor)).contiguous()) for tensor in tensors)


def _keep(tensor: Scored, rows: Tensor, count: int) -> Tensor:
    """All but the `count` lowest of each row, none of which may be protected."""
    kept = keep_highest(rows, count)
    if protected(tensor.scores) and (rows[~kept] == math.inf).any():
        raise ValueError(
            f"keep_at_least protects pieces of {tensor.name} that the scope does not spare: lower one of "
            "the two"
        )
    return kept


def _densities(sizes: np.ndarray, raw: np.ndarray, left: int) -> np.ndarray:
    """Fractions in proportion to `raw`, at most 1, by which tensors of these sizes keep `left` pieces."""
    full = np.zeros(len(sizes), bool)
    while not full.all():
        factor = (left - sizes[full].sum()) / (raw * sizes)[~full].sum()
        over = ~full & (raw * factor > 1)
        if not over.any():
            return np.where(full, 1.0, raw * factor)
        full |= over
    return full.astype(float)


def _apportion(tensors: Sequence[Scored], wanted: np.ndarray, total: int) -> list[int]:
    """Whole numbers near these that sum to `total`, where no tensor loses what is protected.

    Largest remainders first, of equal ones the first tensors; what has fallen before is a part of it.
    """
    limits = np.array([len(tensor.scores) - protected(tensor.scores) for tensor in tensors])
    if total > limits.sum():
        raise ValueError(
            f"p_prune asks for {total:,} pieces, but keep_at_least leaves {limits.sum():,}: lower one of the "
            "two"
        )
    before = np.array([fallen(tensor.scores) for tensor in tensors])  # which stay so
    counts = np.clip(np.floor(wanted).astype(int), before, limits)
    while (missing := total - counts.sum()) != 0:
        side = 1 if missing > 0 else -1
        free = np.flatnonzero(counts < limits if missing > 0 else counts > before)
        if not len(free):
            break  # more had fallen than are asked for
        order = free[np.argsort(-side * (wanted - counts)[free], kind="stable")]
        counts[order[: abs(missing)]] += side
    return list(map(int, counts))
