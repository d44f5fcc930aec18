"""Networks at settings on images, point by point, into a results folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prunus.evaluation.sweep import Setting, measure
from prunus.inputs.images import Source, open_images
from prunus.inputs.networks import Network
from prunus.results.curves import SWEEP
from prunus.results.folder import ResultsFolder
from prunus.results.progress import Monitor
from prunus.results.rows import Row
from prunus.scores.collecting import evidence
from prunus.scores.criteria import needs_of
from prunus.weights import Layers, Patterns


@dataclass(frozen=True)
class Experiment:
    """What to measure, and how; see `prunus.sweep` for the fields it shares."""

    networks: Sequence[Network]
    settings: Sequence[Setting]
    source: Source
    device: torch.device
    amp: torch.dtype | None = None
    layers: Layers = "all"
    include: Patterns | None = None
    exclude: Patterns = ()

    def run(self, output: Path | None, record: Mapping[str, Any]) -> list[Row]:
        """Measure every point; with an output folder, every point that it does not hold yet.

        Args:
            output: results folder, made if missing; each point is on disk as soon as it is measured.
            record: the settings in words, by which the folder knows that they are the same.
        """
        fingerprints = {network.name: network.fingerprint for network in self.networks}
        record = {**record, "networks": fingerprints, "images": self.source.fingerprint("val")}
        if self._needs_gradients:
            record["training images"] = self.source.fingerprint("train")
        folder = ResultsFolder(output, record, SWEEP) if output else None
        rows = list(folder.rows) if folder else []
        held = {(row.network, row.point.setting) for row in rows}
        with Monitor("points", len(self.networks) * len(self.settings), len(rows)) as monitor:
            try:
                for network in self.networks:
                    left = [setting for setting in self.settings if (network.name, setting) not in held]
                    for row in self._rows(network, left, monitor) if left else ():
                        rows.append(row)
                        if folder:
                            folder.add(row)
                        setting, result = row.point.setting, row.point.result
                        name = f"{row.network} {setting.granularity} p_prune {setting.p_prune:g}"
                        monitor.done(f"{name}: {result.top1:.2f}%")
            finally:
                if folder and rows:
                    folder.finish()
        return rows

    @property
    def _needs_gradients(self) -> bool:
        return bool(needs_of(setting.criterion for setting in self.settings))

    def _rows(self, network: Network, settings: Sequence[Setting], monitor: Monitor) -> Iterator[Row]:
        images = open_images(network, self.source)
        network.model.to(self.device)
        which: Any = {"layers": self.layers, "include": self.include, "exclude": self.exclude}
        known = None
        if self._needs_gradients:
            calibration = open_images(network, self.source, train=True)
            criteria = [setting.criterion for setting in self.settings]
            known = evidence(network.model, monitor.watch(calibration), criterion=criteria, **which)
        points = measure(network.model, monitor.watch(images), settings, evidence=known, amp=self.amp, **which)
        for point in points:
            yield Row(network.name, point)
        network.model.cpu()
        for bad in images.bad:
            print(f"skipped unreadable image {bad}", file=sys.stderr)
        if images.bad:
            print(f"{network.name}: {len(images.bad)} unreadable images skipped", file=sys.stderr)
