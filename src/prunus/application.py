"""How do the masks reach the computation? And back again, bit for bit.

- both: pruned weights are zero in the tensor itself, and so in every pass. Their gradient is
  zero, and what an optimizer's momentum still adds to them is taken off before the next forward.
- backward: the tensor is untouched; where autograd saved it for the backward pass, the pruned
  values stand in for it.
- forward: the tensor is pruned; in the backward pass the original values stand in for it.

All state lives on the pruned layer: two non-persistent buffers, `weight_mask` and `weight_orig`,
which follow `.to()`, and a forward pre-hook, which deepcopy and pickle copy. The state_dict keeps
its keys.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.hooks import RemovableHandle

from prunus.arguments import choose
from prunus.masks import Masks, check_same_weights
from prunus.weights import Weight, layer_weights

Hook = TypeVar("Hook", "PrunedWeight", "SavedWeights")


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
    """The state of one pruned weight, and the forward pre-hook of every layer that holds it."""

    def __init__(self, weight: Weight, mask: Tensor, passes: Passes) -> None:
        self.layers, self.parameter, self.passes = weight.owners, weight.parameter, passes
        self.gradient_hook: RemovableHandle | None = None
        self.handles: list[RemovableHandle] = []
        self.version: int | None = self.parameter._version  # after our last write; None: unknown
        self.trained = False  # whether somebody else has written since the mask was set
        original = self.parameter.detach().clone() if passes.forward else None
        for layer in self.layers:
            layer.register_buffer("weight_mask", mask, persistent=False)
            if original is not None:
                layer.register_buffer("weight_orig", original, persistent=False)
            self.handles.append(layer.register_forward_pre_hook(self, prepend=True))
        self.set_mask(mask)
        self._mask_gradient()

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
        if self.version == self.parameter._version and not self.trained:
            return kept
        return torch.where(self.mask, self.parameter.detach(), kept)

    def set_mask(self, mask: Tensor) -> None:
        """Prune by this mask from now on. New tensors throughout: graphs already built keep theirs."""
        mask = mask.to(self.parameter.device)
        original = self.original
        if self.passes.forward:
            with torch.no_grad():
                zero = original.new_zeros(())
                torch.where(mask, original, zero, out=self.parameter)
            self.version, self.trained = self.parameter._version, False
        for layer in self.layers:
            layer.weight_mask = mask
            if self.passes.forward:
                layer.weight_orig = original

    def __call__(self, layer: nn.Module, args: object) -> None:
        """Keep pruned weights at zero while an optimizer moves the others."""
        if not self.passes.forward or layer._parameters.get("weight") is not self.parameter:
            return
        self._mask_gradient()
        if self.version != self.parameter._version:
            # Through .data, so that an earlier use in the same graph stays valid.
            self.parameter.data.masked_fill_(~self.mask, 0)
            self.version, self.trained = self.parameter._version, True

    def _mask_gradient(self) -> None:
        # Repeated in the pre-hook, because copies lose the hooks of tensors.
        if self.gradient_hook is None and self.parameter.requires_grad and self.passes == PASSES["both"]:
            self.gradient_hook = self.parameter.register_hook(  # type: ignore[no-untyped-call]
                self.mask_gradient
            )

    def mask_gradient(self, grad: Tensor) -> Tensor:
        """The gradient of the survivors."""
        return grad * self.mask

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


@dataclass(frozen=True)
class _StandIn:
    """What the backward pass reads in place of a weight; the mask is that of the forward call."""

    weight: Tensor
    mask: Tensor
    original: Tensor | None

    def __call__(self) -> Tensor:
        fallen = self.weight.new_zeros(()) if self.original is None else self.original
        # `out` keeps the strides of the weight, which views of it rely on.
        return torch.where(self.mask, self.weight, fallen, out=torch.empty_like(self.weight))


@dataclass
class _Frame:
    """One forward call that is under way: what stands in for which weight, and which were saved."""

    stand_ins: dict[int, _StandIn]
    saved: set[int] = field(default_factory=set)


class _Frames(threading.local):
    """The forward calls under way in this thread, innermost last; a copy starts with none."""

    def __init__(self) -> None:
        self.stack: list[_Frame] = []

    def __reduce__(self) -> tuple[type[_Frames], tuple[()]]:
        return _Frames, ()


@dataclass(frozen=True)
class _Saved:
    """A tensor that autograd saved, and its version then."""

    tensor: Tensor
    version: int
    stand_in: _StandIn | None

    def unpack(self) -> Tensor:
        view = self.tensor
        if view._version != self.version:  # autograd does not check what passes through hooks
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace "
                f"operation: a tensor of shape {tuple(view.shape)} is at version {view._version}, "
                f"expected version {self.version}"
            )
        if self.stand_in is None:
            return view
        offset = view.storage_offset() - self.stand_in.weight.storage_offset()
        return self.stand_in().as_strided(view.size(), view.stride(), offset)


class SavedWeights:
    """Forward hooks of every module around a pruned layer, where the two passes see different values.

    Within the forward call they look at the tensors that autograd saves: a pruned weight,
    recognised by identity, is given a stand-in. All modules on the way have them, not the layer
    alone, because some parents use a layer's weight without calling it (`nn.MultiheadAttention`).
    """

    def __init__(self, module: nn.Module) -> None:
        self.frames = _Frames()
        self.handles = [
            module.register_forward_pre_hook(self, prepend=True),
            module.register_forward_hook(self.leave, with_kwargs=True, always_call=True),
        ]

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()

    def __call__(self, module: nn.Module, args: object) -> None:
        """Enter the forward call."""
        frame = _Frame(_stand_ins(module) if torch.is_grad_enabled() else {})
        self.frames.stack.append(frame)
        if frame.stand_ins:
            _saving(frame).__enter__()

    def leave(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Tensor | None:
        """Leave it; another output takes its place where the stand-in could not be given."""
        if not self.frames.stack:  # another pre-hook failed before ours
            return None
        frame = self.frames.stack.pop()
        if not frame.stand_ins:
            return None
        _saving(frame).__exit__()
        own = id(getattr(module, "weight", None))
        missed = own in frame.stand_ins and own not in frame.saved
        if missed and _wants_gradient(output, *args, *kwargs.values()) and output.requires_grad:
            route = _run_on(frame.stand_ins[own], module, args, kwargs)
            rerouted: Tensor = _Rerouted.apply(output.detach(), route)
            return rerouted
        return None


def _saving(frame: _Frame) -> saved_tensors_hooks:
    def pack(tensor: Tensor) -> _Saved:
        base = id(tensor if tensor._base is None else tensor._base)
        stand_in = frame.stand_ins.get(base)
        if stand_in is not None:
            frame.saved.add(base)
        # Detached: an output that is saved for its own gradient would otherwise keep itself alive.
        return _Saved(tensor.detach(), tensor._version, stand_in)

    return saved_tensors_hooks(pack, _Saved.unpack)


def _stand_ins(module: nn.Module) -> dict[int, _StandIn]:
    """By id of each pruned weight in this module, what the backward pass is to read in its place."""
    found = {}
    for layer in module.modules():
        for state in _hooks(layer, PrunedWeight):
            # A DataParallel replica has no parameters: its weight and mask are plain attributes.
            current = layer._parameters.get("weight", state.parameter)
            if state.passes.forward != state.passes.backward and current is state.parameter:
                original = getattr(layer, "weight_orig", None)
                weight, mask = (getattr(layer, name) for name in ("weight", "weight_mask"))
                found[id(weight)] = _StandIn(weight.detach(), mask, original)
    return found


def _wants_gradient(*values: object) -> bool:
    return any(isinstance(value, Tensor) and value.requires_grad for value in values)


class _Rerouted(torch.autograd.Function):
    """The value of the first tensor, with the gradient of the second."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, route: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad


