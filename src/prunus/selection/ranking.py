"""Weights, criterion and pieces put together: the scores of a network, to be cut at any fraction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from prunus.checks import check_fraction, check_whole, choose, chosen, knows_keywords
from prunus.masks import counted
from prunus.scores.criteria import CRITERIA, Criterion, Pieces, declared, magnitude, score
from prunus.scores.evidence import Evidence, of_grads
from prunus.selection.draw import Candidates, fall
from prunus.selection.ends import first, protect
from prunus.selection.pieces import GRANULARITIES, NORMS, Partition
from prunus.selection.scope import SCOPES, Scope
from prunus.selection.scored import Kept, Magnitudes, Scored, Scores, Stored, check_finite
from prunus.weights import Layers, Patterns, WeightTensor, Which, find_weights


class Choice(Which, total=False):
    """The keyword arguments of `rank`, which every verb passes on."""

    criterion: str | Criterion
    granularity: str
    scope: str | Scope
    norm: str
    evidence: Evidence | None
    generator: torch.Generator | None
    keep_at_least: int


@dataclass(frozen=True, repr=False)
class Ranking:
    """The scores of a network's pieces: ranked once, cut at any number of fractions.

    Single weights are scored by magnitude when they are read, so train only after all cuts are made;
    pruning in between does no harm.
    """

    tensors: Sequence[Scored]
    devices: dict[str, torch.device]
    scope: Scope
    how: str
    keep_at_least: int = 0

    def __repr__(self) -> str:
        pieces = sum(tensor.partition.count for tensor in self.tensors)
        return f"Ranking({pieces:,} pieces of {counted(len(self.tensors), 'tensor')}; {self.how})"

    @property
    def scores(self) -> dict[str, Scores]:
        """By weight name, the scores of its pieces."""
        return {tensor.name: tensor.scores for tensor in self.tensors}

    @property
    def partitions(self) -> dict[str, Partition]:
        """By weight name, how its tensor falls into pieces."""
        return {tensor.name: tensor.partition for tensor in self.tensors}

    def candidates(self, fractions: Sequence[float]) -> Iterator[Candidates]:
        """The lowest fraction of pieces, for each fraction in [0, 1]."""
        cuts = self._cut([check_fraction("p_prune", p) for p in fractions])
        return (Candidates(dict(kept), self.partitions, self.devices) for kept in cuts)

    def deeper(self, p_prune: float, before: Candidates) -> Candidates:
        """The lowest fraction of pieces, when those that were candidates before count as the lowest.

        Raises:
            ValueError: the scope spares some of those: they are more than `p_prune` asks for.
        """
        nested = replace(self, tensors=first(self.tensors, before.kept))
        [candidates] = nested.candidates([p_prune])
        for name, kept in candidates.kept.items():
            spared = int((kept & ~before.kept[name].to(kept.device)).count_nonzero())
            if spared:
                raise ValueError(
                    f"p_prune={p_prune:g} is less than before: {spared:,} pieces of {name} that were pruned, "
                    "or drawn and spared, would be no candidates any more"
                )
        return candidates

    def masks(
        self, p_prune: float, p_bern: float = 1.0, generator: torch.Generator | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """One draw over the lowest fraction of pieces, tensor by tensor: not all masks exist at once."""
        [kept] = self._cut([check_fraction("p_prune", p_prune)])
        return fall(kept, self.partitions, self.devices, check_fraction("p_bern", p_bern), generator)

    def _cut(self, fractions: Sequence[float]) -> Iterator[Kept]:
        """What the scope keeps at every fraction; one of the user's own is checked before it is used."""
        builtin = self.scope in SCOPES.values()
        cuts = iter(self.scope(protect(self.tensors, self.keep_at_least if builtin else 0), fractions))
        for fraction in fractions:
            kept = next(cuts, None)
            if kept is None:
                raise ValueError(f"scope gave nothing for p_prune {fraction:g}: expected a stream for each")
            yield kept if builtin else iter(list(self._checked(kept)))

    def _checked(self, kept: Kept) -> Kept:
        kept = iter(kept)
        for tensor in self.tensors:
            name, flags = next(kept, (None, None))
            right = torch.bool, (tensor.partition.count,)
            found = (flags.dtype, tuple(flags.shape)) if isinstance(flags, Tensor) else type(flags).__name__
            if name != tensor.name or found != right:
                raise ValueError(
                    f"scope gave {found} for {name}; expected for {tensor.name} a boolean tensor of shape "
                    f"{right[1]}, and the weight tensors in their order"
                )
            assert flags is not None
            left, least = int(flags.count_nonzero()), min(self.keep_at_least, len(flags))
            if left < least:
                raise ValueError(
                    f"scope keeps {left:,} of {len(flags):,} pieces of {name}; keep_at_least={least}"
                )
            yield tensor.name, flags


