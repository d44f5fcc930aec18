"""How a layer is being called: on parameters of its own, or on others for one call; and by whom."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._C import _functorch as functorch

from prunus.application.placed import Placed

_GIVEN = "_prunus_given"  # on a masked tensor, that which the caller gave


def masked_for_one_call(name: str, user: nn.Module, layer: nn.Module, attribute: str, placed: Placed) -> None:
    """Let the call that begins use the layer's present tensor as its masks prune it, and no longer.

    Raises:
        RuntimeError: several networks' parameters are stacked, each of which has a mask of its own.
    """
    tensor = layer._parameters[attribute]
    assert tensor is not None
    if is_batched(tensor):
        raise RuntimeError(
            f"{name} is pruned, and vmap runs it on a stack of several networks' parameters, each with a "
            "mask of its own: what was stacked holds its zeros, so let functional_call run an unpruned "
            "network, prunus.restore(copy.deepcopy(model))"
        )
    if placed.forward is None and placed.weight_grad is None:
        return
    masked = _masked(tensor, placed)
    setattr(masked, _GIVEN, tensor.detach())
    _put(layer, attribute, masked)

    def put_back(*_: Any) -> None:
        handle.remove()
        if layer._parameters.get(attribute) is masked:  # or else an interrupt ended the call before this
            _put(layer, attribute, tensor)

    handle = user.register_forward_hook(put_back, always_call=True)


def masked_while_compiling(name: str, layer: nn.Module, attribute: str, placed: Placed) -> None:
    """The same in a graph, where functional_call itself puts back what was there before.

    Raises:
        RuntimeError: the layer's parameter was exchanged for good, or gradients flow through entries of it
            that the forward prunes.
    """
    tensor = layer._parameters[attribute]
    if tensor is None or isinstance(tensor, nn.Parameter):
        raise RuntimeError(f"{name} was exchanged since it was pruned: run the network once uncompiled")
    if placed.forward is not None and placed.input_grad is not placed.forward:
        raise RuntimeError(
            f"{name} is pruned in the forward pass, with other weights for the gradient of the input: a "
            "functional_call of it cannot be compiled, so run it uncompiled"
        )
    if placed.forward is not None or placed.weight_grad is not None:
        _put(layer, attribute, _masked(tensor, placed))


def given(weight: Tensor) -> Tensor | None:
    """What a weight that was masked for one call was before, detached; else None."""
    return cast("Tensor | None", getattr(weight, _GIVEN, None))


def _masked(tensor: Tensor, placed: Placed) -> Tensor:
    here = placed.map(lambda mask: mask.to(tensor.device))
    if here.forward is here.weight_grad and here.forward is not None:
        return torch.where(here.forward, tensor, tensor.new_zeros(()))
    found: Tensor = _Masked.apply(here.forward, here.weight_grad, tensor)
    return found


def _kept(tensor: Tensor, mask: Tensor | None) -> Tensor:
    return tensor.clone() if mask is None else torch.where(mask, tensor, tensor.new_zeros(()))


class _Masked(torch.autograd.Function):
    """A tensor by one mask, and its gradient by another."""

    generate_vmap_rule = True

    @staticmethod
    def forward(forward: Tensor | None, weight_grad: Tensor | None, tensor: Tensor) -> Tensor:
        return _kept(tensor, forward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.mask, _ = inputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, Tensor]:
        return None, None, _kept(grads[0], ctx.mask)


def _put(layer: nn.Module, attribute: str, tensor: Tensor) -> None:
    layer._parameters[attribute] = tensor  # type: ignore[assignment]  # as functional_call does itself


def is_batched(tensor: Tensor) -> bool:
    """Whether vmap has stacked it."""
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return False


def within_functional_call() -> bool:
    """Whether torch.func.functional_call is running, which puts tensors in the place of parameters."""
    frame = sys._getframe()
    while frame.f_back:
        frame = frame.f_back
        if (frame.f_code.co_name, frame.f_globals.get("__name__")) == _FUNCTIONAL_CALL:
            return True
    return False


_FUNCTIONAL_CALL = "_functional_call", "torch.nn.utils.stateless"


def unobserved() -> AbstractContextManager[None]:
    """Within the block nothing is traced, transformed or faked: what is written, is written."""
    return _aside(torch._C._get_tracing_state()) if _traced() else _NOTHING


def observed() -> bool:
    """Whether what is computed now is being traced, transformed, faked or compiled."""
    return torch.compiler.is_compiling() or _traced()


def _traced() -> bool:
    trace, level = torch._C._get_tracing_state(), functorch.peek_interpreter_stack()
    return trace is not None or level is not None or bool(torch._C._len_torch_dispatch_stack())


_NOTHING: AbstractContextManager[None] = nullcontext()


@contextmanager
def _aside(trace: Any) -> Iterator[None]:
    with ExitStack() as stack:
        if trace is not None:
            torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
            stack.callback(torch._C._set_tracing_state, trace)  # type: ignore[attr-defined]
        if functorch.peek_interpreter_stack() is not None:
            from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

            stack.enter_context(temporarily_clear_interpreter_stack())
        if torch._C._len_torch_dispatch_stack():
            from torch.utils._python_dispatch import _disable_current_modes

            stack.enter_context(_disable_current_modes())
        yield
