"""What criteria know beside the weights, and what the functions share that collect it.

A kind of evidence is the function that collects it: from the network, its weight tensors, labelled batches
and a loss to a tensor of the weight's shape by each weight's name. A criterion names it in its decorator.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from prunus.masks import counted
from prunus.weights import WeightTensor

Batches: TypeAlias = Iterable[tuple[Tensor, Tensor]]
Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
ByName: TypeAlias = Mapping[str, Tensor]
Need: TypeAlias = Callable[[nn.Module, Sequence[WeightTensor], Batches, Loss], ByName]


LABELS = ("labels", "label")  # as Hugging Face names targets in batches, and in data sets


class Renewed(dict[str, Tensor], ABC):
    """Evidence that can be found anew of a network that is pruned further."""

    @abstractmethod
    def under(self, masks: ByName) -> ByName:
        """The same where weights are pruned by these masks."""


@dataclass(frozen=True, repr=False)
class Evidence:
    """What criteria may read beside the weights.

    Args:
        found: by kind and weight name, tensors of the weight's shape.
        hint: how to come by what is missing.
    """

    found: Mapping[Need, ByName]
    hint: str = "collect it with prunus.evidence(model, batches, criterion=..., layers=...)"

    def __repr__(self) -> str:
        kinds = (f"{kind.__name__} of {counted(len(by), 'tensor')}" for kind, by in self.found.items())
        return f"Evidence({', '.join(kinds)})"

    def under(self, masks: ByName) -> Evidence:
        """The same of the network as these masks prune it, where that can be found anew without data."""
        return replace(
            self,
            found={k: by.under(masks) if isinstance(by, Renewed) else by for k, by in self.found.items()},
        )

    def about(self, weight: WeightTensor) -> dict[Need, Tensor]:
        """All that is known of one weight tensor, on its device.

        Raises:
            ValueError: the evidence is of another network.
        """
        known = {kind: by[weight.name] for kind, by in self.found.items() if weight.name in by}
        for tensor in known.values():
            if tensor.shape != weight.parameter.shape:
                raise ValueError(
                    f"evidence belongs to another network: that of {weight.name} has shape "
                    f"{tuple(tensor.shape)}, its weight {tuple(weight.parameter.shape)}"
                )
        return {kind: tensor.to(weight.parameter.device) for kind, tensor in known.items()}


def check_rereadable(batches: Batches) -> None:
    """Refuse batches that can be read only once.

    Raises:
        TypeError: they are an iterator.
    """
    if isinstance(batches, Iterator):
        raise TypeError("batches is an iterator, which can be read once only: give a DataLoader or a list")


def _parted(batch: Any) -> tuple[Any, Any]:
    """Inputs and targets."""
    if isinstance(batch, Mapping):
        inputs = {name: value for name, value in batch.items() if name not in LABELS}
        return inputs, next((batch[name] for name in LABELS if name in batch), None)
    inputs, targets = batch
    return inputs, targets


def called(model: nn.Module, inputs: Any) -> Any:
    """What a network gives for inputs, which may be by name."""
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)


def wide(parameter: Tensor) -> torch.dtype:
    """A dtype in which many values can be summed."""
    return torch.promote_types(parameter.dtype, torch.float32)


def moved(batches: Iterable[Any], device: torch.device) -> Iterator[tuple[Any, Any]]:
    """The inputs and targets of batches on this device; those of a dict are by name. There must be one."""
    empty = True
    for batch in batches:
        yield tree_map(lambda leaf: leaf.to(device) if hasattr(leaf, "to") else leaf, _parted(batch))
        empty = False
    if empty:
        raise ValueError("batches is empty: expected at least one (inputs, targets)")
