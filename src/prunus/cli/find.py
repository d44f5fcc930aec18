"""`prunus find`."""

from __future__ import annotations

from dataclasses import asdict

import click

from prunus.cli.command import command, show, tell, wants_json
from prunus.cli.measuring import Measuring, measuring
from prunus.cli.options import DIGITS

LOOKED_FOR = "the ratio is what is looked for"


@command("find")
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
@measuring(
    DIGITS[-1],
    None,
    without={
        **dict.fromkeys(("p_prune", "p_prune_of", "p_bern"), LOOKED_FOR),
        "passes": "accuracy is of the forward pass",
        "output": "what is found is printed, with --json for programs",
    },
    p_prune="0.0",
    granularity="weight",
)
def find_command(measuring: Measuring, keep_accuracy: float, per_layer: bool, tolerance: float) -> None:
    """How much can go at 99% of the accuracy? The largest ratio that holds, by bisection.

    \b
    prunus find
    prunus find --data IMAGENET -a resnet18 --keep-accuracy 0.995 --per-layer
    """
    from prunus.evaluation.experiment import Search
    from prunus.results.tables import layer_rows, layer_table

    search = measuring.experiment(Search, keep=keep_accuracy, per_layer=per_layer, tolerance=tolerance)
    told = []
    for network in search.networks:
        found = search.of(network)
        rows, (low, high) = layer_rows(network.model, found.masks, {}), found.interval
        told.append(
            {
                "network": network.name,
                "p_prune": found.p_prune,
                "acc1": found.result.top1,
                "acc1_low": low,
                "acc1_high": high,
                "images": found.result.images,
                "acc1_unpruned": found.clean.top1,
                "layers": [asdict(row) for row in rows],
            }
        )
        if not wants_json():
            show(layer_table(network.name, rows))
            click.echo(
                f"p_prune {found.p_prune:.4f}: top-1 {found.result.top1:.2f}% (95%: {low:.2f} to {high:.2f}) "
                f"of {found.result.images:,} images; unpruned {found.clean.top1:.2f}%"
            )
    tell(told)
