"""Train the built-in digit networks and write their weights into the package: a minute on two cores.

Usage: python -m benchmarks.train_digits [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.evaluation.evaluate import evaluate
from prunus.inputs.digits import FOLDER, NETWORKS, load_images

EPOCHS, BATCH = 80, 64


def shift(images: Tensor) -> Tensor:
    """Every image moved by up to one pixel each way, zeros coming in."""
    padded = F.pad(images, (1, 1, 1, 1))
    rows, columns = torch.randint(3, (2, len(images)))
    return torch.stack(
        [image[:, r : r + 8, c : c + 8] for image, r, c in zip(padded, rows, columns, strict=True)]
    )


def train(network: nn.Module) -> None:
    """AdamW with a one-cycle learning rate on the training split."""
    images, labels = load_images(train=True)
    steps = EPOCHS * -(-len(labels) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
    for _ in range(EPOCHS):
        for batch in torch.split(torch.randperm(len(labels)), BATCH):
            loss = F.cross_entropy(network(shift(images[batch])), labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


def main(folder: Path = FOLDER) -> None:
    """Train every network from seed 0."""
    for name, build in NETWORKS.items():
        torch.manual_seed(0)
        network = build()
        train(network)
        save_file(network.state_dict(), folder / f"{name}.safetensors")
        result = evaluate(network, [load_images()])
        print(f"{name}: {result.correct} of {result.images} test images, {result.top1:.2f}%")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
