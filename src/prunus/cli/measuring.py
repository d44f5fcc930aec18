"""What `prunus sweep` and `prunus eval` share: accuracy at every setting, into a results folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from prunus.cli.options import (
    Calibration,
    HowToPrune,
    Machine,
    WhichImages,
    WhichNetworks,
    WhichWeights,
    recorded,
)

if TYPE_CHECKING:
    from prunus.evaluation.rows import SweepRow


def measure(
    networks: WhichNetworks,
    how: HowToPrune,
    which: WhichWeights,
    calibration: Calibration,
    images: WhichImages,
    machine: Machine,
    output: Path | None,
    passes: str,
) -> Sequence[SweepRow]:
    """A row for every network and setting."""
    import torch

    from prunus.evaluation.experiment import Sweep
    from prunus.evaluation.sweep import grid
    from prunus.results.curves import SWEEP
    from prunus.results.loop import run

    device = machine.find()
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    settings = asdict(how)
    seeds = settings.pop("seed")
    sweep = Sweep(
        networks=networks.load(images.preprocessing()),
        settings=grid(**settings, seeds=seeds, passes=passes),
        source=images.source(calibration.calibration_images),
        device=device,
        amp=half if machine.amp else None,
        which=which.which(),
    )
    options = {**recorded(how, which, calibration), **images.recorded(), **machine.recorded()}
    return run(sweep, SWEEP, output, {**options, "passes": passes})
