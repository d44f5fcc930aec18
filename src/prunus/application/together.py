"""The weights that one call pruned: what concerns several of them is done, and said, once."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from prunus.application.shards import check_sharded
from prunus.masks import counted
from prunus.weights import depth_outside

if TYPE_CHECKING:
    from prunus.application.state import PrunedWeight

# All that are in force. torch calls the hooks of every optimizer in one place, and so there is one hook.
_watched: weakref.WeakSet[Together] = weakref.WeakSet()


class Together:
    """The pruned weights of one call, in the order of the network."""

    def __init__(self) -> None:
        self.states: list[PrunedWeight] = []
        self.loaded: dict[str, tuple[int, int]] = {}
        self._places: dict[int, PrunedWeight] | None = None
        self.watch()

    def watch(self) -> None:
        """Be told of the steps of optimizers."""
        _watched.add(self)

    def add(self, state: PrunedWeight) -> None:
        """One more."""
        self.states.append(state)
        self.forget_places()

    def remove(self, state: PrunedWeight) -> None:
        """One less."""
        self.states = [other for other in self.states if other is not state]
        self.forget_places()

    def forget_places(self) -> None:
        """Parameters may be others than they were."""
        self._places = None

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer has moved its parameters, perhaps by momentum from before pruning."""
        if self._places is None:
            self._places = {id(state.parameter): state for state in self.states}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                state = self._places.get(id(parameter))
                if state is not None:
                    state.after_step()

    def survey(self, within_forward: bool = True) -> None:
        """Follow all parameters that were exchanged, and say, once, which cannot be followed."""
        check_sharded(self.states, within_forward)
        lost = {state.name: reason for state in list(self.states) if (reason := state.catch_up())}
        self.forget_places()
        if lost:
            warnings.warn(
                "no longer pruned: " + "; ".join(f"{name} {reason}" for name, reason in lost.items()) + ". "
                "Zeros that are left may move in training. Call prunus.restore(model) before such a change "
                "and prune after it, or prune what is zero now: "
                "prunus.apply_masks(model, prunus.Masks.from_zeros(model))",
                stacklevel=depth_outside(),
            )

    def say_loaded(self) -> None:
        """Say, once, where weights were loaded that other masks had pruned."""
        if self.loaded:
            loaded, self.loaded = self.loaded, {}
            layers = "; ".join(
                f"{name} ({counted(alive, 'pruned weight')} not zero there, {counted(zeros, 'zero')} not "
                "pruned here)"
                for name, (alive, zeros) in loaded.items()
            )
            warnings.warn(
                f"the weights that were loaded had been pruned by other masks: {layers}. Both prunings act "
                "on them now. To go on with theirs: prunus.restore(model), load_state_dict, then "
                "prunus.apply_masks(model, prunus.Masks.from_zeros(model))",
                stacklevel=depth_outside(),
            )

    def __getstate__(self) -> dict[str, Any]:
        """For a copy, to which come those weights that are copied too, and no others."""
        return {"states": [], "loaded": {}, "_places": None}


def pruned_elsewhere(
    parameters: Iterable[nn.Parameter], layers: Iterable[nn.Module]
) -> Iterator[PrunedWeight]:
    """The states that put zeros into these parameters and are on none of these layers, but on others'."""
    wanted, known = set(map(id, parameters)), set(map(id, layers))
    for together in list(_watched):
        for state in list(together.states):
            shared = id(state.parameter) in wanted and state.has_backup and state.is_held
            if shared and known.isdisjoint(map(id, state.layers)):
                yield state


@torch._disable_dynamo  # type: ignore[attr-defined]  # as the optimizer's own methods that are not for graphs
def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for together in list(_watched):
        together.after_step(optimizer)


register_optimizer_step_post_hook(_after_step)
