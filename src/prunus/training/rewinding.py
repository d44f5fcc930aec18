"""Back to where a training was, with what has been pruned since."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from torch.optim import Optimizer

from prunus.training.moments import clear
from prunus.verbs import masks_of


class Snapshot:
    """The state of a training at some step: of a network, of optimizers, schedulers and whatever has a state.

    Pruned weights stay pruned when it is taken up again. With the weights (Frankle et al. 2020, arXiv
    1912.05671) survivors and batch-norm statistics are what they were; taken at the start, that is training
    the "winning ticket" anew. Without them only the learning rate is rewound (Renda, Frankle, Carbin 2020,
    arXiv 2003.02389), and momentum and moments with it. A pruner among the others goes back too, its masks
    included. What fails leaves all as it was.

    Args:
        model: the network.
        *others: an optimizer, a learning-rate scheduler, a gradient scaler, …: each has `state_dict` and
            `load_state_dict`.

    Raises:
        TypeError: one has not.

    Example:
        >>> import prunus, torch
        >>> net = nn.Linear(4, 4)
        >>> optimizer = torch.optim.SGD(net.parameters(), 0.1)
        >>> snapshot, before = prunus.Snapshot(net, optimizer), net.weight.clone()
        >>> net(torch.ones(1, 4)).sum().backward(); optimizer.step()
        >>> pruning = prunus.prune(net, 0.5, layers="Linear")
        >>> snapshot.rewind()
        >>> torch.equal(net.weight, before * pruning.masks["weight"])
        True
    """

    def __init__(self, model: nn.Module, *others: Any) -> None:
        for one in (model, *others):
            if not all(callable(getattr(one, name, None)) for name in ("state_dict", "load_state_dict")):
                raise TypeError(f"{type(one).__name__} has no state_dict and load_state_dict")
        self.model, self.others = model, others
        self._state = copy.deepcopy(model.state_dict())
        self._states = [copy.deepcopy(one.state_dict()) for one in others]

    def rewind(self, weights: bool = True) -> None:
        """Take the state up again, as often as is wanted.

        Args:
            weights: the network's too, its buffers included; or else only that of the others.
        """
        parts = [(self.model, self._state)] * weights + list(zip(self.others, self._states, strict=True))
        now = [(one, copy.deepcopy(one.state_dict())) for one, _ in parts]
        try:
            for one, state in parts:
                one.load_state_dict(copy.deepcopy(state))
        except BaseException:
            for one, state in now:
                one.load_state_dict(state)
            raise
        optimizers = [one for one in self.others if isinstance(one, Optimizer)]
        clear(optimizers, self.model, masks_of(self.model))
