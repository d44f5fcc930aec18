"""Published protocols, by name: the options of `prunus transfer` that follow them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A protocol.

    Args:
        options: values of options, by the names of their fields.
        published: the file beside this one with the numbers that were published under it, if there is one.
    """

    options: Mapping[str, Any]
    published: str | None = None


# Wang, Wu, Chen 2022 (arXiv 2208.08677), after Zhao et al. 2021 (arXiv 2012.11207)
TARGETED_IMAGENET = {
    "surrogates": "resnet50,densenet121,vgg16_bn,inception_v3",
    "weights": "IMAGENET1K_V1",
    "image_size": 299,
    "count": 1000,
    "attack": "mi+di+ti",
    "loss": "logit",
    "eps": "16/255",
    "step": "2/255",
    "steps": 300,
    "goal": "targeted",
    "batch_size": 20,
}

# github.com/Trustworthy-AI-Group/TransferAttack, described in arXiv 2602.23117
TRANSFERATTACK = {
    "surrogates": "resnet50",
    "targets": "resnet50,vgg16,mobilenet_v2,transferattack:inception_v3,timm:vit_base_patch16_224,"
    "timm:pit_b_224,timm:visformer_small,timm:swin_tiny_patch4_window7_224",
    "weights": "DEFAULT",
    "dummy": False,
    "image_size": 224,
    "own_size": True,
    "count": 1000,
    "every": True,
    "attack": "mi",
    "loss": "ce",
    "eps": "16/255",
    "step": "1.6/255",
    "steps": 10,
    "same_steps": True,
    "goal": "untargeted",
    "batch_size": 32,
}
TARGETED = {"attack": "mi+di+ti", "loss": "logit", "step": "2/255", "steps": 300, "goal": "targeted"}

PRESETS: Mapping[str, Preset] = {
    "targeted-imagenet": Preset(TARGETED_IMAGENET),
    "transferattack": Preset(TRANSFERATTACK, "transferattack.csv"),
    "transferattack-targeted": Preset({**TRANSFERATTACK, **TARGETED}, "transferattack.csv"),
}
