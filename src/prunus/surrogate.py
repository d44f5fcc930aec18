"""A network that is pruned anew as it runs: what an attack sees in place of the network itself.

Adversarial examples made on a network that changes from step to step transfer better to networks
that were not seen. A surrogate is an `nn.Module` with the submodules, parameters and attributes of
the network it wraps, for any attack library. It never writes to that network: not its weights, nor
their `.grad`, nor its modes or batch-norm statistics.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.application import PASSES, PrunedWeight, apply_masks
from prunus.arguments import check_fraction, choose
from prunus.detour import StandIn
from prunus.masks import Masks
from prunus.ranking import Choice, rank
from prunus.replica import replicate

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Surrogate(nn.Module):
    """What all surrogates share: the wrapped network, seen and run but never changed.

    Its modes are its own: `train()` and `eval()` on the surrogate do not reach the wrapped network.

    Args:
        model: the network to wrap. Where it is moved, trained or loaded, the surrogate sees it.

    Raises:
        TypeError: `model` is not a module.
        ValueError: `model` is compiled or scripted, or is pruned.
    """

    wrapped: nn.Module

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        _check_model(model)
        shell = replicate(model)
        # Not registered: the submodules are those of the shell, under their own names
        vars(self).update(wrapped=model, _shell=shell, training=model.training)
        for name in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            vars(self)[name] = vars(shell)[name]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network gives; a changed network where a gradient of an input is asked for."""
        asked = any(isinstance(value, Tensor) and value.requires_grad for value in (*args, *kwargs.values()))
        run = self._changed if asked and torch.is_grad_enabled() else self._unchanged
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
            swap: other tensors for some parameters. The rest are detached, and where batch-norm
                statistics would move, those of the copy do.
        """
        moving = {
            buffer: buffer.clone()
            for module in self.modules()
            if module.training
            for buffer in module._buffers.values()
            if buffer is not None
        }
        copy = replicate(
            self._shell, {**{p: p.detach() for p in self.parameters()}, **moving, **(swap or {})}
        )
        copy.training = self.training
        return copy

    @property
    def device(self) -> torch.device:
        """Of the wrapped network: what it says itself, or else where its first parameter is."""
        own = getattr(self.wrapped, "device", None)
        return own if own is not None else next(self.parameters()).device

    def __getattr__(self, name: str) -> Any:
        """What the surrogate does not have, the wrapped network has."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("wrapped", "_shell"):  # while it is being copied
                raise
            return getattr(self.wrapped, name)


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod"):
            raise ValueError(f"{name or 'model'} is compiled: make a surrogate of the network before that")
        if PrunedWeight.on(module):
            raise ValueError(f"{name or 'model'} is pruned already: prunus.restore(model) first")


def stream(*numbers: int) -> torch.Generator:
    """A generator of its own for these numbers, on the CPU, so that all devices draw alike."""
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
        draws: how many were drawn. Set it to go on from there.

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
        if not isinstance(seed, int) or seed < 0:
            raise ValueError(f"seed must be a whole number from 0, got {seed!r}")
        self._every = _interval(redraw)
        self._predicts_pruned = choose("predict", predict, {"unpruned": False, "pruned": True})
        self._passes, self._p_bern, self._seed = passes, p_bern, seed
        choice["generator"] = stream(seed)
        [self._candidates] = rank(model, **choice).candidates([p_prune])
        self.masks: Masks | None = None
        self.draws = self._used = 0

    def redraw(self) -> Masks:
        """Draw the next masks now."""
        self.draws, self._used = self.draws + 1, 0
        self.masks = self._draw(self.draws)
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
            weights: dict[str, Tensor] = {name: self.get_parameter(name) for name in masks}
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
    if isinstance(redraw, int) and not isinstance(redraw, bool) and redraw > 0:
        return redraw
    if isinstance(redraw, str):
        return choose("redraw", redraw, {"forward": 1, "manual": 0})
    raise ValueError(f"redraw must be forward, manual or a whole number from 1; got {redraw!r}")
