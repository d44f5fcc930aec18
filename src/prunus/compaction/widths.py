"""Modules that say how wide they are, made to fit the tensors that they hold.

To add a kind of module, write its function here and a line in the table at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from prunus.weights import conv1d


def convolution(module: Any) -> None:
    """Groups that are left are as wide as they were.

    Raises:
        ValueError: there is no such convolution.
    """
    first, second = module.weight.shape[:2]
    if module.groups > 1:
        module.groups = first // (
            (module.in_channels if module.transposed else module.out_channels) // module.groups
        )
    if not module.groups or (first if module.transposed else second) < 1 or first % module.groups:
        raise ValueError(f"no convolution has weights {tuple(module.weight.shape)} in {module.groups} groups")
    module.in_channels, module.out_channels = (
        (first, second * module.groups) if module.transposed else (second * module.groups, first)
    )


def linear(module: Any) -> None:
    """Outputs by inputs."""
    module.out_features, module.in_features = module.weight.shape


def transposed_linear(module: Any) -> None:
    """The Conv1D of transformers, inputs by outputs."""
    module.nf = module.weight.shape[1]


def norm(module: Any) -> None:
    """Of batches or of instances; without scales it has statistics."""
    held = module.weight if module.weight is not None else module.running_mean
    module.num_features = module.num_features if held is None else len(held)


def group_norm(module: Any) -> None:
    """Of groups of channels."""
    module.num_channels = len(module.weight)


def layer_norm(module: Any) -> None:
    """Of the last axes."""
    module.normalized_shape = tuple(module.weight.shape)


def embedding(module: Any) -> None:
    """Entries by columns."""
    module.num_embeddings, module.embedding_dim = module.weight.shape


def prelu(module: Any) -> None:
    """A slope a channel."""
    module.num_parameters = len(module.weight)


WIDTHS: dict[type[nn.Module], Callable[[Any], None]] = {
    _ConvNd: convolution,
    nn.Linear: linear,
    _NormBase: norm,
    nn.GroupNorm: group_norm,
    nn.LayerNorm: layer_norm,
    nn.Embedding: embedding,
    nn.PReLU: prelu,
}


def fit(module: nn.Module) -> None:
    """Let it say what it is, where it is of a kind that says so."""
    for kind, function in WIDTHS.items():
        if isinstance(module, kind):
            function(module)
    if isinstance(module, conv1d()):
        transposed_linear(module)
