"""In which passes a pruned weight counts as zero, and how.

- both: pruned weights are zero in the tensor itself, and so in every pass. Their gradient is zero, and what
  an optimizer's momentum still adds to them is taken off before the next forward or state_dict.
- backward: the tensor is untouched; the gradient of a layer's input is found with the pruned weight.
- forward: the tensor is pruned; the gradient of a layer's input is found with the original weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prunus.application.bits import keep_only, take_over
from prunus.application.detour import RandomState, StandIn, detour
from prunus.application.state import BACKUP, MASK, Part, PrunedWeight, kept_by
from prunus.weights import is_plain


class Zeros(Part):
    """Pruned weights are zero in the tensor; `weight_orig` keeps what they were."""

    def __init__(self, state: PrunedWeight) -> None:
        super().__init__(state)
        self.version: int | None = None  # of the parameter, when pruned weights were last seen to be zero
        self.trained = False  # whether survivors may have moved since the backup was made

    def attach(self) -> None:
        """Make the backup, write the zeros, and look after them."""
        self.state.keep(BACKUP, self.state.parameter.detach().clone())
        self.after_change()
        for layer in self.state.layers:
            hook = layer.register_state_dict_pre_hook(self.before_saving)  # type: ignore[no-untyped-call]
            self.state.handles.append(hook)

    def before_forward(self, user: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep pruned weights at zero while an optimizer moves the others."""
        if self.state.is_held:
            self.zero_moved()
            parameter = self.state.parameter
            trains = torch.is_grad_enabled() and parameter.requires_grad
            # Fused optimizers leave the version as it is: look again after a forward that may be trained on.
            self.version = None if trains else parameter._version

    def before_saving(self, layer: nn.Module, prefix: str, keep_vars: bool) -> None:
        """A state_dict too holds zeros."""
        if self.state.holds(layer):
            self.zero_moved()

    def zero_moved(self) -> None:
        """Zeros again, where the parameter may have been written to."""
        parameter = self.state.parameter
        if self.version != parameter._version:
            # Through .data, so that an earlier use in the same graph stays valid.
            keep_only(parameter.data, self.state.mask, out=parameter.data)
            torch.clear_autocast_cache()
            self.trained = True

    def original(self) -> Tensor | None:
        """The backup, brought up to date. (Graphs that hold it read it where the mask does not keep.)"""
        backup = self.state.backup
        if backup is not None:  # else there was no memory for one
            take_over(backup, self.state.parameter.detach(), self.state.mask)
            self.state.keep(BACKUP, backup)  # of all layers: `.to()` gives each of them one of its own
        return backup

    def before_change(self) -> None:
        """Bring the backup up to date, unless it is."""
        parameter = self.state.parameter
        if parameter.requires_grad or self.trained or self.version != parameter._version:
            self.original()

    def after_change(self) -> None:
        """The backup where the mask keeps, else zero."""
        parameter, backup = self.state.parameter, self.state.backup
        assert backup is not None
        with torch.no_grad():
            keep_only(backup, self.state.mask, out=parameter)
        torch.clear_autocast_cache()  # which holds the weight as it was
        self.version = None if parameter.requires_grad else parameter._version
        self.trained = False

    def detach(self) -> None:
        """Put the original values back."""
        original = self.original()
        if original is not None:
            with torch.no_grad():
                self.state.parameter.copy_(original)
            torch.clear_autocast_cache()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "version": None}


class MaskedGradient(Part):
    """Pruned weights have no gradient of their own."""

    def __init__(self, state: PrunedWeight) -> None:
        super().__init__(state)
        self.hook: RemovableHandle | None = None

    def attach(self) -> None:
        """Hook the parameter."""
        self.hook_parameter()

    def before_forward(self, user: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Hook the parameter of a copy, which has lost the hooks of its tensors, or of what was frozen."""
        if self.hook is None and self.state.is_held:
            self.hook_parameter()

    def hook_parameter(self) -> None:
        """Once, where a gradient is wanted."""
        if self.hook is None and self.state.parameter.requires_grad:
            self.hook = self.state.parameter.register_hook(self.mask)  # type: ignore[no-untyped-call]

    def mask(self, gradient: Tensor) -> Tensor:
        """The gradient of the survivors."""
        if torch.is_grad_enabled():  # for gradients of gradients
            return torch.where(self.state.mask, gradient, gradient.new_zeros(()))
        survivors = torch.empty_like(gradient)
        keep_only(gradient, self.state.mask, out=survivors)
        return survivors

    def detach(self) -> None:
        """Unhook the parameter."""
        if self.hook is not None:
            self.hook.remove()
            self.hook = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "hook": None}


class OtherGradient(Part):
    """The gradient of a layer's input is found with another weight.

    Args:
        state: of the weight.
        original: whether that is the weight before pruning, else it is the pruned one.
    """

    def __init__(self, state: PrunedWeight, original: bool = False) -> None:
        super().__init__(state)
        self.by_original = original
        self.began: RandomState | None = None

    def attach(self) -> None:
        """Hook the forward calls, before the hooks of others, which may change what the detour gives."""
        for user in self.state.users:
            hook = user.register_forward_hook(self.after_forward, prepend=True, with_kwargs=True)
            self.state.handles.append(hook)

    def before_forward(self, user: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remember the random state, for a layer that is to be run again."""
        if torch.is_grad_enabled() and not is_plain(user):
            self.began = RandomState.now(args, kwargs)

    def after_forward(
        self, user: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """The same output on another graph; None, where there is nothing to do."""
        # Read off the module that was called, which may be a DataParallel replica of the one pruned.
        layer: Any = user.out_proj if isinstance(user, nn.MultiheadAttention) else user
        mask, backup = kept_by(layer, MASK), kept_by(layer, BACKUP) if self.by_original else None
        exchanged = layer in self.state.layers and not self.state.holds(layer)
        if mask is None or mask.shape != layer.weight.shape or (self.by_original and exchanged):
            return None
        return detour(user, layer, StandIn(mask, backup), self.began, args, kwargs, output)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "began": None}


PASSES: dict[str, Sequence[Callable[[PrunedWeight], Part]]] = {
    "both": (Zeros, MaskedGradient),
    "backward": (OtherGradient,),
    "forward": (Zeros, partial(OtherGradient, original=True)),
}
