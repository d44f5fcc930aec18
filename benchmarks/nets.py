"""Networks of the literature that torchvision does not have, for `--arch benchmarks/nets.py:NAME`."""

from __future__ import annotations

from torch import nn


def lenet_300_100() -> nn.Sequential:
    """Two hidden layers on 28×28 grey pixels, 266,200 weights and 410 biases (LeCun et al. 1998)."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def mlp_500_500() -> nn.Sequential:
    """Two hidden layers of 500 on 28×28 grey pixels, as in meProp (Sun et al. 2017)."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 500), nn.ReLU(), nn.Linear(500, 500), nn.ReLU(), nn.Linear(500, 10)
    )
