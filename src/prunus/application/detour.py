"""A layer's output, with the gradient of its input found with another weight.

The parameters' own gradients stay what they are. Layers that run torch's own convolution or linear
map go by the formula of its gradient. Any other layer (one with a `forward` of its own, say to
standardise its weight, or an attention module) is run twice more, once for each gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten
from torch.utils.checkpoint import get_device_states, set_device_states

from prunus.application.copies import replicate
from prunus.application.operations import Operation, call_of, has_operation


@dataclass(frozen=True)
class StandIn:
    """What stands in for a weight.

    Args:
        mask: what it does not keep is zero; None keeps all.
        hidden: where zeros stand in the weight itself, the mask that put them there, and what they were.
    """

    mask: Tensor | None
    hidden: tuple[Tensor, Tensor] | None = None

    def __call__(self, weight: Tensor) -> Tensor:
        """The weight that the gradient of the input is found with."""
        if self.hidden is not None:
            seen, original = self.hidden
            weight = torch.where(seen, weight, original)
        if self.mask is None:
            return weight
        if torch._C._get_tracing_state() is not None:  # which does not know the view
            return torch.where(self.mask, weight, weight.new_zeros(()))
        return weight * self.mask.view(torch.int8)  # several times as fast


@dataclass(frozen=True)
class RandomState:
    """The random state that a forward call began with, on the CPU and on the devices of its inputs."""

    cpu: Tensor
    devices: list[int]
    states: list[Tensor]

    @classmethod
    def now(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> RandomState:
        """The state at this moment."""
        return cls(torch.get_rng_state(), *get_device_states(*args, *kwargs.values()))

    @contextmanager
    def again(self) -> Iterator[None]:
        """Within the block, the same random numbers once more; after it, those that were to come."""
        with torch.random.fork_rng(self.devices):
            torch.set_rng_state(self.cpu)
            set_device_states(self.devices, self.states)
            yield


Others = Sequence[tuple[nn.Module, Tensor, StandIn]]  # layers, weights of theirs, and what stands in for each


def detour(
    user: nn.Module,
    others: Others,
    began: RandomState | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
) -> Any:
    """The same output on another graph, or None where no gradient of an input is asked for.

    Args:
        user: the module that gave `output` for `args` and `kwargs`.
        others: of the modules whose weights it used, itself or children of it.
        began: the random state before; needed where `is_plain(user)` is false.
    """
    [(layer, weight, stand_in), *more] = others
    _refuse_forward_mode(layer, args)
    if not torch.is_grad_enabled() or not _any_wants_gradient(args, kwargs):
        return None
    alone = user is layer and not kwargs and not more and weight is layer.weight
    if alone and len(args) == 1 and has_operation(layer):
        call = call_of(layer, args[0])
        value = output.detach()
        known = (value if call.batched else value[None],)  # in a tuple, or the output would be a view
        made: Tensor = _ByFormula.apply(call.operation, stand_in, known, call.x, weight, layer.bias)
        return call.output(made)
    return _by_running_again(user, others, began or RandomState.now(args, kwargs), args, kwargs, output)


def _refuse_forward_mode(layer: nn.Module, args: tuple[Any, ...]) -> None:
    if forward_ad._current_level < 0 or torch.compiler.is_compiling():
        return
    tensors = (arg for arg in args if isinstance(arg, Tensor))
    unpack: Any = forward_ad.unpack_dual
    if any(unpack(tensor).tangent is not None for tensor in tensors):
        raise RuntimeError(
            f"{type(layer).__name__} is pruned in one pass, for which forward-mode differentiation is not "
            "defined: use reverse mode (backward, jacrev), or prune both passes"
        )


def _any_wants_gradient(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    # Leaves of trees are found slowly, and nearly all layers are called on one tensor
    return any(map(_wants_gradient, args)) or any(map(_wants_gradient, tree_leaves((args, kwargs))))


def _wants_gradient(value: object) -> bool:
    value = value.data if isinstance(value, PackedSequence) else value
    return isinstance(value, Tensor) and value.requires_grad


def _detached(value: Any) -> Any:
    if isinstance(value, PackedSequence):
        return value._replace(data=value.data.detach())
    return value.detach() if isinstance(value, Tensor) else value


class _ByFormula(torch.autograd.Function):
    """A value that is known, and the gradients of input, weight and bias."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        operation: Operation,
        stand_in: StandIn,
        value: tuple[Tensor],
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        return value[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.operation, ctx.stand_in, _, x, weight, _ = inputs
        ctx.wanted = ctx.needs_input_grad[3:]
        # As torch does: a linear map needs x for the weight's gradient alone, a convolution always
        ctx.save_for_backward(x if ctx.wanted[1] or weight.dim() > 2 else None, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        [grad] = grads
        x, weight = ctx.saved_tensors
        # Under autocast the layer ran in the dtype of its output.
        x, weight = x if x is None else x.to(grad.dtype), ctx.stand_in(weight).to(grad.dtype)
        return None, None, None, *ctx.operation.gradients(grad, x, weight, list(ctx.wanted))


# Which torch asks for at every call: found once, it takes a fifth of the time
_ByFormula.forward.__signature__ = signature(_ByFormula.forward)  # type: ignore[attr-defined]


def _by_running_again(
    user: nn.Module,
    others: Others,
    began: RandomState,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
) -> Any:
    if getattr(user, "_is_replica", False):
        raise RuntimeError(
            f"{type(user).__name__} is pruned in one pass, which nn.DataParallel can run for torch's own "
            "convolutions and linear layers only: use DistributedDataParallel"
        )

    def buffers() -> dict[Tensor, Tensor]:  # which a forward may write to
        return {buffer: buffer.clone() for buffer in user.buffers()}

    given, named = _all_detached((args, kwargs))
    with began.again():
        for_parameters = replicate(user, buffers(), _with_gradient).forward(*given, **named)
    weights: dict[Tensor, Tensor] = {parameter: parameter.detach() for parameter in user.parameters()}
    weights |= {weight: stand_in(weight.detach()) for _, weight, stand_in in others}
    with began.again():
        for_inputs = replicate(user, weights | buffers()).forward(*args, **kwargs)
    leaves, form = tree_flatten(output)
    if not any(isinstance(leaf, (Tensor, PackedSequence)) for leaf in leaves):
        raise TypeError(
            f"{type(user).__name__} returned {type(output).__name__}: where the passes differ, "
            "a pruned layer must return tensors, or tuples of them"
        )
    routes = zip(leaves, tree_leaves(for_inputs), tree_leaves(for_parameters), strict=True)
    return tree_unflatten([_reroute(*route) for route in routes], form)


def _all_detached(tree: Any) -> Any:
    """The same, tensors without history; one that is there twice stays one, which attention looks at."""
    leaves, form = tree_flatten(tree)
    detached = {id(leaf): _detached(leaf) for leaf in leaves}
    return tree_unflatten([detached[id(leaf)] for leaf in leaves], form)


def _reroute(value: Any, for_inputs: Any, for_parameters: Any) -> Any:
    if isinstance(value, PackedSequence):
        return value._replace(data=_reroute(value.data, for_inputs.data, for_parameters.data))
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return _Rerouted.apply((value.detach(),), for_inputs, for_parameters)


def _with_gradient(tensor: Tensor) -> Tensor:
    """A tensor in a plain attribute: it has its gradient by the run for parameters, and by that alone."""
    return tensor if tensor.requires_grad else tensor.clone()


class _Rerouted(torch.autograd.Function):
    """A value that is known, with the gradients of two others."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: tuple[Tensor], for_inputs: Tensor, for_parameters: Tensor) -> Tensor:
        return value[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor]:
        [grad] = grads
        return None, grad, grad
