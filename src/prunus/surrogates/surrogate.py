"""A network that is pruned anew as it runs: what an attack sees in place of the network itself.

Adversarial examples made on a network that changes from step to step transfer better to networks
that were not seen. A surrogate is an `nn.Module` with the submodules, parameters and attributes of
the network it wraps, for any attack library. It never writes to that network: not its weights, nor
their `.grad`, nor its modes or batch-norm statistics.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunus.application.copies import replicate
from prunus.application.ruled import check_unruled
from prunus.weights import states_of

if TYPE_CHECKING:
    from typing_extensions import Self


class Surrogate(nn.Module):
    """What all surrogates share: the wrapped network, seen and run but never changed.

    Its modes are its own: `train()` and `eval()` on the surrogate do not reach the wrapped network.
    Parameters count as frozen, and what a forward leaves in buffers or attributes is thrown away.

    Args:
        model: the network to wrap. Where it is moved, trained or loaded, the surrogate sees it; where its
            layers, hooks or attributes are exchanged, make another surrogate.

    Raises:
        TypeError: `model` is not a module.
        ValueError: `model` is compiled or scripted, is pruned, or holds a surrogate.
    """

    wrapped: nn.Module
    _shell: nn.Module

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        _check_model(model)
        # Not registered: the submodules are those of the shell, under their own names
        object.__setattr__(self, "wrapped", model)
        object.__setattr__(self, "_shell", replicate(model))
        self.training, self._proven = model.training, False
        for name in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            vars(self)[name] = vars(self._shell)[name]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network gives; a changed network where a gradient of an input is asked for."""
        run = self._changed if wants_gradient(args, kwargs) else self._unchanged
        return run(*args, **kwargs)

    def _changed(self, *args: Any, **kwargs: Any) -> Any:
        """The output that an attack finds its gradient with."""
        raise NotImplementedError

    def _unchanged(self, *args: Any, **kwargs: Any) -> Any:
        """The output that predictions are made with."""
        return self._copy()(*args, **kwargs)

    def _copy(self, swap: Mapping[Tensor, Tensor] | None = None) -> Any:
        """The network once more, in the modes of the surrogate, to be run once.

        Args:
            swap: other tensors for some parameters. The rest are detached, and buffers are copied, for
                networks that write to them.
        """
        tensors = {p: p.detach() for p in self.parameters()} | {b: b.clone() for b in self.buffers()}
        copy = replicate(self._shell, {**tensors, **(swap or {})})
        copy.training = self.training
        if not self._proven:
            self._prove(copy)
        return copy

    def _prove(self, copy: nn.Module) -> None:
        """Once, warn if the forward of a copy calls none of its layers: then others were called."""
        called: list[nn.Module] = []
        hooks = [
            layer.register_forward_pre_hook(lambda layer, _: called.append(layer))
            for layer in copy.modules()
            if layer is not copy
        ]

        def conclude(module: nn.Module, args: object, output: object) -> None:
            for hook in hooks:
                hook.remove()
            if hooks and not called:
                warnings.warn(
                    f"no layer of the copy of {type(self.wrapped).__name__} was called: if its forward is a "
                    "lambda or a closure, that holds the layers of the original, which are not pruned",
                    stacklevel=2,
                )

        self._proven = True
        copy.register_forward_hook(conclude)

    def train(self, mode: bool = True) -> Self:
        """As the network's own `train` does, but not on the network."""
        self._shell.train(mode)
        self.training = self._shell.training
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing: gradients never reach parameters, and those the network has are its own."""

    @property
    def device(self) -> torch.device:
        """Of the wrapped network: what it says itself, or else where its first parameter is."""
        own = getattr(self.wrapped, "device", None)
        return own if own is not None else next(self.parameters()).device

    def __getattr__(self, name: str) -> Any:
        """What the surrogate does not have, the wrapped network has, but for what Python asks of a class."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or "wrapped" not in vars(self):  # it may just be being copied
                raise
            return getattr(self.wrapped, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """What a surrogate has is its own, even if the network has something of that name.

        Other modules and tensors are registered, as they are in every module.
        """
        if name in vars(self) or not isinstance(value, nn.Module | Tensor):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def expect(self, labels: Tensor) -> None:
        """Be told the classes of the images to come, shape (batch,); most surrogates have no use for them."""


def wants_gradient(*values: Any) -> bool:
    """Whether a gradient is being asked for of any tensor in these, or in lists, tuples or dicts of them."""
    leaves = tree_leaves(values) if torch.is_grad_enabled() else ()
    return any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves)


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    check_unruled(model)
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod"):
            raise ValueError(f"{name or 'model'} is compiled: make a surrogate of the network before that")
        if isinstance(module, Surrogate):
            raise ValueError(f"{name or 'model'} is a surrogate already: wrap the network that it wraps")
        if states_of(module):
            raise ValueError(f"{name or 'model'} is pruned already: prunus.restore(model) first")
