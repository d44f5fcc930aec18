"""Reference attacks within an L∞ ball: iterative FGSM with momentum and what is known to make it transfer."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.extras import need

# From logits (batch, classes) and labels (batch,) to one value an image, which falls where the label wins
Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the logarithm of the probability of the label."""
    return F.cross_entropy(logits, labels, reduction="none")


def logit(logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the logit of the label, whose gradient does not fade (Zhao et al. 2021, arXiv 2012.11207)."""
    return -logits.gather(1, labels[:, None])[:, 0]


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The best of the other logits minus that of the label (Carlini and Wagner 2017, arXiv 1608.04644)."""
    others = logits.scatter(1, labels[:, None], -math.inf).amax(1)
    return others + logit(logits, labels)


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "logit": logit, "margin": margin}


@dataclass(frozen=True)
class Attack:
    """What every attack is told.

    Args:
        eps: largest change of a pixel; pixels are in [0, 1].
        step: change of a pixel in one step; default eps/4, or eps/steps where there are fewer than four.
        steps: how many.
    """

    eps: float = 8 / 255
    step: float | None = None
    steps: int = 10

    @property
    def step_size(self) -> float:
        """`step`, or its default."""
        return self.eps / min(4, self.steps) if self.step is None else self.step

    @property
    def stages(self) -> int:
        """How often `run` gives images."""
        raise NotImplementedError

    @property
    def is_random(self) -> bool:
        """Whether it draws random numbers."""
        raise NotImplementedError

    @property
    def heeds_steps(self) -> bool:
        """Whether `steps` says how many gradients are taken."""
        return True

    def check(self, targeted: bool) -> None:
        """Raise a ValueError where `run` would, before any work is done."""

    def run(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        targeted: bool = False,
        generator: torch.Generator | None = None,
    ) -> Iterator[Tensor]:
        """The images as they become adversarial, at last as they are.

        Args:
            model: from images in [0, 1] (batch, channels, height, width) to logits (batch, classes).
            images: in [0, 1].
            labels: class to move away from, or if `targeted` towards, shape (batch,).
            targeted: whether `labels` are what the network shall answer.
            generator: on the CPU, of all that is random; default the global one.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Iterative(Attack):
    """Steps along the sign of the gradient, MI-FGSM by default.

    Args:
        eps, step, steps: see `Attack`.
        loss: one value an image.
        momentum: of the gradients, each divided by its mean absolute value (MI, Dong et al. 2018,
            arXiv 1710.06081).
        nesterov: look ahead along the momentum (NI, Lin et al. 2020, arXiv 1908.06281).
        scales: average the gradients at x, x/2, … x/2^(scales-1) (SI, the same paper), one call of the
            network each.
        diversity: chance of enlarging by up to a tenth and padding the images, all of a batch alike, before
            a call (DI, Xie et al. 2019, arXiv 1803.06978); they are scaled back to their size.
        kernel: side of the Gaussian that smooths gradients (TI, Dong et al. 2019, arXiv 1904.02884);
            1 is none.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))
        >>> images, labels = torch.rand(2, 3, 8, 8), torch.tensor([0, 1])
        >>> *_, adversarial = Iterative(eps=8 / 255, kernel=5).run(net, images, labels)
        >>> bool((adversarial - images).abs().max() <= 8 / 255 + 1e-6)
        True
    """

    loss: Loss = cross_entropy
    momentum: float = 1.0
    nesterov: bool = False
    scales: int = 1
    diversity: float = 0.0
    kernel: int = 1

    @property
    def stages(self) -> int:
        """One after every step."""
        return self.steps

    @property
    def is_random(self) -> bool:
        """Whether images are enlarged and padded at random."""
        return self.diversity > 0

    def run(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        targeted: bool = False,
        generator: torch.Generator | None = None,
    ) -> Iterator[Tensor]:
        """The images after every step; see `Attack`."""
        step = self.step_size
        sign = -1.0 if targeted else 1.0
        adversarial, velocity = images.detach(), torch.zeros_like(images)
        for _ in range(self.steps):
            ahead = adversarial + step * self.momentum * velocity if self.nesterov else adversarial
            gradient = self._gradient(model, ahead, labels, generator)
            size = gradient.abs().mean((1, 2, 3), keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
            velocity = self.momentum * velocity + sign * gradient / size
            adversarial = adversarial + step * velocity.sign()
            adversarial = adversarial.clamp(images - self.eps, images + self.eps).clamp(0, 1)
            yield adversarial

    def _gradient(
        self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        total = torch.zeros_like(images)
        for scale in range(self.scales):
            x = images.detach().requires_grad_()
            logits = model(diversify(x / 2**scale, self.diversity, generator))
            [gradient] = torch.autograd.grad(self.loss(logits.float(), labels).sum(), x)
            total += gradient
        return smooth(total / self.scales, self.kernel)


# By their names, what makes an attack transfer: they can be put together
PARTS: dict[str, dict[str, Any]] = {
    "mi": {"momentum": 1.0},
    "ni": {"momentum": 1.0, "nesterov": True},
    "di": {"diversity": 0.7},
    "ti": {"kernel": 5},
    "si": {"scales": 5},
}


def diversify(images: Tensor, chance: float, generator: torch.Generator | None = None) -> Tensor:
    """With this chance, images enlarged by up to a tenth, padded at random and scaled back to their size."""
    if not chance or torch.rand((), generator=generator) >= chance:
        return images
    sides = images.shape[-2:]
    largest = [math.ceil(1.1 * side) for side in sides]
    share = float(torch.rand((), generator=generator))
    sizes = [side + round(share * (most - side)) for side, most in zip(sides, largest, strict=True)]
    before = [
        int(torch.randint(most - size + 1, (), generator=generator))
        for most, size in zip(largest, sizes, strict=True)
    ]
    padding = [
        before[1],
        largest[1] - sizes[1] - before[1],
        before[0],
        largest[0] - sizes[0] - before[0],
    ]
    enlarged = F.interpolate(images, sizes, mode="bilinear", align_corners=False)
    return F.interpolate(F.pad(enlarged, padding), sides, mode="bilinear", align_corners=False)


def smooth(gradients: Tensor, side: int) -> Tensor:
    """Gradients convolved with a Gaussian of three standard deviations to either side."""
    if side == 1:
        return gradients
    line = torch.linspace(-3, 3, side, dtype=gradients.dtype, device=gradients.device).square().div(-2).exp()
    kernel = torch.outer(line, line) / line.sum() ** 2
    channels = gradients.shape[1]
    return F.conv2d(gradients, kernel.expand(channels, 1, side, side), padding="same", groups=channels)


@dataclass(frozen=True, kw_only=True)
class FromTorchattacks(Attack):
    """An attack of the torchattacks library, by the `name` of its class."""

    name: str

    @property
    def stages(self) -> int:
        """The library gives its last images only."""
        return 1

    @property
    def is_random(self) -> bool:
        """Taken to be so: most are, and no class says whether it is."""
        return True

    @property
    def heeds_steps(self) -> bool:
        """Whether the class takes steps."""
        return "steps" in inspect.signature(self._class()).parameters

    def check(self, targeted: bool) -> None:
        """Raise a ValueError where `run` would."""
        self._build(nn.Linear(1, 1), targeted)

    def run(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        targeted: bool = False,
        generator: torch.Generator | None = None,
    ) -> Iterator[Tensor]:
        """The images after the last step; see `Attack`.

        Raises:
            ValueError: no such attack, or it knows no targets, or no eps in L∞.
        """
        attack = self._build(model, targeted)
        with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            yield attack(images, labels)

    def _build(self, model: nn.Module, targeted: bool) -> Any:
        kind = self._class()
        wanted = {"eps": self.eps, "alpha": self.step_size, "steps": self.steps}
        known = inspect.signature(kind).parameters
        attack = kind(model, **{name: value for name, value in wanted.items() if name in known})
        if targeted:
            if "targeted" not in attack.supported_mode:
                raise ValueError(f"torchattacks.{self.name} knows no targets")
            attack.set_mode_targeted_by_label(quiet=True)
        return attack

    def _class(self) -> Any:
        kind: Any = getattr(need("torchattacks", "attacks"), self.name, None)
        if not callable(kind):
            raise ValueError(f"torchattacks has no attack {self.name!r}")
        if "eps" not in inspect.signature(kind).parameters:
            raise ValueError(f"torchattacks.{self.name} takes no eps: it cannot be compared at one")
        if self.name.endswith("L2"):  # so the library names them; nothing else in a class tells
            raise ValueError(f"torchattacks.{self.name} takes eps in L2, and here eps is in L∞")
        return kind
