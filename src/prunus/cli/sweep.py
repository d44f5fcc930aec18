"""`prunus sweep`."""

from __future__ import annotations

from prunus.cli.command import command, tell_rows
from prunus.cli.measuring import Measuring, measuring
from prunus.cli.options import DIGITS


@command("sweep")
@measuring(",".join(DIGITS), "prunus-sweep", several=True, p_prune="0:0.9:0.1", granularity="kernel,weight")
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

    rows = measuring.rows()
    made = f"\n{measuring.output}: report.html; results.csv, results.json; curve and layers as .png and .svg"
    tell_rows(rows, table(rows), made)
