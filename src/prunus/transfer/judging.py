"""Do adversarial examples made on one network fool others, and does pruning it as they are made help?"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.inputs.images import Source
from prunus.inputs.networks import Network
from prunus.processes import Rank
from prunus.results.folder import ResultsFolder
from prunus.results.progress import Monitor
from prunus.results.transfers import TRANSFER
from prunus.surrogates.mup import MUP
from prunus.surrogates.surrogate import stream
from prunus.transfer.attacks import Attack
from prunus.transfer.methods import Build, Method
from prunus.transfer.pixels import Normalized, load_png, normalization, predict, round_within, save_png
from prunus.transfer.rows import Cell, TransferRow, goal_of
from prunus.transfer.victims import Victims, find_victims

CHECKPOINTS = (1, 2, 5, 10, 20, 50, 100, 200, 300, 500, 1000)


@dataclass(frozen=True)
class Transfer:
    """Methods on surrogates, judged by targets.

    Args:
        surrogates: networks that attacks see.
        targets: networks that are to be fooled; those that are surrogates too give white-box cells.
        methods: what is done to a surrogate while it is attacked.
        attack: how images are changed; its `eps` is replaced, and methods that take two
            gradients for one make half its `steps`.
        epsilons: largest changes of a pixel.
        goals: whether attacks are targeted.
        seeds: of methods and attacks.
        source: of images, see `find_victims`.
        images: how many to attack.
        build: what the methods share.
        device: where networks run; with `amp`, attacks run under autocast in that dtype.
        keep_images: whether adversarial images stay in the results folder.
        rank: which of several processes this is; each does its part of the cells.
    """

    surrogates: Sequence[Network]
    targets: Sequence[Network]
    methods: Sequence[Method]
    attack: Attack
    epsilons: Sequence[float]
    goals: Sequence[bool]
    seeds: Sequence[int]
    source: Source
    images: int
    build: Build
    device: torch.device
    amp: torch.dtype | None = None
    keep_images: bool = True
    rank: Rank = Rank()  # noqa: RUF009

    def cells(self) -> list[Cell]:
        """All there is to do; where nothing is random, one seed is enough.

        Raises:
            ValueError: a method cannot take the number of gradients that the others do, or the attack
                has no such goal.
        """
        for targeted in self.goals:
            self.attack.check(targeted)
        for method in self.methods:
            if method.cost > 1 and not self.attack.heeds_steps:
                raise ValueError(
                    f"methods: {method.name} takes {method.cost} gradients for each that it gives, and this "
                    "attack has no steps that could be fewer"
                )
            if self.attack.steps % method.cost:
                raise ValueError(
                    f"steps must be a multiple of {method.cost} for {method.name}, which takes {method.cost} "
                    f"gradients for each that it gives; got {self.attack.steps}"
                )
        return [
            Cell(network.name, method, eps, targeted, seed)
            for targeted in self.goals
            for eps in self.epsilons
            for network in self.surrogates
            for method in self.methods
            for seed in (self.seeds if self.attack.is_random or method.is_random else self.seeds[:1])
        ]

    def run(self, output: Path | None, record: Mapping[str, Any]) -> tuple[list[TransferRow], Victims]:
        """Run every cell; with an output folder, every cell that it does not hold yet.

        Args:
            output: results folder, made if missing; a cell is on disk as soon as it is judged.
            record: the settings in words, by which the folder knows that they are the same.
        """
        networks = {network.name: network for network in (*self.surrogates, *self.targets)}
        models = {name: self._model(network) for name, network in networks.items()}
        victims = find_victims(list(networks.values()), models, self.source, self.images)
        record = {
            **record,
            "networks": {name: network.fingerprint for name, network in networks.items()},
            "images attacked": victims.fingerprint,
        }
        folder = ResultsFolder(output, record, TRANSFER, self.rank.number) if output else None
        rows = list(folder.rows) if folder else []
        held = {row.cell for row in rows}
        # Divided before what is done is left out, or the ranks would not divide the same list
        left = [cell for cell in self.rank.mine(self.cells()) if cell not in held]
        with (
            Monitor("cells", len(left), 0) as monitor,
            _images(output if self.keep_images else None) as images,
        ):
            for cell in left:
                made = list(self._judged(cell, models, victims, Path(images) / _folder(cell), monitor))
                rows += made
                if folder:
                    folder.add(*made)
                monitor.done(_line(cell, made))
        self.rank.wait()
        if folder and self.rank.number == 0:
            folder.finish()
            rows = folder.rows
        return rows, victims

    def _model(self, network: Network) -> nn.Module:
        for parameter in network.model.parameters():
            parameter.requires_grad_(False)
        model = network.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return Normalized(model, *normalization(network)).to(self.device).eval()

    def _judged(
        self, cell: Cell, models: Mapping[str, nn.Module], victims: Victims, place: Path, monitor: Monitor
    ) -> Iterator[TransferRow]:
        """A row for every target."""
        place.mkdir(parents=True, exist_ok=True)
        paths = [place / f"{index:05}.png" for index in range(len(victims))]
        wanted = victims.targets if cell.targeted else victims.labels
        curves: dict[str, dict[int, int]] = {network.name: {} for network in self.targets}
        taken: dict[int, int] = {}  # gradients until each step; some attacks take fewer on some batches
        seconds, attack = 0.0, self._attack(cell, models)
        batches = torch.split(torch.arange(len(victims)), self.source.batch_size)
        for places in monitor.track(batches, len(victims), len):
            clean, goals = victims.images[places], wanted[places]
            began = time.perf_counter()
            for step, gradients, adversarial in attack(clean, goals):
                seconds += time.perf_counter() - began
                taken[step] = max(taken.get(step, 0), gradients)
                for target, curve in curves.items():
                    hits = _hits(predict(models[target], adversarial), goals, cell.targeted)
                    curve[step] = curve.get(step, 0) + int(hits.sum())
                began = time.perf_counter()
            save_png(round_within(adversarial, clean, cell.eps), [paths[index] for index in places])
        from_files = torch.cat([load_png([paths[index] for index in places]) for places in batches])
        change = (from_files - victims.images).flatten(1)
        for target, curve in curves.items():
            logits = torch.cat([predict(models[target], from_files[places]) for places in batches])
            hits = _hits(logits, wanted, cell.targeted)
            yield TransferRow(
                surrogate=cell.surrogate,
                method=cell.method.kind,
                strength=cell.method.strength,
                target=target,
                targeted=cell.targeted,
                eps=cell.eps,
                seed=cell.seed,
                images=len(victims),
                fooled=np.packbits(hits.numpy()).tobytes().hex(),
                linf=float(change.abs().max()),
                l2=float(change.norm(dim=1).mean()),
                seconds_per_image=seconds / len(victims),
                curve={taken[step]: count for step, count in curve.items()},
            )

    def _attack(
        self, cell: Cell, models: Mapping[str, nn.Module]
    ) -> Callable[[Tensor, Tensor], Iterator[tuple[int, int, Tensor]]]:
        """From images and labels to (step, gradients, images), at last and after some of the first seed."""
        [network] = [network for network in self.surrogates if network.name == cell.surrogate]
        surrogate = cell.method.build(network.model, self.build, cell.seed)
        normalized = Normalized(surrogate, *normalization(network)).to(self.device)
        attacked, cost = _Attacked(normalized, self.amp).eval(), cell.method.cost
        steps, generator = self.attack.steps // cost, stream(cell.seed)
        attack = replace(self.attack, eps=cell.eps, steps=steps)

        def run(images: Tensor, labels: Tensor) -> Iterator[tuple[int, int, Tensor]]:
            images, labels = images.to(self.device), labels.to(self.device)
            if isinstance(surrogate, MUP):
                surrogate.labels = labels
            attacked.gradients = 0
            made = attack.run(attacked, images, labels, cell.targeted, generator)
            for step, adversarial in enumerate(made, 1):
                if step == attack.stages or (step in CHECKPOINTS and cell.seed == self.seeds[0]):
                    yield step, attacked.gradients * cost, adversarial.float().cpu()

        return run


class _Attacked(nn.Module):
    """What an attack sees: it counts the gradients asked for, and may run in mixed precision."""

    def __init__(self, model: nn.Module, amp: torch.dtype | None) -> None:
        super().__init__()
        self.model, self.amp, self.gradients = model, amp, 0

    def forward(self, images: Tensor) -> Any:
        """Logits for images in [0, 1]."""
        self.gradients += images.requires_grad and torch.is_grad_enabled()
        with torch.autocast(images.device.type, self.amp, enabled=self.amp is not None):
            return self.model(images)


def _images(output: Path | None) -> AbstractContextManager[str]:
    """Where adversarial images go, for good or until they have been judged."""
    return nullcontext(str(output / "images")) if output else tempfile.TemporaryDirectory()


def _folder(cell: Cell) -> Path:
    name = f"{goal_of(cell.targeted)}-eps{255 * cell.eps:g}-seed{cell.seed}"
    return Path(cell.surrogate.replace(":", "-"), cell.method.name.replace(":", "-"), name)


def _hits(logits: Tensor, wanted: Tensor, targeted: bool) -> Tensor:
    answers = logits.argmax(1)
    return answers == wanted if targeted else answers != wanted


def _line(cell: Cell, rows: Iterable[TransferRow]) -> str:
    goal = goal_of(cell.targeted)
    rates = ", ".join(f"{row.target} {100 * row.rate:.1f}%" for row in rows)
    return f"{cell.surrogate} {cell.method.name} {goal} eps {255 * cell.eps:g}/255 seed {cell.seed}: {rates}"
