"""A network that is pruned anew as it runs: what an attack sees in place of the network itself.

Adversarial examples made on a network that changes from step to step transfer better to networks
that were not seen. A surrogate is an `nn.Module` with the submodules, parameters and attributes of
the network it wraps, for any attack library. It never writes to that network: not its weights, nor
their `.grad`, nor its modes or batch-norm statistics.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunus.application import PASSES, PrunedWeight, apply_masks
from prunus.arguments import check_fraction, check_whole, choose
from prunus.detour import StandIn
from prunus.masks import Candidates, Masks
from prunus.ranking import Choice, rank
from prunus.replica import replicate

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


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
        shell = replicate(model)
        # Not registered: the submodules are those of the shell, under their own names
        vars(self).update(wrapped=model, _shell=shell, training=model.training, _proven=False)
        for name in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            vars(self)[name] = vars(shell)[name]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network gives; a changed network where a gradient of an input is asked for."""
        run = self._changed if wants_gradient(args, kwargs) else self._unchanged
        return run(*args, **kwargs)

    @abstractmethod
    def _changed(self, *args: Any, **kwargs: Any) -> Any:
        """The output that an attack finds its gradient with."""

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
        """What the surrogate has of its own is set there, even if the network has something of that name."""
        if name in vars(self) or isinstance(getattr(type(self), name, None), property):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


def wants_gradient(*values: Any) -> bool:
    """Whether a gradient is being asked for of any tensor in these, or in lists, tuples or dicts of them."""
    leaves = tree_leaves(values) if torch.is_grad_enabled() else ()
    return any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves)


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod"):
            raise ValueError(f"{name or 'model'} is compiled: make a surrogate of the network before that")
        if isinstance(module, Surrogate):
            raise ValueError(f"{name or 'model'} is a surrogate already: wrap the network that it wraps")
        if PrunedWeight.on(module):
            raise ValueError(f"{name or 'model'} is pruned already: prunus.restore(model) first")


def stream(*numbers: int) -> torch.Generator:
    """A generator of its own for these numbers (but for zeros at the end), on the CPU for all devices."""
    [seed] = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(seed))


class Diversified(Surrogate):
    """Diversified Weight Pruning (Wang, Wu, Chen 2022, arXiv 2208.08677, section 3.2).

    Weights are ranked once. Whenever a gradient with respect to an input is being asked for (grad mode is
    on and an input requires grad), every candidate falls with chance `p_bern` in a new draw, whatever the
    mode; otherwise the network answers as it is. Masked weights are made beside those of the network, so
    that every graph keeps its own. The gradient reaches inputs, never parameters.

    Args:
        model: the network, which may back several surrogates at once, also in threads.
        p_prune: fraction of groups that become candidates, in [0, 1].
        p_bern: chance that a candidate is pruned, in [0, 1].
        passes: where pruned weights count as zero: "both" (DWP), "backward" (only gradients are
            diversified) or "forward".
        redraw: when masks change: "forward", before every forward that asks for a gradient; an integer
            k, before every k-th of them (attacks that call the network k times a step); "manual", only
            by `.redraw()`.
        predict: "unpruned", or "pruned" under one fixed mask where no gradient is asked for.
        seed: of all draws. Mask number n depends on seed and n alone, on every device.
        **choice: criterion="magnitude", granularity="weight", scope="global", norm="l1",
            layers=(nn.Conv2d,), include=None, exclude=(): see `prunus.rank`.

    Attributes:
        wrapped: the network.
        masks: the masks drawn last, True = keep; None before the first draw.
        draws: how many were drawn. Set to n, the next are masks number n + 1.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range, see `prunus.rank`; a network that is compiled or pruned.

    Example:
        >>> import prunus
        >>> net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Flatten(), nn.MaxPool1d(36), nn.Linear(16, 10)).eval()
        >>> surrogate = prunus.Diversified(net, 0.7, seed=0)
        >>> x = torch.rand(2, 3, 8, 8, requires_grad=True)
        >>> for step in range(3):
        ...     gradient, = torch.autograd.grad(surrogate(x).sum(), x)
        >>> surrogate.draws, torch.equal(surrogate(x), net(x)), torch.equal(surrogate(x.detach()), net(x))
        (3, False, True)
    """

    masks: Masks | None
    _draws: int
    _used: int
    _every: int
    _predicts_pruned: bool
    _passes: str
    _p_bern: float
    _seed: int
    _candidates: Candidates

    def __init__(
        self,
        model: nn.Module,
        p_prune: float,
        p_bern: float = 0.5,
        *,
        passes: str = "both",
        redraw: str | int = "forward",
        predict: str = "unpruned",
        seed: int = 0,
        **choice: Unpack[Choice],
    ) -> None:
        super().__init__(model)
        p_prune, p_bern = check_fraction("p_prune", p_prune), check_fraction("p_bern", p_bern)
        choose("passes", passes, PASSES)
        if "generator" in choice:
            raise TypeError("a surrogate draws from its own generator: give seed in place of generator")
        seed = check_whole("seed", seed)
        choice["generator"] = stream(seed)
        [candidates] = rank(model, **choice).candidates([p_prune])
        vars(self).update(
            masks=None,
            _draws=0,
            _used=0,  # gradients asked for under the present masks
            _every=_interval(redraw),
            _predicts_pruned=choose("predict", predict, {"unpruned": False, "pruned": True}),
            _passes=passes,
            _p_bern=p_bern,
            _seed=seed,
            _candidates=candidates,
        )

    @property
    def draws(self) -> int:
        """How many masks were drawn."""
        return self._draws

    @draws.setter
    def draws(self, number: int) -> None:
        self._draws, self.masks = check_whole("draws", number), None

    def redraw(self) -> Masks:
        """Draw the next masks now."""
        self._draws, self._used = self._draws + 1, 0
        self.masks = self._draw(self._draws)
        return self.masks

    def _draw(self, number: int) -> Masks:
        return self._candidates.draw(self._p_bern, stream(self._seed, number))

    def _changed(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the network under the masks that are due."""
        masks = self.masks
        if masks is None or (self._every and self._used >= self._every):
            masks = self.redraw()
        self._used += 1
        return self._run(masks, *args, **kwargs)

    def _unchanged(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the network, or with `predict="pruned"` that under mask number 0."""
        if self._predicts_pruned:
            return self._run(self._draw(0), *args, **kwargs)
        return super()._unchanged(*args, **kwargs)

    def _run(self, masks: Masks, *args: Any, **kwargs: Any) -> Any:
        if self._passes == "both":
            weights: dict[str, Tensor] = {name: self._shell.get_parameter(name) for name in masks}
            swap = {
                weight: StandIn(masks[name].to(weight.device))(weight.detach())
                for name, weight in weights.items()
            }
            return self._copy(swap)(*args, **kwargs)
        private: dict[Tensor, Tensor] = {
            p: nn.Parameter(p.detach().clone(), requires_grad=False) for p in self.parameters()
        }
        return apply_masks(self._copy(private), masks, self._passes)(*args, **kwargs)


def _interval(redraw: str | int) -> int:
    """How many forwards share a mask; 0 for all of them."""
    if isinstance(redraw, str):
        return choose("redraw", redraw, {"forward": 1, "manual": 0})
    return check_whole("redraw", redraw, least=1)
