"""`prunus transfer`: the table of who fools whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from prunus.checks import check_whole
from prunus.cli.command import command, tell_rows
from prunus.cli.config import config_of
from prunus.cli.names import Known
from prunus.cli.options import (
    DIGITS,
    UNSAID,
    WEIGHTS,
    Machine,
    WhichImages,
    WhichNetworks,
    WhichWeights,
    option,
    output_option,
    recorded,
    takes,
)
from prunus.cli.values import Name, Names, Numbers, Pixels
from prunus.transfer.presets import PRESETS, Preset

if TYPE_CHECKING:
    import torch

    from prunus.inputs.networks import Network
    from prunus.transfer.attacks import Attack
    from prunus.transfer.judging import Transfer
    from prunus.transfer.published import Published
    from prunus.transfer.rows import TransferRow

OF_DIGITS: Mapping[str, Any] = {"eps": (48 / 255,), "count": 200, "batch_size": 200}


class Sum(click.ParamType[Any]):
    """Parts of an attack, or one of a library."""

    name = "attack"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """How `--help` shows the value."""
        return f"[{'|'.join(Known('transfer.attacks', 'PARTS').names)}]+…"


class Methods(Names):
    """Names of methods, with a strength or a range of strengths."""

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """How `--help` shows the value."""
        return f"[{'|'.join(Known('transfer.methods', 'KINDS').names)}][:STRENGTH],…"


@dataclass(frozen=True)
class Attacks:
    """Which attacks, of whom, on how many images.

    A results folder can be added to: what it can grow by is not recorded.
    """

    group: ClassVar[str] = "Attack"
    surrogates: Sequence[str] = option(
        "-s",
        "--surrogates",
        short=True,
        recorded=False,
        type=Names(),
        default=",".join(DIGITS),
        help="Networks that attacks see: a torchvision name, timm:NAME, FILE.py:callable or digits:NAME.",
    )
    targets: Sequence[str] | None = option(
        "-t",
        "--targets",
        short=True,
        recorded=False,
        type=Names(),
        help="Networks to be fooled.  [default: the surrogates]",
    )
    weights: Sequence[str] | None = WEIGHTS
    methods: Sequence[str] | None = option(
        "--methods",
        short=True,
        recorded=False,
        type=Methods(),
        help="What is done to a surrogate; with a strength as dwp:0.7 or dwp:0.1:0.9:0.2.  [default: all]",
    )
    p_bern: float = option(
        "--p-bern", type=click.FLOAT, default=0.5, help="Chance that a candidate is pruned."
    )
    attack: str = option(
        "--attack",
        short=True,
        default="mi",
        type=Sum(),
        help="A sum of these, such as mi+di+ti (momentum comes with mi and ni), or torchattacks:CLASS, of "
        "those with an L∞ eps.",
    )
    loss: str | None = option(
        "--loss",
        type=Name(Known("transfer.attacks", "LOSSES")),
        help="What the attack follows.  [default: ce]",
    )
    eps: Sequence[float] = option(
        "--eps",
        short=True,
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
    same_steps: bool = option(
        "--same-steps/--same-gradients",
        help="mup makes as many steps as the others, or takes as many gradients.",
    )
    goal: Sequence[str] = option(
        "--goal",
        short=True,
        recorded=False,
        type=Names(Known("transfer.rows", "GOALS")),
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
        short=True,
        type=click.IntRange(1),
        default=500,
        help="How many to attack, of those that all networks get right; 200 of the built-in digits.",
    )
    every: bool = option(
        "--all-images/--right-images",
        help="Attack also images that a network gets wrong: success is then 100 - accuracy.",
    )
    own_size: bool = option(
        "--own-size/--one-size",
        help="Each network sees images scaled to the size that its own preprocessing gives, or all see one.",
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

    def recorded(self, which: WhichWeights) -> dict[str, Any]:
        """As a results folder keeps it; without what is not used, as folders do that are older than that."""
        later = ("every", "own_size", "same_steps")
        return {name: value for name, value in recorded(self, which).items() if name not in later or value}


def _take_preset(context: click.Context, parameter: click.Parameter, name: str | None) -> str | None:
    if name:
        taken = {**PRESETS[name].options, "output": f"prunus-{name}"}
        context.default_map = {**taken, **(context.default_map or {})}
    return name


def _departures(context: click.Context, preset: Preset) -> list[str]:
    """The options that are not as in the preset, and what they are there."""
    return [
        f"{parameter.opts[-1]} (there {preset.options[parameter.name]})"
        for parameter in context.command.params
        if parameter.name in preset.options
        and context.params[parameter.name]
        != parameter.type_cast_value(context, preset.options[parameter.name])
    ]


@command("transfer")
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    is_eager=True,
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
    preset: str | None,
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
    After a published protocol:
        prunus transfer --preset transferattack --data DIR
    Networks of your own:
        prunus transfer --data CIFAR -s nets.py:resnet20 -t nets.py:vgg8 --weights resnet20.pth,vgg8.pth \\
            --methods plain,dwp:0.1:0.9:0.2,random:0.1:0.9:0.2 --eps 4/255,8/255 --loss logit
    """
    from prunus.processes import Process
    from prunus.results.loop import run
    from prunus.results.transfers import layout_beside
    from prunus.transfer.published import read_published

    process = Process.here()
    networks = _load(attacks, images)
    if all(network.bundled for network in networks.values()):
        unsaid = {n: value for n, value in OF_DIGITS.items() if context.get_parameter_source(n) is UNSAID}
        images = replace(images, batch_size=unsaid.pop("batch_size", images.batch_size))
        attacks = replace(attacks, **unsaid)
        context.params |= {**unsaid, "batch_size": images.batch_size}
    if min(attacks.eps) < 1 / 255 - 1e-9:
        raise click.BadParameter("images have 256 levels: the least is 1/255", param_hint="--eps")
    folder = None if attacks.discard_images else output / "images"
    transfer = _transfer(
        attacks, which, images, networks, process.device(machine.find()), machine.amp, folder
    )
    options = attacks.recorded(which)
    options |= {**images.recorded(), **machine.recorded(), "images": options.pop("count")}
    options |= {"targets": [network.name for network in transfer.targets], "batch_size": images.batch_size}
    protocol = PRESETS[preset] if preset else None
    published = read_published(protocol.published) if protocol and protocol.published else None
    rows = run(transfer, layout_beside(published), output, options, process, config_of(context))
    if process.number == 0:
        notes = [f"Published rows: {published.source}"] if published else []
        if otherwise := _departures(context, protocol) if protocol else ():
            notes.append(f"Not the protocol of {preset}: {', '.join(otherwise)}")
        _report(transfer, rows, output, published, notes)


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
        every=attacks.every,
        own_size=attacks.own_size,
        same_steps=attacks.same_steps,
    )


def _report(
    transfer: Transfer,
    rows: Sequence[TransferRow],
    output: Path,
    published: Published | None,
    notes: Sequence[str],
) -> None:
    from prunus.results.transfers import transfer_tables

    victims = transfer.victims
    those = (
        "right or wrong before"
        if transfer.every
        else f"those of the first {victims.seen:,} that all networks classify correctly"
    )
    tell_rows(
        rows,
        *(line for made in transfer_tables(rows, published) for line in (made, "")),
        f"Fooled, in percent of the {len(victims):,} images attacked: {those}. "
        f"[..] are 95% intervals over images; * marks white boxes, which `black box` leaves out.\n"
        f"{output}: report.html; results.csv, summary.csv, results.json; transfer, gradients and strength as "
        f".png and .svg",
        *notes,
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
