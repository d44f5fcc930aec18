"""Several networks as one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from prunus.checks import choose
from prunus.surrogates.surrogate import wants_gradient


class Ensemble(nn.Module):
    """Several networks attacked as one (Dong et al. 2018, arXiv 1710.06081).

    Args:
        networks: surrogates, each of which redraws by itself, or any modules from the same inputs to
            logits (batch, classes).
        average: what of theirs is averaged: "logits"; "probabilities", whose logarithm is given; or
            "losses": cross-entropy of the output is exactly the mean of their cross-entropies. No output of
            as many columns can have that property, so where a gradient of the input is asked for it gets
            one more, for the probability on which the networks do not agree. (This is for cross-entropy
            with one class an image, without label smoothing. The column may be the largest: predict without
            gradients.)

    Raises:
        TypeError: something other than modules.
        ValueError: no networks, or an unknown `average`.

    Example:
        >>> import prunus
        >>> nets = [nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten()).eval() for _ in range(2)]
        >>> surrogate = prunus.Ensemble([prunus.Diversified(net, 0.5, seed=0) for net in nets])
        >>> surrogate(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 4])
    """

    def __init__(self, networks: Iterable[nn.Module], average: str = "logits") -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        if not len(self.networks):
            raise ValueError("networks is empty: an ensemble needs at least one")
        self._average = choose("average", average, AVERAGES)
        self.training = any(network.training for network in self.networks)

    @property
    def device(self) -> torch.device:
        """Where its first parameter is."""
        return next(self.parameters()).device

    def forward(self, x: Tensor) -> Any:
        """Logits (batch, classes) of all networks together."""
        logits = torch.stack([network(x) for network in self.networks])
        return self._average(logits, wants_gradient(x))


def _mean(logits: Tensor, asked: bool) -> Tensor:
    return logits.mean(0)


def _mean_probability(logits: Tensor, asked: bool) -> Tensor:
    return logits.log_softmax(2).logsumexp(0) - torch.tensor(len(logits)).log()


def _mean_loss(logits: Tensor, asked: bool) -> Tensor:
    mean = logits.log_softmax(2).mean(0)
    if not asked:
        return mean
    disagreed = (1 - mean.exp().sum(1, keepdim=True)).clamp_min(torch.finfo(mean.dtype).eps)
    return torch.cat([mean, disagreed.log()], 1)


AVERAGES = {"logits": _mean, "probabilities": _mean_probability, "losses": _mean_loss}
