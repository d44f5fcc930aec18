"""What is zero now, whoever did it?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from prunus.weights import matrices


@dataclass(frozen=True, repr=False)
class Sparsity:
    """Zeros in the weights of a network.

    Args:
        layers: by weight name, (zeros, entries).
    """

    layers: Mapping[str, tuple[int, int]]

    def __repr__(self) -> str:
        return f"Sparsity({self.fraction:.4f}: {self.zeros:,} of {self.weights:,} weights are zero)"

    @property
    def zeros(self) -> int:
        """Number of zeros."""
        return sum(zeros for zeros, _ in self.layers.values())

    @property
    def weights(self) -> int:
        """Number of entries."""
        return sum(count for _, count in self.layers.values())

    @property
    def fraction(self) -> float:
        """`zeros / weights`."""
        return self.zeros / max(1, self.weights)


def sparsity(model: nn.Module) -> Sparsity:
    """Count the zeros in every matrix and filter bank of a network, per layer and in all.

    Args:
        model: any network, pruned by whatever; tied weights count once, biases and scales do not.

    Example:
        >>> import prunus
        >>> net = prunus.global_prune(nn.Conv2d(1, 2, 3), 0.5)
        >>> prunus.sparsity(net)
        Sparsity(0.5000: 9 of 18 weights are zero)
    """
    values = {name: weight.parameter.detach() for name, weight in matrices(model).items()}
    return Sparsity({name: (t.numel() - int(t.count_nonzero()), t.numel()) for name, t in values.items()})
