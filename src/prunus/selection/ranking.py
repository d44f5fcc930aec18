"""Weights, criterion and pieces put together: the scores of a network, to be cut at any fraction."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prunus.checks import (
    Amount,
    check_amount,
    check_fraction,
    check_whole,
    choose,
    chosen,
    knows_keywords,
)
from prunus.masks import counted
from prunus.randomness import Seed, generator_of
from prunus.scores.criteria import CRITERIA, Criterion, Pieces, Traits, magnitude, score, traits
from prunus.scores.evidence import Evidence
from prunus.scores.gradients import of_grads
from prunus.selection.bundles import couple
from prunus.selection.draw import Candidates, Layout, Separate, fall
from prunus.selection.ends import first, protect
from prunus.selection.patterns import matching, taken
from prunus.selection.pieces import GRANULARITIES, NORMS, Part, Partition
from prunus.selection.scope import SCOPES, Scope
from prunus.selection.scored import Kept, Magnitudes, Scored, Scores, Stored, check_finite
from prunus.weights import (
    Layers,
    Patterns,
    WeightTensor,
    Which,
    aliases_of,
    depth_outside,
    find_weights,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Unseeded(Which, total=False):
    """The keyword arguments of `rank` but `seed`."""

    criterion: str | Criterion
    granularity: str
    scope: str | Scope | None
    norm: str
    evidence: Evidence | None
    keep_at_least: int
    coupled: bool
    example_inputs: Any


class Choice(Unseeded, total=False):
    """The keyword arguments of `rank`, which every verb passes on."""

    seed: Seed | None


def seeded(choice: Choice) -> tuple[Choice, torch.Generator | None]:
    """A choice whose scores and draws are of one generator, and that."""
    generator = generator_of(choice.get("seed"))
    return Choice(**{**choice, "seed": generator}), generator


@dataclass(frozen=True, repr=False)
class Ranking:
    """The scores of a network's pieces: ranked once, cut at any number of fractions.

    Single weights are scored by magnitude when they are read, so train only after all cuts are made;
    pruning in between does no harm.
    """

    tensors: Sequence[Scored]
    layout: Layout
    scope: Scope
    how: str
    keep_at_least: int = 0
    own_scope: bool = False  # a function of the user's, which is checked
    rounds: int = 1  # in how many cuts a fraction is reached
    rescore: Callable[[Mapping[str, Tensor]], Sequence[Scored]] | None = None  # between two of them
    aliases: Mapping[str, Sequence[str]] = field(default_factory=dict)  # all names of tied weights

    def __repr__(self) -> str:
        pieces = sum(tensor.partition.count for tensor in self.tensors)
        return f"Ranking({pieces:,} pieces of {counted(len(self.layout.names), 'tensor')}; {self.how})"

    @property
    def scores(self) -> dict[str, Scores]:
        """By weight name, the scores of its pieces."""
        return {tensor.name: tensor.scores for tensor in self.tensors}

    @property
    def partitions(self) -> Mapping[str, Part]:
        """By weight name, how its tensor falls into pieces; bundles, where filters are coupled."""
        return self.layout.parts

    def candidates(self, amounts: Sequence[Amount]) -> Iterator[Candidates]:
        """The lowest fraction of pieces, for each fraction in [0, 1] or set of them by name patterns.

        Raises:
            ValueError: a pattern matches none of the weights, or none that an earlier one has not taken.
        """
        checked = [check_amount("p_prune", amount) for amount in amounts]
        if self.rounds > 1:
            return (self._in_rounds(amount) for amount in checked)
        return (self._candidates(kept) for kept in self._cuts(checked))

    def deeper(self, amount: Amount, before: Candidates) -> Candidates:
        """The lowest fraction of pieces, when those that were candidates before count as the lowest.

        Raises:
            ValueError: the scope spares some of those: they are more than were asked for.
        """
        amount = check_amount("p_prune", amount)
        return self._in_rounds(amount, before) if self.rounds > 1 else self._deeper(amount, before)

    def _deeper(self, amount: Amount, before: Candidates) -> Candidates:
        [kept] = replace(self, tensors=first(self.tensors, before.kept))._cuts([amount])
        candidates = self._candidates(kept)
        for name, flags in candidates.kept.items():
            spared = int((flags & ~before.kept[name].to(flags.device)).count_nonzero())
            if spared:
                raise ValueError(
                    f"p_prune={amount} is less than before: {spared:,} pieces of {name} that were pruned, "
                    "or drawn and spared, would be no candidates any more"
                )
        return candidates

    @knows_keywords()
    def masks(
        self, p_prune: Amount, p_bern: float = 1.0, seed: Seed | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """One draw over the lowest fraction of pieces, tensor by tensor: not all masks exist at once."""
        p_prune, p_bern = check_amount("p_prune", p_prune), check_fraction("p_bern", p_bern)
        kept = iter(self._in_rounds(p_prune).kept.items()) if self.rounds > 1 else next(self._cuts([p_prune]))
        return self.layout.masks(fall(kept, self.layout, p_bern, generator_of(seed)))

    def _candidates(self, kept: Kept) -> Candidates:
        return Candidates(dict(kept), self.layout)

    def _in_rounds(self, amount: Amount, before: Candidates | None = None) -> Candidates:
        """The same in many cuts, before each of which what is left is scored anew."""
        assert self.rescore is not None
        candidates = before or self._candidates(next(self._cuts([0.0])))
        start = self._fallen(amount, candidates)
        if start == amount or _exceeds(start, amount):
            return self._deeper(amount, candidates)  # which refuses less than before
        for number in range(1, self.rounds + 1):
            again = number > 1 or before is not None
            ranking = replace(self, tensors=self.rescore(candidates.draw())) if again else self
            part = amount if number == self.rounds else _part(start, amount, number / self.rounds)
            candidates = ranking._deeper(part, candidates)
        return candidates

    def _fallen(self, amount: Amount, candidates: Candidates) -> Amount:
        """The fraction that are candidates, where these amounts hold."""

        def share(names: Sequence[str]) -> float:
            flags = [candidates.kept[name] for name in names]
            return sum(int((~kept).sum()) for kept in flags) / max(1, sum(map(len, flags)))

        if not isinstance(amount, Mapping):
            return share(list(candidates.kept))
        return {pattern: share(names) for pattern, names in taken(amount, self._known).items()}

    def _cuts(self, amounts: Sequence[Amount]) -> Iterator[Kept]:
        """What is kept of every tensor, for each amount."""
        fractions = [amount for amount in amounts if not isinstance(amount, Mapping)]
        if len(fractions) == len(amounts):
            return self._cut(fractions)
        return (
            self._by_pattern(amount) if isinstance(amount, Mapping) else next(self._cut([amount]))
            for amount in amounts
        )

    def matching(self, pattern: str) -> list[str]:
        """The names of the weights or bundles that a pattern is for; see `prunus.selection.patterns`.

        Raises:
            ValueError: there are none.
        """
        return matching(pattern, self._known)

    @property
    def _known(self) -> dict[str, list[str]]:
        """By each name, all names of the weights that it is of."""
        return {
            name: [alias for own in self.layout.weights_of(name) for alias in self.aliases.get(own, [own])]
            for name in self.scores
        }

    def _by_pattern(self, amount: Mapping[str, float]) -> Kept:
        """The budget of a pattern holds over the tensors that are its."""
        kept: dict[str, Tensor] = {}
        for pattern, names in taken(amount, self._known).items():
            tensors = [tensor for tensor in self.tensors if tensor.name in names]
            kept |= dict(next(replace(self, tensors=tensors)._cut([amount[pattern]])))
        for t in self.tensors:
            if t.name not in kept:
                kept[t.name] = torch.ones(len(t.scores), dtype=torch.bool, device=t.scores.device)
        return ((tensor.name, kept[tensor.name]) for tensor in self.tensors)

    def _cut(self, fractions: Sequence[float]) -> Iterator[Kept]:
        """What the scope keeps at every fraction; one of the user's own is checked before it is used."""
        cuts = iter(self.scope(protect(self.tensors, 0 if self.own_scope else self.keep_at_least), fractions))
        for fraction in fractions:
            kept = next(cuts, None)
            if kept is None:
                raise ValueError(f"scope gave nothing for p_prune {fraction:g}: expected a stream for each")
            yield iter(list(self._checked(kept))) if self.own_scope else kept

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
    scope: str | Scope | None = None,
    norm: str = "l1",
    layers: Layers = (nn.Conv2d,),
    include: Patterns | None = None,
    exclude: Patterns | None = (),
    evidence: Evidence | None = None,
    seed: Seed | None = None,
    keep_at_least: int = 0,
    coupled: bool = False,
    example_inputs: Any = None,
) -> Ranking:
    """Score the weights of a network, which is left untouched.

    Args:
        model: any network; of a pruned one, the original weights are scored.
        criterion: what the score of a weight is; lower goes first. From the weights "magnitude", "random",
            "lamp", "fpgm" (of larger pieces); from gradients "gradient", "taylor", "snip", "grasp", "fisher";
            from inputs "wanda"; from neither "synflow", in 100 cuts. See `prunus.scores.criteria`, which has
            their papers. Or a function from `prunus.Pieces`, which holds a weight tensor as (pieces,
            members), to scores of that shape or of shape (pieces, 1).
        granularity: what is pruned as one piece: "weight"; "kernel", one k×k slice of a convolution;
            "filter", one output channel; "channel", one input channel; "RxC", a block of R outputs and C
            inputs at all positions of the kernel, such as "16x1" or "4x4". Where blocks do not divide a
            tensor, those at its edges are smaller, and a warning says so.
        scope: "global", the lowest fraction over all layers together; "layer", of every layer; "uniform", the
            same, but that counts of layers are rounded so that their sum is exact; "row", of every output;
            "erk", more of large layers (Erdős-Rényi-kernel); "n:m", such as "2:4": of every m along the
            inputs the n highest are kept; or a function, see `prunus.selection.scope`. Default "global"; of
            filters and channels "layer", as else whole layers fall; with "wanda" else "row".
        norm: scores of one piece are summed ("l1") or averaged ("mean", so that small pieces are
            not pruned first merely for being small).
        layers: a layer type or its name, several, or "all" for every convolution, transposed convolution,
            Linear, Embedding and Conv1D of transformers.
        include: name patterns of the weights to take, default all of those layers. A pattern is a
            shell wildcard for a weight ("conv1.weight") or a module around it ("layer4.*").
        exclude: name patterns of the weights to leave out.
        evidence: what a criterion reads beside the weights, from `prunus.evidence`; default the
            parameters' `.grad`, where they have one.
        seed: of random scores, and of draws where a call draws. Here and everywhere in Prunus it is a whole
            number, or a `torch.Generator` to draw from. Default torch's global one.
        keep_at_least: number of pieces that every weight tensor keeps (or all, where it has fewer): its
            highest are no candidates, of equal ones the last, and the next lowest pieces that the scope
            covers are in their place, so that the count stays exact. A scope function has to keep as many by
            itself. Default 0: a tensor may lose all its weights.
        coupled: of filters, let those be one piece that hang together, as by a residual sum, a depthwise or
            grouped convolution or in a head of attention, and let what belongs to their channels fall with
            them: biases, batch norms' scales and shifts. Filters that are the network's outputs, or hang
            together with others than of the chosen weights, stay whole. A scope of "layer" is then one of
            all such pieces that are of the same weights. What hangs together is found by one forward.
        example_inputs: for `coupled`, what the network can be called with: a tensor, a tuple of arguments or
            a dict of keywords.

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
        Ranking(16 pieces of 1 tensor; magnitude, filter, layer)
        >>> [candidates.draw().pruned for candidates in ranking.candidates([0, 0.25, 0.5])]
        [0, 108, 216]
    """
    choice: Choice = {
        "criterion": criterion,
        "granularity": granularity,
        "scope": scope,
        "norm": norm,
        "layers": layers,
        "include": include,
        "exclude": exclude,
        "evidence": evidence,
        "seed": seed,
        "keep_at_least": keep_at_least,
        "coupled": coupled,
        "example_inputs": example_inputs,
    }
    return _rank(model, choice, as_is=False)


