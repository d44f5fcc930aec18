"""The experiment of `prunus sweep` and `prunus eval`: networks at settings on images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch

from prunus.evaluation.rows import SweepRow
from prunus.evaluation.sweep import Setting, measure
from prunus.inputs.images import Batch, Images, Source, open_images
from prunus.inputs.networks import Network
from prunus.progress import Monitor
from prunus.scores.collecting import evidence
from prunus.scores.criteria import needs_of
from prunus.weights import Which

Item = tuple[str, Setting]  # the name of a network, and how it is pruned


@dataclass(frozen=True)
class Sweep:
    """Every network at every setting.

    Args:
        networks: of different names.
        settings: see `prunus.sweep`.
        source: of images, and of those that gradients are taken on.
        device: where networks run; with `amp`, under autocast in that dtype.
        which: weights are pruned, see `prunus.rank`.
    """

    what = "points"

    networks: Sequence[Network]
    settings: Sequence[Setting]
    source: Source
    device: torch.device
    amp: torch.dtype | None = None
    which: Which = field(default_factory=Which)

    @property
    def _criteria(self) -> list[Any]:
        return [setting.criterion for setting in self.settings]

    def record(self) -> Mapping[str, Any]:
        """Fingerprints of the networks and of the images that are read."""
        train = {"training images": self.source.fingerprint("train")} if needs_of(self._criteria) else {}
        networks = {network.name: network.fingerprint for network in self.networks}
        return {"networks": networks, "images": self.source.fingerprint("val"), **train}

    def items(self) -> Sequence[Item]:
        """All points, network by network."""
        return [(network.name, setting) for network in self.networks for setting in self.settings]

    def measure(self, items: Sequence[Item], monitor: Monitor) -> Iterator[Sequence[SweepRow]]:
        """One row a point. A network is on the device while its points are measured."""
        networks = {network.name: network for network in self.networks}
        for name, points in groupby(items, lambda item: item[0]):
            yield from self._measure(networks[name], [setting for _, setting in points], monitor)

    def _measure(
        self, network: Network, settings: Sequence[Setting], monitor: Monitor
    ) -> Iterator[Sequence[SweepRow]]:
        images = open_images(network, self.source)
        model, known = network.model.to(self.device), None
        if needs_of(self._criteria):
            calibration = Watched(open_images(network, self.source, train=True), monitor)
            known = evidence(model, calibration, criterion=self._criteria, **self.which)
        watched = Watched(images, monitor)
        for point in measure(model, watched, settings, evidence=known, amp=self.amp, **self.which):
            yield [SweepRow(network.name, point)]
        model.cpu()
        images.report(network.name)

    def line(self, rows: Sequence[SweepRow]) -> str:
        """Network, granularity, ratio and accuracy."""
        [row] = rows
        setting, result = row.point.setting, row.point.result
        return f"{row.network} {setting.granularity} p_prune {setting.p_prune:g}: {result.top1:.2f}%"


@dataclass(frozen=True)
class Watched:
    """Images whose passing moves a progress bar."""

    images: Images
    monitor: Monitor

    def __iter__(self) -> Iterator[Batch]:
        return self.monitor.track(self.images, len(self.images), lambda batch: len(batch[1]))
