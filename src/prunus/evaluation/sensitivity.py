"""Which layers can take it? And how should one budget be allotted among them?"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from glob import escape
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from prunus.application.applying import unpruned
from prunus.checks import check_fraction, knows_keywords
from prunus.evaluation.batches import with_example
from prunus.evaluation.evaluate import Metric, Result, evaluate
from prunus.evaluation.points import Point, Probe, Setting, by_name, setting_of
from prunus.evaluation.rows import ProbeRow, read_rows, varied
from prunus.evaluation.shown import Shown
from prunus.selection.draw import Candidates
from prunus.selection.ranking import Choice, Ranking, rank, seeded
from prunus.table import Table
from prunus.verbs import apply_masks

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from prunus.results.folder import Layout

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True, repr=False)
class Sensitivity(Shown):
    """What it costs to prune each group of weights alone; it shows itself as `prunus.Points` do.

    Args:
        clean: of the unpruned network.
        probes: group by group, ratios in order.
        setting: how was pruned; the ratio is that of each probe.
        network: what it is called where it is shown.

    Example:
        >>> import prunus
        >>> model = prunus.digits.load_network("plain")
        >>> images, labels = prunus.digits.load_images()
        >>> found = prunus.sensitivity(model, [(images[:200], labels[:200])], p_prune=(0.5, 0.9))
        >>> print(found)                                         # doctest: +ELLIPSIS
        Sequential
        group     weights  predicted  acc@1 at 0.5  acc@1 at 0.9
        0             144     0.0208 ...
        3           2,304     0.1795 ...
        7           3,456     0.2625 ...
        <BLANKLINE>
        unpruned                             97.50
    """

    clean: Result
    probes: Sequence[Probe]
    setting: Setting = field(default_factory=lambda: Setting(0.0))
    network: str = "network"

    @classmethod
    def load(cls, folder: str | os.PathLike[str], network: str | None = None) -> Sensitivity:
        """That of a results folder, which `save` or `prunus sensitivity` wrote; see `prunus.Points.load`.

        Raises:
            FileNotFoundError, ValueError: as there; or it holds several ways to prune, or was not finished.
        """
        network, rows = read_rows(Path(folder), ProbeRow.read, network)
        if differing := varied(rows):
            names = ", ".join(differing)
            raise ValueError(f"{folder} must hold one way to prune, and its rows differ in {names}")
        clean = next((row.point for row in rows if not row.group), None)
        if clean is None:
            raise ValueError(f"{folder} holds nothing of the unpruned network: run the command to its end")
        return cls(clean.result, [row.probe for row in rows if row.group], clean.setting, network)

    def rows(self) -> list[ProbeRow]:
        """The unpruned network and every probe, as rows of a results folder."""
        [setting] = by_name([self.setting])
        clean = Point(replace(setting, p_prune=0.0), self.clean, {})
        rows = [ProbeRow(self.network, clean, "", 0.0)]
        for probe in self.probes:
            how, layers = (
                replace(setting, p_prune=probe.p_prune),
                {probe.group: (probe.pruned, probe.weights)},
            )
            rows.append(
                ProbeRow(self.network, Point(how, probe.result, layers), probe.group, probe.predicted)
            )
        return rows

    def _tables(self) -> Iterator[Table]:
        from prunus.results.tables import ranked_tables

        return ranked_tables(self.rows())

    def _layout(self) -> Layout[ProbeRow]:
        from prunus.results.heat import SENSITIVITY

        return SENSITIVITY

    def __repr__(self) -> str:
        first = self.ranked[0]
        return f"Sensitivity({len(self.groups)} groups, {len(self.probes)} probes; most sensitive: {first})"

    @property
    def groups(self) -> dict[str, list[Probe]]:
        """The probes of each group."""
        found: dict[str, list[Probe]] = {}
        for probe in self.probes:
            found.setdefault(probe.group, []).append(probe)
        return found

    @property
    def ranked(self) -> list[str]:
        """The groups, most sensitive first: by their mean loss over the ratios, or their mean metric."""
        return sorted(self.groups, key=lambda group: -self._cost(group))

    def _cost(self, group: str) -> float:
        results = [probe.result for probe in self.groups[group]]
        losses = [result.loss if result.loss is not None else -float(result.metric) for result in results]
        return sum(losses) / len(losses)

    @property
    def _weights(self) -> int:
        return sum(probes[0].weights for probes in self.groups.values())

    @property
    def most(self) -> float:
        """The fraction of all weights that are pruned where every group is pruned as far as was measured."""
        return sum(max(probe.pruned for probe in probes) for probes in self.groups.values()) / self._weights

    def allot(self, p_prune: float) -> dict[str, float]:
        """A fraction for each group, so that in all `p_prune` of their weights fall where it costs least.

        As if losses of groups add up: each group's loss over its pruned weights is made convex from below,
        and the cheapest pieces of these curves are taken until there are enough.

        Returns:
            Fractions by group, as `p_prune` of `prunus.prune` takes them.

        Raises:
            ValueError: no losses were measured, or not up to so many weights.

        Example:
            >>> def probe(group, p, loss):
            ...     return Probe(group, p, int(10 * p), 10, 0.0, Result(0, 0, 1, loss))
            >>> probes = [probe("a", 0.5, 1.5), probe("a", 1, 3), probe("b", 0.5, 1), probe("b", 1, 1.2)]
            >>> Sensitivity(Result(1, 1, 1, 1.0), probes).allot(0.6)
            {'a': 0.2, 'b': 1.0}
        """
        if self.clean.loss is None:
            raise ValueError("sensitivity was measured by metric=: only losses can be added up")
        if check_fraction("p_prune", p_prune) > self.most:
            raise ValueError(f"p_prune={p_prune:g} is more than was measured, {self.most:g} at most")
        total = p_prune * self._weights
        pieces = [(*piece, group) for group in self.groups for piece in self._segments(group)]
        taken = dict.fromkeys(self.groups, 0.0)
        for _, size, group in sorted(pieces, key=lambda piece: piece[0]):
            part = min(float(size), total)
            taken[group] += part
            total -= part
        return {group: taken[group] / probes[0].weights for group, probes in self.groups.items()}

    def _segments(self, group: str) -> list[tuple[float, int]]:
        """The lower convex hull of loss over pruned weights, as (slope, length) pieces, slopes rising."""
        points = [(0, float(self.clean.loss or 0))]
        points += [
            (probe.pruned, max(points[0][1], float(probe.result.loss or 0))) for probe in self.groups[group]
        ]
        hull: list[tuple[int, float]] = []
        for x, y in sorted(points):
            while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], (x, y)):
                hull.pop()
            if not hull or x > hull[-1][0]:
                hull.append((x, y))
        return [(_slope(a, b), b[0] - a[0]) for a, b in pairwise(hull)]


def _slope(start: tuple[int, float], end: tuple[int, float]) -> float:
    return (end[1] - start[1]) / (end[0] - start[0]) if end[0] > start[0] else np.inf


def probe(
    model: nn.Module,
    loader: Iterable[Any],
    items: Iterable[tuple[str, float]],
    ranking: Ranking,
    generator: torch.Generator | None,
    amp: torch.dtype | None = None,
    metric: Metric | None = None,
) -> Iterator[Probe]:
    """Measure (group, ratio) one by one. The model is pruned only while it is being measured."""
    for group, p_prune in items:
        [candidates] = ranking.candidates([{group: p_prune}])
        masks = candidates.draw(seed=generator)
        with unpruned(model):
            apply_masks(model, masks)
            result = evaluate(model, loader, amp, metric=metric)
        weights = sum(ranking.partitions[name].size for name in ranking.matching(group))
        yield Probe(group, p_prune, masks.pruned, weights, _share(ranking, candidates), result)


def checked_groups(ranking: Ranking, groups: Sequence[str] | None) -> list[str]:
    """These name patterns, or one for each weight.

    Raises:
        TypeError: one pattern in place of several.
        ValueError: there is none, one matches nothing, or two match the same weight.
    """
    if groups is None:
        return [escape(name) for name in ranking.partitions]  # which may hold brackets
    if isinstance(groups, str):
        raise TypeError(f"groups must be several name patterns, got {groups!r}: give [{groups!r}]")
    if not groups:
        raise ValueError("groups is empty: expected one name pattern at least")
    first: dict[str, str] = {}
    for group in groups:
        for name in ranking.matching(group):
            if first.setdefault(name, group) != group:
                raise ValueError(f"groups {first[name]!r} and {group!r} both match {name}")
    return list(groups)


def _share(ranking: Ranking, candidates: Candidates) -> float:
    """The part of all scores that candidates have."""
    scores = {name: source.every(0, 1).double() for name, source in ranking.scores.items()}
    total = sum(float(source.sum()) for source in scores.values())
    fallen = sum(float(scores[name][~kept].sum()) for name, kept in candidates.kept.items())
    return fallen / total if total else 0.0


@knows_keywords(Choice)
def sensitivity(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    p_prune: Sequence[float] | float = RATIOS,
    groups: Sequence[str] | None = None,
    amp: torch.dtype | None = None,
    metric: Metric | None = None,
    **choice: Unpack[Choice],
) -> Sensitivity:
    """Prune each weight tensor, or group, alone, at several ratios, and measure; the model stays as it was.

    Args:
        model: from images to logits; of a pruned one, the original weights are pruned.
        loader: (images, labels) batches, or others that `evaluate` takes; read once for every probe.
        p_prune: one fraction in [0, 1] or several.
        groups: name patterns, of each of which the weights that it matches are pruned together, such as
            "layer1.*", and no two the same weight; default every weight by itself.
        amp, metric: see `prunus.evaluate`.
        **choice: keyword arguments of `prunus.rank`.

    Returns:
        `.ranked` groups, most sensitive first; `.probes`; `.allot(p_prune)`, fractions for each group. It
        shows itself, see `prunus.Points`: `.table()`, `.plot()`, `.to_pandas()`, `.save(folder)`.

    Raises:
        TypeError: `loader` can be read only once.
        TypeError, ValueError: as `prunus.rank` and `evaluate` do.

    Example:
        >>> import prunus
        >>> model = prunus.digits.load_network("plain")
        >>> images, labels = prunus.digits.load_images()
        >>> found = prunus.sensitivity(model, [(images[:200], labels[:200])], p_prune=(0.5, 0.9))
        >>> len(found.probes), sorted(found.allot(0.5)) == sorted(found.groups)
        (6, True)
    """
    if isinstance(loader, Iterator):
        raise TypeError("loader is an iterator, which can be read once only: give a DataLoader or a list")
    several = p_prune if isinstance(p_prune, Iterable) else [p_prune]
    ratios = [check_fraction("p_prune", p) for p in several]
    if not ratios:
        raise ValueError("p_prune is empty: expected one fraction at least")
    choice, generator = seeded(with_example(choice, loader, model))
    ranking = rank(model, **choice)
    names = checked_groups(ranking, groups)
    with unpruned(model):
        clean = evaluate(model, loader, amp, metric=metric)
    items = [(group, p) for group in names for p in ratios]
    probes = list(probe(model, loader, items, ranking, generator, amp, metric))
    return Sensitivity(clean, probes, setting_of(choice), type(model).__name__)