def _run_on(stand_in: _StandIn, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Run a layer again on the stand-in: autograd saved something computed from its weight.

    So it is under autocast, or where a layer standardises its weight. The parameter's own gradient
    passes straight through to the parameter.
    """
    weight = layer.weight
    assert isinstance(weight, Tensor)
    shifted = weight + (stand_in() - weight).detach()
    output = torch.func.functional_call(layer, {"weight": shifted}, args, kwargs)
    assert isinstance(output, Tensor)
    return output


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
        ValueError: unknown `passes`, or masks of another network.

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
    shapes = {name: weight.parameter.shape for name, weight in layer_weights(model).items()}
    check_same_weights(masks, shapes)
    restore(model)
    _put_on(model, {name: (mask, where) for name, mask in masks.items()})
    return model


def _put_on(model: nn.Module, masks: Mapping[str, tuple[Tensor, Passes]]) -> None:
    weights = layer_weights(model)
    try:
        for name, (mask, passes) in masks.items():
            PrunedWeight(weights[name], mask, passes)
        if any(passes.forward != passes.backward for _, passes in masks.values()):
            for module in model.modules():
                if any(_hooks(layer, PrunedWeight) for layer in module.modules()):
                    SavedWeights(module)
    except BaseException:
        restore(model)
        raise


def exchange_masks(model: nn.Module, masks: Masks) -> None:
    """Prune weights that are pruned already by other masks."""
    for name, weight in layer_weights(model).items():
        for state in _hooks(weight.owners[0], PrunedWeight):
            state.set_mask(masks[name])


def restore(model: nn.Module) -> nn.Module:
    """Undo all pruning: every weight is bit for bit what it was. Nothing happens if none is pruned.

    Weights that survived and were trained since keep their training. A parameter that was
    exchanged by hand since is left as it is.

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
        for saved in _hooks(module, SavedWeights):
            saved.remove()
        for state in _hooks(module, PrunedWeight):
            state.remove()
    return model


@contextmanager
def unpruned(model: nn.Module) -> Iterator[nn.Module]:
    """Within the block the model is unpruned; whatever is done to it there, its masks come back."""
    before = {
        name: (state.mask, state.passes)
        for name, weight in layer_weights(model).items()
        for state in _hooks(weight.owners[0], PrunedWeight)
        if state.parameter is weight.parameter
    }
    restore(model)
    try:
        yield model
    finally:
        restore(model)
        _put_on(model, before)


def original_values(weight: Weight) -> Tensor:
    """The values of a weight before pruning, detached."""
    for state in _hooks(weight.owners[0], PrunedWeight):
        if state.parameter is weight.parameter:  # else it was exchanged by hand since
            return state.original
    return weight.parameter.detach()


def _hooks(module: nn.Module, kind: type[Hook]) -> list[Hook]:
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, kind)]
