"""How do the masks reach the computation? And back again, bit for bit.

- both: pruned weights are zero in the tensor itself, and so in every pass. Their gradient is
  zero, and what an optimizer's momentum still adds to them is taken off before the next forward.
- backward: the tensor is untouched; the gradient of a layer's input is found with the pruned weight.
- forward: the tensor is pruned; the gradient of a layer's input is found with the original weight.

All state lives on the pruned layer: two non-persistent buffers, `weight_mask` and `weight_orig`,
which follow `.to()`, and forward hooks, which deepcopy and pickle copy. The state_dict keeps its keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prunus.arguments import choose
from prunus.detour import StandIn, detour
from prunus.masks import Masks, check_same_weights
from prunus.weights import Weight, layer_weights


@dataclass(frozen=True)
class Passes:
    """In which passes a pruned weight counts as zero."""

    forward: bool
    backward: bool


PASSES: dict[str, Passes] = {
    "both": Passes(forward=True, backward=True),
    "backward": Passes(forward=False, backward=True),
    "forward": Passes(forward=True, backward=False),
}


class PrunedWeight:
    """The state of one pruned weight, and the forward pre-hook of every module that uses it.

    Args:
        weight: the parameter and the layers that hold it.
        users: the modules whose forward uses it: those layers, but for the output projection of an
            `nn.MultiheadAttention`, which is never called, the attention module.
        mask: True = keep.
        passes: where pruned weights count as zero.
    """

    def __init__(self, weight: Weight, users: Sequence[nn.Module], mask: Tensor, passes: Passes) -> None:
        self.name, self.parameter, self.layers = weight.name, weight.parameter, weight.owners
        self.passes = passes
        self.gradient_hook: RemovableHandle | None = None
        self.handles: list[RemovableHandle] = []
        self.version: int | None = self.parameter._version  # at our last look
        self.drifts = False  # pruned weights may have moved since, the version notwithstanding
        self.trained = False  # survivors may have moved since the mask was set
        original = self.parameter.detach().clone() if passes.forward else None
        for layer in self.layers:
            layer.register_buffer("weight_mask", mask, persistent=False)
            if original is not None:
                layer.register_buffer("weight_orig", original, persistent=False)
        for module in {*self.layers, *users}:
            self.handles.append(module.register_forward_pre_hook(self, prepend=True))
        for user in users if passes.forward != passes.backward else ():
            # Before the forward hooks of others, which see and may change what the detour gives
            self.handles.append(user.register_forward_hook(self.leave, prepend=True, with_kwargs=True))
        self.set_mask(mask)
        self._hook_gradient()

    @classmethod
    def on(cls, layer: nn.Module) -> PrunedWeight | None:
        """The state of this layer's weight, None where it is not pruned."""
        for hook in layer._forward_pre_hooks.values():
            if isinstance(hook, cls) and any(layer is pruned for pruned in hook.layers):
                return hook
        return None

    @property
    def attached(self) -> bool:
        """Whether this pruning is in force: neither undone nor replaced by another."""
        return any(PrunedWeight.on(layer) is self for layer in self.layers)

    def holds(self, layer: nn.Module) -> bool:
        """Whether the layer still has the parameter that was pruned."""
        return layer._parameters.get("weight") is self.parameter

    @property
    def mask(self) -> Tensor:
        """True = keep, on the device of the weight."""
        return self.layers[0].get_buffer("weight_mask")

    @property
    def original(self) -> Tensor:
        """The weight unpruned: survivors as they are now, even if trained since, the others as they were."""
        if not self.passes.forward:
            return self.parameter.detach()
        kept = self.layers[0].get_buffer("weight_orig")
        if not self.trained and self.version == self.parameter._version:
            return kept
        return torch.where(self.mask, self.parameter.detach(), kept)

    def set_mask(self, mask: Tensor) -> None:
        """Prune by this mask from now on. The tensor of the old one stays, for graphs that hold it."""
        mask, original = mask.to(self.parameter.device), self.original
        if self.passes.forward:
            with torch.no_grad():
                torch.where(mask, original, original.new_zeros(()), out=self.parameter)
            self.version, self.drifts, self.trained = self.parameter._version, False, False
        for layer in self.layers:
            layer.weight_mask = mask
            if self.passes.forward:
                layer.weight_orig = original

    def __call__(self, user: nn.Module, args: object) -> None:
        """Before a forward call: keep pruned weights at zero while an optimizer moves the others."""
        if not self.passes.forward or not any(self.holds(layer) for layer in self.layers):
            return
        self._hook_gradient()
        if self.drifts or self.version != self.parameter._version:
            # Through .data, so that an earlier use in the same graph stays valid.
            self.parameter.data.masked_fill_(~self.mask, 0)
            self.trained = True
        self.version = self.parameter._version
        # From here on it may be trained, and fused optimizers leave the version as it is.
        self.drifts = torch.is_grad_enabled() and self.parameter.requires_grad
        self.trained |= self.drifts

    def leave(self, user: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """After a forward call: where the passes differ, find gradients with another weight."""
        # Read off the module that was called, which may be a DataParallel replica of the one pruned.
        layer: Any = user.out_proj if isinstance(user, nn.MultiheadAttention) else user
        if layer.weight_mask.shape != layer.weight.shape:  # exchanged by hand since
            return None
        stand_in = StandIn(layer.weight_mask, getattr(layer, "weight_orig", None))
        return detour(user, layer, stand_in, args, kwargs, output)

    def _hook_gradient(self) -> None:
        # Repeated before every forward, because copies lose the hooks of tensors.
        wanted = self.parameter.requires_grad and self.passes == PASSES["both"]
        if wanted and self.gradient_hook is None:
            self.gradient_hook = self.parameter.register_hook(  # type: ignore[no-untyped-call]
                self.mask_gradient
            )

    def mask_gradient(self, grad: Tensor) -> Tensor:
        """The gradient of the survivors."""
        return torch.where(self.mask, grad, grad.new_zeros(()))

    def remove(self) -> None:
        """Put the original values back and take every trace off the layers."""
        if self.passes.forward:
            with torch.no_grad():
                self.parameter.copy_(self.original)
        if self.gradient_hook is not None:
            self.gradient_hook.remove()
        for handle in self.handles:
            handle.remove()
        for layer in self.layers:
            del layer.weight_mask
            if self.passes.forward:
                del layer.weight_orig

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "gradient_hook": None, "version": None}


