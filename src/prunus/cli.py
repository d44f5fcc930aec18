"""The same from a shell."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

import prunus
from prunus.criteria import CRITERIA, GRADIENT_CRITERIA
from prunus.data import Source
from prunus.evaluation import grid
from prunus.experiment import Experiment
from prunus.granularity import GRANULARITIES, NORMS
from prunus.networks import Preprocessing, load_networks
from prunus.parameters import Names, Numbers
from prunus.pruning import make_masks
from prunus.report import Row, mask_table, table
from prunus.selection import SCOPES
from prunus.weights import ALL_LAYERS, Layers

Decorator = Callable[[Any], Any]

COMMANDLINE = click.core.ParameterSource.COMMANDLINE
DIGITS = ("digits:plain", "digits:residual")
# Results do not depend on these, or are known by what they bring (the fingerprint of a network).
NOT_RECORDED = {"arch", "weights", "batch_size", "workers", "gpu", "device", "output"}


def _together(*options: Decorator) -> Decorator:
    return lambda command: reduce(lambda made, option: option(made), reversed(options), command)


def _network_options(default: Sequence[str]) -> Decorator:
    return _together(
        click.option(
            "-a",
            "--arch",
            type=Names(),
            default=",".join(default),
            help="Networks: a torchvision name, timm:NAME, FILE.py:callable or digits:NAME.",
        ),
        click.option(
            "--weights",
            type=Names(),
            help="One for each network, or one for all: a torchvision enum name, a state_dict file "
            "(.pth, .safetensors) or none.  [default: the pretrained ones]",
        ),
    )


def _ranking_options(several: bool, p_prune: str, granularity: str, criteria: Sequence[str]) -> Decorator:
    numbers = Numbers() if several else click.FLOAT
    lists = " Lists 0,0.3,0.5 and ranges 0:0.7:0.1 too." if several else ""

    def names(choices: Sequence[str]) -> click.ParamType[Any]:
        return Names(*choices) if several else click.Choice(list(choices))

    return _together(
        click.option(
            "--p-prune",
            type=numbers,
            default=p_prune,
            help=f"Fraction that becomes candidates, lowest score first.{lists}",
        ),
        click.option("--p-bern", type=numbers, default="1.0", help="Chance that a candidate is pruned."),
        click.option(
            "--granularity",
            type=names(list(GRANULARITIES)),
            default=granularity,
            help="What is pruned as one piece.",
        ),
        click.option(
            "--criterion", type=names(criteria), default="magnitude", help="What the score of a weight is."
        ),
        click.option(
            "--scope",
            type=names(list(SCOPES)),
            default="global",
            help="Lowest of the network, or of each layer.",
        ),
        click.option(
            "--seed",
            type=Numbers(int) if several else click.INT,
            default="0",
            help="Of random scores and draws.",
        ),
        click.option(
            "--norm",
            type=click.Choice(list(NORMS)),
            default="l1",
            help="Scores of one piece are summed (l1) or averaged (mean).",
        ),
        click.option(
            "--layers",
            type=Names("all", *(kind.__name__ for kind in ALL_LAYERS)),
            default="Conv2d",
            help="Layer types to prune.",
        ),
        click.option(
            "--include", type=Names(), help="Prune only weights or modules of these names (wildcards)."
        ),
        click.option(
            "--exclude",
            type=Names(),
            default=(),
            help="Leave out weights or modules of these names, e.g. 'conv1,*.downsample.*'.",
        ),
    )


def _data_options(output: str | None) -> Decorator:
    return _together(
        click.option(
            "--data", type=click.Path(path_type=Path), help="Folder of images in DATA/val/<class>/*."
        ),
        click.option("--dummy", is_flag=True, help="Synthetic images: for speed, not for accuracy."),
        click.option(
            "--image-size",
            type=click.IntRange(1),
            help="Resize the shorter side to this and cut out the central square. This, --mean and --std "
            "are for networks that bring no preprocessing, and stand in for that of those that do.",
        ),
        click.option(
            "--mean", type=Numbers(count=3), help="Subtracted from RGB in [0, 1]: 0.485,0.456,0.406."
        ),
        click.option("--std", type=Numbers(count=3), help="By which RGB is then divided: 0.229,0.224,0.225."),
        click.option("--skip-bad-images", is_flag=True, help="Name and count unreadable images, and go on."),
        click.option(
            "--calibration-images",
            type=click.IntRange(1),
            default=512,
            help="For gradient and taylor: how many images of DATA/train to take gradients on.",
        ),
        click.option("-b", "--batch-size", type=click.IntRange(1), default=256, help="Images at a time."),
        click.option(
            "-j",
            "--workers",
            type=click.IntRange(0),
            default=min(8, os.cpu_count() or 1),
            help="Processes that read images.",
        ),
        click.option("--device", help="cuda, cuda:1, mps or cpu.  [default: the first of them there is]"),
        click.option("--gpu", type=click.IntRange(0), help="The same as --device cuda:N."),
        click.option("--amp", is_flag=True, help="Mixed precision: float16 on CUDA, bfloat16 elsewhere."),
        click.option(
            "-o",
            "--output",
            "--output-dir",
            type=click.Path(path_type=Path, file_okay=False),
            default=output,
            help="Results folder. Started again, the command goes on where it stopped.",
        ),
    )


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
    """


