"""How do the masks reach the computation? And back again, bit for bit.

- both: pruned weights are zero in the tensor itself, and so in every pass. Their gradient is
  zero, and what an optimizer's momentum still adds to them is taken off before the next forward
  or state_dict.
- backward: the tensor is untouched; the gradient of a layer's input is found with the pruned weight.
- forward: the tensor is pruned; the gradient of a layer's input is found with the original weight.

All state lives on the pruned layer: two non-persistent buffers, `weight_mask` and `weight_orig`,
which follow `.to()`, and forward hooks, which deepcopy and pickle copy. The state_dict keeps its keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prunus.application.bits import keep_only, take_over
from prunus.application.detour import RandomState, StandIn, detour, is_plain
from prunus.weights import Weight, check_dtype, layer_weights


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
        passes: where pruned weights count as zero.
    """

    def __init__(self, weight: Weight, users: Sequence[nn.Module], passes: Passes) -> None:
        self.name, self.parameter, self.layers = weight.name, weight.parameter, weight.owners
        self.users, self.passes = users, passes
        self.gradient_hook: RemovableHandle | None = None
        self.handles: list[RemovableHandle] = []
        self.version: int | None = None  # of the parameter, when pruned weights were last seen to be zero
        self.trained = False  # whether survivors may have moved since the backup was made
        self.began: RandomState | None = None

    def attach(self, mask: Tensor) -> None:
        """Prune by this mask from now on."""
        mask = mask.to(self.parameter.device)
        original = self.parameter.detach().clone() if self.passes.forward else None
        for layer in self.layers:
            layer.register_buffer("weight_mask", mask, persistent=False)
            if original is not None:
                layer.register_buffer("weight_orig", original, persistent=False)
        for module in {*self.layers, *self.users}:
            self.handles.append(module.register_forward_pre_hook(self, prepend=True, with_kwargs=True))
        for user in self.users if self.passes.forward != self.passes.backward else ():
            # Before the forward hooks of others, which see and may change what the detour gives
            self.handles.append(user.register_forward_hook(self.reroute, prepend=True, with_kwargs=True))
        for layer in self.layers:
            hook = layer.register_state_dict_pre_hook(self.before_saving)  # type: ignore[no-untyped-call]
            self.handles.append(hook)
        self._zero_fallen()
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

    def original(self) -> Tensor:
        """The weight unpruned: survivors as they are now, even if trained since, the others as they were.

        The backup is brought up to date, and is what is returned.
        """
        if not self.passes.forward:
            return self.parameter.detach()
        original = self.layers[0].get_buffer("weight_orig")
        if not self.passes.backward:  # graphs may hold it
            original = original.clone()
        take_over(original, self.parameter.detach(), self.mask)
        for layer in self.layers:
            layer.weight_orig = original
        return original

    def set_mask(self, mask: Tensor) -> None:
        """Exchange the mask. The tensor of the old one stays, for graphs that hold it."""
        if self.parameter.requires_grad or self.trained or self.version != self.parameter._version:
            self.original()  # or else the backup is up to date
        for layer in self.layers:
            layer.weight_mask = mask.to(self.parameter.device)
        self._zero_fallen()

    def _zero_fallen(self) -> None:
        if self.passes.forward:
            with torch.no_grad():
                keep_only(self.layers[0].get_buffer("weight_orig"), self.mask, out=self.parameter)
            torch.clear_autocast_cache()  # which holds the weight as it was
            self.version = None if self.parameter.requires_grad else self.parameter._version
            self.trained = False

    def __call__(self, user: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a forward call: keep pruned weights at zero while an optimizer moves the others."""
        if self.passes.forward != self.passes.backward and torch.is_grad_enabled() and not is_plain(user):
            self.began = RandomState.now(args, kwargs)
        if not self.passes.forward or not any(self.holds(layer) for layer in self.layers):
            return
        self._hook_gradient()
        self._zero_moved()
        trains = torch.is_grad_enabled() and self.parameter.requires_grad
        # Fused optimizers leave the version as it is: look again after a forward that may be trained on.
        self.version = None if trains else self.parameter._version

    def _zero_moved(self) -> None:
        if self.version != self.parameter._version:
            # Through .data, so that an earlier use in the same graph stays valid.
            keep_only(self.parameter.data, self.mask, out=self.parameter.data)
            torch.clear_autocast_cache()
            self.trained = True

    def before_saving(self, layer: nn.Module, prefix: str, keep_vars: bool) -> None:
        """A state_dict too holds zeros."""
        if self.passes.forward and self.holds(layer):
            self._zero_moved()

    def reroute(self, user: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """After a forward call: where the passes differ, find gradients with another weight."""
        # Read off the module that was called, which may be a DataParallel replica of the one pruned.
        layer: Any = user.out_proj if isinstance(user, nn.MultiheadAttention) else user
        exchanged = layer in self.layers and not self.holds(layer)
        if layer.weight_mask.shape != layer.weight.shape or (self.passes.forward and exchanged):
            return None
        stand_in = StandIn(layer.weight_mask, getattr(layer, "weight_orig", None))
        return detour(user, layer, stand_in, self.began, args, kwargs, output)

    def _hook_gradient(self) -> None:
        # Repeated before every forward, because copies lose the hooks of tensors.
        wanted = self.parameter.requires_grad and self.passes == PASSES["both"]
        if wanted and self.gradient_hook is None:
            self.gradient_hook = self.parameter.register_hook(  # type: ignore[no-untyped-call]
                self.mask_gradient
            )

    def mask_gradient(self, grad: Tensor) -> Tensor:
        """The gradient of the survivors."""
        if torch.is_grad_enabled():  # for gradients of gradients
            return torch.where(self.mask, grad, grad.new_zeros(()))
        survivors = torch.empty_like(grad)
        keep_only(grad, self.mask, out=survivors)
        return survivors

    def remove(self) -> None:
        """Put the original values back and take every trace off the layers."""
        if self.passes.forward:
            with torch.no_grad():
                self.parameter.copy_(self.original())
            torch.clear_autocast_cache()
        if self.gradient_hook is not None:
            self.gradient_hook.remove()
            self.gradient_hook = None
        while self.handles:
            self.handles.pop().remove()
        for layer in self.layers:
            for name in ("weight_mask", "weight_orig"):
                if name in layer._buffers:
                    delattr(layer, name)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "gradient_hook": None, "version": None, "began": None}


def put_on(model: nn.Module, masks: Mapping[str, tuple[Tensor, Passes]]) -> list[PrunedWeight]:
    """Prune these weights, and no others. If that fails, the model stays pruned as it was."""
    weights = layer_weights(model)
    for name in masks:
        _check_writable(weights[name])
    attention = {id(m.out_proj): m for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    states = []
    for name, (_, passes) in masks.items():
        users = [attention.get(id(layer), layer) for layer in weights[name].owners]
        states.append(PrunedWeight(weights[name], users, passes))
    before = _take_off(model)
    try:
        for state in states:
            state.attach(masks[state.name][0])
    except BaseException:
        _take_off(model)
        _put_back(before)
        raise
    return states


def zero(model: nn.Module, names: Iterable[str], masks: Iterable[tuple[str, Tensor]]) -> nn.Module:
    """Undo all pruning, then set what these masks prune to zero for good."""
    weights = layer_weights(model)
    for name in names:
        _check_writable(weights[name])
    _take_off(model)
    with torch.no_grad():
        for name, mask in masks:
            keep_only(weights[name].parameter, mask, out=weights[name].parameter)
    return model


def _check_writable(weight: Weight) -> None:
    check_dtype(weight.name, weight.parameter)
    if weight.parameter.is_inference():
        raise ValueError(f"{weight.name} was made in inference mode and cannot be pruned: make it outside")
    if any(
        size > 1 and not stride
        for size, stride in zip(weight.parameter.shape, weight.parameter.stride(), strict=True)
    ):
        raise ValueError(f"{weight.name} is expanded: several of its entries share one memory")
    for owner in weight.owners:
        taken = hasattr(owner, "weight_mask") or hasattr(owner, "weight_orig")
        if taken and PrunedWeight.on(owner) is None:
            raise ValueError(f"{weight.name}: its layer has a weight_mask or weight_orig of its own")


def _take_off(model: nn.Module) -> list[tuple[PrunedWeight, Tensor]]:
    """Undo all pruning; what was in force, with its masks."""
    found = []
    for module in model.modules():
        if state := PrunedWeight.on(module):
            found.append((state, state.mask))
            state.remove()
    return found


def _put_back(before: list[tuple[PrunedWeight, Tensor]]) -> None:
    for state, mask in before:
        state.attach(mask)


@contextmanager
def unpruned(model: nn.Module) -> Iterator[nn.Module]:
    """Within the block the model is unpruned; whatever is done to it there, its pruning comes back."""
    before = _take_off(model)
    try:
        yield model
    finally:
        _take_off(model)
        _put_back(before)


def original_values(weight: Weight) -> Tensor:
    """The values of a weight before pruning, detached."""
    for owner in weight.owners:
        state = PrunedWeight.on(owner)
        if state and state.holds(owner):  # else it was exchanged by hand since
            return state.original()
    return weight.parameter.detach()