def apply_masks(model: nn.Module, masks: Masks, passes: str = "both") -> nn.Module:
    """Prune `model` by masks made before, in place of any mask it is under.

    Args:
        model: the network; its weights that have no mask are left alone.
        masks: by weight name, as `make_masks` or `Masks.load` give them.
        passes: "both", "backward" (outputs stay bitwise those of the unpruned network) or
            "forward" (gradients flow through the unpruned weights).

    Returns:
        The same model.

    Raises:
        TypeError: `masks` is not a `Masks`.
        ValueError: unknown `passes`, masks of another network, or a layer with a `weight_mask` or
            `weight_orig` of its own.

    Example:
        >>> import prunus
        >>> net = nn.Conv2d(1, 2, 1, bias=False)
        >>> masks = prunus.make_masks(net, 0.5)
        >>> int((prunus.apply_masks(net, masks).weight == 0).sum())
        1
    """
    where = choose("passes", passes, PASSES)
    if not isinstance(masks, Masks):
        raise TypeError(f"masks must be prunus.Masks, got {type(masks).__name__}")
    weights = layer_weights(model)
    check_same_weights(masks, {name: weight.parameter.shape for name, weight in weights.items()})
    put_on(model, {name: (mask, where) for name, mask in masks.items()})
    return model


def put_on(model: nn.Module, masks: Mapping[str, tuple[Tensor, Passes]]) -> list[PrunedWeight]:
    """Prune these weights, and no others."""
    weights = layer_weights(model)
    for name in masks:
        for owner in weights[name].owners:
            taken = hasattr(owner, "weight_mask") or hasattr(owner, "weight_orig")
            if taken and PrunedWeight.on(owner) is None:
                raise ValueError(f"{name}: its layer has a weight_mask or weight_orig of its own")
    attention = {id(m.out_proj): m for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    restore(model)
    states = []
    try:
        for name, (mask, passes) in masks.items():
            users = [attention.get(id(layer), layer) for layer in weights[name].owners]
            states.append(PrunedWeight(weights[name], users, mask, passes))
    except BaseException:
        restore(model)
        raise
    return states


def restore(model: nn.Module) -> nn.Module:
    """Undo all pruning: every weight is bit for bit what it was. Nothing happens if none is pruned.

    Pruning is undone, and not training: weights that survived keep what they have learned (or been
    loaded with) since. A parameter that was exchanged by hand since is left as it is.

    Returns:
        The same model.

    Example:
        >>> import prunus
        >>> net = nn.Conv2d(1, 2, 3)
        >>> before = net.weight.clone()
        >>> torch.equal(prunus.restore(prunus.global_prune(net, 0.5)).weight, before)
        True
    """
    for module in model.modules():
        if state := PrunedWeight.on(module):
            state.remove()
    return model


@contextmanager
def unpruned(model: nn.Module) -> Iterator[nn.Module]:
    """Within the block the model is unpruned; whatever is done to it there, its masks come back."""
    before = {
        name: (state.mask, state.passes)
        for name, weight in layer_weights(model).items()
        if (state := PrunedWeight.on(weight.owners[0])) and state.holds(weight.owners[0])
    }
    restore(model)
    try:
        yield model
    finally:
        put_on(model, before)


def original_values(weight: Weight) -> Tensor:
    """The values of a weight before pruning, detached."""
    state = PrunedWeight.on(weight.owners[0])
    if state and state.holds(weight.owners[0]):  # else it was exchanged by hand since
        return state.original
    return weight.parameter.detach()
