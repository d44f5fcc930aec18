"""One training, step by step; what is on disk is enough to go on with it as if nothing had happened."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from prunus.backward.sparse_backward import SparseBackward
from prunus.files import whole_file
from prunus.inputs.images import Batch
from prunus.processes import Process
from prunus.progress import Monitor
from prunus.randomness import mixed
from prunus.training.batches import Batches
from prunus.training.methods import Method, Pruner
from prunus.training.recipe import Plan


@dataclass(frozen=True)
class Machine:
    """Where it runs.

    Args:
        device: of this process.
        process: of several, this one, which sees its part of every batch.
        amp: under autocast in this dtype.
    """

    device: torch.device
    process: Process
    amp: torch.dtype | None = None


class Checkpoint:
    """The state of a training on disk, whole or not at all; the first of several processes writes.

    Args:
        path: the file.
        process: this one.
        every: minutes between two writings; 0 is at every step.
    """

    def __init__(self, path: Path, process: Process, every: float) -> None:
        self.path, self.process, self.every = path, process, every
        self._written = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to write."""
        return not self.process.number and time.monotonic() - self._written >= 60 * self.every

    def read(self) -> dict[str, Any] | None:
        """What was written last, on the CPU."""
        if not self.path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged files make for nearly any
            raise ValueError(
                f"{self.path} is damaged ({type(error).__name__}): delete it to begin that training anew"
            ) from error
        return state

    def delete(self) -> None:
        """It is needed no more."""
        if not self.process.number:
            self.path.unlink(missing_ok=True)

    def write(self, state: Mapping[str, Any]) -> None:
        """Exchange it."""
        if self.process.number:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(self.path) as partial:
            torch.save(dict(state), partial)
        self._written = time.monotonic()


class Fit:
    """A network in training.

    Args:
        model: the network, which is trained in place.
        optimizer: of it.
        plan: its steps.
        batches: what it sees.
        seed: of what layers draw, such as dropout.
        machine: where it runs.
        method, pruner: how it is pruned, if it is; `pruner` of this network and optimizer.
        rules: that prune the passes of this network, if any do.
        back: what is done at the start of each round, after pruning; see `prunus.training.goingback`.
        keep_at: the step before which the state is kept that weights are rewound to.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        plan: Plan,
        batches: Batches,
        seed: int,
        machine: Machine,
        *,
        method: Method | None = None,
        pruner: Pruner | None = None,
        rules: SparseBackward | None = None,
        back: Callable[[int], None] | None = None,
        keep_at: int | None = None,
    ) -> None:
        self.model, self.optimizer, self.plan, self.batches = model, optimizer, plan, batches
        self.seed, self.machine, self.method, self.pruner, self.back = seed, machine, method, pruner, back
        self.rules = rules
        self.scheduler = LambdaLR(optimizer, plan.factor)
        half = machine.amp is torch.float16
        self.scaler = torch.amp.GradScaler(machine.device.type, enabled=half)
        self.step, self.keep_at = 0, keep_at
        self.kept: tuple[dict[str, Any], dict[str, Any]] | None = None
        self.over_time: list[dict[str, int]] = []
        self.seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        """All that a training goes on from."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "pruner": self.pruner.state_dict() if self.pruner else None,
            "kept": self.kept,
            "over_time": self.over_time,
            "rules": self.rules.state_dict() if self.rules else None,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        if self.pruner:
            self.pruner.load_state_dict(state["pruner"])
        for part in ("model", "optimizer", "scheduler", "scaler"):
            getattr(self, part).load_state_dict(state[part])
        if self.rules:
            self.rules.load_state_dict(state["rules"])
        self.step, self.kept, self.over_time = state["step"], state["kept"], list(state["over_time"])
        self.seconds = state.get("seconds", 0.0)

    def run(self, checkpoint: Checkpoint, monitor: Monitor) -> None:
        """Train to the end, from where the checkpoint is.

        Raises:
            ValueError: the loss is no finite number any more.
        """
        state = checkpoint.read()
        if state is not None:
            self.load_state_dict(state)
        if self.step == self.plan.total:
            return
        forward = self._forward()
        while self.step < self.plan.total:
            with _random_numbers_apart(self.machine.device):
                self._epoch(forward, checkpoint, monitor)
        checkpoint.write(self.state_dict())
        self.machine.process.wait()  # or another one would read what was there before

    def _forward(self) -> nn.Module:
        """The network, or that which sums gradients over processes."""
        if self.machine.process.count == 1:
            return self.model
        devices = [self.machine.device] if self.machine.device.type == "cuda" else None
        return DistributedDataParallel(self.model, device_ids=devices)

    def _epoch(self, forward: nn.Module, checkpoint: Checkpoint, monitor: Monitor) -> None:
        epoch, batch = divmod(self.step, len(self.batches))
        total = torch.zeros((), device=self.machine.device)
        images = (len(self.batches) - batch) * self.batches.order.batch_size
        begun = time.perf_counter()
        for given in monitor.track(self.batches.of(epoch, batch), images, lambda given: len(given[1])):
            total += self._step(forward, given)
            self.seconds += time.perf_counter() - begun
            if checkpoint.due:
                self._check_finite(total)
                checkpoint.write(self.state_dict())
            begun = time.perf_counter()
        if self.step % len(self.batches):
            raise ValueError(
                f"epoch {epoch + 1} ended at step {self.step}: no image of a batch could be read"
            )
        self._check_finite(total)

    def _check_finite(self, loss: Tensor) -> None:
        if not math.isfinite(float(loss)):
            raise ValueError(f"the loss is {float(loss)} after {self.step} steps: give a lower learning rate")

    def _step(self, forward: nn.Module, batch: Batch) -> Tensor:
        if self.step == self.keep_at:
            self.kept = copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict()))
        if self.method and self.method.between and self.step % self.plan.steps == 0:
            self._begin_round(self.step // self.plan.steps)
        torch.manual_seed(mixed(self.seed, self.step, self.machine.process.number))
        images, labels = (tensor.to(self.machine.device, non_blocking=True) for tensor in batch)
        forward.train()
        self.optimizer.zero_grad()
        with torch.autocast(self.machine.device.type, self.machine.amp, enabled=self.machine.amp is not None):
            loss = F.cross_entropy(forward(images), labels)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.pruner and self.method and not self.method.between:
            self.pruner.step()
        self.scheduler.step()
        self.step += 1
        if self.step % len(self.batches) == 0:  # here, so that no checkpoint lacks it
            counts = self.pruner.masks.counts if self.pruner else {}
            self.over_time.append({name: pruned for name, (pruned, _) in counts.items()})
        return loss.detach()

    def _begin_round(self, number: int) -> None:
        """Prune more, and go back."""
        assert self.pruner is not None
        self.pruner.step()
        if self.back:
            self.back(number)
        for group, lr in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = lr


@contextmanager
def _random_numbers_apart(device: torch.device) -> Iterator[None]:
    """Whatever is seeded within is none of the others' business."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
