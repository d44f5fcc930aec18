"""What a weight's masks do at their places, and how.

- forward: pruned weights are zero in the tensor itself, and what an optimizer adds to them is taken off right
  after its step, and before the next forward or state_dict.
- input_grad: where its mask is not that of the forward, the gradient of a layer's input is found with another
  weight, the original where the mask keeps. Else the tensor has the right zeros already.
- weight_grad: the gradient of the parameter is masked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle, unserializable_hook
from torch.utils.weak import WeakTensorKeyDictionary

from prunus.application.bits import keep_only, take_over
from prunus.application.calls import given, unobserved
from prunus.application.detour import RandomState, StandIn, detour
from prunus.application.placed import Placed
from prunus.application.state import Part, PrunedWeight
from prunus.weights import STATE, is_plain


class Zeros(Part):
    """Pruned weights are zero in the tensor; `weight_orig` keeps what they were.

    Not every write leaves a trace (one through `.data` does not), and so zeros are written before every
    forward and state_dict without asking whether that is needed. It costs one pass over the weights.
    """

    loading = False  # whether a state_dict that is being read has values for this weight
    own = False  # and whether it was saved while this pruning was in force
    replaced = False  # whether survivors are others than those before pruning, which the backup has
    origin = ""  # a word for this pruning of these values
    seen = -1  # the version of the parameter when autocast last forgot it

    def __init__(self, state: PrunedWeight) -> None:
        super().__init__(state)
        # Of parameters that were exchanged for others, and may come back: the mask, and the backup
        self.left: MutableMapping[Tensor, tuple[Tensor, Tensor]] = WeakTensorKeyDictionary()

    def attach(self) -> None:
        """Make the backup and write the zeros."""
        self.adopt()

    def hooks(self, layer: nn.Module, user: nn.Module) -> Iterator[RemovableHandle]:
        """Be there when weights are saved and loaded."""
        yield layer.register_state_dict_pre_hook(self.before_saving)  # type: ignore[no-untyped-call]
        yield layer._register_state_dict_hook(self.after_saving)  # type: ignore[no-untyped-call]
        yield layer.register_load_state_dict_pre_hook(self.before_loading)  # type: ignore[no-untyped-call]
        yield layer.register_load_state_dict_post_hook(self.after_loading)  # type: ignore[no-untyped-call]

    def before_forward(self, user: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Zeros again, whoever wrote and how."""
        self.zero()

    def after_step(self) -> None:
        """Momentum from before pruning moves zeros."""
        self.zero()

    def zero(self) -> None:
        """Zeros again."""
        parameter = self.state.parameter
        if parameter.is_meta:
            return
        with unobserved():
            if parameter.shape != self.state.mask.shape:  # other values were put into the same parameter
                self.state.together.survey()
                return
            mask = self.state.fitting_mask()
            # Through .data, so that an earlier use in the same graph stays valid.
            values = parameter.data
            keep_only(values, mask, out=values)
            if parameter.is_inference() or parameter._version != self.seen:
                torch.clear_autocast_cache()  # which may hold the weight as it was
                self.seen = -1 if parameter.is_inference() else parameter._version

    def before_saving(self, layer: nn.Module, prefix: str, keep_vars: bool) -> None:
        """A state_dict too holds zeros."""
        if not self.state.holds(layer):
            self.state.together.survey(within_forward=False)
        if self.state.attached and self.state.holds(layer):
            self.zero()

    def after_saving(self, layer: nn.Module, state: object, prefix: str, metadata: dict[str, Any]) -> None:
        """Leave word, beside the version that torch keeps there, by which it knows its own again."""
        metadata.setdefault("prunus", {})[self.state.attribute] = self.origin

    def before_loading(
        self,
        layer: nn.Module,
        state_dict: Mapping[str, Any],
        prefix: str,
        metadata: Mapping[str, Any],
        *_: Any,
    ) -> None:
        """See whether the weights to come were pruned by other masks."""
        self.own = metadata.get("prunus", {}).get(self.state.attribute) == self.origin
        mask, given = self.state.mask, state_dict.get(prefix + self.state.attribute)
        self.loading = isinstance(given, Tensor) and given.shape == mask.shape and not given.is_meta
        if isinstance(given, Tensor) and self.loading and given.layout is torch.strided:
            zeros = given.detach() == 0
            kept = mask.to(given.device)
            alive, others = int((~zeros & ~kept).sum()), int((zeros & kept).sum())
            if alive and others:
                self.state.together.loaded[self.state.name] = (alive, others)

    def after_loading(self, layer: nn.Module, incompatible: object) -> None:
        """What was loaded counts, over pruned entries too: two networks are never mixed.

        But for zeros that this very pruning had put there: the values before it are still known.
        """
        if not self.state.holds(layer):
            self.state.together.survey(within_forward=False)
        elif self.loading:
            before, origin = self.state.backup, self.origin
            self.adopt()
            if self.own and before.shape == self.state.mask.shape:
                self.origin = origin
                hidden = ~self.state.mask & (self.state.backup == 0)
                self.state.keep(backup=self.state.backup.where(~hidden, before.to(self.state.backup)))
            self.state.follow()  # torch may have exchanged what is in the parameter
        self.loading = False
        if any(self.state is last for last in self.state.together.states[-1:]):
            self.state.together.say_loaded()

    def leave(self) -> None:
        """Remember what the zeros were that stay in the parameter."""
        if not self.state.parameter.is_meta and (original := self.original()) is not None:
            self.left[self.state.parameter] = self.state.mask, original

    def adopt(self) -> None:
        """What the parameter holds now is the backup, of another origin, and zeros go into it."""
        self.replaced = False
        self.origin = uuid4().hex  # by which this network's checkpoints are known from others'
        parameter = self.state.parameter
        if parameter.is_meta:
            return
        with torch.inference_mode(False):
            values = parameter.detach().clone()
            if parameter in self.left:  # it comes back, with the zeros that it was left with
                mask, before = self.left.pop(parameter)
                hidden = ~mask.to(values.device) & (values == 0)
                values = torch.where(hidden, before.to(values), values)
        self.state.keep(backup=values)
        self.after_change()

    def original(self) -> Tensor | None:
        """The backup, brought up to date. (Graphs that hold it read it where the mask does not keep.)"""
        if not self.state.has_backup or self.state.parameter.shape != self.state.mask.shape:
            return None
        mask = self.state.fitting_mask()
        if not self.replaced:
            take_over(self.state.backup, self.state.parameter.detach(), mask)
        return self.state.backup

    def replace(self, values: Tensor) -> None:
        """The backup stays what it is."""
        self.original()
        with torch.no_grad():
            self.state.parameter.copy_(values)
        self.replaced = True
        self.zero()

    def before_change(self) -> None:
        """Bring the backup up to date."""
        self.original()

    def after_change(self) -> None:
        """The backup where the mask keeps, else zero."""
        parameter = self.state.parameter
        with torch.no_grad():
            keep_only(self.state.backup, self.state.mask, out=parameter)
        torch.clear_autocast_cache()

    def restore(self) -> None:
        """Put the original values back."""
        original = self.original()
        if original is not None and not self.state.parameter.is_meta:
            with torch.no_grad():
                self.state.parameter.copy_(original)
            torch.clear_autocast_cache()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "left"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "left": WeakTensorKeyDictionary()})