def rank_as_is(model: nn.Module, **choice: Unpack[Choice]) -> Ranking:
    """The same of the weights as they are now: what is pruned scores as the zeros that it is."""
    return _rank(model, _whole(choice), as_is=True)


def lay_out(model: nn.Module, choice: Choice) -> Layout:
    """How the weights of a choice fall into pieces."""
    given = _whole(choice)
    return _layout(model, find_weights(model, given["layers"], given["include"], given["exclude"]), given)


def _whole(choice: Choice) -> Choice:
    """A choice in which nothing is missing: the rest is as `rank` has it by default."""
    parameters = signature(rank).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is Parameter.KEYWORD_ONLY}
    return Choice(**{**defaults, **choice})  # type: ignore[typeddict-item]


def _rank(model: nn.Module, choice: Choice, as_is: bool) -> Ranking:
    """By a choice in which nothing is missing."""
    criterion, granularity, scope = choice["criterion"], choice["granularity"], choice["scope"]
    evidence, generator = choice["evidence"], generator_of(choice["seed"])
    if not isinstance(evidence, Evidence | None):
        raise TypeError(f"evidence must come from prunus.evidence, got {type(evidence).__name__}")
    by, pool = chosen("criterion", criterion, CRITERIA), choose("norm", choice["norm"], NORMS)
    where = settle_scope(criterion, granularity, scope)
    cut, least = chosen("scope", where, SCOPES), check_whole("keep_at_least", choice["keep_at_least"])
    rounds = (traits(by) or Traits()).rounds
    if rounds > 1 and isinstance(where, str) and where not in list(SCOPES):
        raise ValueError(f"criterion={criterion!r} goes in {rounds} cuts, and scope={where!r} allows one")
    weights = find_weights(model, choice["layers"], choice["include"], choice["exclude"])
    layout = _layout(model, weights, choice)
    known = of_grads(weights.values()) if evidence is None else evidence

    def scored(known: Evidence) -> list[Scored]:
        found = []
        for name, part in layout.parts.items():
            own = [replace(weights[weight], as_is=as_is) for weight in layout.weights_of(name)]
            found.append(Scored(name, _scores(name, own, part, by, pool, known, generator), part))
        return found

    def rescore(masks: Mapping[str, Tensor]) -> list[Scored]:
        return scored(known.under(masks))

    names = (getattr(given, "__name__", given) for given in (criterion, granularity, where))
    return Ranking(
        scored(known),
        layout,
        cut,
        ", ".join(map(str, names)),
        least,
        own_scope=callable(scope),
        rounds=rounds,
        rescore=rescore,
        aliases=aliases_of(model),
    )


