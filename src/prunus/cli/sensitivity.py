"""`prunus sensitivity`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from prunus.cli.command import command, tell_rows
from prunus.cli.measuring import Measuring, measuring
from prunus.cli.options import DIGITS
from prunus.cli.values import Names

ALL_FALL = "all candidates of one group are pruned"


@command("sensitivity")
@click.option(
    "--groups",
    type=Names(),
    help="Name patterns, each pruned as one, e.g. 'layer1.*,layer2.*'.  [default: every weight by itself]",
)
@measuring(
    DIGITS[-1],
    "prunus-sensitivity",
    several=True,
    without={"p_bern": ALL_FALL, "p_prune_of": ALL_FALL, "passes": "accuracy is of the forward pass"},
    p_prune="0.1:0.9:0.2",
    granularity="weight",
)
def sensitivity_command(measuring: Measuring, groups: Sequence[str] | None) -> None:
    """Accuracy as each layer is pruned alone: which layers can take it?

    \b
    prunus sensitivity
    prunus sensitivity --data IMAGENET -a resnet18 --granularity filter -o results
    """
    from prunus.evaluation.experiment import Probing
    from prunus.results.heat import SENSITIVITY
    from prunus.results.tables import ranked_tables

    rows = measuring.run(Probing, SENSITIVITY, groups=groups)
    made = f"\n{measuring.output}: report.html; results.csv, results.json; sensitivity as .png and .svg"
    tell_rows(rows, *ranked_tables(rows), made)