class MaskedGradient(Part):
    """Pruned weights have no gradient of their own."""

    def __init__(self, state: PrunedWeight) -> None:
        super().__init__(state)
        self.hook: RemovableHandle | None = None
        self.listener: Callable[[Tensor], None] | None = None
        self.accumulated: RemovableHandle | None = None
        self.pending: Tensor | None = None  # a whole gradient that may be accumulated next

    def refresh(self) -> None:
        """Hook the parameter, or that which has taken its place."""
        self.unhook()
        parameter = self.state.parameter
        if parameter.requires_grad:
            self.hook = parameter.register_hook(self.mask)  # type: ignore[no-untyped-call]
            # Where torch has swapped what is in the parameter, its hooks are listed, but called no more.
            parameter._backward_hooks = parameter._backward_hooks

    def before_forward(self, user: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Hook a parameter that was frozen before."""
        if self.hook is None:
            self.refresh()

    @unserializable_hook  # type: ignore[untyped-decorator]  # a copy hooks itself
    def mask(self, gradient: Tensor) -> Tensor:
        """The gradient of the survivors."""
        assert self.state.placed.weight_grad is not None
        mask = self.state.placed.weight_grad.to(gradient.device)
        self.pending = gradient if self.listener else None
        if gradient.layout is torch.sparse_coo:  # of an embedding, some rows only
            places, values = gradient._indices(), gradient._values()
            values = values.where(mask[tuple(places)], values.new_zeros(()))
            return torch.sparse_coo_tensor(places, values, gradient.shape, check_invariants=False)
        if torch.is_grad_enabled():  # for gradients of gradients
            return torch.where(mask, gradient, gradient.new_zeros(()))
        survivors = torch.empty_like(gradient)
        keep_only(gradient, mask, out=survivors)
        return survivors

    def listen(self, listener: Callable[[Tensor], None] | None) -> None:
        """Tell this of whole gradients, when they are accumulated: others than those of `autograd.grad`."""
        self.listener, self.pending = listener, None
        if self.accumulated is not None:
            self.accumulated.remove()
            self.accumulated = None
        if listener and self.state.parameter.requires_grad:
            parameter: Any = self.state.parameter
            self.accumulated = parameter.register_post_accumulate_grad_hook(self.tell)

    @property
    def listened(self) -> bool:
        """Whether something is told."""
        return self.listener is not None

    @unserializable_hook  # type: ignore[untyped-decorator]
    def tell(self, parameter: Tensor) -> None:
        """What was pending has been accumulated."""
        if self.listener and self.pending is not None:
            self.listener(self.pending)
        self.pending = None

    def unhook(self) -> None:
        """Unhook the parameter."""
        if self.hook is not None:
            self.hook.remove()
            self.hook = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "hook": None, "listener": None, "accumulated": None, "pending": None}


class OtherGradient(Part):
    """The gradient of a layer's input is found with another weight."""

    def __init__(self, state: PrunedWeight) -> None:
        super().__init__(state)
        self.began: RandomState | None = None

    def hooks(self, layer: nn.Module, user: nn.Module) -> Iterator[RemovableHandle]:
        """Hook the forward calls, before the hooks of others, which may change what the detour gives."""
        yield user.register_forward_hook(self.after_forward, prepend=True, with_kwargs=True)

    def before_forward(self, user: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remember the random state, for a layer that is to be run again."""
        if torch.is_grad_enabled() and not is_plain(user):
            self.began = RandomState.now(args, kwargs)

    def after_forward(self, user: nn.Module, args: tuple[Any, ...], *rest: Any) -> Any:
        """The same output on another graph; None, where there is nothing to do."""
        *keywords, output = rest  # of a hook that another library copied, only the output
        if torch._C._get_tracing_state() is not None or torch.compiler.is_exporting():
            return None  # what is exported has no backward pass
        parts = self._parts(user)
        if parts[0][1] is not self:
            return None  # one acts for all weights of this call
        others = []
        for layer, part in parts:
            weight = part.fitting(layer)
            if weight is not None:
                others.append((layer, weight, part.stand_in(weight)))
        kwargs = keywords[0] if keywords else {}
        return detour(user, others, self.began, args, kwargs, output) if others else None

    def _parts(self, user: nn.Module) -> list[tuple[nn.Module, OtherGradient]]:
        """What acts on a call of this module, which may be a DataParallel replica of one that is pruned."""
        layers: list[nn.Module] = [user, user.out_proj] if isinstance(user, nn.MultiheadAttention) else [user]
        found = [
            (layer, part)
            for layer in layers
            for state in vars(layer).get(STATE, {}).values()
            for part in state.parts
            if isinstance(part, OtherGradient)
        ]
        return found if any(part is self for _, part in found) else [(layers[-1], self)]

    def fitting(self, layer: nn.Module) -> Tensor | None:
        """The weight that a layer is called with, where the mask fits it."""
        weight = layer._parameters.get(self.state.attribute)
        weight = getattr(layer, self.state.attribute, None) if weight is None else weight
        return weight if isinstance(weight, Tensor) and weight.shape == self.state.mask.shape else None

    def stand_in(self, weight: Tensor) -> StandIn:
        """What the gradient of the input is found with in its place."""
        placed, device = self.state.placed, weight.device
        kept = None if placed.input_grad is None else placed.input_grad.to(device)
        if placed.forward is None:
            return StandIn(kept)
        original = given(weight)
        if original is None and self.state.has_backup:
            original = self.state.backup.to(device)
        return StandIn(kept, None if original is None else (placed.forward.to(device), original))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "began": None}


def parts_for(placed: Placed) -> list[type[Part]]:
    """What lets these masks act at their places."""
    found: list[type[Part]] = []
    if placed.forward is not None:
        found.append(Zeros)
    if placed.weight_grad is not None:
        found.append(MaskedGradient)
    if placed.input_grad is not placed.forward:
        found.append(OtherGradient)
    return found
