"""`prunus train`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from prunus.cli.command import command, tell_rows
from prunus.cli.config import config_of
from prunus.cli.names import Known
from prunus.cli.options import (
    DIGITS,
    UNSAID,
    Calibration,
    HowToPrune,
    Machine,
    WhichImages,
    WhichNetworks,
    WhichWeights,
    option,
    output_option,
    recorded,
    takes,
)
from prunus.cli.values import Name, Names, Rules

if TYPE_CHECKING:
    from prunus.training.recipe import Recipe


@dataclass(frozen=True)
class HowFar(HowToPrune):
    """The same for trainings, to which a seed is more."""

    p_prune: Sequence[float] | float = option(
        "--to",
        "--p-prune",
        short=True,
        numbers=float,
        help="Fraction that is pruned at the end; one or several.",
    )
    seed: Sequence[int] | int = option(
        "--seed",
        short=True,
        numbers=int,
        default="0",
        help="Of initial weights, the order of images, augmentation and masks; one or several.",
    )


@dataclass(frozen=True)
class HowToTrain:
    """By which methods is trained, and how."""

    group: ClassVar[str] = "Training"
    schedule: Sequence[str] = option(
        "--schedule",
        short=True,
        type=Names(Known("training.methods", "METHODS")),
        default="one-shot,iterative,gradual,rigl,random",
        help="How networks come to their sparsity: by cutting and retraining, once (random: by chance) or "
        "in rounds; more and more while they train; or sparse from the start, with weights that regrow or "
        "(static) do not.",
    )
    rewind: Sequence[str] = option(
        "--rewind",
        short=True,
        type=Names(Known("training.goingback", "WAYS_BACK")),
        default="lr",
        help="What follows a cut: the learning rates of the last --retrain-epochs again (lr), from the "
        "weights there (weights) or from new ones (init); or the last rate throughout (none).",
    )
    backward: Sequence[str] = option(
        "--backward",
        short=True,
        type=Rules(),
        default=(),
        help="Train under rules of prunus.sparse_backward, which prune passes while weights stay dense; in "
        "place of --schedule, or beside it where that is given too. meprop:0.1,srste:2:4 keep a tenth, and "
        "two of four; more settings after more colons; at last random, for draws in place of scores.",
    )
    mask_every: int = option(
        "--mask-every",
        type=click.IntRange(1),
        default=1,
        help="So many steps --backward keeps the same weights.",
    )
    epochs: int = option(
        "--epochs", short=True, type=click.IntRange(1), default=20, help="Of a whole training."
    )
    retrain_epochs: int | None = option(
        "--retrain-epochs", type=click.IntRange(1), help="After each cut.  [default: --epochs]"
    )
    optimizer: str = option(
        "--optimizer", type=Name(Known("training.optimizers", "OPTIMIZERS")), default="sgd", help="Optimizer."
    )
    lr: float | None = option(
        "--lr",
        short=True,
        type=click.FloatRange(0, min_open=True),
        help="Learning rate.  [default: 0.1 of sgd, else 0.001]",
    )
    lr_schedule: str = option(
        "--lr-schedule",
        type=Name(Known("training.learning_rates", "LEARNING_RATES")),
        default="cosine",
        help="How the learning rate falls.",
    )
    warmup: float = option(
        "--warmup", type=click.FloatRange(0), default=0.0, help="Epochs over which the learning rate rises."
    )
    weight_decay: float = option(
        "--weight-decay", type=click.FloatRange(0), default=5e-4, help="Of all parameters."
    )
    augment: Sequence[str] = option(
        "--augment",
        type=Names(Known("training.batches", "AUGMENTATIONS")),
        default=(),
        help="What is done to images, at random: shift,flip for CIFAR.",
    )
    rate: float = option(
        "--rate",
        type=click.FloatRange(0, 1, min_open=True),
        default=0.2,
        help="The part of the rest that falls in each round of --schedule iterative; 0.5 of the built-in "
        "digits.",
    )
    cuts: int = option(
        "--cuts",
        type=click.IntRange(1),
        default=100,
        help="At how many steps of a training is pruned, or do weights regrow, …",
    )
    until: float = option(
        "--until",
        type=click.FloatRange(0, 1, min_open=True),
        default=0.75,
        help="… spread over this first part of it.",
    )
    drop: float = option(
        "--drop",
        type=click.FloatRange(0, 1),
        default=0.3,
        help="The part of the survivors that regrowth exchanges at first.",
    )
    checkpoint_every: float = option(
        "--checkpoint-every",
        recorded=False,
        type=click.FloatRange(0),
        default=5.0,
        help="Minutes between two checkpoints, at whatever step.",
    )
    keep_images: bool = option(
        "--keep-images", recorded=False, is_flag=True, help="Read training images once, into memory."
    )

    def recorded(self) -> dict[str, Any]:
        """As a results folder keeps it; without what is not used, as folders do that are older than that."""
        later = ("backward", "mask_every")
        return {name: value for name, value in recorded(self).items() if name not in later or self.backward}

    def recipe(self, batch_size: int) -> Recipe:
        """The same with functions in place of names."""
        from prunus.training.learning_rates import LEARNING_RATES
        from prunus.training.optimizers import OPTIMIZERS
        from prunus.training.recipe import Recipe

        told = {f.name: getattr(self, f.name) for f in fields(Recipe) if hasattr(self, f.name)}
        told |= {"optimizer": OPTIMIZERS[self.optimizer], "augment": tuple(self.augment)}
        return Recipe(**told, learning_rate=LEARNING_RATES[self.lr_schedule], batch_size=batch_size)


@command("train")
@takes(WhichNetworks, "networks", arch=",".join(DIGITS), weights="none")
@takes(HowToTrain, "training")
@takes(
    HowFar,
    "how",
    several=True,
    without={"p_bern": "all candidates fall", "passes": "--backward has rules for passes"},
    p_prune="0.9,0.95",
    granularity="weight",
)
@takes(WhichWeights, "which")
@takes(Calibration, "calibration")
@takes(WhichImages, "images", batch_size=128)
@takes(Machine, "machine")
@output_option("prunus-train")
@click.pass_context
def train_command(
    context: click.Context,
    /,
    networks: WhichNetworks,
    training: HowToTrain,
    how: HowFar,
    which: WhichWeights,
    calibration: Calibration,
    images: WhichImages,
    machine: Machine,
    output: Path,
) -> None:
    """Train networks to a sparsity, or recover what pruning cost, in several ways side by side.

    With --weights none, the default, networks are first trained dense, which is the row to compare with;
    with other weights they count as trained. --data needs DATA/train and DATA/val. Killed at any moment and
    started again, the command goes on. Under torchrun every process sees its part of each batch.

    \b
    The built-in networks on the built-in digits, to 90 and 95%:
        prunus train
    What 10 epochs recover of a network of your own:
        prunus train --data CIFAR -a nets.py:resnet20 --weights resnet20.pth --schedule one-shot \\
            --rewind none,lr --to 0.5,0.9 --epochs 10 --augment shift,flip --seed 0,1,2
    With a tenth of the gradients that layers pass back, and with a tenth that is drawn:
        prunus train --backward meprop:0.1,meprop:0.1:random
    """
    from prunus.processes import Process
    from prunus.results.loop import run
    from prunus.results.trained import TRAINED, trained_table
    from prunus.training.experiment import Training

    loaded, process = networks.load(images), Process.here(backend=None)
    if all(network.bundled for network in loaded) and context.get_parameter_source("rate") is UNSAID:
        training = replace(training, rate=0.5)  # for fewer rounds
        context.params["rate"] = 0.5
    if training.backward and context.get_parameter_source("schedule") is UNSAID:
        if context.get_parameter_source("p_prune") is not UNSAID:
            raise click.UsageError("--to has no meaning beside --backward alone: name a --schedule too")
        training = replace(training, schedule=())
        context.params |= {"schedule": None, "p_prune": None}
    made = Training(
        networks=loaded,
        settings=how.settings(),
        source=images.source(calibration.calibration_images),
        device=(device := process.device(machine.find())),
        amp=machine.half(device),
        which=which.which(),
        schedules=training.schedule,
        rewinds=training.rewind,
        backward=training.backward,
        mask_every=training.mask_every,
        recipe=training.recipe(images.batch_size),
        trained=_trained(networks.weights),
        folder=output,
        process=process,
        every=training.checkpoint_every,
        keep_images=training.keep_images,
    )
    scopes = list(dict.fromkeys(str(setting.scope) for setting in made.settings))
    options = {**how.recorded(scopes), **recorded(which, calibration), **images.recorded()}
    options |= {
        **training.recorded(),
        **machine.recorded(),
        "batch_size": images.batch_size,
        "trained": made.trained,
    }
    config = config_of(context)
    rows = run(replace(made, options=options), TRAINED, output, options, process, config)
    if process.number == 0:
        tell_rows(
            rows,
            trained_table(rows),
            f"acc@1 in percent and seconds of training, as means over seeds; lost: against the dense network "
            f"of the same seed; [..] are 95% intervals over seeds.\n{output}: report.html; results.csv, "
            f"summary.csv, results.json; accuracy and layers as .png and .svg; networks/*.pth",
        )


def _trained(weights: Sequence[str] | None) -> bool:
    """Whether networks bring weights."""
    none = [one == "none" for one in weights or ()]
    if any(none) and not all(none):
        raise click.UsageError(
            "--weights none and others together: networks that are trained come by themselves"
        )
    return not any(none)
