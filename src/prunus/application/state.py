"""The state of one pruned weight tensor.

It stands on every layer that holds the tensor, at one attribute, where deepcopy and pickle copy it. Mask and
backup are non-persistent buffers of the layer, `weight_mask` and `weight_orig`, which follow `.to()`; the
state_dict keeps its keys. Where they are kept is decided in `keep`, `kept_by` and `detach`, and nowhere else.
What the mask does to the passes is the business of the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prunus.weights import STATE, WeightTensor, state_of

MASK, BACKUP = "weight_mask", "weight_orig"  # under which names layers keep tensors


class Part:
    """One thing that a mask does to the passes of a network. What is not overridden does nothing."""

    def __init__(self, state: PrunedWeight) -> None:
        self.state = state

    def attach(self) -> None:
        """Begin. Hooks go to `state.handles` one by one, so that each is removed whatever happens."""

    def before_forward(self, user: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module that uses the weight is about to be called on these."""

    def before_change(self) -> None:
        """The mask is about to be exchanged."""

    def after_change(self) -> None:
        """The mask was exchanged."""

    def original(self) -> Tensor | None:
        """The values before pruning, where this part has changed them."""
        return None

    def detach(self) -> None:
        """Undo what was done to the tensor. Hooks are still there, and so is the mask."""


class PrunedWeight:
    """One pruned parameter, whose mask and parts are in force from `attach` to `detach`.

    Args:
        weight: the parameter and the layers that hold it.
        users: the modules whose forward uses it: those layers, but for the output projection of an
            `nn.MultiheadAttention`, which is never called, the attention module.
        parts: what the mask does to the passes.
    """

    def __init__(
        self,
        weight: WeightTensor,
        users: Sequence[nn.Module],
        parts: Sequence[Callable[[PrunedWeight], Part]],
    ) -> None:
        self.name, self.parameter, self.layers = weight.name, weight.parameter, weight.owners
        self.users, self.parts = users, [part(self) for part in parts]
        self.handles: list[RemovableHandle] = []

    @property
    def attached(self) -> bool:
        """Whether this pruning is in force: neither undone nor replaced by another."""
        return any(pruned_weight(layer) is self for layer in self.layers)

    @property
    def mask(self) -> Tensor:
        """True = keep, on the device of the weight."""
        mask = kept_by(self.layers[0], MASK)
        assert mask is not None
        return mask

    @property
    def backup(self) -> Tensor | None:
        """The values before pruning, where a part keeps them."""
        return kept_by(self.layers[0], BACKUP)

    def keep(self, name: str, tensor: Tensor) -> None:
        """Let the layers keep this tensor, in place of another of the name."""
        for layer in self.layers:
            layer.register_buffer(name, tensor, persistent=False)

    def holds(self, layer: nn.Module) -> bool:
        """Whether the layer still has the parameter that was pruned."""
        return layer._parameters.get("weight") is self.parameter

    @property
    def is_held(self) -> bool:
        """Whether any layer still has the parameter that was pruned."""
        return any(self.holds(layer) for layer in self.layers)

    def attach(self, mask: Tensor) -> None:
        """Prune by this mask from now on."""
        self.keep(MASK, mask.to(self.parameter.device))
        for layer in self.layers:
            vars(layer)[STATE] = self
        for module in {*self.layers, *self.users}:
            self.handles.append(
                module.register_forward_pre_hook(self.before_forward, prepend=True, with_kwargs=True)
            )
        for part in self.parts:
            part.attach()

    def before_forward(self, user: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The hook of every module that uses the weight."""
        for part in self.parts:
            part.before_forward(user, args, kwargs)

    def exchange(self, mask: Tensor) -> None:
        """Prune by this mask from now on. The tensor of the old one stays, for graphs that hold it."""
        for part in self.parts:
            part.before_change()
        self.keep(MASK, mask.to(self.parameter.device))
        for part in self.parts:
            part.after_change()

    def original(self) -> Tensor:
        """The values before pruning, detached: survivors as they are now, even if trained since."""
        found = (part.original() for part in self.parts)
        return next((values for values in found if values is not None), self.parameter.detach())

    def original_of(self, layer: nn.Module) -> Tensor | None:
        """The same, None where the layer's parameter was exchanged since."""
        return self.original() if self.holds(layer) else None

    def detach(self) -> None:
        """Put the original values back and take every trace off the layers."""
        for part in self.parts:
            part.detach()
        while self.handles:
            self.handles.pop().remove()
        for layer in self.layers:
            vars(layer).pop(STATE, None)
            for name in (MASK, BACKUP):
                if name in layer._buffers:
                    delattr(layer, name)


def kept_by(layer: nn.Module, name: str) -> Tensor | None:
    """The tensor that a layer keeps under this name, also a copy of a pruned layer."""
    return layer._buffers.get(name)


def pruned_weight(layer: nn.Module) -> PrunedWeight | None:
    """The state of this layer's weight; see `prunus.weights.state_of`."""
    state = state_of(layer)
    return state if isinstance(state, PrunedWeight) else None
