"""The same numbers as the original research script, on real networks and real images."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from tests.conftest import import_file

NETS = pytest.mark.parametrize("net", ["resnet20", "resnet32"])
# Of the larger network two; the others were compared once, and are as good
RATIOS = {"resnet20": "0,0.1,0.3,0.5,0.7", "resnet32": "0.3,0.7"}


def load(shared: Path, net: str) -> nn.Module:
    model = getattr(import_file(shared / "models" / "cifar_resnet.py"), net)()
    model.load_state_dict(torch.load(shared / "models" / f"{net}.pth", weights_only=True))
    return model.eval()


@NETS
@pytest.mark.parametrize("granularity", ["kernel", "weight"])
def test_masks_equal_those_of_the_original_script(shared: Path, net: str, granularity: str) -> None:
    reference = np.load(shared / "reference" / f"seed-masks-{net}-{granularity}-p0.3.npz")
    masks = prunus.make_masks(load(shared, net), 0.3, granularity=granularity)
    assert {name.removesuffix(".weight") for name in masks} == set(reference)
    for name, mask in masks.items():
        bits = np.unpackbits(reference[name.removesuffix(".weight")])[: mask.numel()]
        assert np.array_equal(bits.astype(bool), mask.numpy().ravel())


@NETS
def test_backward_only_gradients_equal_those_of_the_original_script(
    shared: Path, cifar_folder: Path, net: str
) -> None:
    reference = np.load(shared / "reference" / f"seed-gradient-{net}-p0.5.npz")
    images, labels = read_images(shared, cifar_folder, reference["indices"])
    model = load(shared, net)
    plain = model(images)
    inputs = images.requires_grad_()
    logits = prunus.gradient_prune(model, 0.5)(inputs)
    [grad] = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), inputs)
    assert torch.equal(logits, plain)
    np.testing.assert_allclose(logits.detach(), reference["logits"], atol=1e-4)
    wanted = torch.from_numpy(reference["input_grad"])
    assert (grad - wanted).norm() <= 1e-5 * wanted.norm()
    assert (grad - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def read_images(shared: Path, folder: Path, indices: np.ndarray) -> tuple[Tensor, Tensor]:
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    nets = import_file(shared / "models" / "cifar_resnet.py")
    scale = transforms.Compose([transforms.ToTensor(), transforms.Normalize(nets.MEAN, nets.STD)])
    data = ImageFolder(str(folder / "val"), scale)
    images, labels = zip(*(data[int(index)] for index in indices), strict=True)
    return torch.stack(images), torch.tensor(labels)


@NETS
def test_the_sweep_counts_what_the_original_script_counts(
    shared: Path, cifar_folder: Path, tmp_path: Path, net: str
) -> None:
    subprocess.run(
        [
            *(sys.executable, "-m", "prunus", "sweep", "-o", str(tmp_path)),
            *("--arch", f"{shared}/models/cifar_resnet.py:{net}", "--weights", f"{shared}/models/{net}.pth"),
            *("--data", str(cifar_folder), "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"),
            *("--p-prune", RATIOS[net], "--granularity", "kernel,weight", "--workers", "1"),
        ],
        check=True,
        capture_output=True,
    )
    reference = json.loads((shared / "reference" / "seed-accuracy.json").read_text())
    wanted = {(row["granularity"], row["p_prune"]): row for row in reference if row["net"] == net}
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert len(rows) == 2 * len(RATIOS[net].split(","))
    for row in rows:
        expected = wanted[row["granularity"], float(row["p_prune"])]
        assert int(row["images"]) == 5000
        assert int(row["weights"]) == expected["weights"]
        assert abs(int(row["correct"]) - expected["correct"]) <= 2
        assert abs(int(row["correct5"]) - expected["correct5"]) <= 2
        assert abs(float(row["loss"]) - expected["loss"]) <= 2e-4 * max(1, expected["loss"])
        assert abs(int(row["pruned"]) - expected["pruned_weights"]) <= 9  # one tied kernel
