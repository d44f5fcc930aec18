"""Networks that take pixels in [0, 1], and pixels as a PNG file holds them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.extras import need
from prunus.files import errors_name
from prunus.inputs.networks import Network


class Normalized(nn.Module):
    """A network behind the normalisation of its inputs.

    Args:
        model: takes normalised images.
        mean: subtracted from each channel in [0, 1], shape (channels,).
        std: by which each channel is then divided, shape (channels,).
        side: that square images are scaled to first; default as they are.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Tensor, std: Tensor, side: int | None = None) -> None:
        super().__init__()
        self.model, self.side = model, side
        self.register_buffer("mean", mean.view(-1, 1, 1), persistent=False)
        self.register_buffer("std", std.view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Any:
        """Logits for images in [0, 1]."""
        if self.side and images.shape[-1] != self.side:
            fewer = images.shape[-1] > self.side
            images = F.interpolate(images, (self.side, self.side), mode="bilinear", antialias=fewer)
        return self.model((images - self.mean) / self.std)


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Logits on the CPU, without gradients."""
    device = next((parameter.device for parameter in model.parameters()), images.device)
    logits: Tensor = model(images.to(device))
    return logits.float().cpu()


def normalization(network: Network) -> tuple[Tensor, Tensor]:
    """The mean and standard deviation that the preprocessing of a network subtracts and divides by.

    Found by what it makes of a black and of a white image, so that every library's transforms do.

    Raises:
        ValueError: the preprocessing is not an affine map of each channel.
    """
    if network.transform is None:
        return torch.zeros(1), torch.ones(1)
    black, grey, white = (_constant(network, shade, 512).double() for shade in (0, 51, 255))
    for image in (black, grey, white):
        if (image - image[:, :1, :1]).abs().max() > 1e-4:
            raise ValueError(f"{network.name}: its preprocessing is more than a normalisation of channels")
    low, middle, high = (image[:, 0, 0] for image in (black, grey, white))
    if (low + (high - low) / 5 - middle).abs().max() > 1e-4:
        raise ValueError(f"{network.name}: its preprocessing is not linear in the pixels")
    std = 1 / (high - low)
    return (-low * std).float(), std.float()


def own_size(network: Network) -> int | None:
    """The side of the square that the preprocessing of a network cuts out, None where it keeps the size."""
    if network.transform is None:
        return None
    first, second = (_constant(network, 0, side).shape[-1] for side in (512, 640))
    return first if first == second else None


def _constant(network: Network, shade: int, side: int) -> Tensor:
    assert network.transform is not None
    return network.transform(need("PIL.Image", "eval").new("RGB", (side, side), (shade,) * 3))


def round_within(adversarial: Tensor, clean: Tensor, eps: float) -> Tensor:
    """The nearest images of 256 levels that stay within eps of the clean ones.

    Args:
        adversarial: in [0, 1], within eps of `clean`.
        clean: images of 256 levels, in [0, 1].
        eps: at least 1/255 to allow any change.

    Example:
        >>> clean = torch.tensor([100 / 255])
        >>> (255 * round_within(torch.tensor([103.9 / 255]), clean, 3.9 / 255)).round()
        tensor([103.])
    """
    levels, reach = (255 * clean).round(), int(255 * eps + 1e-6)
    return (255 * adversarial).round().clamp(levels - reach, levels + reach).clamp(0, 255) / 255


def save_png(images: Tensor, paths: Sequence[Path]) -> None:
    """Write images of 256 levels, (batch, 1 or 3, height, width) in [0, 1], a file each.

    Raises:
        OSError: one cannot be written, by its name.
    """
    image = need("PIL.Image", "eval")
    for pixels, path in zip((255 * images).round().byte().cpu().permute(0, 2, 3, 1), paths, strict=True):
        made = image.fromarray(pixels.squeeze(2).numpy() if pixels.shape[2] == 1 else pixels.numpy())
        # Not as a whole_file: an attack that was interrupted writes all of its images again
        with errors_name(path):
            made.save(path)


def load_png(paths: Sequence[Path]) -> Tensor:
    """The images of these files, (batch, 1 or 3, height, width) in [0, 1].

    Raises:
        ValueError: one cannot be read, or is of another size or kind than the first.
    """
    arrays = [_load(path) for path in paths]
    for array, path in zip(arrays, paths, strict=True):
        if array.shape != arrays[0].shape:
            raise ValueError(f"image {path} has shape {array.shape}, but {paths[0]} {arrays[0].shape}")
    pixels = torch.from_numpy(np.stack(arrays))
    return (pixels[:, None] if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2)).float() / 255


def _load(path: Path) -> NDArray[np.uint8]:
    try:
        with need("PIL.Image", "eval").open(path) as image:
            if image.mode not in ("L", "RGB"):
                raise ValueError(f"expected pixels in grey or RGB, got {image.mode}")
            return np.asarray(image)
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow raises many kinds
        raise ValueError(f"cannot read image {path} ({type(error).__name__}: {error})") from error
