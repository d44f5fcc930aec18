"""The state of one pruned weight tensor.

It stands on every layer that holds the tensor, at one attribute, where deepcopy and pickle copy it. Mask
and backup stand beside it, as `weight_mask` and `weight_orig`: attributes, which follow `.to()`, and not
buffers, which averages, DDP and exports would take for the network's own. What the mask does to the passes is
the business of the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prunus.application.calls import (
    masked_for_one_call,
    masked_while_compiling,
    unobserved,
    within_functional_call,
)
from prunus.application.placed import Placed
from prunus.application.together import Together
from prunus.shards import is_flattened
from prunus.weights import STATE, WeightTensor, states_of


def shown(attribute: str) -> tuple[str, str]:
    """Under which names a layer shows the mask and the backup of its parameter of this name."""
    return f"{attribute}_mask", f"{attribute}_orig"


class Part:
    """One thing that a mask does to the passes of a network. What is not overridden does nothing."""

    def __init__(self, state: PrunedWeight) -> None:
        self.state = state

    def attach(self) -> None:
        """Begin: the mask is there, hooks are not."""

    def hooks(self, layer: nn.Module, user: nn.Module) -> Iterator[RemovableHandle]:
        """Hook a layer and the module whose forward uses its weight."""
        yield from ()

    def refresh(self) -> None:
        """The parameter was copied, converted or exchanged: it may have lost its hooks."""

    def before_forward(self, user: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module that uses the weight is about to be called on these."""

    def after_step(self) -> None:
        """An optimizer has moved the parameter."""

    def leave(self) -> None:
        """Another parameter is about to take the place of the one that was pruned."""

    def adopt(self) -> None:
        """It has taken it."""

    def replace(self, values: Tensor) -> None:
        """Let survivors be others, until pruning is undone."""

    def listen(self, listener: Callable[[Tensor], None] | None) -> None:
        """Let this be told of whole gradients, those of pruned entries included; None ends it."""

    @property
    def listened(self) -> bool:
        """Whether something is."""
        return False

    def before_change(self) -> None:
        """The mask is about to be exchanged."""

    def after_change(self) -> None:
        """The mask was exchanged."""

    def original(self) -> Tensor | None:
        """The values before pruning, where this part has changed them."""
        return None

    def restore(self) -> None:
        """Undo what was done to the values."""

    def unhook(self) -> None:
        """Take the hooks off the parameter."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy; copying goes in circles, and its weight may have been done before it."""
        vars(self).update(state)
        if vars(self.state).get("attached"):
            self.refresh()
            self.after_step()


