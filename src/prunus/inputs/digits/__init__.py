"""The built-in example: small convolutional networks for real handwritten digits.

The images are scikit-learn's `load_digits` (Alpaydin and Kaynak 1998, UCI): 1,797 of 8×8 pixels,
halved into a training and a test split. `python -m benchmarks.train_digits` made the weights beside
this file on the training split, in a clone of the repository.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

FOLDER = Path(__file__).parent


class Residual(nn.Module):
    """Two 3×3 convolutions beside a shortcut (He et al. 2015, section 3.2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_convolution(width, width), nn.ReLU(), *_convolution(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, height, width) to the same shape."""
        y: Tensor = torch.relu(x + self.body(x))
        return y


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)


def _head(width: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)


def plain() -> nn.Sequential:
    """Three 3×3 convolutions, one after the other: 5,904 convolution weights."""
    first, second, third = _convolution(1, 16), _convolution(16, 16), _convolution(16, 24)
    return nn.Sequential(
        *first, nn.ReLU(), *second, nn.ReLU(), nn.MaxPool2d(2), *third, nn.ReLU(), *_head(24)
    )


def residual() -> nn.Sequential:
    """A stem and three residual blocks: 55,584 convolution weights."""
    blocks = Residual(32), Residual(32), nn.MaxPool2d(2), Residual(32)
    return nn.Sequential(*_convolution(1, 32), nn.ReLU(), *blocks, *_head(32))


NETWORKS: dict[str, Callable[[], nn.Sequential]] = {"plain": plain, "residual": residual}


def load_network(name: str) -> nn.Sequential:
    """A trained network by name.

    Example:
        >>> load_network("plain")(torch.zeros(1, 1, 8, 8)).shape
        torch.Size([1, 10])
    """
    network = NETWORKS[name]()
    network.load_state_dict(load_file(FOLDER / f"{name}.safetensors"))
    return network.eval()


def load_images(train: bool = False) -> tuple[Tensor, Tensor]:
    """Images (count, 1, 8, 8) in [0, 1] and labels (count,), of the test or the training split."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    rows = train_test_split(range(len(labels)), test_size=0.5, random_state=0, stratify=digits.target)
    chosen = rows[0] if train else rows[1]
    return images[chosen], labels[chosen]
