"""`prunus bench`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunus.cli.command import RUN, Option, command, tell, wants_json
from prunus.cli.config import config_of
from prunus.cli.masking import masks_for
from prunus.cli.names import Known
from prunus.cli.options import (
    DIGITS,
    Calibration,
    HowToPrune,
    Machine,
    WhichImages,
    WhichNetworks,
    WhichWeights,
    takes,
)
from prunus.cli.values import Names, Numbers

if TYPE_CHECKING:
    from torch import Tensor, nn

    from prunus.inputs.images import Source
    from prunus.inputs.networks import Network
    from prunus.weights import Which


@command("bench")
@takes(WhichNetworks, "networks", arch=DIGITS[-1])
@takes(
    HowToPrune,
    "how",
    without={"passes": "inference is the forward pass"},
    p_prune=None,
    granularity="filter",
)
@takes(WhichWeights, "which")
@takes(Calibration, "calibration")
@takes(WhichImages, "images")
@click.option("--batch-sizes", type=Numbers(int), default="1", help="Images at a time, each timed apart.")
@click.option(
    "--runtimes",
    type=Names(Known("speed.runtimes", "RUNTIMES")),
    help="What runs the networks.  [default: all that are installed, and run on the device]",
)
@click.option("--threads", type=click.IntRange(1), help="Of the processor.  [default: as torch has it]")
@click.option("--rounds", type=click.IntRange(1), default=20, help="How often each is timed.")
@click.option("--device", cls=Option, group=RUN, default="cpu", help="cpu, or cuda for eager and compile.")
@click.option(
    "-o",
    "--output",
    cls=Option,
    group=RUN,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for bench.csv, bench.json, bench.png and .svg, and config.toml.",
)
def bench_command(
    networks: WhichNetworks,
    how: HowToPrune,
    which: WhichWeights,
    calibration: Calibration,
    images: WhichImages,
    batch_sizes: Sequence[int],
    runtimes: Sequence[str] | None,
    threads: int | None,
    rounds: int,
    device: str,
    output: Path | None,
) -> None:
    """Milliseconds of networks in several runtimes, and with --p-prune dense against pruned and cut ones.

    All take turns. What is cut is what --coupled filters leave empty.

    \b
    prunus bench --p-prune 0.5 --coupled
    prunus bench -a resnet18 --weights none --p-prune 0.5 --coupled --batch-sizes 1,8 --threads 1 -o speed
    """
    from prunus.inputs.images import example_image
    from prunus.speed.latency import latency

    if min(batch_sizes) < 1:
        raise click.UsageError(f"--batch-sizes must be 1 or more, got {min(batch_sizes)}")
    if output:
        output.mkdir(parents=True, exist_ok=True)  # or it would fail when all is timed
    source, place = images.source(calibration.calibration_images), Machine(device, None, False).find()
    rows: list[dict[str, Any]] = []
    for network in networks.load(images):
        example = example_image(network, source)
        models = _variants(network, how, which.which(), source, example)
        for size in batch_sizes:
            batch = example.repeat(size, *[1] * (example.dim() - 1))
            made = latency(
                {name: model.to(place) for name, model in models.items()},
                batch,
                runtimes=runtimes,
                threads=threads,
                rounds=rounds,
            )
            shape = "x".join(map(str, batch.shape))
            told = {"network": network.name, "batch_size": size, "device": str(place)}
            rows += [{**told, **row} for row in made.columns()]
            if not wants_json():
                click.echo(f"{network.name}, inputs {shape}, {place}\n{made}")
    tell(rows)
    if output:
        from prunus.results.speeds import write_speeds

        write_speeds(rows, output, config_of(click.get_current_context()))


def _variants(
    network: Network, how: HowToPrune, which: Which, source: Source, example: Tensor
) -> dict[str, nn.Module]:
    """Dense, pruned, and cut where something can be cut; without a fraction to prune just the network."""
    from prunus.compaction.compact import compact
    from prunus.verbs import apply_masks

    if how.p_prune is None:
        if how.p_prune_of or how.coupled:
            raise click.UsageError("--p-prune-of and --coupled prune nothing without --p-prune")
        return {"as it is": network.model}
    pruned = apply_masks(copy.deepcopy(network.model), masks_for(network, how, which, source, example))
    made, cut = {"dense": network.model, "pruned": pruned}, compact(pruned, example)
    return {**made, "compact": cut.model} if cut.shapes else made
