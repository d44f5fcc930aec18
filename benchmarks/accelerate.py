"""What zeros save on a CPU: `python -m benchmarks.accelerate [resnet50] [bert]`.

Random weights, pruned by magnitude in each layer, the first convolution not; one image of 224 pixels, or one
text of 128 words. All ways take turns. OpenVINO and ONNX Runtime run the network without zeros, too.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import prunus
from prunus.compaction.comparing import apart
from prunus.compaction.forgood import for_good
from prunus.extras import need
from prunus.speed.choosing import PRODUCTS, in_turns, with_sparse_layers
from prunus.speed.runtimes import RUNTIMES

DENSE = ("openvino", "onnxruntime", "compile")
RATIOS = (0.9, 0.95, 0.98)


def resnet50() -> tuple[nn.Module, Tensor]:
    """25.6 million weights."""
    return torchvision.models.resnet50().eval(), torch.randn(1, 3, 224, 224)


def bert() -> tuple[nn.Module, Tensor]:
    """BERT-base, 12 layers that are 768 wide."""
    transformers: Any = need("transformers", "transformers")
    model: nn.Module = transformers.BertModel(transformers.BertConfig(return_dict=False)).eval()
    return model, torch.randint(30000, (1, 128))


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {"resnet50": resnet50, "bert": bert}


def row(name: str, ratio: float, rounds: int) -> list[str]:
    """Of the table: milliseconds of each way."""
    torch.manual_seed(0)
    model, x = NETWORKS[name]()
    runs = {f"{way}, no zeros": RUNTIMES[way](model, (x,), {}) for way in DENSE[:2]}
    first = [name for name, _ in model.named_children() if name == "conv1"]
    prunus.global_prune(model, ratio, layers=("Conv2d", "Linear"), scope="layer", exclude=first)
    pruned = for_good(model)
    runs |= {way: RUNTIMES[way](pruned, (x,), {}) for way in DENSE}
    for product, made in PRODUCTS.items():
        network, choices, _ = with_sparse_layers(pruned, (x,), {}, {product: made})
        assert any(choice.kept == product for choice in choices.values())
        runs |= {f"{product}, {way}": RUNTIMES[way](network, (x,), {}) for way in ("eager", "compile")}
    wanted = RUNTIMES["eager"](pruned, (x,), {})(x)
    assert all(apart(wanted, run(x)) < 1e-4 for way, run in runs.items() if "no zeros" not in way)
    seconds = in_turns({way: partial(run, x) for way, run in runs.items()}, rounds)
    best = min(seconds[way] for way in DENSE)
    cells = [f"{1000 * s:.1f} ({best / s:.2f})" for s in seconds.values()]
    if ratio == RATIOS[0]:
        print(f"| network | pruned | {' | '.join(seconds)} |\n{'|---' * (len(cells) + 2)}|")
    return [name, f"{ratio:.0%}", *cells]


def main(names: list[str], rounds: int = 11) -> None:
    """Print a table."""
    warnings.simplefilter("ignore")
    for name in names or NETWORKS:
        for ratio in RATIOS:
            print(f"| {' | '.join(row(name, ratio, rounds))} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
