"""What hangs together in torchvision's families: found by Prunus, and by Torch-Pruning's graph beside it.

Each in a process of its own, with 16 GB of memory and two minutes: `python -m benchmarks.coupled`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.processes import answered, ask

FAMILIES = (
    "resnet18", "resnext50_32x4d", "regnet_y_400mf", "vgg11_bn", "densenet121", "googlenet", "inception_v3",
    "squeezenet1_1", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5", "shufflenet_v2_x0_5",
    "efficientnet_b0", "efficientnet_v2_s", "convnext_tiny", "vit_b_32", "swin_t", "swin_v2_t", "maxvit_t",
)  # fmt: skip


def load(arch: str) -> tuple[Any, Any]:
    """A network with random weights, and an image for it."""
    import torch
    import torchvision

    size = 299 if arch == "inception_v3" else 224
    own = {"init_weights": False} if arch in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(arch, **own).eval(), torch.randn(1, 3, size, size)


def prunus(arch: str) -> dict[str, Any]:
    """Seconds, filters, and the pieces that they make; those of outputs left out."""
    from prunus.coupling.trace import trace

    model, image = load(arch)
    start = time.perf_counter()
    units = trace(model, dict(model.named_parameters()), image)
    seconds = time.perf_counter() - start
    free = [unit for unit in units if not unit.why]
    others = {why for unit in units for why in unit.why} - {"are outputs of the network"}
    return {
        "seconds": seconds,
        "filters": sum(len(unit.filters) for unit in free),
        "pieces": len(free),
        "whole": sorted(others),
    }


def torch_pruning(arch: str) -> dict[str, Any]:
    """Seconds, and how many filters are in one of its groups at least; outputs included."""
    import torch_pruning
    from torch import nn

    model, image = load(arch)
    start = time.perf_counter()
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=image)
    groups = list(graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]))
    return {"seconds": time.perf_counter() - start, "groups": len(groups)}


TOOLS: dict[str, Callable[[str], dict[str, Any]]] = {"prunus": prunus, "torch_pruning": torch_pruning}


def main() -> None:
    """Print the table, as Markdown."""
    if answered(TOOLS):
        return
    print("| network | filters | pieces | seconds | what stays whole | Torch-Pruning's graph |")
    print("|---|---|---|---|---|---|")
    for arch in FAMILIES:
        ours, theirs = (ask("benchmarks.coupled", tool, arch) for tool in TOOLS)
        other = theirs.get("error") or f"{theirs['groups']} groups, {theirs['seconds']:.1f} s"
        numbers = f"{ours['filters']:,} | {ours['pieces']:,} | {ours['seconds']:.1f}"
        print(f"| {arch} | {numbers} | {'; '.join(ours['whole']) or '-'} | {other} |", flush=True)


if __name__ == "__main__":
    main()
