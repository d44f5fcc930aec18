"""What does a batch hold? Arguments of the model, and targets; and what the model gave, its logits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from prunus.scores.evidence import LABELS
from prunus.selection.ranking import Choice


@dataclass(frozen=True)
class Labelled:
    """One batch: what the model is called with, and the targets that belong to it."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    targets: Any

    def __len__(self) -> int:
        """The number of examples."""
        targets = next(iter(self.targets.values())) if isinstance(self.targets, Mapping) else self.targets
        try:
            return len(targets)
        except TypeError:
            raise ValueError(f"loader gives the targets {targets!r:.80}, expected a batch of them") from None


def labelled(batch: Any, model: nn.Module, device: torch.device) -> Labelled:
    """Take a batch apart, onto this device.

    Args:
        batch: (inputs, targets), or a dict with "labels" (or "label") whose other entries go to the model by
            name; a single one that `forward` has no such name for is its first argument.
        model: which will be called.
        device: where its tensors are.

    Raises:
        ValueError: something else, or names that `model.forward` does not take.

    Example:
        >>> labelled({"x": torch.ones(2), "labels": torch.zeros(2)}, nn.Identity(), torch.device("cpu"))
        Labelled(args=(tensor([1., 1.]),), kwargs={}, targets=tensor([0., 0.]))
    """
    if isinstance(batch, Mapping):
        return _of_mapping(_moved(batch, device), model)
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        several = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
        raise ValueError(
            f"loader gives batches of the form {type(batch).__name__}{several}: "
            'expected (inputs, targets), or a dict with "labels"'
        )
    inputs, targets = _moved(batch, device)
    return Labelled((inputs,), {}, targets)


def example_of(loader: Iterable[Any], model: nn.Module) -> Any:
    """What the model is called with for the first example of a loader: arguments, or keywords.

    Raises:
        ValueError: there is none.
    """
    for batch in loader:
        found = labelled(batch, model, torch.device("cpu"))
        return tree_map(
            lambda leaf: leaf[:1] if isinstance(leaf, Tensor) else leaf, found.kwargs or found.args
        )
    raise ValueError("loader is empty: expected a batch at least")


def with_example(choice: Choice, loader: Iterable[Any], model: nn.Module) -> Choice:
    """The same choice, which has example inputs where it needs some."""
    if choice.get("coupled") and choice.get("example_inputs") is None:
        return Choice(**{**choice, "example_inputs": example_of(loader, model)})
    return choice


def _of_mapping(batch: Mapping[str, Any], model: nn.Module) -> Labelled:
    keys = [key for key in LABELS if key in batch]
    inputs = {name: value for name, value in batch.items() if name not in keys}
    if len(keys) != 1 or not inputs:
        raise ValueError(
            f"loader gives batches with the keys {', '.join(map(repr, batch))}: "
            'expected targets at "labels" or "label", and beside them what the model takes'
        )
    targets, parameters = batch[keys[0]], signature(model.forward).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    unknown = [name for name in inputs if name not in parameters]
    if len(inputs) == 1 and unknown and kinds - {Parameter.KEYWORD_ONLY, Parameter.VAR_KEYWORD}:
        return Labelled(tuple(inputs.values()), {}, targets)
    if unknown and Parameter.VAR_KEYWORD not in kinds:
        raise ValueError(
            f"loader gives {', '.join(map(repr, unknown))} beside the labels, which "
            f"{type(model).__name__}.forward does not take: it takes {', '.join(parameters) or 'nothing'}"
        )
    return Labelled((), inputs, targets)


def _moved(value: Any, device: torch.device) -> Any:
    """The same on this device, and what is in it too."""
    if isinstance(value, Mapping):
        return {key: _moved(entry, device) for key, entry in value.items()}
    if hasattr(value, "to"):  # tensors, packed sequences, graphs
        return value.to(device, non_blocking=True)
    if isinstance(value, (tuple, list)):
        moved = [_moved(entry, device) for entry in value]
        return moved if isinstance(value, list) else tuple(moved)
    return value


def logits_of(outputs: Any) -> Any:
    """The `logits` of outputs that have them, as those of Hugging Face do; others as they are."""
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping) and "logits" in outputs:
        return outputs["logits"]
    return getattr(outputs, "logits", outputs)
