"""Do adversarial examples made on one network fool others, and does pruning it as they are made help?"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.inputs.images import Source
from prunus.inputs.networks import Network
from prunus.progress import Monitor
from prunus.randomness import stream
from prunus.surrogates.surrogate import Surrogate
from prunus.transfer.attacks import Attack
from prunus.transfer.methods import Build, Method
from prunus.transfer.pixels import (
    Normalized,
    load_png,
    normalization,
    own_size,
    predict,
    round_within,
    save_png,
)
from prunus.transfer.rows import TransferRow, Trial, goal_of
from prunus.transfer.victims import Victims, find_victims

Curve = dict[int, int]  # images fooled after so many steps, or gradients
CHECKPOINTS = (1, 2, 5, 10, 20, 50, 100, 200, 300, 500, 1000)


@dataclass(frozen=True)
class Transfer:
    """Methods on surrogates, judged by targets.

    Args:
        surrogates: networks that attacks see.
        targets: networks that are to be fooled; those that are surrogates too give white-box rows.
        methods: what is done to a surrogate while it is attacked.
        attack: how images are changed; its `eps` is replaced, and methods that take two
            gradients for one make half its `steps`, unless `same_steps`.
        epsilons: largest changes of a pixel.
        goals: whether attacks are targeted.
        seeds: of methods and attacks.
        source: of images, see `find_victims`.
        count: how many images to attack.
        build: what the methods share.
        device: where networks run; with `amp`, attacks run under autocast in that dtype.
        folder: for adversarial images; by default they are gone when they have been judged.
        every: attack also images that a network gets wrong; they count as fooling it if it still does.
        own_size: each network sees images scaled to the size that its own preprocessing gives.
        same_steps: methods that take two gradients for one make all the steps, and so take more gradients.
    """

    what = "attacks"
    together = False

    surrogates: Sequence[Network]
    targets: Sequence[Network]
    methods: Sequence[Method]
    attack: Attack
    epsilons: Sequence[float]
    goals: Sequence[bool]
    seeds: Sequence[int]
    source: Source
    count: int
    build: Build
    device: torch.device
    amp: torch.dtype | None = None
    folder: Path | None = None
    every: bool = False
    own_size: bool = False
    same_steps: bool = False

    @cached_property
    def _networks(self) -> dict[str, Network]:
        return {network.name: network for network in (*self.surrogates, *self.targets)}

    @cached_property
    def models(self) -> dict[str, nn.Module]:
        """By name, all networks on the device, taking pixels in [0, 1]."""
        return {name: self._model(network) for name, network in self._networks.items()}

    @cached_property
    def victims(self) -> Victims:
        """The images that are attacked."""
        return find_victims(list(self._networks.values()), self.models, self.source, self.count, self.every)

    def record(self) -> Mapping[str, Any]:
        """Fingerprints of the networks and of the images that are attacked."""
        networks = {name: network.fingerprint for name, network in self._networks.items()}
        return {"networks": networks, "images attacked": self.victims.fingerprint}

    def items(self) -> Sequence[Trial]:
        """All there is to do; where nothing is random, one seed is enough.

        Raises:
            ValueError: a method cannot take the number of gradients that the others do, or the attack
                has no such goal.
        """
        for targeted in self.goals:
            self.attack.check(targeted)
        for method in () if self.same_steps else self.methods:
            self._check_gradients(method)
        return [
            Trial(network.name, method, eps, targeted, seed)
            for targeted in self.goals
            for eps in self.epsilons
            for network in self.surrogates
            for method in self.methods
            for seed in (self.seeds if self.attack.is_random or method.is_random else self.seeds[:1])
        ]

    def _check_gradients(self, method: Method) -> None:
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

    def measure(self, items: Sequence[Trial], monitor: Monitor) -> Iterator[Sequence[TransferRow]]:
        """Of each attack a row for every target."""
        with self._images() as images:
            for trial in items:
                yield self._judge(trial, Path(images) / _folder(trial), monitor)

    def line(self, rows: Sequence[TransferRow]) -> str:
        """What the attack was, and how often each target was fooled."""
        trial = rows[0].item
        how = f"{goal_of(trial.targeted)} eps {255 * trial.eps:g}/255 seed {trial.seed}"
        rates = ", ".join(f"{row.target} {100 * row.rate:.1f}%" for row in rows)
        return f"{trial.surrogate} {trial.method.name} {how}: {rates}"

    def _images(self) -> AbstractContextManager[str]:
        return nullcontext(str(self.folder)) if self.folder else tempfile.TemporaryDirectory()

    def _model(self, network: Network) -> nn.Module:
        for parameter in network.model.parameters():
            parameter.requires_grad_(False)
        model = network.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self._normalized(network, model).eval()

    def _normalized(self, network: Network, model: nn.Module) -> nn.Module:
        """Behind the preprocessing of this network."""
        side = own_size(network) if self.own_size else None
        return Normalized(model, *normalization(network), side).to(self.device)

    def _judge(self, trial: Trial, place: Path, monitor: Monitor) -> Sequence[TransferRow]:
        place.mkdir(parents=True, exist_ok=True)
        paths = [place / f"{index:05}.png" for index in range(len(self.victims))]
        curves, seconds = self._make(trial, paths, monitor)
        images = torch.cat([load_png([paths[index] for index in places]) for places in self._batches])
        change = (images - self.victims.images).flatten(1)
        rows = []
        for target, curve in curves.items():
            model = self.models[target]
            logits = torch.cat([predict(model, images[places]) for places in self._batches])
            hits = _hits(logits, self._wanted(trial), trial.targeted)
            row = TransferRow(
                surrogate=trial.surrogate,
                method=trial.method.kind,
                strength=trial.method.strength,
                target=target,
                targeted=trial.targeted,
                eps=trial.eps,
                seed=trial.seed,
                images=len(self.victims),
                fooled=np.packbits(hits.numpy()).tobytes().hex(),
                linf=float(change.abs().max()),
                l2=float(change.norm(dim=1).mean()),
                seconds_per_image=seconds / len(self.victims),
                curve=curve,
            )
            rows.append(row)
        return rows

    @property
    def _batches(self) -> Sequence[Tensor]:
        """Places of the images that are attacked together."""
        return torch.split(torch.arange(len(self.victims)), self.source.batch_size)

    def _wanted(self, trial: Trial) -> Tensor:
        return self.victims.targets if trial.targeted else self.victims.labels

    def _make(
        self, trial: Trial, paths: Sequence[Path], monitor: Monitor
    ) -> tuple[Mapping[str, Curve], float]:
        """Write the adversarial images; of every target the curve over gradients, and the seconds taken."""
        curves: dict[str, Curve] = {network.name: {} for network in self.targets}
        taken: dict[int, int] = {}  # gradients until each step; some attacks take fewer on some batches
        seconds, attack, wanted = 0.0, self._attack(trial), self._wanted(trial)
        for places in monitor.track(self._batches, len(self.victims), len):
            clean, goals = self.victims.images[places], wanted[places]
            began = time.perf_counter()
            for step, gradients, adversarial in attack(clean, goals):
                seconds += time.perf_counter() - began
                taken[step] = max(taken.get(step, 0), gradients)
                for target, curve in curves.items():
                    hits = _hits(predict(self.models[target], adversarial), goals, trial.targeted)
                    curve[step] = curve.get(step, 0) + int(hits.sum())
                began = time.perf_counter()
            save_png(round_within(adversarial, clean, trial.eps), [paths[index] for index in places])
        by_gradients = {
            target: {taken[step]: count for step, count in curve.items()} for target, curve in curves.items()
        }
        return by_gradients, seconds

    def _attack(self, trial: Trial) -> Callable[[Tensor, Tensor], Iterator[tuple[int, int, Tensor]]]:
        """From images and labels to (step, gradients, images), at last and after some of the first seed."""
        network = self._networks[trial.surrogate]
        surrogate = trial.method.build(network.model, self.build, trial.seed)
        attacked = _Attacked(self._normalized(network, surrogate), self.amp).eval()
        cost, generator = trial.method.cost, stream(trial.seed)
        steps = self.attack.steps // (1 if self.same_steps else cost)
        attack = replace(self.attack, eps=trial.eps, steps=steps)

        def run(images: Tensor, labels: Tensor) -> Iterator[tuple[int, int, Tensor]]:
            images, labels = images.to(self.device), labels.to(self.device)
            if isinstance(surrogate, Surrogate):
                surrogate.expect(labels)
            attacked.gradients = 0
            made = attack.run(attacked, images, labels, trial.targeted, generator)
            for step, adversarial in enumerate(made, 1):
                if step == attack.stages or (step in CHECKPOINTS and trial.seed == self.seeds[0]):
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


def _folder(trial: Trial) -> Path:
    name = f"{goal_of(trial.targeted)}-eps{255 * trial.eps:g}-seed{trial.seed}"
    return Path(trial.surrogate.replace(":", "-"), trial.method.name.replace(":", "-"), name)


def _hits(logits: Tensor, wanted: Tensor, targeted: bool) -> Tensor:
    answers = logits.argmax(1)
    return answers == wanted if targeted else answers != wanted
