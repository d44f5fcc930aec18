"""`prunus sensitivity`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from prunus.cli.measuring import Measuring, measuring
from prunus.cli.options import DIGITS, show
from prunus.cli.values import Names


@click.command("sensitivity")
@click.option(
    "--groups",
    type=Names(),
    help="Name patterns, each pruned as one, e.g. 'layer1.*,layer2.*'.  [default: every weight by itself]",
)
@measuring(DIGITS[-1], "0.1:0.9:0.2", "weight", "prunus-sensitivity", several=True)
@click.pass_context
def sensitivity_command(
    context: click.Context, /, measuring: Measuring, groups: Sequence[str] | None
) -> None:
    """Accuracy as each layer is pruned alone: which layers can take it?

    \b
    prunus sensitivity
    prunus sensitivity --data IMAGENET -a resnet18 --granularity filter -o results
    """
    for name in ("p_bern", "p_prune_of"):
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{name} has no meaning here: all candidates of one group are pruned")
    from prunus.evaluation.experiment import Probing
    from prunus.results.heat import SENSITIVITY, ranked_table

    rows = measuring.run(Probing, SENSITIVITY, groups=groups)
    for made in ranked_table(rows):
        show(made)
    click.echo(f"\n{measuring.output}: report.html; results.csv, results.json; sensitivity as .png and .svg")
