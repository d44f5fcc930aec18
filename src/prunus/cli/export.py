"""`prunus export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from prunus.cli.command import RUN, Option, command, tell
from prunus.cli.options import DIGITS, WhichImages, WhichNetworks, takes


@command("export")
@takes(WhichNetworks, "networks", arch=DIGITS[-1])
@takes(WhichImages, "images")
@click.option(
    "--dynamic-batch/--no-dynamic-batch",
    default=True,
    help="Whether the file takes any number of images at a time, or one.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    default=1e-4,
    help="How far outputs may be apart from the network's, as a part of the largest.",
)
@click.option(
    "-o",
    "--output",
    cls=Option,
    group=RUN,
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Write it there: .onnx, .xml of OpenVINO (with a .bin beside it) or .pt2 of torch.export.",
)
def export_command(
    networks: WhichNetworks, images: WhichImages, dynamic_batch: bool, tolerance: float, output: Path
) -> None:
    """Write a network for ONNX Runtime, OpenVINO or torch.export, checked beside the network itself.

    \b
    prunus compact -a digits:residual --weights pruned.pth -o small.safetensors
    prunus export -a digits:residual --weights small.safetensors -o small.onnx
    """
    from prunus.inputs.images import example_image
    from prunus.speed.export import export

    if len(networks.arch) > 1:
        raise click.UsageError("--output takes one network: give one --arch")
    (network,) = networks.load(images)
    example = example_image(network, images.source())
    made = export(network.model, output, example, dynamic_batch=dynamic_batch, tolerance=tolerance)
    tell([{"network": network.name, **asdict(made), "files": list(map(str, made.files))}], str(made))