def settle_scope(criterion: str | Criterion, granularity: str, scope: str | Scope | None) -> str | Scope:
    """Where the budget holds: as given, or else as the granularity says, or else the criterion.

    Raises:
        ValueError: an unknown name.
    """
    by = chosen("criterion", criterion, CRITERIA)
    pieces = choose("granularity", granularity, GRANULARITIES)
    where = pieces.scope or (traits(by) or Traits()).scope if scope is None else scope
    chosen("scope", where, SCOPES)
    return where


def _part(start: Amount, amount: Amount, share: float) -> Amount:
    """What has fallen after this share of many steps, in each of which what is kept falls by one factor."""
    if isinstance(start, Mapping) and isinstance(amount, Mapping):
        return {name: float(_part(start[name], amount[name], share)) for name in amount}  # type: ignore[arg-type]
    assert not isinstance(start, Mapping)
    assert not isinstance(amount, Mapping)
    if start == 1:
        return 1.0
    return 1 - (1 - start) * math.pow((1 - amount) / (1 - start), share)


def _exceeds(start: Amount, amount: Amount) -> bool:
    if isinstance(start, Mapping) and isinstance(amount, Mapping):
        return any(start[name] > amount[name] for name in amount)
    return bool(start > amount)  # type: ignore[operator]


