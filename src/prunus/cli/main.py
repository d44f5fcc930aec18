"""The same from a shell."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch

import prunus
from prunus.cli.options import (
    DIGITS,
    amp_of,
    calibration_option,
    data_options,
    device_of,
    layer_types,
    network_options,
    ranking_options,
    record_of,
    show,
    source_of,
)
from prunus.cli.transfer import transfer_command
from prunus.evaluation.sweep import grid
from prunus.inputs.networks import Preprocessing, load_networks
from prunus.results.rows import Row, mask_table, table
from prunus.results.sweeps import Experiment
from prunus.scores.criteria import CRITERIA, needs_of
from prunus.verbs import make_masks

COMMANDLINE = click.core.ParameterSource.COMMANDLINE


@click.group(
    context_settings={
        "help_option_names": ["-h", "--help"],
        "show_default": True,
        "max_content_width": 110,
        # The spellings of the original research script: --p_prune, --prune_type gredient
        "token_normalize_func": lambda token: token.replace("_", "-").replace("gredient", "gradient"),
    }
)
@click.version_option(prunus.__version__, prog_name="prunus")
def cli() -> None:
    """Prune the weights of PyTorch networks and measure what it costs.

    \b
    prunus sweep        accuracy against pruning ratio: the built-in digits, in under a minute
    prunus eval         accuracy of one network, as it is or pruned
    prunus inspect      what would be pruned, layer by layer, without data
    prunus transfer     do attacks on a network that is pruned at every step fool others better?
    """


@cli.command("sweep")
@network_options(DIGITS)
@ranking_options(several=True, p_prune="0:0.9:0.1", granularity="kernel,weight", criteria=list(CRITERIA))
@calibration_option()
@data_options(output="prunus-sweep")
def sweep_command(output: Path, **options: Any) -> None:
    """Accuracy against pruning ratio, as a table, files and pictures.

    \b
    The built-in networks on the built-in digits:
        prunus sweep
    ImageNet:
        prunus sweep --data IMAGENET -a resnet18,resnet50 --p-prune 0:0.7:0.1 --granularity kernel -o results
    A network of your own:
        prunus sweep --data CIFAR -a nets.py:resnet20 --weights resnet20.pth --mean 0.5,0.5,0.5
    """
    show(table(_measure(options, output, "both")))
    click.echo(f"\n{output}: results.csv, results.json; curve and layers as .png and .svg")


@cli.command("eval")
@network_options(DIGITS[-1:])
@click.option(
    "--prune-type",
    type=click.Choice(["none", "global", "gradient"]),
    default="none",
    help="global: forward and backward pass; gradient: backward pass only, which costs no accuracy.",
)
@ranking_options(several=False, p_prune="0.1", granularity="weight", criteria=list(CRITERIA))
@calibration_option()
@data_options(output=None)
@click.pass_context
def eval_command(context: click.Context, /, prune_type: str, output: Path | None, **options: Any) -> None:
    """Accuracy of a network, as it is or pruned.

    \b
    prunus eval --data IMAGENET -a resnet18 --prune-type global --p-prune 0.1 --p-bern 1.0
    """
    given = [name for name in ("p_prune", "p_bern") if context.get_parameter_source(name) is COMMANDLINE]
    if prune_type == "none" and given:
        raise click.UsageError(f"{given[0]} prunes nothing without --prune-type global (or gradient)")
    if prune_type == "none":  # whatever the layers
        options.update(p_prune=0.0, layers=("all",))
    show(table(_measure(options, output, "backward" if prune_type == "gradient" else "both")))


def _measure(options: Mapping[str, Any], output: Path | None, passes: str) -> list[Row]:
    preprocessing = Preprocessing(options["image_size"], options["mean"], options["std"])
    device = device_of(options["device"], options["gpu"])
    ranking = ("p_prune", "p_bern", "granularity", "criterion", "scope", "norm")
    experiment = Experiment(
        networks=load_networks(options["arch"], options["weights"], preprocessing),
        settings=grid(**{name: options[name] for name in ranking}, passes=passes, seeds=options["seed"]),
        source=source_of(options),
        device=device,
        amp=amp_of(device, options["amp"]),
        layers=layer_types(options["layers"]),
        include=options["include"],
        exclude=options["exclude"],
    )
    return experiment.run(output, {**record_of(options, device), "passes": passes})


@cli.command("inspect")
@network_options(DIGITS[-1:])
@ranking_options(
    several=False,
    p_prune="0.3",
    granularity="weight",
    criteria=[name for name in CRITERIA if not needs_of([name])],
)
def inspect_command(
    arch: Sequence[str],
    weights: Sequence[str] | None,
    layers: Sequence[str],
    seed: int,
    p_prune: float,
    p_bern: float,
    **choice: Any,
) -> None:
    """What would be pruned, layer by layer, without data.

    \b
    prunus inspect -a resnet18 --weights none --p-prune 0.5 --granularity kernel
    """
    for network in load_networks(arch, weights):
        generator = torch.Generator().manual_seed(seed)
        masks = make_masks(
            network.model, p_prune, p_bern, layers=layer_types(layers), generator=generator, **choice
        )
        show(mask_table(network.name, masks))
        for name, (pruned, total) in masks.counts.items():
            if pruned == total:
                click.echo(f"warning: {name} would be emptied: all its {total:,} weights pruned", err=True)


cli.add_command(transfer_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, 1 on an error, 2 on wrong usage, 130 when interrupted."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: click.echo(f"warning: {message}", err=True)
            cli.main(arguments, prog_name="prunus", standalone_mode=False)
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        click.echo(
            "Interrupted. Finished points are saved in the results folder; run again to go on.", err=True
        )
        return 130
    except (ValueError, TypeError, ImportError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        return 1
    return 0
