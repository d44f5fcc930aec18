"""What is cut of the same pruned networks, by Prunus and beside it: `python -m benchmarks.cutting`.

A quarter of the filters that hang together are zero, with their biases and scales. Torch-Pruning is asked
for a quarter by magnitude, which are these; EIDOSLAB's simplify (`pip install torch-simplify`) for what is
zero. Each in a process of its own, with 16 GB of memory and two minutes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.processes import answered, ask

FAMILIES = (
    "resnet18", "resnet50", "vgg11_bn", "densenet121", "googlenet", "squeezenet1_1", "mobilenet_v2",
    "mobilenet_v3_small", "mnasnet0_5", "shufflenet_v2_x0_5", "efficientnet_b0", "regnet_x_400mf",
    "convnext_tiny", "vit_b_16", "swin_t",
)  # fmt: skip


def told(arch: str, cut: Callable[[Any, Any], Any]) -> dict[str, Any]:
    """Seconds, the ratio of multiply-accumulates, and how far outputs are from the pruned network's."""
    import torch

    from benchmarks.compact import FAMILIES as LAYERS
    from benchmarks.compact import load
    from prunus import prune
    from prunus.compaction.forgood import for_good
    from prunus.macs import macs

    torch.manual_seed(0)
    model, image = load(arch), torch.randn(1, 3, 224, 224)
    prune(model, 0.25, granularity="filter", coupled=True, example_inputs=image, layers=LAYERS[arch])
    zeros, all_macs = for_good(model), macs(model, image)[""]
    with torch.no_grad():
        wanted = model(image)
    start = time.perf_counter()
    small = cut(zeros, image)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        found = small.eval()(image)
    apart = float((found - wanted).abs().max() / wanted.abs().max())
    return {"seconds": seconds, "ratio": all_macs / macs(small, image)[""], "apart": apart}


def prunus(arch: str) -> dict[str, Any]:
    """`prunus.compact`."""
    from prunus import compact

    return told(arch, lambda model, image: compact(model, image).model)


def torch_pruning(arch: str) -> dict[str, Any]:
    """Its pruner, which takes a quarter of each layer by magnitude, of those that were pruned."""
    import torch_pruning
    from torch import nn

    from benchmarks.compact import FAMILIES as LAYERS

    def cut(model: Any, image: Any) -> Any:
        layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
        rest = [one for one in layers if LAYERS[arch] == "Conv2d" and isinstance(one, nn.Linear)]
        torch_pruning.pruner.BasePruner(
            model,
            image,
            importance=torch_pruning.importance.MagnitudeImportance(p=1),
            pruning_ratio=0.25,
            ignored_layers=[*rest, layers[-1]],
        ).step()
        return model

    return told(arch, cut)


def simplify(arch: str) -> dict[str, Any]:
    """EIDOSLAB's, which cuts what is zero."""
    import simplify as theirs
    import torch

    return told(arch, lambda model, image: theirs.simplify(model, torch.zeros_like(image), fuse_bn=False))


TOOLS = {"prunus": prunus, "torch_pruning": torch_pruning, "simplify": simplify}


def shown(of: dict[str, Any]) -> str:
    """A cell of the table."""
    if "error" in of:
        return f"fails: {of['error']}"
    return f"{of['ratio']:.2f} times fewer, apart {of['apart']:.0e}, {of['seconds']:.1f} s"


def main() -> None:
    """Print the table, as Markdown."""
    if answered(TOOLS):
        return
    print("| network | Prunus | Torch-Pruning | simplify |\n|---|---|---|---|")
    for arch in FAMILIES:
        cells = [shown(ask("benchmarks.cutting", tool, arch)) for tool in TOOLS]
        print(f"| {arch} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
