"""Modules that say how wide they are, made to fit the tensors that they hold.

To add a kind of module, write its function here and a line in the table at the end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from prunus.compaction.attention import NarrowAttention, fewer_heads, narrow
from prunus.weights import conv1d, inputs_first


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


def recurrent(module: Any) -> None:
    """As many units in every layer and direction.

    Raises:
        ValueError: they are not as many everywhere.
    """
    per_unit = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    layers = range(module.num_layers)
    ends = [f"l{layer}{end}" for layer in layers for end in ("", "_reverse")[: 1 + module.bidirectional]]
    held = [(getattr(module, f"weight_ih_{end}"), getattr(module, f"weight_hh_{end}")) for end in ends]
    units, outputs = {len(ih) // per_unit for ih, _ in held}, {hh.shape[1] for _, hh in held}
    read = outputs.copy().pop() * (1 + module.bidirectional)
    deeper = {ih.shape[1] for ih, _ in held[1 + module.bidirectional :]}
    if len(units) > 1 or len(outputs) > 1 or deeper - {read}:
        raise ValueError(f"no {module.mode} has layers of {units} units")
    module.input_size, module.hidden_size = held[0][0].shape[1], units.pop()
    module.proj_size = outputs.pop() if module.proj_size else 0
    module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]


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
    nn.RNNBase: recurrent,
    nn.MultiheadAttention: narrow,
}


def fit(model: nn.Module, before: Mapping[str, Sequence[int]]) -> None:
    """Let modules say what they are, where they are of a kind that says so.

    Args:
        model: the network.
        before: by the names of the tensors that have been cut, the shapes that they had.
    """
    widths: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for path in {name.rpartition(".")[0] for name in before}:
        module: Any = model.get_submodule(path)
        for kind, function in WIDTHS.items():
            if isinstance(module, kind):
                function(module)
        if isinstance(module, conv1d()):
            transposed_linear(module)
        weight = f"{path}.weight"
        if weight in before:
            axis = 1 if inputs_first(module) else 0
            widths[path.rpartition(".")[0]].append((before[weight][axis], module.weight.shape[axis]))
    for path, changed in widths.items():
        fewer_heads(model.get_submodule(path), changed)
    for encoder in model.modules():
        narrower = any(isinstance(module, NarrowAttention) for module in encoder.modules())
        if isinstance(encoder, nn.TransformerEncoder) and narrower:
            encoder.use_nested_tensor = False  # which only torch's own attention takes
