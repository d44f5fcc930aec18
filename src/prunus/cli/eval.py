"""`prunus eval`."""

from __future__ import annotations

from dataclasses import replace

import click

from prunus.cli.measuring import Measuring, measuring
from prunus.cli.options import DIGITS, show

COMMANDLINE = click.core.ParameterSource.COMMANDLINE


@click.command("eval")
@click.option(
    "--prune-type",
    type=click.Choice(["none", "global", "gradient"]),
    default="none",
    help="global: forward and backward pass; gradient: backward pass only, which costs no accuracy.",
)
@measuring(DIGITS[-1], "0.1", "weight", None)
@click.pass_context
def eval_command(context: click.Context, /, prune_type: str, measuring: Measuring) -> None:
    """Accuracy of a network, as it is or pruned.

    \b
    prunus eval --data IMAGENET -a resnet18 --prune-type global --p-prune 0.1 --p-bern 1.0
    """
    if prune_type == "none":
        for name in ("p_prune", "p_prune_of", "p_bern"):
            if context.get_parameter_source(name) is COMMANDLINE:
                raise click.UsageError(f"{name} prunes nothing without --prune-type global (or gradient)")
        how, every = (
            replace(measuring.how, p_prune=0.0, p_prune_of=""),
            replace(measuring.which, layers=("all",)),
        )
        measuring = replace(measuring, how=how, which=every)  # whatever the layers
    from prunus.results.tables import table

    show(table(measuring.rows("backward" if prune_type == "gradient" else "both")))
