"""Options that commands share. Each is a field of a record, and the record is what reaches a command.

A field made by `option` is declared once: its flags, its help, whether `--help` shows it at once, and whether
results depend on it. The record says in which group of `--help` it stands.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from prunus.cli.command import RUN, Option
from prunus.cli.names import Known
from prunus.cli.values import FractionsOf, Name, Names, Numbers

if TYPE_CHECKING:
    import torch

    from prunus.evaluation.points import Setting
    from prunus.inputs.images import Source
    from prunus.inputs.networks import Network
    from prunus.weights import Which

DIGITS = ("digits:plain", "digits:residual")
P_PRUNE = "0.3"  # where one setting is wanted, as of `prunus.global_prune`
PRUNED = "What is pruned"
UNSAID = click.core.ParameterSource.DEFAULT


def option(*flags: str, recorded: bool = True, short: bool = False, **attributes: Any) -> Any:
    """A field that an option of the command line sets.

    Args:
        flags: how it is spelled.
        short: whether it is one of those that `--help` shows, and not `--help-all` alone.
        recorded: whether a results folder keeps it: results depend on it, and not only by what it brings.
        **attributes: of `click.option`, or in place of its type: `names`, what it can be, see `Known`, and
            `also`, other words for them; `numbers`, their type. Of those a command wants one or several.
    """
    return field(
        metadata={"flags": flags, "recorded": recorded, "attributes": {**attributes, "short": short}}
    )


def takes(
    record: type,
    argument: str,
    several: bool = False,
    without: Mapping[str, str] | None = None,
    **defaults: Any,
) -> Callable[[Any], Any]:
    """Let a command have the options of this record, and get their values as one argument.

    Args:
        record: a dataclass of options, and of the title of their `group`.
        argument: its name.
        several: whether `names` and `numbers` are lists.
        without: options that have no meaning for the command, and why.
        **defaults: of options, in place of their own.
    """

    def decorate(command: Any) -> Any:
        @wraps(command)
        def called(*args: Any, **values: Any) -> Any:
            made = record(**{f.name: values.pop(f.name) for f in fields(record)})
            return command(*args, **values, **{argument: made})

        made = called
        for f in reversed(fields(record)):
            attributes = {"group": record.group, **f.metadata["attributes"]}  # type: ignore[attr-defined]
            if f.name in defaults:
                attributes["default"] = defaults[f.name]
                if defaults[f.name] is not None:  # click names it
                    attributes["help"] = attributes["help"].partition("  [default:")[0]
            if "names" in attributes:
                names, also = attributes.pop("names"), attributes.pop("also", {})
                attributes["type"] = (Names if several else Name)(names, also)
            if "numbers" in attributes:
                kind = attributes.pop("numbers")
                attributes["type"] = Numbers(kind) if several else kind
            attributes |= refused(without[f.name]) if without and f.name in without else {}
            made = click.option(f.name, *f.metadata["flags"], cls=Option, **attributes)(made)
        return made

    return decorate


def refused(why: str) -> dict[str, Any]:
    """Attributes of an option that a command does not have, but of which it explains why."""

    def refuse(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
        if ctx.get_parameter_source(str(parameter.name)) is not UNSAID:
            raise click.UsageError(f"{parameter.name} has no meaning here: {why}")
        return value

    return {"hidden": True, "callback": refuse}


def recorded(*records: Any) -> dict[str, Any]:
    """The options that decide results, as a results folder keeps them."""
    return {f.name: getattr(r, f.name) for r in records for f in fields(r) if f.metadata["recorded"]}


WEIGHTS = option(
    "--weights",
    short=True,
    recorded=False,
    type=Names(),
    help="One for each network, or one for all: a torchvision enum name, a state_dict file "
    "or training checkpoint (.pth, .safetensors) or none.  [default: the pretrained ones; those that "
    "FILE.py:callable returns]",
)


@dataclass(frozen=True)
class WhichNetworks:
    """Networks, and the weights that they are loaded with."""

    group: ClassVar[str] = "Network"
    arch: Sequence[str] = option(
        "-a",
        "--arch",
        short=True,
        recorded=False,
        type=Names(),
        help="Networks: a torchvision name, timm:NAME, FILE.py:callable or digits:NAME.",
    )
    weights: Sequence[str] | None = WEIGHTS

    def load(self, images: WhichImages) -> list[Network]:
        """The networks, each with the weights that are meant for it, and the preprocessing of the images."""
        from prunus.inputs.networks import Preprocessing, load_networks

        preprocessing = Preprocessing(images.image_size, images.mean, images.std)
        networks = load_networks(self.arch, self.weights, preprocessing)
        for network in networks:
            if network.unwrapped:
                click.echo(network.unwrapped, err=True)
            if network.code and self.weights is None:  # which may be random: only their author knows
                told = "weights as its file makes them, as no --weights are given"
                click.echo(f"{network.name}: {told}", err=True)
        return networks


@dataclass(frozen=True)
class HowToPrune:
    """What is pruned as one piece, by which score, and how much; of a sweep, several of each."""

    group: ClassVar[str] = PRUNED
    p_prune: Sequence[float] | float = option(
        "--p-prune",
        short=True,
        numbers=float,
        help="Fraction that becomes candidates, lowest score first. A sweep takes lists 0,0.3,0.5 and ranges "
        "0:0.7:0.1 of all numbers.",
    )
    p_prune_of: str = option(
        "--p-prune-of",
        type=FractionsOf(),
        default="",
        help="Other fractions for weights or modules of these names, e.g. 'layer1.*=0.3,conv1=0'; all others "
        "have --p-prune.",
    )
    p_bern: Sequence[float] | float = option(
        "--p-bern", numbers=float, default="1.0", help="Chance that a candidate is pruned."
    )
    granularity: Sequence[str] | str = option(
        "--granularity",
        short=True,
        names=Known("selection.pieces", "GRANULARITIES"),
        help="What is pruned as one piece.",
    )
    criterion: Sequence[str] | str = option(
        "--criterion",
        short=True,
        names=Known("scores.criteria", "CRITERIA"),
        default="magnitude",
        help="What the score of a weight is.",
    )
    scope: Sequence[str] | str | None = option(
        "--scope",
        short=True,
        names=Known("selection.scope", "SCOPES"),
        default=None,
        help="Where the fraction holds: the network, each layer, each output (row), n of every m inputs, …  "
        "[default: global; layer for filters and channels; row for wanda]",
    )
    seed: Sequence[int] | int = option("--seed", numbers=int, default="0", help="Of random scores and draws.")
    passes: Sequence[str] | str | None = option(
        "--passes",
        recorded=False,
        short=True,
        names=Known("application.placed", "PASSES"),
        also={"global": "both", "gradient": "backward", "none": None},  # the original script's --prune_type
        default="both",
        help="Where pruned weights count as zero: both passes, or one. Backward alone costs no accuracy.",
    )
    norm: str = option(
        "--norm",
        type=Name(Known("selection.pieces", "NORMS")),
        default="l1",
        help="Scores of one piece are summed (l1) or averaged (mean).",
    )
    keep_at_least: int = option(
        "--keep-at-least",
        type=click.IntRange(0),
        default=0,
        help="Pieces that every weight tensor keeps, its highest; others of the scope fall in their place.",
    )

    coupled: bool = option(
        "--coupled",
        is_flag=True,
        help="With --granularity filter: filters that hang together fall as one, and with them the biases, "
        "scales and shifts of their channels.",
    )

    def settings(self) -> list[Setting]:
        """Every combination."""
        from prunus.evaluation.sweep import grid

        return grid(**asdict(self))

    def recorded(self, scopes: Sequence[str]) -> dict[str, Any]:
        """As a results folder keeps it; without what is not used, as folders do that are older than that.

        Args:
            scopes: those that are meant.
        """
        later = ("keep_at_least", "coupled", "p_prune_of")
        kept = {name: value for name, value in recorded(self).items() if name not in later or value}
        return {**kept, "scope": scopes}


@dataclass(frozen=True)
class WhichWeights:
    """Which weights are pruned."""

    group: ClassVar[str] = PRUNED
    layers: Sequence[str] = option(
        "--layers",
        short=True,
        type=Names(Known("weights", "LAYERS")),
        default="Conv2d",
        help="Layer types to prune.",
    )
    include: Sequence[str] | None = option(
        "--include", type=Names(), help="Prune only weights or modules of these names (wildcards)."
    )
    exclude: Sequence[str] = option(
        "--exclude",
        type=Names(),
        default=(),
        help="Leave out weights or modules of these names, e.g. 'conv1,*.downsample.*'.",
    )

    def which(self) -> Which:
        """The same as keyword arguments."""
        return {"layers": self.layers, "include": self.include, "exclude": self.exclude}


@dataclass(frozen=True)
class Calibration:
    """For criteria that need more than the weights."""

    group: ClassVar[str] = PRUNED
    calibration_images: int = option(
        "--calibration-images",
        type=click.IntRange(1),
        default=512,
        help="For criteria that need more than the weights: how many images of DATA/train to look at.",
    )


@dataclass(frozen=True)
class WhichImages:
    """Which images, and how they are read."""

    group: ClassVar[str] = "Images"
    data: Path | None = option(
        "--data",
        short=True,
        type=click.Path(path_type=Path),
        help="Folder of images in DATA/val/<class>/* and DATA/train; or a data set of torchvision that is on "
        "disk, CIFAR10:DIR; for attacks also DATA/images.csv (NIPS 2017), DATA/labels.csv (TransferAttack).",
    )
    dummy: bool = option("--dummy", is_flag=True, help="Synthetic images: for speed, not for accuracy.")
    image_size: int | None = option(
        "--image-size",
        type=click.IntRange(1),
        help="Resize the shorter side to this and cut out the central square. This, --mean and --std "
        "are for networks that bring no preprocessing, and stand in for that of those that do.",
    )
    mean: Sequence[float] | None = option(
        "--mean", type=Numbers(count=(1, 3)), help="Subtracted from RGB in [0, 1]: 0.485,0.456,0.406."
    )
    std: Sequence[float] | None = option(
        "--std", type=Numbers(count=(1, 3)), help="By which RGB is then divided: 0.229,0.224,0.225."
    )
    skip_bad_images: bool = option(
        "--skip-bad-images", is_flag=True, help="Name and count unreadable images, and go on."
    )
    batch_size: int = option(
        "-b", "--batch-size", recorded=False, type=click.IntRange(1), default=256, help="Images at a time."
    )
    workers: int = option(
        "-j",
        "--workers",
        recorded=False,
        type=click.IntRange(0),
        default=min(8, os.cpu_count() or 1),
        help="Processes that read images.",
    )

    def source(self, calibration: int = 0) -> Source:
        """Where images come from."""
        from prunus.inputs.images import Source

        return Source(
            data=self.data,
            dummy=self.dummy,
            size=self.image_size,
            skip_bad=self.skip_bad_images,
            calibration=calibration,
            batch_size=self.batch_size,
            workers=self.workers,
        )

    def recorded(self) -> dict[str, Any]:
        """As a results folder keeps it."""
        from prunus.inputs.named import split_name

        name, root = (self.data and split_name(self.data)) or ("", self.data)
        place = str(root.resolve()) if root else None
        return {**recorded(self), "data": f"{name}:{place}" if name else place}


@dataclass(frozen=True)
class Machine:
    """Where networks run."""

    group: ClassVar[str] = RUN
    device: str | None = option(
        "--device", short=True, help="cuda, cuda:1, mps or cpu.  [default: the first of them there is]"
    )
    gpu: int | None = option("--gpu", type=click.IntRange(0), help="The same as --device cuda:N.")
    amp: bool = option(
        "--amp", is_flag=True, help="Mixed precision: float16 on CUDA (attacks: bfloat16), else bfloat16."
    )

    def find(self) -> torch.device:
        """The device.

        Raises:
            ValueError: there is no such device here.
        """
        import torch

        best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        wanted = self.device or best if self.gpu is None else f"cuda:{self.gpu}"
        try:
            return torch.empty(0, device=wanted).device
        except (RuntimeError, AssertionError) as error:  # no such device, or torch built without it
            reason = str(error).splitlines()[0]
            raise ValueError(f"device {wanted!r} is not to be had here: {reason}") from error

    def half(self, device: torch.device) -> torch.dtype | None:
        """What autocast is to take, if it is wanted."""
        import torch

        return (torch.float16 if device.type == "cuda" else torch.bfloat16) if self.amp else None

    def recorded(self) -> dict[str, Any]:
        """As a results folder keeps it: of the device, the kind."""
        return {"device": self.find().type, "amp": self.amp}


def output_option(default: str | None, **attributes: Any) -> Callable[[Any], Any]:
    """The argument `output`: a results folder, by default this one."""
    return click.option(
        "-o",
        "--output",
        cls=Option,
        group=RUN,
        type=click.Path(path_type=Path, file_okay=False),
        default=default,
        help="Results folder. Started again, the command goes on where it stopped; asked for more, it adds "
        "that.",
        **attributes,
    )
