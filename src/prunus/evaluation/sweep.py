"""What does it cost, at which setting?"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

import torch
from torch import nn

from prunus.application.applying import unpruned
from prunus.checks import knows_keywords
from prunus.evaluation.batches import example_of
from prunus.evaluation.evaluate import Metric, Result, evaluate
from prunus.evaluation.points import Point, Setting, by_name
from prunus.evaluation.rows import SweepRow, read_rows
from prunus.evaluation.shown import Shown
from prunus.masks import Masks, counted, warn_of_emptied
from prunus.randomness import Seed, number_of
from prunus.scores.criteria import Criterion
from prunus.scores.evidence import Evidence
from prunus.selection.ranking import Ranking, rank
from prunus.selection.scope import Scope
from prunus.table import Table
from prunus.verbs import apply_masks
from prunus.weights import Layers, Patterns, Which

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from prunus.results.folder import Layout


@knows_keywords()
def grid(
    p_prune: Sequence[float] | float,
    p_bern: Sequence[float] | float = 1.0,
    granularity: Sequence[str] | str = "weight",
    criterion: Sequence[str | Criterion] | str | Criterion = "magnitude",
    scope: Sequence[str | Scope] | str | Scope | None = None,
    norm: str = "l1",
    passes: Sequence[str] | str = "both",
    seed: Sequence[Seed] | Seed = 0,
    keep_at_least: int = 0,
    coupled: bool = False,
    p_prune_of: str = "",
) -> list[Setting]:
    """Every combination, once; each argument is one value or several."""
    seeds = [number_of(one) for one in _several(seed)]  # of a generator drawn once, or nothing would compare
    return [
        Setting(p, bern, piece, how, where, norm, mode, number, keep_at_least, coupled, p_prune_of)
        for piece in _several(granularity)
        for how in _several(criterion)
        for where in _several(scope)
        for mode in _several(passes)
        for number in seeds
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


class Points(list[Point], Shown):
    """What `prunus.sweep` found: a list of points that shows itself.

    `.plot()` is accuracy against the pruned fraction, `.plot("layers")` what every layer loses.

    Args:
        points: in the order of measuring.
        network: what it is called where it is shown.

    Example:
        >>> import prunus
        >>> model = prunus.digits.load_network("plain")
        >>> images, labels = prunus.digits.load_images()
        >>> ways = {"p_prune": (0, 0.5), "granularity": ("kernel", "weight")}
        >>> points = prunus.sweep(model, [(images, labels)], **ways)
        >>> points
        Points(4 points)
        >>> print(points[2:].table())                            # doctest: +ELLIPSIS
        network     p_prune  fraction  acc@1   acc@5    loss
        Sequential        0    0.0000  98.2...
        Sequential      0.5    0.5000  9...
        >>> points.plot().savefig("curve.pdf")                   # doctest: +SKIP
        >>> points.save("results")                               # doctest: +SKIP
        >>> points.to_pandas()["acc1"].max()                     # doctest: +SKIP
    """

    def __init__(self, points: Iterable[Point] = (), network: str = "network") -> None:
        super().__init__(points)
        self.network = network

    def __repr__(self) -> str:
        return f"Points({counted(len(self), 'point')})"

    @overload
    def __getitem__(self, at: SupportsIndex) -> Point: ...

    @overload
    def __getitem__(self, at: slice) -> Points: ...

    def __getitem__(self, at: SupportsIndex | slice) -> Point | Points:
        """A point, or some of them as Points."""
        if isinstance(at, slice):
            return Points(super().__getitem__(at), self.network)
        return super().__getitem__(at)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], network: str | None = None) -> Points:
        """Those of a results folder, which `save` or `prunus sweep` wrote.

        Args:
            folder: its path.
            network: of the networks of the folder; default the only one.

        Raises:
            FileNotFoundError: no results there.
            ValueError: several networks, or not this one; or no results of a sweep.
        """
        network, rows = read_rows(Path(folder), SweepRow.read, network)
        return cls([row.point for row in rows], network)

    def rows(self) -> list[SweepRow]:
        """As rows of a results folder."""
        settings = by_name([point.setting for point in self])
        named = (replace(point, setting=setting) for point, setting in zip(self, settings, strict=True))
        return [SweepRow(self.network, point) for point in named]

    def _tables(self) -> list[Table]:
        from prunus.results.tables import table

        return [table(self.rows())]

    def _layout(self) -> Layout[SweepRow]:
        from prunus.results.curves import SWEEP

        return SWEEP


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
    seed: Sequence[Seed] | Seed = 0,
    layers: Layers = (nn.Conv2d,),
    include: Patterns | None = None,
    exclude: Patterns | None = (),
    evidence: Evidence | None = None,
    amp: torch.dtype | None = None,
    metric: Metric | None = None,
    keep_at_least: int = 0,
    coupled: bool = False,
    example_inputs: Any = None,
) -> Points:
    """Accuracy at every combination of the given values; the model is left as it was.

    The point of a seed is that of `prunus.prune(..., seed=seed)`.

    Args:
        model: from images to logits; of a pruned one, the original weights are pruned.
        loader: (images, labels) batches, or others that `evaluate` takes; read once for every point.
        p_prune: one fraction in [0, 1] or several; likewise `p_bern`.
        granularity: one name or several; likewise `criterion` and `scope` (names or functions) and
            `seed`. See `prunus.rank`.
        norm: see `prunus.rank`; likewise `keep_at_least`, `coupled`, `layers`, `include`, `exclude`,
            `evidence`.
        example_inputs: for `coupled`; default of the loader's first.
        passes: "both", "backward" or "forward", or several of them.
        amp: run under autocast in this dtype; default off.
        metric: measure this in place of accuracy, see `evaluate`.

    Returns:
        A list of points in the order granularity, criterion, scope, passes, seed, p_bern, p_prune:
        `.setting`, `.result` (see `evaluate`), `.pruned_fraction`, `.layers`. It shows itself, see
        `prunus.Points`: `.table()`, `.plot()`, `.to_pandas()`, `.save(folder)`.

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
        p_prune, p_bern, granularity, criterion, scope, norm, passes, seed, keep_at_least, coupled
    )
    which: Which = {"layers": layers, "include": include, "exclude": exclude}
    if coupled and example_inputs is None:
        example_inputs = example_of(loader, model)
    points = measure(
        model,
        loader,
        settings,
        evidence=evidence,
        example_inputs=example_inputs,
        amp=amp,
        metric=metric,
        **which,
    )
    return Points(points, type(model).__name__)
