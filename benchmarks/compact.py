"""What is cut of families of networks, and what that saves: `python -m benchmarks.compact`.

A quarter of the filters that hang together, by magnitude, of random weights; one image or one text, in turns.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import torch
from torch import Tensor, nn

import prunus
from benchmarks.measure import Task, by_turns
from prunus.coupling.trace import tensors_in
from prunus.inputs.networks import load_network

FAMILIES = {
    **dict.fromkeys(
        (
            "resnet18", "resnet50", "vgg11_bn", "densenet121", "googlenet", "squeezenet1_1", "mobilenet_v2",
            "mobilenet_v3_small", "mnasnet0_5", "efficientnet_b0", "regnet_x_400mf", "shufflenet_v2_x0_5",
            "timm:ghostnet_100", "timm:repvgg_a0", "timm:mobilenetv4_conv_small", "timm:hardcorenas_a",
            "timm:dla34", "timm:res2net50_26w_4s",
        ),
        "Conv2d",
    ),
    **dict.fromkeys(
        (
            "convnext_tiny", "vit_b_16", "swin_t", "maxvit_t", "timm:vit_tiny_patch16_224",
            "timm:swin_tiny_patch4_window7_224", "timm:levit_128s", "timm:mixer_s32_224",
            "timm:poolformer_s12", "timm:edgenext_xx_small", "bert", "gpt2",
        ),
        "all",
    ),
}  # fmt: skip


def language(arch: str) -> nn.Module:
    """BERT and GPT-2 in small: 4 layers of 256."""
    import transformers as hf

    if arch == "gpt2":
        return hf.GPT2Model(hf.GPT2Config(n_embd=256, n_layer=4, n_head=4, use_cache=False))
    sizes: Any = {"num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
    return hf.BertModel(hf.BertConfig(hidden_size=256, **sizes))


def inputs(arch: str) -> Any:
    """One image, or one text of 128 words."""
    if arch in ("bert", "gpt2"):
        return {"input_ids": torch.randint(1000, (1, 128))}
    return torch.randn(1, 3, 224, 224)


def load(arch: str) -> nn.Module:
    """With batch norms as of a trained network, and a last layer that is not of zeros."""
    model = language(arch) if arch in ("bert", "gpt2") else load_network(arch, "none").model
    model.train(False)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, 0, 0.02)
    return model


def run(model: nn.Module, given: Any) -> Tensor:
    """The first output."""
    with torch.no_grad():
        return tensors_in(model(**given) if isinstance(given, dict) else model(given))[0]


def row(arch: str, layers: str, rounds: int) -> str:
    """Of the table."""
    torch.manual_seed(0)
    model, given = load(arch), inputs(arch)
    dense = load(arch)
    prunus.prune(model, 0.25, granularity="filter", coupled=True, example_inputs=given, layers=layers)
    start = time.perf_counter()
    made = prunus.compact(model, given)
    seconds = time.perf_counter() - start
    wanted, found = run(model, given), run(made.model, given)
    apart = float((wanted - found).abs().max() / wanted.abs().max())
    tasks = {"dense": Task(lambda: run(dense, given)), "compact": Task(lambda: run(made.model, given))}
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