def _layout(model: nn.Module, weights: Mapping[str, WeightTensor], choice: Choice) -> Layout:
    """How the weights fall into pieces."""
    granularity, coupled = choice["granularity"], choice["coupled"]
    example_inputs = choice["example_inputs"]
    if not isinstance(coupled, bool):
        raise TypeError(f"coupled must be True or False, got {coupled!r}")
    if coupled and granularity != "filter":
        raise ValueError(f"coupled=True is about filters: give granularity='filter', not {granularity!r}")
    if coupled and example_inputs is None:
        raise ValueError("coupled=True needs example_inputs=, what the network can be called with")
    if coupled:
        return couple(model, weights, example_inputs)
    pieces = GRANULARITIES[granularity]
    partitions = {
        name: Partition.of(weight.owners[0], pieces, weight.attribute) for name, weight in weights.items()
    }
    _warn_of_ragged(granularity, partitions)
    return Separate(partitions, {name: weight.parameter.device for name, weight in weights.items()})


def _warn_of_ragged(granularity: str, partitions: Mapping[str, Partition]) -> None:
    ragged = {name: part.shape for name, part in partitions.items() if part.ragged}
    if ragged:
        name, shape = next(iter(ragged.items()))
        warnings.warn(
            f"granularity={granularity!r} does not divide {counted(len(ragged), 'tensor')}, such as {name} "
            f"of shape {tuple(shape)}: blocks at the edges hold fewer weights",
            stacklevel=depth_outside(),
        )


def _scores(
    name: str,
    weights: Sequence[WeightTensor],
    part: Part,
    criterion: Criterion,
    pool: Callable[[Tensor, Tensor | None], Tensor],
    evidence: Evidence,
    generator: torch.Generator | None,
) -> Scores:
    """Of the pieces of one tensor, or of a bundle of several."""
    if criterion is magnitude and part.members == 1 and isinstance(part, Partition):
        return Magnitudes(weights[0])
    for weight in weights:
        check_finite(weight.name, weight.values)
    known, traited = [evidence.about(weight) for weight in weights], traits(criterion)
    kinds = [kind for kind in known[0] if all(kind in one for one in known)]
    found = {
        kind: part.tables([one[kind] for one in known])
        for kind in kinds
        if traited is None or kind in traited.needs
    }
    values = part.tables([weight.values for weight in weights])
    pieces = Pieces(name, values, found, generator, evidence.hint, sizes=part.sizes())
    pooled = score(pieces, criterion, pool)
    check_finite(name, pooled)
    return Stored(pooled)
