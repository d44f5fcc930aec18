"""`prunus eval`."""

from __future__ import annotations

from dataclasses import replace
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

COMMANDLINE = click.core.ParameterSource.COMMANDLINE


@click.command("eval")
@takes(WhichNetworks, "networks", arch=DIGITS[-1])
@click.option(
    "--prune-type",
    type=click.Choice(["none", "global", "gradient"]),
    default="none",
    help="global: forward and backward pass; gradient: backward pass only, which costs no accuracy.",
)
@takes(HowToPrune, "how", p_prune="0.1", granularity="weight")
@takes(WhichWeights, "which")
@takes(Calibration, "calibration")
@takes(WhichImages, "images")
@takes(Machine, "machine")
@output_option(None)
@click.pass_context
def eval_command(
    context: click.Context, /, prune_type: str, how: HowToPrune, which: WhichWeights, **records: Any
) -> None:
    """Accuracy of a network, as it is or pruned.

    \b
    prunus eval --data IMAGENET -a resnet18 --prune-type global --p-prune 0.1 --p-bern 1.0
    """
    from prunus.results.tables import table

    if prune_type == "none":
        for name in ("p_prune", "p_bern"):
            if context.get_parameter_source(name) is COMMANDLINE:
                raise click.UsageError(f"{name} prunes nothing without --prune-type global (or gradient)")
        how, which = replace(how, p_prune=0.0), replace(which, layers=("all",))  # whatever the layers
    passes = "backward" if prune_type == "gradient" else "both"
    show(table(measure(how=how, which=which, passes=passes, **records)))
