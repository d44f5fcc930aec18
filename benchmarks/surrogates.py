"""`python -m benchmarks.surrogates`: what a gradient on a surrogate costs, against one on the network."""

from __future__ import annotations

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torchvision.models import resnet50

import prunus
from benchmarks import measure
from benchmarks.measure import Task

FRACTION = 0.15  # that MUP masks


def gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Of the summed cross-entropy, by the images."""
    x = images.clone().requires_grad_()
    [found] = torch.autograd.grad(F.cross_entropy(model(x), labels, reduction="sum"), x)
    return found


def chain() -> nn.Sequential:
    """ResNet-20's convolutions (He et al. 2015, section 4.2), one after the other, without shortcuts."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    inputs = 3
    for width, stride in [(16, 1)] * 7 + [(32, 2)] + [(32, 1)] * 5 + [(64, 2)] + [(64, 1)] * 5:
        layers += [nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()


def one_by_one(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """MUP as it is written where a mask is for one image: rank, mask and step, image by image."""
    weights = {name: p for name, p in model.named_parameters() if p.dim() == 4}
    found = []
    for image, label in zip(torch.split(images, 1), torch.split(labels, 1), strict=True):
        loss = F.cross_entropy(model(image), label)
        masked = {}
        for name, grad in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            scores = (weights[name].detach() * grad).abs()
            line = scores.flatten().kthvalue(int(FRACTION * scores.numel())).values
            masked[name] = weights[name].detach() * (scores > line)
        x = image.clone().requires_grad_()
        value = F.cross_entropy(functional_call(model, masked, (x,)), label)
        found.append(torch.autograd.grad(value, x)[0])
    return torch.cat(found)


def batch(surrogate: prunus.MUP, images: Tensor, labels: Tensor) -> Tensor:
    """The same for all images at once."""
    surrogate.labels = labels
    return gradient(surrogate, images, labels)


@click.command()
@click.option("--rounds", default=9, show_default=True, help="Turns that everyone gets; medians count.")
def main(rounds: int) -> None:
    """Measure everything and print the table."""
    table = Table("what", "Prunus", "beside", "ratio")
    large = resnet50().eval().requires_grad_(False)
    images, labels = torch.rand(4, 3, 224, 224), torch.arange(4)
    for passes in ("both", "backward"):
        surrogate = prunus.Diversified(large, 0.7, passes=passes)
        tasks = {
            "prunus": Task(lambda surrogate=surrogate: gradient(surrogate, images, labels)),  # type: ignore[misc]
            "the network": Task(lambda: gradient(large, images, labels)),
        }
        _add(table, f"Diversified, passes={passes}: ResNet-50, batch 4", measure.by_turns(tasks, rounds))
    small, mup = chain(), prunus.MUP(chain(), FRACTION)
    images, labels = torch.rand(32, 3, 32, 32), torch.arange(32) % 10
    tasks = {
        "prunus": Task(lambda: batch(mup, images, labels)),
        "one by one": Task(lambda: one_by_one(small, images, labels)),
        "the network": Task(lambda: gradient(small, images, labels)),
    }
    _add(table, "MUP: ResNet-20's convolutions, batch 32 at 32²", measure.by_turns(tasks, rounds))
    Console(width=110).print(table)
    click.echo(", ".join(f"{name} {value}" for name, value in measure.machine().items()))


def _add(table: Table, what: str, found: dict[str, dict[str, float]]) -> None:
    for name, ratio in found["times_the"].items():
        ours, theirs = found["seconds"]["prunus"], found["seconds"][name]
        table.add_row(what, f"{1e3 * ours:,.0f} ms", f"{name}: {1e3 * theirs:,.0f} ms", f"{ratio:.2f}")


if __name__ == "__main__":
    main()
