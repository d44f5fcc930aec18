"""What is cut of torchvision's families, and what that saves: `python -m benchmarks.compact`.

A quarter of the filters that hang together, by magnitude, of random weights; one image, in turns.
"""

from __future__ import annotations

import time
import warnings

import torch
import torchvision
from torch import nn

import prunus
from benchmarks.measure import Task, by_turns

FAMILIES = {
    "resnet18": "Conv2d",
    "resnet50": "Conv2d",
    "vgg11_bn": "Conv2d",
    "densenet121": "Conv2d",
    "googlenet": "Conv2d",
    "squeezenet1_1": "Conv2d",
    "mobilenet_v2": "Conv2d",
    "mobilenet_v3_small": "Conv2d",
    "mnasnet0_5": "Conv2d",
    "efficientnet_b0": "Conv2d",
    "regnet_x_400mf": "Conv2d",
    "shufflenet_v2_x0_5": "Conv2d",
    "convnext_tiny": "all",
    "vit_b_16": "all",
    "swin_t": "all",
    "maxvit_t": "all",
}


def load(arch: str) -> nn.Module:
    """With batch norms as of a trained network, and a last layer that is not of zeros."""
    own = {"init_weights": False, "aux_logits": False} if arch == "googlenet" else {}
    model: nn.Module = torchvision.models.get_model(arch, **own).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, 0, 0.02)
    return model


def row(arch: str, layers: str, rounds: int) -> str:
    """Of the table."""
    torch.manual_seed(0)
    model, image = load(arch), torch.randn(1, 3, 224, 224)
    dense = load(arch)
    prunus.prune(model, 0.25, granularity="filter", coupled=True, example_inputs=image, layers=layers)
    start = time.perf_counter()
    made = prunus.compact(model, image)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        wanted, found = model(image), made.model(image)
        apart = float((wanted - found).abs().max() / wanted.abs().max())
        tasks = {
            "dense": Task(lambda: dense(image)),
            "compact": Task(lambda: made.model(image)),
        }
        faster = 1 / by_turns(tasks, rounds, "compact")["times_the"]["dense"]
    ratios = (made.weights[0] / made.weights[1], made.macs[0] / made.macs[1], faster)
    stayed = "; ".join(f"{count} {why}" for why, count in made.spared.items()) or "-"
    cells = [arch, f"{seconds:.1f}", f"{apart:.0e}", *(f"{ratio:.2f}" for ratio in ratios), stayed]
    return f"| {' | '.join(cells)} |"


def main(rounds: int = 9) -> None:
    """Print a table."""
    warnings.simplefilter("ignore")  # of filters that stay whole
    print("| network | seconds | apart | fewer weights | fewer MACs | faster | empty, but stay |")
    print("|---|---|---|---|---|---|---|")
    for arch, layers in FAMILIES.items():
        print(row(arch, layers, rounds), flush=True)


if __name__ == "__main__":
    main()
