"""`prunus inspect`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from prunus.cli.command import command, show, tell, wants_json
from prunus.cli.masking import masks_for
from prunus.cli.options import (
    DIGITS,
    P_PRUNE,
    Calibration,
    HowToPrune,
    WhichImages,
    WhichNetworks,
    WhichWeights,
    takes,
)

if TYPE_CHECKING:
    from torch import Tensor

    from prunus.inputs.networks import Network


@command("inspect")
@takes(WhichNetworks, "networks", arch=DIGITS[-1])
@takes(
    HowToPrune,
    "how",
    without={"passes": "which weights fall is the same for all"},
    p_prune=P_PRUNE,
    granularity="weight",
)
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

    Weights, multiply-accumulates (MACs) of one image, as torch counts them, and bytes of the dense tensor.

    \b
    prunus inspect -a resnet18 --weights none --p-prune 0.5 --granularity kernel
    """
    from prunus.inputs.images import example_image
    from prunus.results.tables import layer_rows, layer_table

    source, told = images.source(calibration.calibration_images), []
    for network in networks.load(images):
        example = example_image(network, source)
        masks = masks_for(network, how, which.which(), source, example)
        rows = layer_rows(network.model, masks, _macs(network, example))
        told.append({"network": network.name, "layers": [asdict(row) for row in rows]})
        if not wants_json():
            show(layer_table(network.name, rows))
    tell(told)


def _macs(network: Network, example: Tensor) -> dict[str, int]:
    """Of one image; none, and why, where the network does not take it."""
    from prunus.macs import macs

    try:
        return macs(network.model, example)
    except Exception as error:  # whatever a forward of the user's raises
        click.echo(f"{network.name}: MACs are not counted, as it does not run: {error!s:.200}", err=True)
        return {}
