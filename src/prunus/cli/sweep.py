"""`prunus sweep`."""

from __future__ import annotations

import click

from prunus.cli.measuring import Measuring, measuring
from prunus.cli.options import DIGITS, show


@click.command("sweep")
@measuring(",".join(DIGITS), "0:0.9:0.1", "kernel,weight", "prunus-sweep", several=True)
def sweep_command(measuring: Measuring) -> None:
    """Accuracy against pruning ratio, as a table, files and pictures.

    \b
    The built-in networks on the built-in digits, in under a minute:
        prunus sweep
    ImageNet:
        prunus sweep --data IMAGENET -a resnet18,resnet50 --p-prune 0:0.7:0.1 --granularity kernel -o results
    A network of your own:
        prunus sweep --data CIFAR -a nets.py:resnet20 --weights resnet20.pth --mean 0.5,0.5,0.5
    """
    from prunus.results.tables import table

    show(table(measuring.rows()))
    click.echo(
        f"\n{measuring.output}: report.html; results.csv, results.json; curve and layers as .png and .svg"
    )
