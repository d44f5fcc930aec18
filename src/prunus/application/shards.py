"""Networks that were sharded after they were pruned: refused by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from prunus.shards import sharders

if TYPE_CHECKING:
    from prunus.application.state import PrunedWeight


def check_sharded(states: Iterable[PrunedWeight]) -> None:
    """Refuse a network that was sharded after it was pruned.

    Raises:
        RuntimeError: names a weight and what sharded it.
    """
    layers = {id(layer): state.name for state in states for layer in state.layers}
    for state in states:
        for layer in state.layers:
            tensor = layer._parameters.get("weight")
            if tensor is not None and is_traceable_wrapper_subclass(tensor):
                raise _refusal(state.name, type(tensor.data).__name__)
    for sharder in sharders():
        for module in sharder.modules():
            if id(module) in layers:
                raise _refusal(layers[id(module)], type(sharder).__name__)


def _refusal(name: str, what: str) -> RuntimeError:
    return RuntimeError(
        f"{name} was pruned and is now sharded ({what}): sharded parameters are not supported, and its mask "
        "would be lost. Use DistributedDataParallel, or call prunus.restore(model) before sharding"
    )
