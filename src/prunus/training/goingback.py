"""What does each round of training begin with, after the cut?

A way back is made once, of a network and its optimizer, before anything is pruned; it is called with the
number of every round. To add one, write it into the table at the end of this file.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from prunus.training.rewinding import Snapshot


@dataclass(frozen=True)
class Start:
    """What a training begins with.

    Args:
        state: of the network.
        earlier: of the network and of its optimizer, at the step that weights are rewound to; if known.
        fresh: gives an untrained network of a seed.
    """

    state: Mapping[str, Any]
    earlier: tuple[Mapping[str, Any], Mapping[str, Any]] | None
    fresh: Callable[[int], nn.Module]


@dataclass(frozen=True)
class GoBack:
    """A way.

    Args:
        make: the function to call with the number of a round.
        settled: whether the round is at the last learning rate.
        earlier: whether an earlier state is needed.
    """

    make: Callable[[nn.Module, Optimizer, Start], Callable[[int], None]]
    settled: bool = False
    earlier: bool = False


def stay(model: nn.Module, optimizer: Optimizer, start: Start) -> Callable[[int], None]:
    """Keep the weights; the optimizer forgets."""
    return lambda number: optimizer.state.clear()


def rewind(model: nn.Module, optimizer: Optimizer, start: Start) -> Callable[[int], None]:
    """Take weights and optimizer back to the earlier state (Frankle et al. 2020, arXiv 1912.05671)."""
    assert start.earlier is not None
    end = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    for part, state in zip((model, optimizer), start.earlier, strict=True):
        part.load_state_dict(copy.deepcopy(state))  # type: ignore[attr-defined]
    snapshot = Snapshot(model, optimizer)
    for part, state in zip((model, optimizer), end, strict=True):
        part.load_state_dict(state)  # type: ignore[attr-defined]
    return lambda number: snapshot.rewind()


def anew(model: nn.Module, optimizer: Optimizer, start: Start) -> Callable[[int], None]:
    """Initialize the survivors as in another network, which is the control of the lottery ticket."""

    def begin(number: int) -> None:
        model.load_state_dict(start.fresh(number + 1).state_dict())
        optimizer.state.clear()

    return begin


WAYS_BACK = {
    "none": GoBack(stay, settled=True),
    "lr": GoBack(stay),
    "weights": GoBack(rewind, earlier=True),
    "init": GoBack(anew),
}
