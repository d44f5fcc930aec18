"""Published protocols: what `prunus transfer --preset` makes of them, and our attack within a benchmark."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import resize

import prunus
from prunus.cli.main import main
from prunus.cli.transfer import transfer_command
from prunus.inputs.listed import find_listing
from prunus.inputs.networks import load_network
from prunus.transfer.attacks import Iterative
from prunus.transfer.pixels import Normalized
from prunus.transfer.presets import PRESETS
from prunus.transfer.published import read_published

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "transferattack_dwp.py"

# Small ones under the names of the benchmark's, and one that is not of it
NETS = """
import torch
from torch import nn

def net(seed, side):
    torch.manual_seed(seed)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(side), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(8 * side**2, 5))

def resnet50():
    return net(1, 2)

def vgg16():
    return net(2, 3)

def other():
    return net(3, 2)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks, and images in the benchmark's layout, each of them labelled otherwise than by the first."""
    root = tmp_path_factory.mktemp("benchmark")
    (root / "nets.py").write_text(NETS)
    (root / "images").mkdir()
    model = load_network(f"{root}/nets.py:resnet50").model
    with (root / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "label", "targeted_label"])
        for index in range(6):
            pixels = np.random.default_rng(index).integers(0, 256, (30, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "images" / f"{index}.png")
            answer = int(model(torch.tensor(pixels).permute(2, 0, 1)[None].float() / 255).argmax())
            writer.writerow([f"{index}.png", (answer + 1) % 5, answer])
    return root


def run(folder: Path, output: Path, preset: str, *options: str) -> int:
    names = ",".join(f"{folder}/nets.py:{name}" for name in ("resnet50", "other", "vgg16"))
    few = f"--image-size 20 -j 0 --seed 0 --data {folder} -s {folder}/nets.py:resnet50 -t {names} -o {output}"
    return main(["transfer", "--preset", preset, *few.split(), *options])


def test_the_benchmark_beside_its_published_rows(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results"
    assert run(folder, output, "transferattack", "--methods", "plain,mup", "--steps", "3") == 0
    printed = capsys.readouterr().out
    rows = list(csv.DictReader((output / "results.csv").open()))
    assert [row["target"] for row in rows] == ["resnet50", "other", "vgg16"] * 2  # columns as they were given
    assert {row["images"] for row in rows} == {"6"}  # which no network got right: all are attacked
    assert {row["goal"] for row in rows} == {"untargeted"}
    assert {row["linf_255"] for row in rows} == {"5.0"}  # three steps of 1.6/255, as a file holds them
    assert {row["method"]: row["gradients"] for row in rows} == {"plain": "3", "mup": "6"}
    settings = json.loads((output / "results.json").read_text())["settings"]
    assert settings.items() >= {"steps": 3, "every": True, "own_size": True, "images": 1000}.items()

    summary = list(csv.DictReader((output / "summary.csv").open()))
    ours = [row for row in summary if row["source"] == "measured"]
    theirs = [row for row in summary if row["source"] != "measured"]
    assert {row["method"] for row in ours} == {"plain", "mup"}
    assert all("not measured here: README.md of github.com/" in row["source"] for row in theirs)
    found = {(row["method"], row["target"]): row["rate"] for row in theirs}
    assert {target for _, target in found} == {"resnet50", "vgg16"}
    assert found["published: MI-FGSM (as plain)", "vgg16"] == "0.579"
    assert found["published: MUP (as mup)", "resnet50"] == "0.988"
    lines = printed[printed.index("published, not measured here:") :].splitlines()
    assert lines[1].split() == ["resnet50", "MI-FGSM", "(as", "plain)", "99.9*", "57.9"]
    assert "6 images attacked: right or wrong before" in printed
    said = printed[printed.index("Not the protocol of transferattack:") :]
    assert "--steps (there 10)" in said
    assert "--image-size (there 224)" in said
    assert "--eps" not in said


def test_its_targeted_protocol(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "results"
    assert run(folder, output, "transferattack-targeted", "--methods", "plain", "--steps", "4") == 0
    rows = list(csv.DictReader((output / "results.csv").open()))
    assert {row["goal"] for row in rows} == {"targeted"}
    # Towards what the surrogate answers anyway, which all of its images still get
    assert {row["target"]: row["rate"] for row in rows}["resnet50"] == "1.0"
    assert {row["linf_255"] for row in rows} == {"8.0"}
    summary = list(csv.DictReader((output / "summary.csv").open()))
    assert {row["goal"] for row in summary} == {"targeted"}
    assert "published: Logit (as plain)" in {row["method"] for row in summary}
    assert run(folder, tmp_path / "right", "transferattack", "--right-images") == 1  # beats the preset
    assert "none of 6 images is classified correctly" in capsys.readouterr().err


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_of_options_and_networks_that_there_are(name: str) -> None:
    timm, models = pytest.importorskip("timm"), pytest.importorskip("torchvision.models")
    preset = PRESETS[name]
    given = {"--data", "x", "--preset", name}
    context = transfer_command.make_context(
        "transfer", sorted(given, key=["--data", "x", "--preset", name].index)
    )
    meant = {parameter.name: parameter for parameter in transfer_command.params}
    for option, value in preset.options.items():
        assert context.params[option] == meant[option].type_cast_value(context, value)
    assert str(context.params["output"]) == f"prunus-{name}"
    targets = context.params["targets"] or ()
    for network in (*context.params["surrogates"], *targets):
        library, _, plain = network.rpartition(":")
        assert plain in (timm.list_models() if library == "timm" else models.list_models(module=models))
    if preset.published:
        published = read_published(preset.published)
        assert all(tuple(row.rates) == targets and row.surrogate == targets[0] for row in published.rows)
        assert all(0 <= rate <= 1 for row in published.rows for rate in row.rates.values())


@pytest.mark.parametrize("side", [12, 20, 33])
def test_networks_see_images_of_their_own_size(side: int) -> None:
    images = torch.rand(2, 3, 20, 20)
    scaled = Normalized(nn.Identity(), torch.zeros(1), torch.ones(1), side)(images)
    torch.testing.assert_close(scaled, resize(images, [side, side]), atol=1e-5, rtol=0)


def test_an_experiment_of_networks_of_several_sizes(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    command = (
        "transfer -s squeezenet1_1 -t timm:vit_tiny_patch16_224 --weights none --dummy --image-size 40 -j 0 "
        f"-b 2 --images 2 --steps 1 --goal untargeted --methods plain -o {tmp_path}"
    )
    assert main([*command.split(), "--own-size"]) == 0
    assert main(command.split()) == 1  # which a ViT does not take


def example() -> Any:
    """The class for the benchmark's users, where the benchmark is on the path."""
    pytest.importorskip("transferattack", reason="no copy of TransferAttack on the path")
    spec = importlib.util.spec_from_file_location("transferattack_dwp", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("targeted", [False, True])
def test_our_attack_in_the_benchmark_is_ours(targeted: bool) -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 10)
    images, labels = torch.rand(4, 3, 224, 224), torch.arange(4)
    theirs = example().DWP(nn.Sequential(*layers), targeted=targeted, seed=3, epoch=4)
    wanted = labels + 5 if targeted else labels
    found = images + theirs(images, [labels, wanted] if targeted else labels)
    assert theirs.model.draws == 4  # a mask for every step
    surrogate = prunus.Diversified(theirs.model.wrapped, 0.7, p_bern=0.5, seed=3)
    *_, expected = Iterative(16 / 255, 1.6 / 255, 4).run(surrogate, images, wanted, targeted)
    same: Tensor = torch.isclose(found, expected, rtol=0, atol=1e-6).double().mean()
    assert same > 0.999  # a sign may turn where a gradient is zero but for rounding


def test_the_page_shows_the_class_as_it_is() -> None:
    assert EXAMPLE.read_text() in (ROOT / "docs" / "transferattack.md").read_text()


def test_a_table_of_other_things_stands_before_no_folders_of_classes(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("id,breed\n")
    (tmp_path / "val").mkdir()
    assert find_listing(tmp_path) is None
    (tmp_path / "images").mkdir()
    found = find_listing(tmp_path)
    assert found is not None
    assert found.table == "labels.csv"
