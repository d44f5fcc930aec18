"""Pruned while the Trainer of Hugging Face trains: `pip install "prunus[transformers]"`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from prunus.extras import need
from prunus.files import whole_file
from prunus.training.methods import Pruner

_Callback: Any = need("transformers", "transformers").TrainerCallback


class PrunerCallback(_Callback):  # type: ignore[misc]
    """Makes a pruner when training begins, and calls its `step` after every step of the optimizer.

    What it knows is saved as `prunus.pt` in every checkpoint of the Trainer, and a training that is resumed
    goes on with it.

    Args:
        make: from the model and its optimizer to a pruner, such as `prunus.Gradual`.
        resume_from: the checkpoint that is resumed from, if it is not one of `output_dir`.

    Attributes:
        pruner: what was made.

    Example:
        >>> import prunus
        >>> def pruner(model, optimizer):
        ...     return prunus.Gradual(model, 0.9, range(100, 900, 100), optimizer=optimizer, layers="all")
        >>> callback = PrunerCallback(pruner)     # transformers.Trainer(model, ..., callbacks=[callback])
    """

    def __init__(
        self, make: Callable[[nn.Module, Optimizer], Pruner], resume_from: str | Path | None = None
    ) -> None:
        self._make, self._resume_from = make, resume_from
        self.pruner: Pruner | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """The model and the optimizer are what they were at the step that is gone on from.

        Raises:
            ValueError: the checkpoint has no state of a pruner.
        """
        model, optimizer = known["model"], known["optimizer"]
        # What a pruner clears when it begins anew is none of a training's that goes on
        before = copy.deepcopy(optimizer.state_dict()) if state.global_step else None
        self.pruner = self._make(model, optimizer)
        if before is not None:
            self.pruner.load_state_dict(self._read(Path(self._resume_from or _folder(args, state))))
            optimizer.load_state_dict(before)

    def _read(self, folder: Path) -> dict[str, Any]:
        file = folder / "prunus.pt"
        if not file.is_file():
            raise ValueError(f"the training goes on without a pruner's state: no {file}; give resume_from")
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        return state

    def on_step_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """The optimizer has made a step."""
        if self.pruner:
            self.pruner.step()

    def on_save(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """A checkpoint has been written."""
        if self.pruner and state.is_world_process_zero:
            with whole_file(_folder(args, state) / "prunus.pt") as partial:
                torch.save(self.pruner.state_dict(), partial)


def _folder(args: Any, state: Any) -> Path:
    """Where a checkpoint of this step is."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