@cli.command("sweep")
@_network_options(DIGITS)
@_ranking_options(several=True, p_prune="0:0.9:0.1", granularity="kernel,weight", criteria=list(CRITERIA))
@_data_options(output="prunus-sweep")
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
    _show(table(_measure(options, output, "both")))
    click.echo(f"\n{output}: results.csv, results.json; curve and layers as .png and .svg")


@cli.command("eval")
@_network_options(DIGITS[-1:])
@click.option(
    "--prune-type",
    type=click.Choice(["none", "global", "gradient"]),
    default="none",
    help="global: forward and backward pass; gradient: backward pass only, which costs no accuracy.",
)
@_ranking_options(several=False, p_prune="0.1", granularity="weight", criteria=list(CRITERIA))
@_data_options(output=None)
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
    _show(table(_measure(options, output, "backward" if prune_type == "gradient" else "both")))


def _measure(options: Mapping[str, Any], output: Path | None, passes: str) -> list[Row]:
    preprocessing = Preprocessing(options["image_size"], options["mean"], options["std"])
    device = _device(options["device"], options["gpu"])
    ranking = ("p_prune", "p_bern", "granularity", "criterion", "scope", "norm")
    experiment = Experiment(
        networks=load_networks(options["arch"], options["weights"], preprocessing),
        settings=grid(**{name: options[name] for name in ranking}, passes=passes, seeds=options["seed"]),
        source=Source(
            data=options["data"],
            dummy=options["dummy"],
            size=options["image_size"],
            skip_bad=options["skip_bad_images"],
            calibration=options["calibration_images"],
            batch_size=options["batch_size"],
            workers=options["workers"],
        ),
        device=device,
        amp=(torch.float16 if device.type == "cuda" else torch.bfloat16) if options["amp"] else None,
        layers=_layer_types(options["layers"]),
        include=options["include"],
        exclude=options["exclude"],
    )
    record = {name: value for name, value in options.items() if name not in NOT_RECORDED}
    data = str(options["data"].resolve()) if options["data"] else None
    return experiment.run(output, {**record, "data": data, "passes": passes, "device": device.type})


def _device(name: str | None, gpu: int | None) -> torch.device:
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    wanted = name or best if gpu is None else f"cuda:{gpu}"
    try:
        return torch.empty(0, device=wanted).device
    except (RuntimeError, AssertionError) as error:  # no such device, or torch built without it
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {wanted!r} is not to be had here: {reason}") from error


def _layer_types(names: Sequence[str]) -> Layers:
    return "all" if "all" in names else tuple(kind for kind in ALL_LAYERS if kind.__name__ in names)


@cli.command("inspect")
@_network_options(DIGITS[-1:])
@_ranking_options(
    several=False,
    p_prune="0.3",
    granularity="weight",
    criteria=[name for name in CRITERIA if name not in GRADIENT_CRITERIA],
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
            network.model, p_prune, p_bern, layers=_layer_types(layers), generator=generator, **choice
        )
        _show(mask_table(network.name, masks))
        for name, (pruned, total) in masks.counts.items():
            if pruned == total:
                click.echo(f"warning: {name} would be emptied: all its {total:,} weights pruned", err=True)


def _show(made: Table) -> None:
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width to fit
        console = Console(width=200)
    console.print(made)


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
