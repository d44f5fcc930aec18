"""Options that commands share. Each group of them reaches a command as one typed record."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import reduce, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from prunus.cli import choices
from prunus.cli.values import Name, Names, Numbers

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from prunus.inputs.images import Source
    from prunus.inputs.networks import Network, Preprocessing
    from prunus.weights import Which

Decorator = Callable[[Any], Any]
T = TypeVar("T")
DIGITS = ("digits:plain", "digits:residual")


def unrecorded() -> Any:
    """A field that results do not depend on, or that is known by what it brings (a network's fingerprint)."""
    return field(metadata={"recorded": False})


def recorded(*records: Any) -> dict[str, Any]:
    """The options that decide results, as a results folder keeps them."""
    found: dict[str, Any] = {}
    for record in records:
        found |= {f.name: getattr(record, f.name) for f in fields(record) if f.metadata.get("recorded", True)}
    return found


def together(record: Callable[..., T], argument: str, *options: Decorator) -> Decorator:
    """Several options, which the command gets as one record, under the name of this argument."""
    names = [f.name for f in fields(record)]  # type: ignore[arg-type]

    def decorate(command: Any) -> Any:
        @wraps(command)
        def called(*args: Any, **values: Any) -> Any:
            made = record(**{name: values.pop(name) for name in names})
            return command(*args, **values, **{argument: made})

        return reduce(lambda made, option: option(made), reversed(options), called)

    return decorate


@dataclass(frozen=True)
class WhichNetworks:
    """Networks, and the weights that they are loaded with."""

    arch: Sequence[str] = unrecorded()
    weights: Sequence[str] | None = unrecorded()

    def load(self, preprocessing: Preprocessing | None = None) -> list[Network]:
        """The networks."""
        from prunus.inputs.networks import load_networks

        return load_networks(self.arch, self.weights, preprocessing)


def weights_option() -> Decorator:
    """Which weights networks are loaded with."""
    return click.option(
        "--weights",
        type=Names(),
        help="One for each network, or one for all: a torchvision enum name, a state_dict file "
        "(.pth, .safetensors) or none.  [default: the pretrained ones]",
    )


def network_options(default: Sequence[str]) -> Decorator:
    """The argument `networks`."""
    arch = click.option(
        "-a",
        "--arch",
        type=Names(),
        default=",".join(default),
        help="Networks: a torchvision name, timm:NAME, FILE.py:callable or digits:NAME.",
    )
    return together(WhichNetworks, "networks", arch, weights_option())


@dataclass(frozen=True)
class HowToPrune:
    """What is pruned as one piece, by which score, and how much; of a sweep, several of each."""

    p_prune: Any
    p_bern: Any
    granularity: Any
    criterion: Any
    scope: Any
    seed: Any
    norm: str


def pruning_options(several: bool, p_prune: str, granularity: str) -> Decorator:
    """The argument `how`."""
    numbers = Numbers() if several else click.FLOAT
    lists = " Lists 0,0.3,0.5 and ranges 0:0.7:0.1 too." if several else ""
    name = Names if several else Name
    seeds = Numbers(int) if several else click.INT

    def chosen(flag: str, known: Callable[[], Any], default: str, what: str) -> Decorator:
        return click.option(flag, type=name(known), default=default, help=what)

    ratio = f"Fraction that becomes candidates, lowest score first.{lists}"
    return together(
        HowToPrune,
        "how",
        click.option("--p-prune", type=numbers, default=p_prune, help=ratio),
        click.option("--p-bern", type=numbers, default="1.0", help="Chance that a candidate is pruned."),
        chosen("--granularity", choices.granularities, granularity, "What is pruned as one piece."),
        chosen("--criterion", choices.criteria, "magnitude", "What the score of a weight is."),
        chosen("--scope", choices.scopes, "global", "Lowest of the network, or of each layer."),
        click.option("--seed", type=seeds, default="0", help="Of random scores and draws."),
        click.option(
            "--norm",
            type=Name(choices.norms),
            default="l1",
            help="Scores of one piece are summed (l1) or averaged (mean).",
        ),
    )


@dataclass(frozen=True)
class WhichWeights:
    """Which weights are pruned."""

    layers: Sequence[str]
    include: Sequence[str] | None
    exclude: Sequence[str]

    def which(self) -> Which:
        """The same as keyword arguments."""
        return {"layers": self.layers, "include": self.include, "exclude": self.exclude}


def layer_options() -> Decorator:
    """The argument `which`."""
    return together(
        WhichWeights,
        "which",
        click.option("--layers", type=Names(choices.layers), default="Conv2d", help="Layer types to prune."),
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


@dataclass(frozen=True)
class WhichImages:
    """Which images, and how they are read."""

    data: Path | None
    dummy: bool
    image_size: int | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    skip_bad_images: bool
    batch_size: int = unrecorded()
    workers: int = unrecorded()

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
        return {**recorded(self), "data": str(self.data.resolve()) if self.data else None}


def image_options(batch_size: int = 256, layout: str = "DATA/val/<class>/*") -> Decorator:
    """The argument `images`."""
    return together(
        WhichImages,
        "images",
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
    )


@dataclass(frozen=True)
class Calibration:
    """For criteria that need gradients."""

    calibration_images: int


def calibration_option() -> Decorator:
    """The argument `calibration`."""
    return together(
        Calibration,
        "calibration",
        click.option(
            "--calibration-images",
            type=click.IntRange(1),
            default=512,
            help="For criteria that need more than the weights: how many images of DATA/train to look at.",
        ),
    )


@dataclass(frozen=True)
class Machine:
    """Where networks run."""

    device: str | None
    gpu: int | None
    amp: bool

    @property
    def torch_device(self) -> torch.device:
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

    def recorded(self) -> dict[str, Any]:
        """As a results folder keeps it."""
        return {"device": self.torch_device.type, "amp": self.amp}


def machine_options() -> Decorator:
    """The argument `machine`."""
    return together(
        Machine,
        "machine",
        click.option("--device", help="cuda, cuda:1, mps or cpu.  [default: the first of them there is]"),
        click.option("--gpu", type=click.IntRange(0), help="The same as --device cuda:N."),
        click.option(
            "--amp", is_flag=True, help="Mixed precision: float16 on CUDA (attacks: bfloat16), else bfloat16."
        ),
    )


def output_option(default: str | None) -> Decorator:
    """The argument `output`."""
    return click.option(
        "-o",
        "--output",
        "--output-dir",
        type=click.Path(path_type=Path, file_okay=False),
        default=default,
        help="Results folder. Started again, the command goes on where it stopped.",
    )


def show(made: Table) -> None:
    """Print a table as wide as it is: a cut number would be a wrong one."""
    from rich.console import Console

    console = Console()
    needed = console.measure(made, options=console.options.update(width=10_000)).maximum
    Console(width=max(console.width, needed)).print(made)
