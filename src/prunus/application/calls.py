"""How a layer is being called: on parameters of its own, or on others for one call; and by whom."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _functorch as functorch


def masked_for_one_call(name: str, user: nn.Module, layer: nn.Module, attribute: str, mask: Tensor) -> None:
    """Let the call that begins use the layer's present tensor as the mask prunes it, and no longer.

    Raises:
        RuntimeError: several networks' parameters are stacked, each of which has a mask of its own.
    """
    tensor = layer._parameters[attribute]
    assert tensor is not None
    if _is_batched(tensor):
        raise RuntimeError(
            f"{name} is pruned, and vmap runs it on a stack of several networks' parameters, each with a "
            "mask of its own: what was stacked holds its zeros, so let functional_call run an unpruned "
            "network, prunus.restore(copy.deepcopy(model))"
        )
    masked = _masked(tensor, mask)
    _put(layer, attribute, masked)

    def put_back(*_: Any) -> None:
        handle.remove()
        if layer._parameters.get(attribute) is masked:  # or else an interrupt ended the call before this
            _put(layer, attribute, tensor)

    handle = user.register_forward_hook(put_back, always_call=True)


def masked_while_compiling(name: str, layer: nn.Module, attribute: str, mask: Tensor) -> None:
    """The same in a graph, where functional_call itself puts back what was there before.

    Raises:
        RuntimeError: the layer's parameter was exchanged for good.
    """
    tensor = layer._parameters[attribute]
    if tensor is None or isinstance(tensor, nn.Parameter):
        raise RuntimeError(f"{name} was exchanged since it was pruned: run the network once uncompiled")
    _put(layer, attribute, _masked(tensor, mask))


def _masked(tensor: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask.to(tensor.device), tensor, tensor.new_zeros(()))


def _put(layer: nn.Module, attribute: str, tensor: Tensor) -> None:
    layer._parameters[attribute] = tensor  # type: ignore[assignment]  # as functional_call does itself


def _is_batched(tensor: Tensor) -> bool:
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
    trace, level = torch._C._get_tracing_state(), functorch.peek_interpreter_stack()
    if trace is None and level is None and not torch._C._len_torch_dispatch_stack():
        return _NOTHING
    return _aside(trace)


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
