"""`prunus sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from prunus.cli.measuring import measure
from prunus.cli.options import (
    DIGITS,
    Calibration,
    HowToPrune,
    Machine,
    WhichImages,
    WhichNetworks,
    WhichWeights,
    output_option,
    show,
    takes,
)


@click.command("sweep")
@takes(WhichNetworks, "networks", arch=",".join(DIGITS))
@takes(HowToPrune, "how", several=True, p_prune="0:0.9:0.1", granularity="kernel,weight")
@takes(WhichWeights, "which")
@takes(Calibration, "calibration")
@takes(WhichImages, "images")
@takes(Machine, "machine")
@output_option("prunus-sweep")
def sweep_command(output: Path, **records: Any) -> None:
    """Accuracy against pruning ratio, as a table, files and pictures.

    \b
    The built-in networks on the built-in digits:
        prunus sweep
    ImageNet:
        prunus sweep --data IMAGENET -a resnet18,resnet50 --p-prune 0:0.7:0.1 --granularity kernel -o results
    A network of your own:
        prunus sweep --data CIFAR -a nets.py:resnet20 --weights resnet20.pth --mean 0.5,0.5,0.5
    """
    from prunus.results.tables import table

    show(table(measure(output=output, passes="both", **records)))
    click.echo(f"\n{output}: results.csv, results.json; curve and layers as .png and .svg")