@knows_keywords()
def rank(
    model: nn.Module,
    *,
    criterion: str | Criterion = "magnitude",
    granularity: str = "weight",
    scope: str | Scope = "global",
    norm: str = "l1",
    layers: Layers = (nn.Conv2d,),
    include: Patterns | None = None,
    exclude: Patterns | None = (),
    evidence: Evidence | None = None,
    generator: torch.Generator | None = None,
    keep_at_least: int = 0,
) -> Ranking:
    """Score the weights of a network, which is left untouched.

    Args:
        model: any network; of a pruned one, the original weights are scored.
        criterion: "magnitude" |w|, "random", "gradient" |g|, "taylor" |w·g|, or a function from
            `prunus.Pieces`, which holds a weight tensor as (pieces, members), to scores of that shape or
            of shape (pieces, 1); lower goes first.
        granularity: what is pruned as one piece: "weight"; "kernel", one k×k slice of a
            convolution; "filter", one output channel; "channel", one input channel.
        scope: "global", the lowest fraction over all layers together; "layer", of every layer; or a
            function, see `prunus.selection.scope`.
        norm: scores of one piece are summed ("l1") or averaged ("mean", so that small pieces are
            not pruned first merely for being small).
        layers: a layer type or its name, several, or "all" for every convolution, transposed convolution
            and Linear.
        include: name patterns of the weights to take, default all of those layers. A pattern is a
            shell wildcard for a weight ("conv1.weight") or a module around it ("layer4.*").
        exclude: name patterns of the weights to leave out.
        evidence: what a criterion reads beside the weights, from `prunus.evidence`; default the
            parameters' `.grad`, where they have one.
        generator: source of random scores; default the global one.
        keep_at_least: number of pieces that every weight tensor keeps (or all, where it has fewer): its
            highest are no candidates, of equal ones the last, and the next lowest pieces that the scope
            covers are in their place, so that the count stays `int(p_prune · N)`. A scope function has to
            keep as many by itself. Default 0: a tensor may lose all its weights.

    Returns:
        The scores, to be cut by `.candidates(fractions)`.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an unknown name, a pattern that matches nothing, nothing to prune, weights or
            scores that are NaN or infinite, or a criterion without the evidence that it needs. When it is
            cut: `keep_at_least` leaves fewer pieces than are to become candidates.

    Example:
        >>> import prunus
        >>> ranking = prunus.rank(nn.Conv2d(3, 16, 3), granularity="filter")
        >>> ranking
        Ranking(16 pieces of 1 tensor; magnitude, filter, global)
        >>> [candidates.draw().pruned for candidates in ranking.candidates([0, 0.25, 0.5])]
        [0, 108, 216]
    """
    if not isinstance(generator, torch.Generator | None):
        raise TypeError(f"generator must be a torch.Generator, got {generator!r}")
    if not isinstance(evidence, Evidence | None):
        raise TypeError(f"evidence must come from prunus.evidence, got {type(evidence).__name__}")
    pool, where = choose("norm", norm, NORMS), chosen("scope", scope, SCOPES)
    by = chosen("criterion", criterion, CRITERIA)
    pieces = choose("granularity", granularity, GRANULARITIES)
    weights = find_weights(model, layers, include, exclude)
    known = of_grads(weights.values()) if evidence is None else evidence
    tensors = []
    for weight in weights.values():
        partition = Partition.of(weight.owners[0], pieces)
        tensors.append(Scored(weight.name, _scores(weight, partition, by, pool, known, generator), partition))
    devices = {name: weight.parameter.device for name, weight in weights.items()}
    least = check_whole("keep_at_least", keep_at_least)
    names = (getattr(given, "__name__", given) for given in (criterion, granularity, scope))
    return Ranking(tensors, devices, where, ", ".join(map(str, names)), least)


def _scores(
    weight: WeightTensor,
    partition: Partition,
    criterion: Criterion,
    pool: Callable[[Tensor], Tensor],
    evidence: Evidence,
    generator: torch.Generator | None,
) -> Scores:
    if criterion is magnitude and partition.members == 1:
        return Magnitudes(weight)
    values = weight.values
    check_finite(weight.name, values)
    needs = declared(criterion)
    known = {
        kind: partition.table(tensor)
        for kind, tensor in evidence.about(weight).items()
        if needs is None or kind in needs
    }
    pieces = Pieces(weight.name, partition.table(values), known, generator, evidence.hint)
    pooled = score(pieces, criterion, pool)
    check_finite(weight.name, pooled)
    return Stored(pooled)
