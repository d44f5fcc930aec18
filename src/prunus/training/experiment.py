"""The experiment of `prunus train`: networks trained, pruned and recovered in several ways."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from prunus.application.places import Places
from prunus.backward.sparse_backward import sparse_backward
from prunus.evaluation.evaluate import evaluate
from prunus.evaluation.experiment import Measurement, Watched
from prunus.evaluation.points import Point, Setting
from prunus.files import whole_file
from prunus.inputs.images import first_image, in_memory, open_images
from prunus.inputs.networks import Network
from prunus.masks import Masks
from prunus.processes import Process
from prunus.progress import Monitor
from prunus.randomness import mixed
from prunus.scores.collecting import evidence
from prunus.scores.criteria import needs_of
from prunus.training.batches import AUGMENTATIONS, Batches, shuffled
from prunus.training.fit import Checkpoint, Fit, Machine
from prunus.training.goingback import WAYS_BACK, Start
from prunus.training.methods import METHODS, Subject
from prunus.training.named_rules import NO_RULES, read_rules
from prunus.training.recipe import Plan, Recipe
from prunus.training.rows import DENSE, GROWS, Run, TrainRow
from prunus.verbs import apply_masks, make_masks


@dataclass(frozen=True)
class Training(Measurement):
    """Every network by every method, to every setting.

    Args:
        schedules: names of `prunus.training.methods.METHODS`.
        rewinds: names of `prunus.training.goingback.WAYS_BACK`, for those that prune in rounds.
        backward: rules that prune passes and leave weights dense, see `prunus.training.named_rules`.
        mask_every: so many steps these rules keep the same weights.
        recipe: how is trained.
        trained: whether networks come trained; otherwise they are trained dense first, for as long.
        folder: for checkpoints, and for the networks that come of it.
        options: all that decides the results besides; checkpoints of others are not taken up.
        process: of several, this one, which sees its part of every batch.
        every: minutes between checkpoints.
        keep_images: whether all training images are read once and kept in memory.
    """

    what = "trainings"
    together = True

    schedules: Sequence[str] = ("one-shot",)
    rewinds: Sequence[str] = ("lr",)
    backward: Sequence[str] = ()
    mask_every: int = 1
    recipe: Recipe = field(default_factory=Recipe)
    trained: bool = False
    folder: Path = Path()
    options: Mapping[str, Any] = field(default_factory=dict)
    process: Process = field(default_factory=Process)
    every: float = 5.0
    keep_images: bool = False

    def __post_init__(self) -> None:
        for rewind in self.rewinds:
            if WAYS_BACK[rewind].earlier and self.trained:
                raise ValueError(
                    f"rewind {rewind!r} needs the training before: the network must come untrained"
                )

    def record(self) -> Mapping[str, Any]:
        """Fingerprints of the networks and of all images."""
        return {**super().record(), "training images": self.source.fingerprint("train")}

    def items(self) -> Sequence[Run]:
        """All trainings, network by network, seed by seed, dense ones first."""
        seeds = dict.fromkeys(setting.seed for setting in self.settings)
        return [
            run for network in self.networks for seed in seeds for run in self._of_seed(network.name, seed)
        ]

    def _of_seed(self, network: str, seed: int) -> list[Run]:
        whole = Setting(0.0, seed=seed)
        runs = [Run(network, DENSE, "", whole)]
        for text in self.backward:
            rules = read_rules(text)
            if rules:
                self._check_rules(text, rules)
            runs.append(Run(network, DENSE, "", whole, text if rules else ""))
        for name in self.schedules:
            method = METHODS[name]
            settings = [method.settle(setting) for setting in self.settings if setting.seed == seed]
            for setting in settings:
                method.rounds(setting, self.recipe)
                self._check(setting)
            rewinds = self.rewinds if method.between else [""]
            runs += [Run(network, name, rewind, setting) for rewind in rewinds for setting in settings]
        return list(dict.fromkeys(runs))

    def _check(self, setting: Setting) -> None:
        """Refuse what cannot be pruned so, before anything is trained.

        Raises:
            ValueError: it cannot.
        """
        if setting.coupled or needs_of([setting.criterion]):  # which takes images
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layers that lose all, which is said when it happens
            for network in self.networks:
                choice = setting.choice(self.which, generator=torch.Generator())
                make_masks(network.model, setting.amount, **choice)

    def _check_rules(self, text: str, rules: Places) -> None:
        """Refuse what cannot be pruned by these rules, before anything is trained.

        Raises:
            ValueError: it cannot.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layers that stay dense, which is said when they do
            for network in self.networks:
                try:
                    sparse_backward(network.model, rules, **self.which).restore()
                except ValueError as error:
                    raise ValueError(f"{network.name} by {text}: {error}") from error

    def measure(self, items: Sequence[Run], monitor: Monitor) -> Iterator[Sequence[TrainRow]]:
        """One row a training, and none where another process makes it."""
        for run in items:
            network = self._by_name[run.network]
            fit = self._fit_or_tell(run, network, monitor)
            yield [] if self.process.number else [self._row(run, fit, network, monitor)]
            if not run.is_dense:  # with which others are still to begin
                self._checkpoint(run).delete()
        if not self.process.number:
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)

    def line(self, rows: Sequence[TrainRow]) -> str:
        """What was trained, and the accuracy."""
        [row] = rows
        return f"{row.run}: {row.point.result.top1:.2f}%"

    def _row(self, run: Run, fit: Fit, network: Network, monitor: Monitor) -> TrainRow:
        masks = self._masks(fit)
        images = open_images(network, self.source)
        result = evaluate(fit.model, Watched(images, monitor), self.amp)
        images.report(network.name)
        if not math.isfinite(result.loss or 0.0):
            raise ValueError(f"{run}: its loss is {result.loss} on the images that it is measured on")
        with whole_file(self._path("networks", run)) as partial:
            torch.save(fit.model.state_dict(), partial)
        point, epochs = Point(run.setting, result, masks.counts), fit.step // len(fit.batches)
        row = TrainRow(run.network, point, run.schedule, run.rewind, epochs, fit.over_time)
        return replace(row, backward=run.backward, seconds=fit.seconds)

    def _masks(self, fit: Fit) -> Masks:
        """Those in force; where rules have pruned the forward, what they did not keep is zero from now on."""
        if fit.pruner:
            return fit.pruner.masks
        masks = make_masks(fit.model, 0.0, **self.which)
        if fit.rules:
            kept = fit.rules.masks
            fit.rules.restore()
            if kept:
                apply_masks(fit.model, kept)
            masks = Masks({**masks, **kept})
        return masks

    def _path(self, folder: str, run: Run) -> Path:
        path = self.folder / folder / f"{self._files[run]}.pth"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @cached_property
    def _files(self) -> dict[Run, str]:
        """A name for each, which no other has, on whatever file system."""
        found: dict[Run, str] = {}
        for run in self.items():
            name = re.sub(r"[^A-Za-z0-9.]+", "-", str(run))
            taken = {other.lower() for other in found.values()}
            others = (f"{name}-{number}" for number in range(2, len(found) + 3))
            found[run] = (
                name if name.lower() not in taken else next(o for o in others if o.lower() not in taken)
            )
        return found

    def _fit(self, run: Run, network: Network, monitor: Monitor) -> Fit:
        """A training that has come to its end."""
        fit = self._prepared(run, network, monitor)
        try:
            fit.run(self._checkpoint(run), monitor)
        except ValueError as error:
            raise ValueError(f"{run}: {error}") from error
        return fit

    def _fit_or_tell(self, run: Run, network: Network, monitor: Monitor) -> Fit:
        """The same; interrupted, it says what is saved of it."""
        try:
            return self._fit(run, network, monitor)
        except KeyboardInterrupt:
            if self._checkpoint(run).path.exists():
                raise KeyboardInterrupt(f"{run} up to its last checkpoint") from None
            raise

    def _checkpoint(self, run: Run) -> Checkpoint:
        return Checkpoint(self._path(f"checkpoints/{self._digest}", run), self.process, self.every)

    @cached_property
    def _digest(self) -> str:
        """Of all that decides the results of any training."""
        options = {name: value for name, value in self.options.items() if name not in GROWS}
        told = json.dumps({**options, **self.record()}, sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def _prepared(self, run: Run, network: Network, monitor: Monitor) -> Fit:
        """A training from its first step."""
        method, seed = METHODS.get(run.schedule), run.setting.seed
        start = self._start(run, network, monitor)
        model = copy.deepcopy(network.model).to(self.device)
        model.load_state_dict(start.state)
        optimizer = self.recipe.optimizer(model.parameters(), self.recipe.lr, self.recipe.weight_decay)
        batches = self._batches(network, seed)
        plan = self._plan(run, len(batches))
        way, rules = WAYS_BACK.get(run.rewind), read_rules(run.backward or NO_RULES)
        subject = Subject(
            model,
            optimizer,
            run.setting,
            self.which,
            self._collect(run, network, model),
            self._example(open_images(network, self.source)) if self._coupled else None,
        )
        return Fit(
            model,
            optimizer,
            plan,
            batches,
            seed,
            Machine(self.device, self.process, self.amp),
            method=method,
            pruner=method.begin(subject, self.recipe, plan.total) if method else None,
            rules=sparse_backward(model, rules, every=self.mask_every, seed=seed, **self.which)
            if rules
            else None,
            back=way.make(model, optimizer, start) if way else None,
            keep_at=self._round(len(batches)).start if run.is_dense else None,
        )

    def _start(self, run: Run, network: Network, monitor: Monitor) -> Start:
        build, method = network.build, METHODS.get(run.schedule)
        if build is None:
            raise ValueError(f"{network.name} cannot be built anew")

        def fresh(number: int) -> nn.Module:
            return build(mixed(run.setting.seed, number))

        if self.trained:
            return Start(network.model.state_dict(), None, fresh)
        if method is None or not method.between:
            return Start(fresh(0).state_dict(), None, fresh)
        dense = self._fit(Run(run.network, DENSE, "", Setting(0.0, seed=run.setting.seed)), network, monitor)
        return Start(dense.model.state_dict(), dense.kept, fresh)

    def _plan(self, run: Run, steps: int) -> Plan:
        """Of a training that has so many steps in an epoch."""
        method, way = METHODS.get(run.schedule), WAYS_BACK.get(run.rewind)
        if method is None:
            rounds = int(not (self.trained and run.is_dense))
            return replace(self._round(steps), steps=self.recipe.epochs * steps, rounds=rounds)
        if not method.between:
            return replace(self._round(steps), steps=self.recipe.epochs * steps)
        rounds = method.rounds(run.setting, self.recipe)
        return replace(self._round(steps), rounds=rounds, settled=way is not None and way.settled)

    def _round(self, steps: int) -> Plan:
        """What comes after a cut."""
        recipe = self.recipe
        whole, last, warmup = (steps * epochs for epochs in (recipe.epochs, recipe.last, recipe.warmup))
        return Plan(int(whole), int(last), learning_rate=recipe.learning_rate, warmup=warmup)

    def _collect(self, run: Run, network: Network, model: nn.Module) -> Any:
        """What gives evidence, where the criterion needs some."""
        criterion = run.setting.criterion
        if not needs_of([criterion]):
            return None
        images = open_images(network, self.source, train=True)
        return partial(evidence, model, images, criterion=criterion, **self.which)

    def _batches(self, network: Network, seed: int) -> Batches:
        dataset = self._train(network)
        side = min(first_image(dataset).shape[-2:])
        return shuffled(
            dataset,
            [AUGMENTATIONS[name](side) for name in self.recipe.augment],
            self.recipe.batch_size,
            seed,
            self.process,
            workers=0 if isinstance(dataset, TensorDataset) else self.source.workers,
            skip_bad=self.source.skip_bad,
        )

    def _train(self, network: Network) -> Any:
        """All images that a network trains on."""
        if network.name not in self._read:
            images = open_images(network, replace(self.source, calibration=None), train=True)
            self._read[network.name] = in_memory(images) if self.keep_images else images.loader.dataset
        return self._read[network.name]

    @cached_property
    def _read(self) -> dict[str, Any]:
        return {}