class PrunedWeight:
    """One pruned parameter, whose masks and parts are in force from `attach` to `detach`.

    Args:
        weight: the parameter and the layers that hold it.
        users: for each layer the module whose forward uses the weight: the layer itself, but for the output
            projection of an `nn.MultiheadAttention`, which is never called, the attention module.
        kinds: what the masks do to the passes.
        together: the weights that the same call prunes.
    """

    def __init__(
        self,
        weight: WeightTensor,
        users: Sequence[nn.Module],
        kinds: Sequence[Callable[[PrunedWeight], Part]],
        together: Together,
    ) -> None:
        self.name, self.parameter, self.layers = weight.name, weight.parameter, weight.owners
        self.attribute = weight.attribute
        self.users, self.kinds, self.together = tuple(users), kinds, together
        self.parts = [kind(self) for kind in kinds]
        self.handles: list[RemovableHandle] = []
        self.placed = Placed()
        self.mask = self.backup = torch.empty(0)  # until `attach`
        self.attached = False

    def attach(self, placed: Placed) -> None:
        """Prune by these masks from now on, which are on the parameter's device."""
        self.together.add(self)
        self.attached = True
        self.keep(placed, backup=torch.empty(0))
        for part in self.parts:
            part.attach()
        self._hook()

    def keep(self, placed: Placed | None = None, backup: Tensor | None = None) -> None:
        """Keep these in place of the former, and let the layers show them: of several masks the first."""
        self.placed = self.placed if placed is None else placed
        self.mask = self.placed.masks[0]
        self.backup = self.backup if backup is None else backup
        for layer in self.layers:
            own, (mask_name, backup_name) = vars(layer), shown(self.attribute)
            own[STATE], own[mask_name] = {**own.get(STATE, {}), self.attribute: self}, self.mask
            if self.has_backup:
                own[backup_name] = self.backup

    @property
    def has_backup(self) -> bool:
        """Whether there is a backup: some parts need none, and there may have been no memory for it."""
        return self.backup.shape == self.mask.shape

    def holds(self, layer: nn.Module) -> bool:
        """Whether the layer still has the parameter that was pruned."""
        return self.tensor_of(layer) is self.parameter

    def tensor_of(self, layer: nn.Module) -> Tensor | None:
        """What the layer has in the parameter's place now."""
        return layer._parameters.get(self.attribute)

    @property
    def is_held(self) -> bool:
        """Whether any layer still has the parameter that was pruned."""
        return any(self.holds(layer) for layer in self.layers)

    def before_forward(
        self, user: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> None:
        """The hook of every module that uses the weight, and of what other libraries copied it to."""
        layer, compiling = self.used_by(user), torch.compiler.is_compiling()
        if compiling:
            self.while_compiling()
        displaced = layer is not None and not self.holds(layer)
        if compiling:
            if displaced and layer is not None and not torch.compiler.is_exporting():
                masked_while_compiling(self.name, layer, self.attribute, self.placed)
            return
        if layer is None and not _is_copy(user):
            self._meet(user)
        elif layer is not None and displaced:
            self._displaced(user, layer)
        self.together.say_loaded()
        for part in self.parts:
            if self.attached and self.is_held:  # which a part may find to have ended
                part.before_forward(user, args, kwargs or {})

    def while_compiling(self) -> None:
        """Once, when a call is compiled or exported, as whose constants weights may go."""
        exporting = torch.compiler.is_exporting()  # which puts fake tensors in the parameter's place
        if not exporting and not all(map(self.holds, self.layers)):
            with unobserved():
                self.together.survey()
        if exporting or self.is_held:
            self.after_step()

    while_compiling._dynamo_marked_constant = True  # type: ignore[attr-defined]  # run, and not traced

    def used_by(self, user: nn.Module) -> nn.Module | None:
        """The layer whose weight a call of this module uses."""
        return next(
            (layer for layer, known in zip(self.layers, self.users, strict=True) if known is user), None
        )

    def _displaced(self, user: nn.Module, layer: nn.Module) -> None:
        """The layer is called with another tensor: for this call only, or exchanged for good."""
        tensor = self.tensor_of(layer)
        if tensor is not None and tensor.is_meta:
            return  # its values are elsewhere, as when they are offloaded
        for_now = not isinstance(tensor, nn.Parameter) and not is_flattened(self.parameter)
        if tensor is not None and (for_now or within_functional_call()):
            masked_for_one_call(self.name, user, layer, self.attribute, self.placed)
        else:
            self.together.survey()

    def _meet(self, user: nn.Module) -> None:
        """Be called by a module that was never pruned: it was made from a pruned one, with its hooks."""
        if self.attached and self.holds(user):  # as layers for quantization-aware training do
            self._unhook()
            self.layers, self.users = (*self.layers, user), (*self.users, user)
            self._hook()
        elif not self.attached or not any(layer in self.layers for layer in user.modules()):
            hooks = user._forward_pre_hooks
            if any(hooks is known._forward_pre_hooks for known in (*self.layers, *self.users)):
                return  # a shallow copy, which has the very hooks of the layer
            for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is self]:
                del hooks[key]

    def catch_up(self) -> str | None:
        """Follow the parameters that the layers have now; what is the matter with those it cannot follow."""
        homes: dict[int, list[int]] = {}
        reasons = []
        for index, layer in enumerate(self.layers):
            tensor = self.tensor_of(layer)
            away = tensor is not None and tensor.is_meta
            reason = None if away else _misfit(layer, tensor, self.mask)
            if reason:
                reasons.append(reason)
            else:
                homes.setdefault(id(self.parameter if away else tensor), []).append(index)
        if reasons or len(homes) > 1:
            self._move(list(homes.values()))
        elif homes.keys() != {id(self.parameter)}:
            self._follow_to(self.tensor_of(self.layers[0]))  # with the same hooks, among which this may be
        return reasons[0] if reasons else None

    def _follow_to(self, held: Tensor | None) -> None:
        """Prune another parameter from now on, that which the layers hold."""
        if isinstance(held, nn.Parameter) and not held.is_meta and held is not self.parameter:
            for part in self.parts:
                part.leave()
            self.parameter = held
            for part in self.parts:
                part.adopt()
                part.refresh()

    def _move(self, homes: list[list[int]]) -> None:
        """Prune the layers of each of these lists, which share a parameter; leave the others."""
        layers, users = self.layers, self.users
        self._clear()
        if not homes:
            self._end()
        for number, places in enumerate(homes):
            its = tuple(layers[place] for place in places), tuple(users[place] for place in places)
            state = self if not number else self._twin()
            state.layers, state.users = its
            state._follow_to(self.tensor_of(its[0][0]))
            state._hook()

    def _twin(self) -> PrunedWeight:
        """A state of its own for layers that held this weight and now hold another."""
        twin = PrunedWeight(
            WeightTensor(self.name, self.parameter, (), self.attribute), (), self.kinds, self.together
        )
        twin.placed, twin.mask = self.placed, self.mask
        twin.backup, twin.attached = self.backup, True
        self.together.add(twin)
        return twin

    def converted(self, layer: nn.Module, held: bool) -> None:
        """A layer that held the parameter, or not, has converted all it has: masks and backup follow."""
        now = layer._parameters.get(self.attribute)
        if held and now is not None:
            self.parameter = now  # another object, as torch's flags may ask for
        self.follow()
        self.together.forget_places()

    def follow(self) -> None:
        """Take masks and backup to where the parameter is, in its dtype."""
        parameter = self.parameter
        if not parameter.is_meta:  # where values, and a mask, would be lost
            placed = self.placed.map(lambda mask: mask.to(parameter.device))
            self.keep(placed, self.backup.to(parameter.device, parameter.dtype))
        for part in self.parts:
            part.refresh()

    def fitting_mask(self) -> Tensor:
        """The mask, on the device of the parameter, whose values may have been exchanged for others."""
        parameter = self.parameter
        if self.mask.device != parameter.device or (self.has_backup and self.backup.dtype != parameter.dtype):
            self.follow()
        return self.mask

    def after_step(self) -> None:
        """An optimizer has moved the parameter."""
        for part in self.parts:
            part.after_step()

    def replace(self, values: Tensor) -> None:
        """Let survivors be others, until pruning is undone: what they were counts as the original."""
        for part in self.parts:
            part.replace(values)

    def listen(self, listener: Callable[[Tensor], None] | None) -> None:
        """Let this be told of every whole gradient of the parameter, until another is; None ends it."""
        for part in self.parts:
            part.listen(listener)

    @property
    def listened(self) -> bool:
        """Whether something is told of whole gradients."""
        return any(part.listened for part in self.parts)

    def exchange(self, mask: Tensor) -> None:
        """Prune by this mask from now on, wherever one acted, or, if that fails, by the old ones.

        The tensors of the old ones stay, for graphs that hold them.
        """
        former = self.placed
        for part in self.parts:
            part.before_change()
        try:
            new = owned(mask, self.parameter.device)
            self._prune_by(former.map(lambda _: new))
        except BaseException:
            self._prune_by(former)
            raise

    def _prune_by(self, placed: Placed) -> None:
        self.keep(placed)
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
            part.restore()
        self._clear()
        self._end()

    def _end(self) -> None:
        self.attached = False
        self.placed = Placed()
        self.mask = self.backup = torch.empty(0)  # at once, and not when Python collects cycles
        self.together.remove(self)

    def _hook(self) -> None:
        for layer, user in zip(self.layers, self.users, strict=True):
            vars(layer)["_apply"] = partial(_convert, layer)
            for module in {layer, user}:
                hook = module.register_forward_pre_hook(self.before_forward, prepend=True, with_kwargs=True)
                self.handles.append(hook)
            for part in self.parts:
                for handle in part.hooks(layer, user):  # one by one, so that each is removed whatever happens
                    self.handles.append(handle)
        self.keep()
        for part in self.parts:
            part.refresh()

    def _unhook(self) -> None:
        for part in self.parts:
            part.unhook()
        while self.handles:
            self.handles.pop().remove()

    def _clear(self) -> None:
        """Take every trace off the layers."""
        self._unhook()
        for layer in self.layers:
            own = vars(layer)
            own[STATE] = {name: s for name, s in own.get(STATE, {}).items() if name != self.attribute}
            for name in (*shown(self.attribute), *(() if own[STATE] else (STATE, "_apply"))):
                own.pop(name, None)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy, or what was pickled: it holds zeros, whatever was written to the original."""
        vars(self).update(state)
        if self.attached:
            self.together.watch()
            self.together.add(self)
            for part in self.parts:
                if vars(part):  # or else it is yet to be done
                    part.refresh()
                    part.after_step()


def owned(mask: Tensor, device: torch.device) -> Tensor:
    """The mask in memory of its own: where it was drawn may lie all masks, which pickle would take along."""
    with torch.inference_mode(False):  # for graphs may hold it
        mask = mask.to(device)
        alone = mask.untyped_storage().nbytes() <= mask.numel()
        return mask if alone and not mask.is_inference() else mask.clone()


def _is_copy(user: nn.Module) -> bool:
    """Whether a module is a pruned one around other tensors: a replica of DataParallel, or one of ours."""
    return getattr(user, "_is_replica", False) or STATE in vars(user)


def _misfit(layer: nn.Module, tensor: Tensor | None, mask: Tensor) -> str | None:
    """Why a mask cannot act on what a layer has for a weight now."""
    if tensor is None:
        return f"is no longer a parameter of its {type(layer).__name__}, but computed, or gone"
    if tensor.shape != mask.shape:
        return f"has now shape {tuple(tensor.shape)}, its mask {tuple(mask.shape)}"
    return None


def _convert(layer: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """In place of the layer's `_apply`, which every `.to()` comes to."""
    states = [(state, state.holds(layer)) for state in pruned_weights(layer).values()]
    type(layer)._apply(layer, fn, recurse)  # type: ignore[no-untyped-call]
    for state, held in states:
        state.converted(layer, held)
    return layer


def pruned_weights(layer: nn.Module) -> dict[str, PrunedWeight]:
    """By parameter name, the states of this layer's weights; see `prunus.weights.states_of`."""
    return cast("dict[str, PrunedWeight]", states_of(layer))
