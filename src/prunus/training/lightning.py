"""Pruned while Lightning trains: `pip install "prunus[lightning]"`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer

from prunus.extras import need
from prunus.training.methods import Pruner

_Callback: Any = need("lightning.pytorch", "lightning").Callback


class PrunerCallback(_Callback):  # type: ignore[misc]
    """Makes a pruner when training begins, and calls its `step` after every step of the optimizer.

    What it knows goes into Lightning's checkpoints, and a training that is resumed from one goes on with it.

    Args:
        make: from the LightningModule and its optimizers to a pruner, such as `prunus.Gradual`.

    Attributes:
        pruner: what was made.

    Example:
        >>> import lightning, prunus, torch
        >>> class Module(lightning.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.model = torch.nn.Linear(8, 8)
        ...     def training_step(self, batch, index):
        ...         return self.model(batch).square().mean()
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)
        >>> def pruner(module, optimizers):
        ...     return prunus.Gradual(module.model, 0.75, [2, 4, 6], optimizer=optimizers, layers="Linear")
        >>> trainer = lightning.Trainer(
        ...     max_steps=8, callbacks=[PrunerCallback(pruner)], accelerator="cpu", logger=False,
        ...     enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
        >>> module = Module()
        >>> trainer.fit(module, torch.randn(16, 2, 8))
        >>> prunus.sparsity(module)
        Sparsity(0.7500: 48 of 64 weights are zero)
    """

    def __init__(self, make: Callable[[Any, list[Optimizer]], Pruner]) -> None:
        self._make = make
        self._state: dict[str, Any] | None = None
        self.pruner: Pruner | None = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """The module has its weights, and its optimizers do not have their states yet."""
        self.pruner, self._steps = self._make(pl_module, trainer.optimizers), None
        if self._state is not None:
            self.pruner.load_state_dict(self._state)
            self._state = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Steps count from here."""
        self._steps = trainer.global_step

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        """After a batch; where gradients are accumulated, it may have made no step."""
        if self.pruner and trainer.global_step != self._steps:
            self.pruner.step()
        self._steps = trainer.global_step

    def state_dict(self) -> dict[str, Any]:
        """What goes into a checkpoint."""
        return self.pruner.state_dict() if self.pruner else {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """What came out of one."""
        self._state = dict(state_dict) or None
