"""How much of well-known networks does `layers="all"` reach? `python -m benchmarks.reach` prints the table.

Networks of their published sizes, by their configurations alone: without values, on the meta device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import transformers
from torch import nn
from torchvision import models

from prunus.shares import Shares
from prunus.weights import shares_of


def networks() -> dict[str, Callable[[], nn.Module]]:
    """By name, how each is made."""
    t = transformers
    return {
        "ResNet-50": models.resnet50,
        "ConvNeXt-Tiny": models.convnext_tiny,
        "ViT-B/16": models.vit_b_16,
        "Swin-T": models.swin_t,
        "GPT-2": lambda: t.GPT2LMHeadModel(t.GPT2Config()),
        "BERT-base": lambda: t.BertModel(t.BertConfig()),
        "T5-small": lambda: t.T5ForConditionalGeneration(t.T5Config()),
        "Llama-7B": lambda: t.LlamaForCausalLM(t.LlamaConfig()),
        "Mixtral-8x7B": lambda: t.MixtralForCausalLM(t.MixtralConfig()),
        "Whisper-tiny": lambda: t.WhisperForConditionalGeneration(t.WhisperConfig()),
        "wav2vec2-base": lambda: t.Wav2Vec2ForCTC(t.Wav2Vec2Config()),
        "LSTM, 2 layers of 512": lambda: nn.Sequential(nn.Embedding(1000, 512), nn.LSTM(512, 512, 2)),
    }


def rows() -> Iterator[tuple[str, Shares]]:
    """Name and shares of each network."""
    for name, make in networks().items():
        with torch.device("meta"):
            model = make()
        yield name, shares_of(model, (nn.Module,))


def main() -> None:
    """Print the table."""
    print('| network | weights | `layers="all"` reaches | the rest |\n|---|---|---|---|')
    for name, shares in rows():
        print(f"| {name} | {shares.total:,} | {shares.held / shares.total:.1%} | {shares.holders or '-'} |")


if __name__ == "__main__":
    main()
