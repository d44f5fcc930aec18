"""What does it cost, at which setting?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prunus.application.applying import unpruned
from prunus.application.placed import PASSES
from prunus.checks import Amount, check_fraction, check_whole, choose, knows_keywords
from prunus.evaluation.batches import example_of
from prunus.evaluation.evaluate import Metric, Result, evaluate
from prunus.masks import Masks, counted, warn_of_emptied
from prunus.scores.criteria import Criterion
from prunus.scores.evidence import Evidence
from prunus.selection.patterns import read_fractions, with_others
from prunus.selection.pieces import NORMS
from prunus.selection.ranking import Choice, Ranking, rank, settle_scope
from prunus.selection.scope import Scope
from prunus.verbs import apply_masks
from prunus.weights import Layers, Patterns, Which

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True)
class Setting:
    """One way to prune: arguments of `prunus.prune`, the scope settled, and the seed of its generator."""

    p_prune: float
    p_bern: float = 1.0
    granularity: str = "weight"
    criterion: str | Criterion = "magnitude"
    scope: str | Scope | None = None
    norm: str = "l1"
    passes: str = "both"
    seed: int = 0
    keep_at_least: int = 0
    coupled: bool = False
    p_prune_of: str = ""  # other fractions by name pattern, see `prunus.selection.patterns`

    def __post_init__(self) -> None:
        check_fraction("p_prune", self.p_prune)
        check_fraction("p_bern", self.p_bern)
        choose("norm", self.norm, NORMS)
        choose("passes", self.passes, PASSES)
        check_whole("keep_at_least", self.keep_at_least)
        read_fractions(self.p_prune_of)
        object.__setattr__(self, "scope", settle_scope(self.criterion, self.granularity, self.scope))

    @property
    def amount(self) -> Amount:
        """The fraction, or fractions by name pattern, as `prunus.prune` takes them."""
        return with_others(self.p_prune, self.p_prune_of)

    def choice(
        self,
        which: Which,
        *,
        generator: torch.Generator,
        evidence: Evidence | None = None,
        example_inputs: Any = None,
    ) -> Choice:
        """All keyword arguments of `prunus.rank`."""
        return {
            "criterion": self.criterion,
            "granularity": self.granularity,
            "scope": self.scope,
            "norm": self.norm,
            "keep_at_least": self.keep_at_least,
            "coupled": self.coupled,
            "generator": generator,
            "evidence": evidence,
            "example_inputs": example_inputs,
            **which,
        }

    @property
    def ranked_by(self) -> Setting:
        """Settings that agree in this share one ranking."""
        return replace(self, p_prune=0.0, p_bern=1.0, passes="both", p_prune_of="")


@dataclass(frozen=True, repr=False)
class Point:
    """What one setting costs, and the (pruned, all) weights of every layer."""

    setting: Setting
    result: Result
    layers: dict[str, tuple[int, int]]

    def __repr__(self) -> str:
        setting, result = self.setting, self.result
        how = f"p_prune={setting.p_prune:g}, p_bern={setting.p_bern:g}, {setting.granularity!r}"
        found = f"top-1 {result.top1:.2f}%" if result.correct is not None else f"metric {result.metric}"
        return f"Point({how}: {self.pruned:,} of {self.weights:,} weights pruned, {found})"

    @property
    def pruned(self) -> int:
        """Number of pruned weights."""
        return sum(pruned for pruned, _ in self.layers.values())

    @property
    def weights(self) -> int:
        """Number of prunable weights."""
        return sum(weights for _, weights in self.layers.values())

    @property
    def pruned_fraction(self) -> float:
        """`pruned / weights`."""
        return self.pruned / max(1, self.weights)


def grid(
    p_prune: Sequence[float] | float,
    p_bern: Sequence[float] | float = 1.0,
    granularity: Sequence[str] | str = "weight",
    criterion: Sequence[str | Criterion] | str | Criterion = "magnitude",
    scope: Sequence[str | Scope] | str | Scope | None = None,
    norm: str = "l1",
    passes: Sequence[str] | str = "both",
    seeds: Sequence[int] | int = 0,
    keep_at_least: int = 0,
    coupled: bool = False,
    p_prune_of: str = "",
) -> list[Setting]:
    """Every combination, once; each argument is one value or several."""
    return [
        Setting(p, bern, piece, how, where, norm, mode, seed, keep_at_least, coupled, p_prune_of)
        for piece in _several(granularity)
        for how in _several(criterion)
        for where in _several(scope)
        for mode in _several(passes)
        for seed in _several(seeds)
        for bern in _several(p_bern)
        for p in _several(p_prune)
    ]


def _several(value: Any) -> list[Any]:
    several = isinstance(value, Iterable) and not isinstance(value, str)
    return list(dict.fromkeys(value)) if several else [value]


def measure(
    model: nn.Module,
    loader: Iterable[Any],
    settings: Iterable[Setting],
    *,
    evidence: Evidence | None = None,
    example_inputs: Any = None,
    amp: torch.dtype | None = None,
    metric: Metric | None = None,
    **which: Unpack[Which],
) -> Iterator[Point]:
    """Measure settings one by one. Neighbours that rank alike are ranked once.

    Without anything pruned, the network is measured once. It is pruned only while a point is being made,
    never when one is handed out. At the end it warns, once, of layers that lost all their weights.
    """
    points = []
    for point in _measured(model, loader, settings, evidence, example_inputs, amp, metric, which):
        points.append(point)
        yield point
    _warn_of_emptied(points)


def _warn_of_emptied(points: Sequence[Point]) -> None:
    found: dict[str, int] = {}
    ratios = []
    for point in points:
        gone = {name: total for name, (pruned, total) in point.layers.items() if pruned == total > 0}
        if gone and point.setting.p_prune < 1:
            found |= gone
            ratios.append(point.setting.p_prune)
    if found:
        when = f" at {len(ratios):,} of {counted(len(points), 'setting')} (p_prune from {min(ratios):g})"
        warn_of_emptied(found, len(points[0].layers), when)


def _measured(
    model: nn.Module,
    loader: Iterable[Any],
    settings: Iterable[Setting],
    evidence: Evidence | None,
    example_inputs: Any,
    amp: torch.dtype | None,
    metric: Metric | None,
    which: Which,
) -> Iterator[Point]:
    clean: Result | None = None  # of the unpruned network, which many settings share
    for _, alike in groupby(settings, lambda setting: setting.ranked_by):
        batch = list(alike)
        ranking, generator = ranked(model, batch[0], evidence, which, example_inputs)
        for setting, masks in _masks(ranking, batch, generator):
            if clean and not masks.pruned:
                result = clean
            else:
                with unpruned(model):
                    apply_masks(model, masks, setting.passes)
                    result = evaluate(model, loader, amp, metric=metric)
            clean = clean if masks.pruned else result
            yield Point(setting, result, masks.counts)


def ranked(
    model: nn.Module, setting: Setting, evidence: Evidence | None, which: Which, example_inputs: Any
) -> tuple[Ranking, torch.Generator]:
    """The ranking that a setting shares with those that rank alike, and the generator of its draws."""
    generator = torch.Generator().manual_seed(setting.seed)
    choice = setting.choice(which, generator=generator, evidence=evidence, example_inputs=example_inputs)
    return rank(model, **choice), generator


def _masks(
    ranking: Ranking, settings: Sequence[Setting], generator: torch.Generator
) -> Iterator[tuple[Setting, Masks]]:
    state = generator.get_state()
    cuts = ranking.candidates([setting.amount for setting in settings])
    for setting, candidates in zip(settings, cuts, strict=True):
        generator.set_state(state)  # as `prune` with this seed would draw, whatever came before
        yield setting, candidates.draw(setting.p_bern, generator)


@knows_keywords()
def sweep(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    p_prune: Sequence[float] | float,
    p_bern: Sequence[float] | float = 1.0,
    granularity: Sequence[str] | str = "weight",
    criterion: Sequence[str | Criterion] | str | Criterion = "magnitude",
    scope: Sequence[str | Scope] | str | Scope | None = None,
    norm: str = "l1",
    passes: Sequence[str] | str = "both",
    seeds: Sequence[int] | int = 0,
    layers: Layers = (nn.Conv2d,),
    include: Patterns | None = None,
    exclude: Patterns | None = (),
    evidence: Evidence | None = None,
    amp: torch.dtype | None = None,
    metric: Metric | None = None,
    keep_at_least: int = 0,
    coupled: bool = False,
    example_inputs: Any = None,
) -> list[Point]:
    """Accuracy at every combination of the given values; the model is left as it was.

    The point of a seed is that of `prunus.prune(..., generator=torch.Generator().manual_seed(seed))`.

    Args:
        model: from images to logits; of a pruned one, the original weights are pruned.
        loader: (images, labels) batches, or others that `evaluate` takes; read once for every point.
        p_prune: one fraction in [0, 1] or several; likewise `p_bern`.
        granularity: one name or several; likewise `criterion` and `scope` (names or functions) and
            `seeds`. See `prunus.rank`.
        norm: see `prunus.rank`; likewise `keep_at_least`, `coupled`, `layers`, `include`, `exclude`,
            `evidence`.
        example_inputs: for `coupled`; default of the loader's first.
        passes: "both", "backward" or "forward", or several of them.
        amp: run under autocast in this dtype; default off.
        metric: measure this in place of accuracy, see `evaluate`.

    Returns:
        Points in the order granularity, criterion, scope, passes, seed, p_bern, p_prune: `.setting`,
        `.result` (see `evaluate`), `.pruned_fraction`, `.layers`.

    Raises:
        TypeError: `loader` can be read only once.
        TypeError, ValueError: as `prunus.rank` and `evaluate` do.

    Warns once, at the end, where a layer lost all its weights below p_prune 1.

    Example:
        >>> import prunus
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten())
        >>> data = [(torch.rand(2, 1, 3, 3), torch.tensor([0, 1]))]
        >>> [point.pruned for point in prunus.sweep(net, data, p_prune=(0, 0.25, 0.5))]
        [0, 9, 18]
    """
    if isinstance(loader, Iterator):
        raise TypeError("loader is an iterator, which can be read once only: give a DataLoader or a list")
    settings = grid(
        p_prune, p_bern, granularity, criterion, scope, norm, passes, seeds, keep_at_least, coupled
    )
    which: Which = {"layers": layers, "include": include, "exclude": exclude}
    if coupled and example_inputs is None:
        example_inputs = example_of(loader, model)
    return list(
        measure(
            model,
            loader,
            settings,
            evidence=evidence,
            example_inputs=example_inputs,
            amp=amp,
            metric=metric,
            **which,
        )
    )
