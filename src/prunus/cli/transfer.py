"""`prunus transfer`: the table of who fools whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunus.checks import check_whole
from prunus.cli.options import (
    DIGITS,
    WEIGHTS,
    Machine,
    WhichImages,
    WhichNetworks,
    WhichWeights,
    known,
    option,
    output_option,
    recorded,
    show,
    takes,
)
from prunus.cli.values import Name, Names, Numbers, Pixels

if TYPE_CHECKING:
    import torch

    from prunus.inputs.networks import Network
    from prunus.transfer.attacks import Attack
    from prunus.transfer.judging import Transfer
    from prunus.transfer.rows import TransferRow

UNSAID = click.core.ParameterSource.DEFAULT
OF_DIGITS: Mapping[str, Any] = {"eps": (48 / 255,), "count": 200, "batch_size": 200}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Wang, Wu, Chen 2022 (arXiv 2208.08677), after Zhao et al. 2021 (arXiv 2012.11207)
    "targeted-imagenet": {
        "surrogates": "resnet50,densenet121,vgg16_bn,inception_v3",
        "weights": "IMAGENET1K_V1",
        "image_size": 299,
        "count": 1000,
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


class Sum(click.ParamType[Any]):
    """Parts of an attack, or one of a library."""

    name = "attack"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """How `--help` shows the value."""
        return f"[{'|'.join(known('transfer.attacks', 'PARTS')())}]+…"


class Methods(Names):
    """Names of methods, with a strength or a range of strengths."""

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """How `--help` shows the value."""
        return f"[{'|'.join(known('transfer.methods', 'KINDS')())}][:STRENGTH],…"


@dataclass(frozen=True)
class Attacks:
    """Which attacks, of whom, on how many images.

    A results folder can be added to: what it can grow by is not recorded.
    """

    surrogates: Sequence[str] = option(
        "-s",
        "--surrogates",
        recorded=False,
        type=Names(),
        default=",".join(DIGITS),
        help="Networks that attacks see: a torchvision name, timm:NAME, FILE.py:callable or digits:NAME.",
    )
    targets: Sequence[str] | None = option(
        "-t",
        "--targets",
        recorded=False,
        type=Names(),
        help="Networks to be fooled.  [default: the surrogates]",
    )
    weights: Sequence[str] | None = WEIGHTS
    methods: Sequence[str] | None = option(
        "--methods",
        recorded=False,
        type=Methods(),
        help="What is done to a surrogate; with a strength as dwp:0.7 or dwp:0.1:0.9:0.2.  [default: all]",
    )
    p_bern: float = option(
        "--p-bern", type=click.FLOAT, default=0.5, help="Chance that a candidate is pruned."
    )
    attack: str = option(
        "--attack",
        default="mi",
        type=Sum(),
        help="A sum of these, such as mi+di+ti (momentum comes with mi and ni), or torchattacks:CLASS, of "
        "those with an L∞ eps.",
    )
    loss: str | None = option(
        "--loss",
        type=Name(known("transfer.attacks", "LOSSES")),
        help="What the attack follows.  [default: ce]",
    )
    eps: Sequence[float] = option(
        "--eps",
        recorded=False,
        type=Pixels(several=True),
        default="16/255",
        help="Largest change of a pixel; one or several; 48/255 for the built-in digits.",
    )
    step: Sequence[float] | None = option(
        "--step",
        type=Pixels(several=False),
        help="Change of a pixel in one step.  [default: eps/4, in fewer than four steps eps/steps]",
    )
    steps: int = option(
        "--steps",
        type=click.IntRange(1),
        default=10,
        help="Steps of the attack; mup, which takes two gradients for each that it gives, makes half as "
        "many.",
    )
    goal: Sequence[str] = option(
        "--goal",
        recorded=False,
        type=Names(known("transfer.rows", "GOALS")),
        default="untargeted,targeted",
        help="Away from the label, or to another.",
    )
    seed: Sequence[int] = option(
        "--seed",
        recorded=False,
        type=Numbers(int),
        default="0,1,2",
        help="Of masks and attacks; one or several.",
    )
    count: int = option(
        "--images",
        type=click.IntRange(1),
        default=500,
        help="How many to attack, of those that all networks get right; 200 of the built-in digits.",
    )
    discard_images: bool = option(
        "--discard-images",
        recorded=False,
        is_flag=True,
        help="Delete adversarial images when they have been judged.",
    )

    @property
    def networks(self) -> Sequence[str]:
        """Surrogates and targets, each once."""
        return list(dict.fromkeys((*self.surrogates, *(self.targets or ()))))


def _take_preset(context: click.Context, parameter: click.Parameter, name: str | None) -> str | None:
    if name:
        context.default_map = {**(context.default_map or {}), **PRESETS[name]}
    return name


@click.command("transfer")
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    is_eager=True,
    expose_value=False,
    callback=_take_preset,
    help="Settings after a published protocol; options given beside it come first.",
)
@takes(Attacks, "attacks")
@takes(WhichWeights, "which")
@takes(WhichImages, "images", batch_size=50)
@takes(Machine, "machine")
@output_option("prunus-transfer")
@click.pass_context
def transfer_command(
    context: click.Context,
    /,
    attacks: Attacks,
    which: WhichWeights,
    images: WhichImages,
    machine: Machine,
    output: Path,
) -> None:
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
    from prunus.processes import Process
    from prunus.results.loop import run
    from prunus.results.transfers import TRANSFER

    process = Process.here()
    networks = _load(attacks, images)
    if all(network.bundled for network in networks.values()):
        unsaid = {n: value for n, value in OF_DIGITS.items() if context.get_parameter_source(n) is UNSAID}
        images = replace(images, batch_size=unsaid.pop("batch_size", images.batch_size))
        attacks = replace(attacks, **unsaid)
    if min(attacks.eps) < 1 / 255 - 1e-9:
        raise click.BadParameter("images have 256 levels: the least is 1/255", param_hint="--eps")
    folder = None if attacks.discard_images else output / "images"
    transfer = _transfer(
        attacks, which, images, networks, process.device(machine.find()), machine.amp, folder
    )
    options = recorded(attacks, which)
    options |= {**images.recorded(), **machine.recorded(), "images": options.pop("count")}
    options |= {"targets": [network.name for network in transfer.targets], "batch_size": images.batch_size}
    rows = run(transfer, TRANSFER, output, options, process)
    if process.number == 0:
        _report(transfer, rows, output)


def _load(attacks: Attacks, images: WhichImages) -> dict[str, Network]:
    """Surrogates and targets, by the names that they were given by."""
    loaded = WhichNetworks(attacks.networks, attacks.weights).load(replace(images, image_size=None))
    return dict(zip(attacks.networks, loaded, strict=True))


def _transfer(
    attacks: Attacks,
    which: WhichWeights,
    images: WhichImages,
    networks: Mapping[str, Network],
    device: torch.device,
    amp: bool,
    folder: Path | None,
) -> Transfer:
    import torch

    from prunus.transfer.judging import Transfer
    from prunus.transfer.methods import KINDS, Build, methods
    from prunus.transfer.rows import GOALS

    return Transfer(
        surrogates=[networks[name] for name in attacks.surrogates],
        targets=[networks[name] for name in attacks.targets or attacks.surrogates],
        methods=methods(attacks.methods or list(KINDS)),
        attack=_attack(attacks),
        epsilons=attacks.eps,
        goals=[GOALS[goal] for goal in attacks.goal],
        seeds=list(dict.fromkeys(check_whole("seed", seed) for seed in attacks.seed)),
        source=images.source(),
        count=attacks.count,
        build=Build(attacks.p_bern, which.which()),
        device=device,
        amp=torch.bfloat16 if amp else None,  # float16 would lose small gradients
        folder=folder,
    )


def _report(transfer: Transfer, rows: Sequence[TransferRow], output: Path) -> None:
    from prunus.results.transfers import transfer_tables

    for made in transfer_tables(rows):
        show(made)
        click.echo()
    victims = transfer.victims
    click.echo(
        f"Fooled, in percent of the {len(victims):,} images attacked: those of the first {victims.seen:,} "
        f"that all networks classify correctly. [..] are 95% intervals over images; * marks white boxes, "
        f"which `black box` leaves out.\n"
        f"{output}: report.html; results.csv, summary.csv, results.json; transfer, gradients and strength as "
        ".png and .svg"
    )


def _attack(attacks: Attacks) -> Attack:
    from prunus.transfer.attacks import LOSSES, PARTS, FromTorchattacks, Iterative

    step = attacks.step[0] if attacks.step else None
    library, _, name = attacks.attack.partition(":")
    if library == "torchattacks" and attacks.loss is not None:
        raise click.BadParameter(f"{name} of torchattacks has a loss of its own", param_hint="--loss")
    if library == "torchattacks":
        return FromTorchattacks(name=name, step=step, steps=attacks.steps)
    attack = Iterative(step=step, steps=attacks.steps, loss=LOSSES[attacks.loss or "ce"], momentum=0.0)
    for part in attacks.attack.split("+"):
        if part not in PARTS:
            raise click.BadParameter(f"{part!r} is none of {', '.join(PARTS)}", param_hint="--attack")
        attack = replace(attack, **PARTS[part])
    return attack
