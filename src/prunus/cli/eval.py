"""`prunus eval`."""

from __future__ import annotations

from dataclasses import replace

import click

from prunus.cli.command import command, tell_rows
from prunus.cli.measuring import Measuring, measuring
from prunus.cli.options import DIGITS, P_PRUNE, UNSAID


@command("eval")
@measuring(DIGITS[-1], None, p_prune=None, passes=None, granularity="weight")
@click.pass_context
def eval_command(context: click.Context, /, measuring: Measuring) -> None:
    """Accuracy of a network: as it is, or pruned where --p-prune or --passes is given.

    \b
    prunus eval --data IMAGENET -a resnet18 --p-prune 0.1
    prunus eval --passes backward
    """
    from prunus.results.tables import table

    none = context.get_parameter_source("passes") is not UNSAID and measuring.how.passes is None
    rows = _settled(measuring, none).rows()
    tell_rows(rows, table(rows))


def _settled(measuring: Measuring, none: bool) -> Measuring:
    """With the fraction and the passes that are meant.

    Args:
        measuring: as told.
        none: whether nothing is to be pruned by the word.
    """
    how = measuring.how
    if how.p_prune is not None and none:
        raise click.UsageError("p_prune prunes nothing with --prune-type none")
    if how.p_prune is not None or how.passes is not None:
        amount = float(P_PRUNE) if how.p_prune is None else how.p_prune
        return replace(measuring, how=replace(how, p_prune=amount, passes=how.passes or "both"))
    for name, unused in (("p_prune_of", ""), ("p_bern", 1.0)):
        if getattr(how, name) != unused:
            raise click.UsageError(f"{name} prunes nothing without --p-prune")
    every = replace(measuring.which, layers=("all",))  # whatever the layers
    return replace(measuring, how=replace(how, p_prune=0.0, passes="both"), which=every)
