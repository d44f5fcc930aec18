"""`prunus inspect`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from prunus.cli.options import (
    DIGITS,
    Calibration,
    HowToPrune,
    WhichImages,
    WhichNetworks,
    WhichWeights,
    show,
    takes,
)

if TYPE_CHECKING:
    from prunus.inputs.images import Source
    from prunus.inputs.networks import Network
    from prunus.masks import Masks
    from prunus.weights import Which


@click.command("inspect")
@takes(WhichNetworks, "networks", arch=DIGITS[-1])
@takes(HowToPrune, "how", p_prune="0.3", granularity="weight")
@takes(WhichWeights, "which")
@takes(Calibration, "calibration")
@takes(WhichImages, "images")
def inspect_command(
    networks: WhichNetworks,
    how: HowToPrune,
    which: WhichWeights,
    calibration: Calibration,
    images: WhichImages,
) -> None:
    """What would be pruned, layer by layer: without data, unless the criterion needs it.

    \b
    prunus inspect -a resnet18 --weights none --p-prune 0.5 --granularity kernel
    """
    from prunus.results.tables import mask_table

    source = images.source(calibration.calibration_images)
    for network in networks.load(images):
        show(mask_table(network.name, _masks(network, how, which.which(), source)))


def _masks(network: Network, how: HowToPrune, which: Which, source: Source) -> Masks:
    import torch

    from prunus.inputs.images import open_images
    from prunus.scores.collecting import evidence
    from prunus.scores.criteria import needs_of
    from prunus.verbs import make_masks

    choice = asdict(how)
    generator, known = torch.Generator().manual_seed(choice.pop("seed")), None
    if needs_of([choice["criterion"]]):
        calibration = open_images(network, source, train=True)
        known = evidence(network.model, calibration, criterion=choice["criterion"], **which)
    return make_masks(network.model, **choice, **which, evidence=known, generator=generator)
