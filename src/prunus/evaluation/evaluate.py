"""How many images does a network classify correctly?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.modes import eval_mode


@dataclass(frozen=True)
class Result:
    """Counts over a labelled data set, and the mean cross-entropy."""

    correct: int
    correct5: int
    images: int
    loss: float

    @property
    def top1(self) -> float:
        """Percent of images whose label is the highest-scored class."""
        return 100 * self.correct / self.images

    @property
    def top5(self) -> float:
        """Percent of images whose label is among the five highest-scored classes."""
        return 100 * self.correct5 / self.images


def evaluate(
    model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], amp: torch.dtype | None = None
) -> Result:
    """Classify every image of `loader`, in eval mode, without gradients.

    Args:
        model: from images (batch, ...) to logits (batch, classes).
        loader: (images, labels) batches, moved to the device of the model; labels are class indices.
        amp: run under autocast in this dtype; default off.

    Returns:
        `.top1` and `.top5` in percent, `.correct`, `.correct5`, `.images` counts, mean `.loss`.

    Raises:
        ValueError: no images, or a label that is no class of the model.

    Example:
        >>> import prunus
        >>> images, labels = torch.eye(4), torch.tensor([0, 1, 2, 0])
        >>> prunus.evaluate(nn.Identity(), [(images, labels)]).top1
        75.0
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    correct = correct5 = images = 0
    loss = 0.0
    amp_on = torch.autocast(device.type, amp, enabled=amp is not None)
    with eval_mode(model), torch.no_grad(), amp_on:
        for inputs, labels in loader:
            if not len(labels):
                continue
            logits = model(inputs.to(device, non_blocking=True)).float()
            labels = labels.to(device, non_blocking=True)
            _check_labels(labels, logits)
            hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
            hits &= ~logits.isnan().any(1, keepdim=True)  # topk takes NaN for the largest
            correct += int(hits[:, 0].sum())
            correct5 += int(hits.sum())
            images += len(labels)
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
    if not images:
        raise ValueError("loader is empty: expected at least one batch of (images, labels)")
    return Result(correct, correct5, images, loss / images)


def _check_labels(labels: Tensor, logits: Tensor) -> None:
    if logits.dim() != 2:
        raise ValueError(f"model must give logits (batch, classes), got shape {tuple(logits.shape)}")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(
            f"labels run from {int(labels.min())} to {int(labels.max())}, "
            f"but the model has {logits.shape[1]} classes"
        )
