"""`prunus find`."""

from __future__ import annotations

import click

from prunus.cli.measuring import Measuring, measuring
from prunus.cli.options import DIGITS, show


@click.command("find")
@click.option(
    "--keep-accuracy",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.99,
    help="The part of the unpruned network's top-1 accuracy that must be left.",
)
@click.option(
    "--per-layer",
    is_flag=True,
    help="Allot each ratio among the layers by their sensitivity on images of DATA/train.",
)
@click.option("--tolerance", type=click.FloatRange(0, 1, min_open=True), default=0.01, help="Of the ratio.")
@measuring(DIGITS[-1], "0.0", "weight", None)
@click.pass_context
def find_command(
    context: click.Context, /, measuring: Measuring, keep_accuracy: float, per_layer: bool, tolerance: float
) -> None:
    """How much can go at 99% of the accuracy? The largest ratio that holds, by bisection.

    \b
    prunus find
    prunus find --data IMAGENET -a resnet18 --keep-accuracy 0.995 --per-layer
    """
    for name in ("p_prune", "p_prune_of", "p_bern", "output"):
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{name} has no meaning here: the ratio is what is looked for")
    from prunus.evaluation.experiment import Search
    from prunus.results.tables import layer_rows, layer_table

    search = measuring.experiment(Search, keep=keep_accuracy, per_layer=per_layer, tolerance=tolerance)
    for network in search.networks:
        found = search.of(network)
        show(layer_table(network.name, layer_rows(network.model, found.masks, {})))
        low, high = found.interval
        click.echo(
            f"p_prune {found.p_prune:.4f}: top-1 {found.result.top1:.2f}% (95%: {low:.2f} to {high:.2f}) of "
            f"{found.result.images:,} images; unpruned {found.clean.top1:.2f}%"
        )
