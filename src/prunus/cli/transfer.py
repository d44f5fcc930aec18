"""`prunus transfer`: the table of who fools whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

from prunus.checks import check_whole
from prunus.cli.options import (
    DIGITS,
    data_options,
    device_of,
    layer_options,
    layer_types,
    record_of,
    show,
    source_of,
    weights_option,
)
from prunus.cli.values import Names, Numbers, Pixels
from prunus.inputs.networks import Preprocessing, load_networks
from prunus.processes import Rank
from prunus.results.transfers import transfer_tables
from prunus.transfer.attacks import LOSSES, Attack, FromTorchattacks, Iterative
from prunus.transfer.judging import Transfer
from prunus.transfer.methods import KINDS, Build, methods
from prunus.transfer.rows import goal_of

CELLS = {"names", "eps", "goal", "seed", "surrogates"}
UNSAID = click.core.ParameterSource.DEFAULT
OF_DIGITS: Mapping[str, Any] = {"eps": (48 / 255,), "images": 200, "batch_size": 200}
GOALS = {goal_of(targeted): targeted for targeted in (False, True)}
PARTS: Mapping[str, Mapping[str, Any]] = {
    "mi": {"momentum": 1.0},
    "ni": {"momentum": 1.0, "nesterov": True},
    "di": {"diversity": 0.7},
    "ti": {"kernel": 5},
    "si": {"scales": 5},
}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Wang, Wu, Chen 2022 (arXiv 2208.08677), after Zhao et al. 2021 (arXiv 2012.11207)
    "targeted-imagenet": {
        "surrogates": "resnet50,densenet121,vgg16_bn,inception_v3",
        "weights": "IMAGENET1K_V1",
        "image_size": 299,
        "images": 1000,
        "attack": "mi+di+ti",
        "loss": "logit",
        "eps": "16/255",
        "step": "2/255",
        "steps": 300,
        "goal": "targeted",
        "batch_size": 20,
        "output": "prunus-targeted-imagenet",
    }
}


def _take_preset(context: click.Context, parameter: click.Parameter, name: str | None) -> str | None:
    if name:
        context.default_map = {**(context.default_map or {}), **PRESETS[name]}
    return name


@click.command("transfer")
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    is_eager=True,
    callback=_take_preset,
    help="Settings after a published protocol; options given beside it come first.",
)
@click.option(
    "-s",
    "--surrogates",
    type=Names(),
    default=",".join(DIGITS),
    help="Networks that attacks see: a torchvision name, timm:NAME, FILE.py:callable or digits:NAME.",
)
@click.option("-t", "--targets", type=Names(), help="Networks to be fooled.  [default: the surrogates]")
@weights_option()
@click.option(
    "--methods",
    "names",
    type=Names(),
    default=",".join(KINDS),
    help=f"What is done to a surrogate: {', '.join(KINDS)}; with a strength as dwp:0.7 or dwp:0.1:0.9:0.2.",
)
@click.option("--p-bern", type=click.FLOAT, default=0.5, help="Chance that a candidate is pruned.")
@click.option(
    "--attack",
    default="mi",
    help="A sum of mi, ni, di, ti and si, such as mi+di+ti (momentum comes with mi and ni), or "
    "torchattacks:CLASS, of those with an L∞ eps.",
)
@click.option("--loss", type=click.Choice(list(LOSSES)), help="What the attack follows.  [default: ce]")
@click.option(
    "--eps",
    type=Pixels(several=True),
    default="16/255",
    help="Largest change of a pixel; one or several; 48/255 for the built-in digits.",
)
@click.option(
    "--step",
    type=Pixels(several=False),
    help="Change of a pixel in one step.  [default: eps/4, in fewer than four steps eps/steps]",
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=10,
    help="Steps of the attack; mup, which takes two gradients for each that it gives, makes half as many.",
)
@click.option(
    "--goal", type=Names(*GOALS), default=",".join(GOALS), help="Away from the label, or to another."
)
@click.option("--seed", type=Numbers(int), default="0,1,2", help="Of masks and attacks; one or several.")
@click.option(
    "--images",
    type=click.IntRange(1),
    default=500,
    help="How many to attack, of those that all networks classify correctly; 200 of the built-in digits.",
)
@click.option("--discard-images", is_flag=True, help="Delete adversarial images when they have been judged.")
@layer_options()
@data_options(
    output="prunus-transfer",
    batch_size=50,
    layout="DATA/val/<class>/*, or DATA/images/* with DATA/images.csv (NIPS 2017)",
)
@click.pass_context
def transfer_command(context: click.Context, /, output: Path, **options: Any) -> None:
    """How often adversarial examples made on one network fool others, and whether pruning it helps.

    Adversarial images are written as PNG and judged as read back from there.

    \b
    The built-in networks on the built-in digits:
        prunus transfer
    After the published protocol:
        prunus transfer --preset targeted-imagenet --data NIPS2017
    Networks of your own:
        prunus transfer --data CIFAR -s nets.py:resnet20 -t nets.py:vgg8 --weights resnet20.pth,vgg8.pth \\
            --methods plain,dwp:0.1:0.9:0.2,random:0.1:0.9:0.2 --eps 4/255,8/255 --loss logit
    """
    if all(name.startswith("digits:") for name in (*options["surrogates"], *(options["targets"] or ()))):
        options |= {
            name: value for name, value in OF_DIGITS.items() if context.get_parameter_source(name) is UNSAID
        }
    if min(options["eps"]) < 1 / 255 - 1e-9:
        raise click.BadParameter("images have 256 levels: the least is 1/255", param_hint="--eps")
    rank = Rank.here()
    device = rank.device(device_of(options["device"], options["gpu"]))
    targets = options["targets"] or options["surrogates"]
    every = list(dict.fromkeys((*options["surrogates"], *targets)))
    loaded = load_networks(every, options["weights"], Preprocessing(mean=options["mean"], std=options["std"]))
    networks = dict(zip(every, loaded, strict=True))
    experiment = Transfer(
        surrogates=[networks[name] for name in options["surrogates"]],
        targets=[networks[name] for name in targets],
        methods=methods(options["names"]),
        attack=_attack(options),
        epsilons=options["eps"],
        goals=[GOALS[goal] for goal in options["goal"]],
        seeds=list(dict.fromkeys(check_whole("seed", seed) for seed in options["seed"])),
        source=source_of(options),
        images=options["images"],
        build=Build(
            options["p_bern"], layer_types(options["layers"]), options["include"], options["exclude"]
        ),
        device=device,
        amp=torch.bfloat16 if options["amp"] else None,  # float16 would lose small gradients
        keep_images=not options["discard_images"],
        rank=rank,
    )
    # A folder can be added to: more methods, strengths, seeds, or targets made surrogates, are more cells
    fixed = {name: value for name, value in record_of(options, device).items() if name not in CELLS}
    fixed |= {"targets": [networks[name].name for name in targets], "batch_size": options["batch_size"]}
    rows, victims = experiment.run(output, fixed)
    if experiment.rank.number:
        return
    for made in transfer_tables(rows):
        show(made)
        click.echo()
    click.echo(
        f"Fooled, in percent of the {len(victims):,} images attacked: those of the first {victims.seen:,} "
        f"that all networks classify correctly. [..] are 95% intervals over images; * marks white boxes, "
        f"which `black box` leaves out.\n"
        f"{output}: results.csv, summary.csv, results.json; transfer, gradients and strength as .png and .svg"
    )


def _attack(options: Mapping[str, Any]) -> Attack:
    [step] = options["step"] or [None]
    library, _, name = options["attack"].partition(":")
    if library == "torchattacks" and options["loss"] is not None:
        raise click.BadParameter(f"{name} of torchattacks has a loss of its own", param_hint="--loss")
    if library == "torchattacks":
        return FromTorchattacks(name=name, step=step, steps=options["steps"])
    loss = LOSSES[options["loss"] or "ce"]
    attack = Iterative(step=step, steps=options["steps"], loss=loss, momentum=0.0)
    for part in options["attack"].split("+"):
        if part not in PARTS:
            raise click.BadParameter(f"{part!r} is none of {', '.join(PARTS)}", param_hint="--attack")
        attack = replace(attack, **PARTS[part])
    return attack
