"""Pruners within the trainers of others: as many steps as the optimizer makes, and resumed to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import prunus

pytestmark = pytest.mark.filterwarnings("ignore")
lightning = pytest.importorskip("lightning")
transformers = pytest.importorskip("transformers")

STEPS = range(2, 11, 2)
PRUNERS: dict[str, Callable[[nn.Module, Any], Any]] = {
    "gradual": lambda model, optimizers: prunus.Gradual(
        model, 0.8, STEPS, optimizer=optimizers, layers="Linear"
    ),
    "rigl": lambda model, optimizers: prunus.RigL(
        model,
        0.5,
        STEPS,
        optimizer=optimizers,
        layers="Linear",
        seed=0,
    ),
}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(
        torch.randn(24, 12, generator=generator), torch.randint(3, (24,), generator=generator)
    )


class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.model = net()

    def training_step(self, batch: Any, index: int) -> Tensor:
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 0.01)


def lightning_fit(
    kind: str, steps: int, folder: Path, batch: int = 4, **options: Any
) -> tuple[Module, Any, Any]:
    from prunus.training.lightning import PrunerCallback

    module = Module()
    callback = PrunerCallback(lambda module, optimizers: PRUNERS[kind](module.model, optimizers))
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        callbacks=[callback],
        accumulate_grad_batches=options.pop("accumulate", 1),
    )
    trainer.fit(module, DataLoader(data(), batch), **options)
    return module, callback.pruner, trainer


def own_loop(kind: str, steps: int, accumulate: int = 1, batch: int = 4) -> nn.Module:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    pruner = PRUNERS[kind](model, optimizer)
    batches = [given for _ in range(steps * accumulate) for given in DataLoader(data(), batch)]
    for step in range(steps):
        optimizer.zero_grad()
        for images, labels in batches[step * accumulate : (step + 1) * accumulate]:
            (nn.functional.cross_entropy(model(images), labels) / accumulate).backward()
        optimizer.step()
        pruner.step()
    return model


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", PRUNERS)
def test_lightning_prunes_as_ones_own_loop(kind: str, accumulate: int, tmp_path: Path) -> None:
    module, pruner, _ = lightning_fit(kind, 12, tmp_path, accumulate=accumulate)
    assert pruner.masks.pruned == int({"gradual": 0.8, "rigl": 0.5}[kind] * 240)
    assert same(module.model, own_loop(kind, 12, accumulate))


@pytest.mark.parametrize("stop", [1, 4, 7])
@pytest.mark.parametrize("kind", PRUNERS)
def test_lightning_resumes_to_the_bit(kind: str, stop: int, tmp_path: Path) -> None:
    # An epoch a step, as Lightning begins an epoch anew where it was stopped within one
    *_, trainer = lightning_fit(kind, stop, tmp_path, batch=24)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _, _ = lightning_fit(kind, 12, tmp_path, batch=24, ckpt_path=tmp_path / "half.ckpt")
    assert same(resumed.model, own_loop(kind, 12, batch=24))


class Classifier(nn.Module):
    """What the Trainer of transformers takes: a model whose output has a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.model = net()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.model(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def trainer_of(kind: str, folder: Path, accumulate: int = 1, **options: Any) -> Any:
    from prunus.training.transformers import PrunerCallback

    model = Classifier()
    callback = PrunerCallback(lambda model, optimizer: PRUNERS[kind](model.model, optimizer), **options)
    arguments = transformers.TrainingArguments(
        folder,
        max_steps=12,
        use_cpu=True,
        report_to=[],
        save_steps=5,
        disable_tqdm=True,
        learning_rate=0.01,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=accumulate,
    )
    rows = [{"x": x, "labels": label} for x, label in data()]
    return transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[callback]), callback


@pytest.mark.parametrize("kind", PRUNERS)
def test_the_trainer_of_transformers_prunes_at_its_steps_and_resumes_to_the_bit(
    kind: str, tmp_path: Path
) -> None:
    trainer, callback = trainer_of(kind, tmp_path, accumulate=2)
    trainer.train()
    whole = trainer.model
    assert callback.pruner.masks.pruned == int({"gradual": 0.8, "rigl": 0.5}[kind] * 240)
    assert repr(callback.pruner).startswith(f"{type(callback.pruner).__name__}(step 12,")
    for name, mask in callback.pruner.masks.items():
        assert not whole.model.get_parameter(name)[~mask].any()
    resumed, again = trainer_of(kind, tmp_path, accumulate=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert same(resumed.model, whole)
    assert again.pruner.masks == callback.pruner.masks


def test_a_checkpoint_without_a_pruner_is_refused(tmp_path: Path) -> None:
    trainer, _ = trainer_of("gradual", tmp_path)
    trainer.train()
    (tmp_path / "checkpoint-5" / "prunus.pt").rename(tmp_path / "prunus.pt")
    resumed, _ = trainer_of("gradual", tmp_path)
    with pytest.raises(ValueError, match=r"no .*prunus.pt; give resume_from"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    elsewhere, _ = trainer_of("gradual", tmp_path, resume_from=tmp_path)
    elsewhere.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert same(elsewhere.model, trainer.model)
