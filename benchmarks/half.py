"""A trained network with half of its multiply-accumulates, cut: what it gets right, takes, and how long.

`python -m benchmarks.half ARCH PRUNED.pth CIFAR`, of which the second is what `prunus train` leaves in its
folder `networks`, and the third holds `val/<class>/*`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import prunus
from prunus.inputs.images import Source, open_images
from prunus.inputs.networks import Preprocessing, load_network

HOW = Preprocessing(32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def answers(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The class that each image is taken for."""
    with torch.no_grad():
        return torch.cat([model(images).argmax(1) for images, _ in batches])


def main(arch: str, weights: str, data: str) -> None:
    """Print a few lines."""
    network = load_network(arch, weights, HOW)
    dense, image = load_network(arch, "none", HOW).model.eval(), torch.randn(1, 3, 32, 32)
    made = prunus.compact(network.model.eval(), image)
    print(repr(made), dict(made.spared))
    batches = list(open_images(network, Source(Path(data), batch_size=500)))
    labels = torch.cat([labels for _, labels in batches])
    before, after = answers(network.model, batches), answers(made.model, batches)
    right, differ = [int((found == labels).sum()) for found in (before, after)], int((before != after).sum())
    print(f"{right[0]} and, cut, {right[1]} of {len(labels)} right; {differ} differ")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "net")
        torch.save(network.model.state_dict(), path.with_suffix(".pth"))
        prunus.save_compact(made.model, path.with_suffix(".safetensors"))
        sizes = [path.with_suffix(suffix).stat().st_size for suffix in (".pth", ".safetensors")]
        print(f"{sizes[0]:,} bytes, cut {sizes[1]:,}")
        for suffix in (".onnx", ".xml", ".pt2"):
            exported = prunus.export(made.model, path.with_suffix(suffix), image)
            print(f"{suffix}: {exported.bytes:,} bytes, {exported.apart:.0e} apart")
    for size in (1, 64):
        print(f"{size} images at a time")
        print(prunus.latency({"dense": dense, "compact": made.model}, image.repeat(size, 1, 1, 1)))


if __name__ == "__main__":
    main(*sys.argv[1:])
