"""Options that commands share."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

from prunus.cli.values import Names, Numbers
from prunus.inputs.images import Source
from prunus.selection.pieces import GRANULARITIES, NORMS
from prunus.selection.scope import SCOPES
from prunus.weights import ALL_LAYERS, Layers

Decorator = Callable[[Any], Any]

DIGITS = ("digits:plain", "digits:residual")
# Results do not depend on these, or are known by what they bring (the fingerprint of a network).
NOT_RECORDED = {
    "arch",
    "weights",
    "batch_size",
    "workers",
    "gpu",
    "device",
    "output",
    "discard_images",
    "preset",
}


def together(*options: Decorator) -> Decorator:
    """Several options as one."""
    return lambda command: reduce(lambda made, option: option(made), reversed(options), command)


def network_options(default: Sequence[str]) -> Decorator:
    """Which networks."""
    return together(
        click.option(
            "-a",
            "--arch",
            type=Names(),
            default=",".join(default),
            help="Networks: a torchvision name, timm:NAME, FILE.py:callable or digits:NAME.",
        ),
        weights_option(),
    )


def weights_option() -> Decorator:
    """Which weights networks are loaded with."""
    return click.option(
        "--weights",
        type=Names(),
        help="One for each network, or one for all: a torchvision enum name, a state_dict file "
        "(.pth, .safetensors) or none.  [default: the pretrained ones]",
    )


def ranking_options(several: bool, p_prune: str, granularity: str, criteria: Sequence[str]) -> Decorator:
    """What is pruned."""
    numbers = Numbers() if several else click.FLOAT
    lists = " Lists 0,0.3,0.5 and ranges 0:0.7:0.1 too." if several else ""

    def names(choices: Sequence[str]) -> click.ParamType[Any]:
        return Names(*choices) if several else click.Choice(list(choices))

    return together(
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
        layer_options(),
    )


def layer_options() -> Decorator:
    """Which weights are pruned."""
    return together(
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


def calibration_option() -> Decorator:
    """For criteria that need gradients."""
    return click.option(
        "--calibration-images",
        type=click.IntRange(1),
        default=512,
        help="For gradient and taylor: how many images of DATA/train to take gradients on.",
    )


def data_options(output: str | None, batch_size: int = 256, layout: str = "DATA/val/<class>/*") -> Decorator:
    """Which images, how they are read, where networks run and results go."""
    return together(
        click.option("--data", type=click.Path(path_type=Path), help=f"Folder of images in {layout}."),
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
            "-b", "--batch-size", type=click.IntRange(1), default=batch_size, help="Images at a time."
        ),
        click.option(
            "-j",
            "--workers",
            type=click.IntRange(0),
            default=min(8, os.cpu_count() or 1),
            help="Processes that read images.",
        ),
        click.option("--device", help="cuda, cuda:1, mps or cpu.  [default: the first of them there is]"),
        click.option("--gpu", type=click.IntRange(0), help="The same as --device cuda:N."),
        click.option(
            "--amp", is_flag=True, help="Mixed precision: float16 on CUDA (attacks: bfloat16), else bfloat16."
        ),
        click.option(
            "-o",
            "--output",
            "--output-dir",
            type=click.Path(path_type=Path, file_okay=False),
            default=output,
            help="Results folder. Started again, the command goes on where it stopped.",
        ),
    )


def device_of(name: str | None, gpu: int | None) -> torch.device:
    """Where to run.

    Raises:
        ValueError: there is no such device here.
    """
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    wanted = name or best if gpu is None else f"cuda:{gpu}"
    try:
        return torch.empty(0, device=wanted).device
    except (RuntimeError, AssertionError) as error:  # no such device, or torch built without it
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {wanted!r} is not to be had here: {reason}") from error


def layer_types(names: Sequence[str]) -> Layers:
    """The types of these names."""
    return "all" if "all" in names else tuple(kind for kind in ALL_LAYERS if kind.__name__ in names)


def amp_of(device: torch.device, amp: bool) -> torch.dtype | None:
    """The dtype of mixed precision there."""
    return (torch.float16 if device.type == "cuda" else torch.bfloat16) if amp else None


def source_of(options: Mapping[str, Any]) -> Source:
    """Where images come from."""
    return Source(
        data=options["data"],
        dummy=options["dummy"],
        size=options["image_size"],
        skip_bad=options["skip_bad_images"],
        calibration=options.get("calibration_images", 0),
        batch_size=options["batch_size"],
        workers=options["workers"],
    )


def record_of(options: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The options that decide results, as a results folder keeps them."""
    record = {name: value for name, value in options.items() if name not in NOT_RECORDED}
    data = str(options["data"].resolve()) if options["data"] else None
    return {**record, "data": data, "device": device.type}


def show(made: Table) -> None:
    """Print a table as wide as it is: a cut number would be a wrong one."""
    console = Console()
    needed = console.measure(made, options=console.options.update(width=10_000)).maximum
    Console(width=max(console.width, needed)).print(made)
