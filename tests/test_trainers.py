"""Real trainers run on a pruned network, and what they save and average is pruned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import prunus

PASSES = ("both", "backward", "forward")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(
        torch.randn(16, 3, 8, 8, generator=generator), torch.randint(3, (16,), generator=generator)
    )


def check(model: nn.Module | dict[str, Tensor], masks: prunus.Masks, passes: str, prefix: str = "") -> None:
    state = model if isinstance(model, dict) else model.state_dict()
    for name, mask in masks.items():
        assert bool(state[prefix + name][~mask].any()) == (passes == "backward")
        assert state[prefix + name][mask].any()
    assert not any("mask" in name or "orig" in name for name in state)


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_saves_averages_and_resumes(passes: str, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = net()

        def training_step(self, batch: Any, index: int) -> Tensor:
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)

    def fit(module: Any, callback: Any, **options: Any) -> Any:
        trainer = lightning.Trainer(
            max_epochs=4, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path, callbacks=[callback], **options,
        )  # fmt: skip
        trainer.fit(module, DataLoader(data(), 4))
        return trainer

    for callback in (
        ModelCheckpoint(dirpath=tmp_path),
        StochasticWeightAveraging(0.01, swa_epoch_start=1),
        EMAWeightAveraging(decay=0.9),
    ):
        module = Module()
        masks = prunus.prune(module.model, 0.5, layers="all", passes=passes).masks
        trainer = fit(module, callback, gradient_clip_val=1.0, accumulate_grad_batches=2)
        check(module.model, masks, passes)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
        check(saved, masks, passes, "model.")

    resumed = Module()
    resumed.load_state_dict(saved)
    prunus.apply_masks(resumed.model, masks, passes)
    fit(resumed, ModelCheckpoint(dirpath=tmp_path / "more"))
    check(resumed.model, masks, passes)


@pytest.mark.parametrize("passes", PASSES)
def test_accelerate_prepares_trains_saves_loads_and_offloads(passes: str, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data(), 4))
    masks = prunus.prune(model, 0.5, layers="all", passes=passes).masks

    def train() -> None:
        for images, labels in loader:
            optimizer.zero_grad()
            accelerator.backward(nn.functional.cross_entropy(model(images), labels))
            optimizer.step()

    train()
    check(model, masks, passes)
    accelerator.save_state(tmp_path / "state")
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    train()
    accelerator.load_state(tmp_path / "state")
    check(model, masks, passes)
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    accelerator.save_model(model, tmp_path / "model")
    from safetensors.torch import load_file

    check(load_file(tmp_path / "model" / "model.safetensors"), masks, passes)

    wanted = model(data().tensors[0])
    offloaded = accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    with torch.no_grad():
        assert torch.allclose(offloaded(data().tensors[0]), wanted)
        assert torch.allclose(offloaded(data().tensors[0]), wanted)
    prunus.restore(model)


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.filterwarnings("ignore")
def test_the_trainer_of_transformers_runs_and_what_it_saves_is_pruned(passes: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=8, num_labels=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config)
    masks = prunus.prune(model, 0.5, layers="all", passes=passes).masks
    rows = [{"input_ids": torch.randint(20, (8,)), "labels": torch.tensor(i % 2)} for i in range(8)]
    arguments = transformers.TrainingArguments(
        tmp_path, max_steps=4, use_cpu=True, report_to=[], save_steps=2, disable_tqdm=True, learning_rate=0.1,
        gradient_checkpointing=True, per_device_train_batch_size=2,
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    check(model, masks, passes)
    trainer.save_model(tmp_path / "end")
    saved = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "end")
    check(saved, masks, passes)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    check(model, masks, passes)
