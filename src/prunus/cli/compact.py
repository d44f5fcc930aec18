"""`prunus compact`."""

from __future__ import annotations

from pathlib import Path

import click

from prunus.cli.command import RUN, Option, command, tell, wants_json
from prunus.cli.options import DIGITS, WhichImages, WhichNetworks, takes


@command("compact")
@takes(WhichNetworks, "networks", arch=DIGITS[-1])
@takes(WhichImages, "images")
@click.option(
    "--round-to",
    type=click.IntRange(1),
    default=1,
    help="Keep widths multiples of this, as kernels like them: empty channels stay for it.",
)
@click.option(
    "-o",
    "--output",
    cls=Option,
    group=RUN,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the cut network there, as safetensors that --weights takes.",
)
def compact_command(networks: WhichNetworks, images: WhichImages, round_to: int, output: Path | None) -> None:
    """Cut out the channels that are empty in a network's weights, and show what is left.

    \b
    prunus train -a digits:plain --schedule gradual --to 0.5 --granularity filter --coupled -o trained
    prunus compact -a digits:plain --weights trained/networks/*gradual*.pth -o small.safetensors
    """
    from prunus.compaction.checkpoints import save_compact
    from prunus.compaction.compact import compact
    from prunus.inputs.images import example_image

    if output and len(networks.arch) > 1:
        raise click.UsageError("--output takes one network: give one --arch")
    told = []
    for network in networks.load(images):
        made = compact(network.model, example_image(network, images.source()), round_to=round_to)
        told.append({"network": network.name, **made.report()})
        if not wants_json():
            click.echo(f"{network.name}\n{made}")
        if output:
            save_compact(made.model, output)
            click.echo(f"{output}: {output.stat().st_size:,} bytes", err=wants_json())
    tell(told)
