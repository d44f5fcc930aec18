"""Networks that were sharded after they were pruned: refused by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from prunus.shards import is_flattened, sharders

if TYPE_CHECKING:
    from prunus.application.state import PrunedWeight


def check_sharded(states: Iterable[PrunedWeight], within_forward: bool) -> None:
    """Refuse a network that was sharded after it was pruned.

    Within a forward its parts are gathered, and look like whole parameters: only FSDP knows which they are.

    Raises:
        RuntimeError: names a weight and what sharded it.
    """
    suspects = {}
    for state in states:
        for layer in state.layers:
            tensor = state.tensor_of(layer)
            if tensor is not None and is_traceable_wrapper_subclass(tensor):
                raise _refusal(state.name, type(tensor.data).__name__)
            whole = (
                not within_forward and isinstance(tensor, nn.Parameter) and tensor.shape == state.mask.shape
            )
            if not whole or is_flattened(state.parameter):
                suspects[id(layer)] = state.name
    for sharder in sharders() if suspects else ():
        for module in sharder.modules():
            if id(module) in suspects:
                raise _refusal(suspects[id(module)], type(sharder).__name__)


def _refusal(name: str, what: str) -> RuntimeError:
    return RuntimeError(
        f"{name} was pruned and is now sharded ({what}): sharded parameters are not supported, and its mask "
        "would be lost. Use DistributedDataParallel, or call prunus.restore(model) before sharding"
    )
