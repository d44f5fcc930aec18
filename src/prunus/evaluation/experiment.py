"""The experiments of `prunus sweep`, `eval`, `sensitivity` and `find`: networks at settings on images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from glob import escape
from itertools import groupby
from typing import Any

import torch

from prunus.evaluation.evaluate import evaluate
from prunus.evaluation.find import Found, find
from prunus.evaluation.points import Point, Setting
from prunus.evaluation.rows import ProbeRow, SweepRow
from prunus.evaluation.sensitivity import checked_groups, probe, sensitivity
from prunus.evaluation.sweep import measure, ranked
from prunus.inputs.images import Batch, Images, Source, first_inputs, open_images
from prunus.inputs.networks import Network
from prunus.progress import Monitor
from prunus.scores.collecting import evidence
from prunus.scores.criteria import needs_of
from prunus.scores.evidence import Evidence
from prunus.selection.ranking import Choice, lay_out
from prunus.weights import Which

Item = tuple[str, Setting]  # the name of a network, and how it is pruned
GroupItem = tuple[str, str, Setting]  # the same, and which weights; "" for the unpruned network


@dataclass(frozen=True)
class Measurement:
    """What is measured on which images.

    Args:
        networks: of different names.
        settings: see `prunus.sweep`.
        source: of images, and of those that gradients are taken on.
        device: where networks run; with `amp`, under autocast in that dtype.
        which: weights are pruned, see `prunus.rank`.
    """

    networks: Sequence[Network]
    settings: Sequence[Setting]
    source: Source
    device: torch.device
    amp: torch.dtype | None = None
    which: Which = field(default_factory=Which)
    together = False

    @property
    def _criteria(self) -> list[Any]:
        return [setting.criterion for setting in self.settings]

    @property
    def _coupled(self) -> bool:
        return any(setting.coupled for setting in self.settings)

    def _example(self, images: Images) -> torch.Tensor | None:
        """What coupled filters are found with."""
        return first_inputs(images) if self._coupled else None

    @property
    def _by_name(self) -> dict[str, Network]:
        return {network.name: network for network in self.networks}

    def record(self) -> Mapping[str, Any]:
        """Fingerprints of the networks and of the images that are read."""
        train = {"training images": self.source.fingerprint("train")} if needs_of(self._criteria) else {}
        networks = {network.name: network.fingerprint for network in self.networks}
        return {"networks": networks, "images": self.source.fingerprint("val"), **train}

    def _evidence(self, network: Network, monitor: Monitor) -> Evidence | None:
        if not needs_of(self._criteria):
            return None
        calibration = Watched(open_images(network, self.source, train=True), monitor)
        return evidence(network.model, calibration, criterion=self._criteria, **self.which)


@dataclass(frozen=True)
class Sweep(Measurement):
    """Every network at every setting."""

    what = "points"

    def items(self) -> Sequence[Item]:
        """All points, network by network."""
        return [(network.name, setting) for network in self.networks for setting in self.settings]

    def measure(self, items: Sequence[Item], monitor: Monitor) -> Iterator[Sequence[SweepRow]]:
        """One row a point. A network is on the device while its points are measured."""
        for name, points in groupby(items, lambda item: item[0]):
            yield from self._measure(self._by_name[name], [setting for _, setting in points], monitor)

    def _measure(
        self, network: Network, settings: Sequence[Setting], monitor: Monitor
    ) -> Iterator[Sequence[SweepRow]]:
        images = open_images(network, self.source)
        model, watched = network.model.to(self.device), Watched(images, monitor)
        known = self._evidence(network, monitor)
        example = self._example(images)
        measured = measure(
            model, watched, settings, evidence=known, example_inputs=example, amp=self.amp, **self.which
        )
        for point in measured:
            yield [SweepRow(network.name, point)]
        model.cpu()
        images.report(network.name)

    def line(self, rows: Sequence[SweepRow]) -> str:
        """Network, granularity, ratio and accuracy."""
        [row] = rows
        setting, result = row.point.setting, row.point.result
        return f"{row.network} {setting.granularity} p_prune {setting.p_prune:g}: {result.top1:.2f}%"


@dataclass(frozen=True)
class Probing(Measurement):
    """Every network, each group of its weights alone, at every setting.

    Args:
        groups: name patterns; None is every weight by itself.
    """

    what = "probes"

    groups: Sequence[str] | None = None

    @cached_property
    def _groups(self) -> dict[str, Sequence[str]]:
        """Of each network."""
        return {network.name: self.groups or self._parts(network) for network in self.networks}

    def _parts(self, network: Network) -> list[str]:
        """Its weights, or bundles of them."""
        choice: Choice = {"coupled": self._coupled, **self.which}  # type: ignore[typeddict-item]
        if self._coupled:
            choice["granularity"] = "filter"
            choice["example_inputs"] = first_inputs(open_images(network, self.source))
        return [escape(name) for name in lay_out(network.model, choice).parts]

    def items(self) -> Sequence[GroupItem]:
        """The unpruned network and all probes, network by network."""
        return [
            (network.name, group, setting)
            for network in self.networks
            for alike in _alike(self.settings)
            for group, settings in self._grouped(network, alike)
            for setting in settings
        ]

    def _grouped(self, network: Network, alike: list[Setting]) -> Iterator[tuple[str, list[Setting]]]:
        yield "", [replace(alike[0], p_prune=0.0)]
        for group in self._groups[network.name]:
            yield group, alike

    def measure(self, items: Sequence[GroupItem], monitor: Monitor) -> Iterator[Sequence[ProbeRow]]:
        """One row a probe. A network is on the device while its probes are measured."""
        for name, of_network in groupby(items, lambda item: item[0]):
            network = self._by_name[name]
            images = open_images(network, self.source)
            model, watched = network.model.to(self.device), Watched(images, monitor)
            known = self._evidence(network, monitor)
            for _, alike in groupby(of_network, lambda item: item[2].ranked_by):
                batch = [(group, setting) for _, group, setting in alike]
                example = self._example(images)
                ranking, generator = ranked(model, batch[0][1], known, self.which, example)
                checked_groups(ranking, self.groups)
                for group, setting in batch:
                    if not group:
                        clean = Point(setting, evaluate(model, watched, self.amp), {})
                        yield [ProbeRow(name, clean, "", 0.0)]
                        continue
                    item = group, setting.p_prune
                    [found] = probe(model, watched, [item], ranking, generator, self.amp)
                    point = Point(setting, found.result, {group: (found.pruned, found.weights)})
                    yield [ProbeRow(name, point, group, found.predicted)]
            model.cpu()
            images.report(name)

    def line(self, rows: Sequence[ProbeRow]) -> str:
        """Network, group, ratio and accuracy."""
        [row] = rows
        what = f"{row.group} p_prune {row.point.setting.p_prune:g}" if row.group else "unpruned"
        return f"{row.network} {what}: {row.point.result.top1:.2f}%"


@dataclass(frozen=True)
class Search(Measurement):
    """The largest ratio at which a network is good enough, by the first setting.

    Args:
        keep: the part of the unpruned accuracy that must be left.
        per_layer: whether to allot ratios by sensitivity, measured on the training images.
        tolerance: of the ratio.
    """

    keep: float = 0.99
    per_layer: bool = False
    tolerance: float = 0.01

    def of(self, network: Network) -> Found:
        """Search one network, with progress on standard error."""
        setting = self.settings[0]
        choice = setting.choice(self.which, generator=torch.Generator().manual_seed(setting.seed))
        with Monitor("networks", 1, 0) as monitor:
            images, model = open_images(network, self.source), network.model.to(self.device)
            choice["evidence"] = self._evidence(network, monitor)
            choice["example_inputs"] = self._example(images)
            watched, allotment = Watched(images, monitor), None
            if self.per_layer:
                training = Watched(open_images(network, self.source, train=True), monitor)
                allotment = sensitivity(model, training, amp=self.amp, **choice)
            wanted = self.keep * evaluate(model, watched, self.amp).top1
            found = find(
                model, watched, wanted, by=allotment, tolerance=self.tolerance, amp=self.amp, **choice
            )
            model.cpu()
            images.report(network.name)
        return found


def _alike(settings: Sequence[Setting]) -> list[list[Setting]]:
    """Neighbours that rank alike."""
    return [list(alike) for _, alike in groupby(settings, lambda setting: setting.ranked_by)]


@dataclass(frozen=True)
class Watched:
    """Images whose passing moves a progress bar."""

    images: Images
    monitor: Monitor

    def __iter__(self) -> Iterator[Batch]:
        return self.monitor.track(self.images, len(self.images), lambda batch: len(batch[1]))
