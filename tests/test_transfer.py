"""Attacks, and the table of who fools whom, as a user meets them."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from prunus.cli.main import main
from prunus.evaluation.statistics import gain, wilson
from prunus.inputs import digits
from prunus.inputs.networks import load_network
from prunus.results.transfers import by_gradients
from prunus.surrogates.diversified import Diversified
from prunus.surrogates.ghost import Ghost
from prunus.transfer.attacks import LOSSES, Iterative, diversify
from prunus.transfer.methods import Build, Method, methods
from prunus.transfer.pixels import Normalized, normalization, own_size, round_within
from prunus.transfer.rows import TransferRow
from prunus.transfer.summaries import summary_lines
from tests.conftest import everything, interrupt, labels_of, same, small_net

EPS = 8 / 255


@pytest.fixture
def images() -> Tensor:
    return (torch.rand(6, 3, 16, 16) * 255).round() / 255


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(
    ("name", "options", "ours"),
    [
        ("MIFGSM", {}, {}),
        ("MIFGSM", {"decay": 0.5}, {"momentum": 0.5}),
        ("NIFGSM", {}, {"nesterov": True}),
        ("SINIFGSM", {"m": 3}, {"nesterov": True, "scales": 3}),
        ("TIFGSM", {"decay": 1.0, "len_kernel": 5, "diversity_prob": 0.0}, {"kernel": 5}),
    ],
)
def test_reference_attacks_are_those_of_torchattacks(
    name: str, options: dict[str, Any], ours: dict[str, Any], targeted: bool, images: Tensor
) -> None:
    dtype = torch.float32 if name == "TIFGSM" else torch.float64  # which has a kernel in float32
    model, images = small_net().to(dtype).eval(), images.to(dtype)
    labels = labels_of(model, images)
    theirs = getattr(pytest.importorskip("torchattacks"), name)(
        model, eps=EPS, alpha=EPS / 4, steps=6, **options
    )
    if targeted:
        labels = (labels + 3) % 10
        theirs.set_mode_targeted_by_label(quiet=True)
    *_, found = Iterative(EPS, EPS / 4, 6, **ours).run(model, images, labels, targeted)
    expected = theirs(images, labels)
    same_pixels = torch.isclose(found, expected, rtol=0, atol=1e-7).double().mean()
    assert same_pixels > 0.999  # a sign may turn where a gradient is zero but for rounding


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("targeted", [False, True])
def test_every_loss_leads_where_it_should(loss: str, targeted: bool) -> None:
    model = digits.load_network("plain")
    pixels, labels = (part[:64] for part in digits.load_images())
    wanted = (labels + 1) % 10 if targeted else labels
    attack = Iterative(0.3, 0.03, 20, LOSSES[loss], diversity=0.5, kernel=3)
    steps = list(attack.run(model, pixels, wanted, targeted, torch.Generator().manual_seed(0)))
    assert len(steps) == 20
    assert all(
        (step - pixels).abs().max() <= 0.3 + 1e-6 and 0 <= step.min() <= step.max() <= 1 for step in steps
    )
    hits = (model(steps[-1]).argmax(1) == wanted) == targeted
    assert hits.float().mean() > 0.9


def test_diverse_inputs_come_from_the_generator_alone(images: Tensor) -> None:
    assert diversify(images, 0.0) is images
    made = [diversify(images, 1.0, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert made[0].shape == images.shape
    assert not torch.equal(made[0], images)
    generator = torch.Generator().manual_seed(0)
    changed = [diversify(images, 0.25, generator) is not images for _ in range(400)]
    assert 60 < sum(changed) < 140


@given(
    clean=st.lists(st.integers(0, 255), min_size=1, max_size=5),
    reach=st.floats(0.5, 20),
    shares=st.lists(st.floats(-1, 1), min_size=5, max_size=5),
)
def test_rounding_never_goes_beyond_eps(clean: list[int], reach: float, shares: list[float]) -> None:
    for level, share in zip(clean, shares, strict=False):
        wanted = min(255.0, max(0.0, level + share * reach))
        made = round_within(torch.tensor([wanted / 255]), torch.tensor([level / 255]), reach / 255)
        found = float(255 * made)
        assert abs(found - round(found)) < 1e-4
        allowed = [other for other in range(256) if abs(other - level) <= reach + 1e-6]
        assert round(found) in allowed
        nearest = min(abs(other - wanted) for other in allowed)
        assert abs(found - wanted) <= nearest + 1e-3


@pytest.mark.parametrize(
    ("arch", "mean", "size"),
    [
        ("resnet18", (0.485, 0.456, 0.406), 224),
        ("inception_v3", (0.485, 0.456, 0.406), 299),
        ("transferattack:inception_v3", (0.5, 0.5, 0.5), 299),
        ("timm:vit_tiny_patch16_224", (0.5, 0.5, 0.5), 224),
    ],
)
def test_the_normalisation_of_any_library(arch: str, mean: tuple[float, ...], size: int) -> None:
    network = load_network(arch, "none")
    found, std = normalization(network)
    torch.testing.assert_close(found, torch.tensor(mean), atol=1e-4, rtol=0)
    assert own_size(network) == size
    assert network.transform is not None
    wrapped = Normalized(nn.Identity(), found, std)
    white = torch.ones(1, 3, size, size)
    expected = network.transform(Image.new("RGB", (size, size), (255,) * 3))
    torch.testing.assert_close(wrapped(white)[0], expected, atol=1e-4, rtol=1e-4)


def test_methods_are_what_they_are_called(images: Tensor) -> None:
    model = small_net().eval()
    assert Method("plain", None).build(model, Build(), 0) is model
    with pytest.raises(ValueError, match=r"dwp must be in \[0, 1\], got 1.5"):
        methods(["dwp:1.5"])
    with pytest.raises(ValueError, match="plain has no strength"):
        methods(["plain:0.3"])
    control = Method("dwp-kernel", 0.3).control
    assert control == Method("random-kernel", 0.3)
    choices: dict[str, Any] = {
        "dwp:0.4": {},
        "dwp-kernel:0.4": {"granularity": "kernel"},
        "backward:0.4": {"passes": "backward"},
        "random:0.4": {"criterion": "random"},
        "random-kernel:0.4": {"criterion": "random", "granularity": "kernel"},
    }
    for method, choice in zip(methods(list(choices)), choices.values(), strict=True):
        found = method.build(model, Build(p_bern=0.3), seed=1)
        expected = Diversified(model, 0.4, 0.3, seed=1, **choice)
        for _ in range(2):
            x = images.clone().requires_grad_()
            answer, wanted = found(x), expected(x)
            assert torch.equal(answer, wanted)
            assert torch.equal(answer, model(x)) is (method.kind == "backward")
            ways = [torch.autograd.grad(each.logsumexp(1).sum(), x)[0] for each in (answer, wanted)]
            assert torch.equal(*ways)


def test_ghost_drops_values_while_a_gradient_is_asked_for(images: Tensor) -> None:
    model = small_net().eval()
    before, seen = everything(model), list[Tensor]()
    ghost = Ghost(model, 0.25, seed=3)
    assert torch.equal(ghost(images), model(images))
    ghost.get_submodule("0").register_forward_hook(lambda module, args, output: seen.append(output))
    outputs = [ghost(images.clone().requires_grad_()) for _ in range(2)]
    assert not torch.equal(*outputs)
    assert not torch.equal(seen[0], seen[1])
    plain = model[0](images)
    dropped = seen[0] == 0
    assert dropped.float().mean() == pytest.approx(0.25, abs=0.02)
    torch.testing.assert_close(seen[0][~dropped], plain[~dropped] / 0.75)
    again = Ghost(model, 0.25, seed=3)
    assert torch.equal(again(images.clone().requires_grad_()), outputs[0])
    assert same(before, everything(model))


def row(hits: list[int], **fields: Any) -> TransferRow:
    values: dict[str, Any] = {
        "surrogate": "a", "method": "plain", "strength": None, "target": "b", "targeted": False, "eps": EPS,
        "seed": 0, "images": len(hits), "fooled": np.packbits(hits).tobytes().hex(), "linf": EPS, "l2": 1.0,
        "seconds_per_image": 0.1, "curve": {10: sum(hits)},
    }  # fmt: skip
    return TransferRow(**{**values, **fields})


def test_statistics_are_of_images_and_not_of_seeds() -> None:
    plain = row([0, 0, 0, 0, 0, 0, 1, 1, 0, 1])
    seeds = [
        row([1, 1, 1, 1, 1, 1, 1, 0, 0, 1], method="dwp", strength=0.5, seed=0),
        row([1, 1, 1, 1, 1, 1, 1, 0, 1, 1], method="dwp", strength=0.5, seed=1),
        row([1, 1, 1, 1, 1, 1, 1, 0, 0, 1], method="dwp", strength=0.5, seed=2),
    ]
    lines = {line["method"]: line for line in summary_lines([*seeds, plain])}
    assert lines["plain"]["rate"] == 0.3
    assert lines["dwp"]["rate"] == pytest.approx(25 / 30, abs=1e-6)
    assert lines["dwp"]["seeds"] == 3
    assert lines["dwp"]["minus_plain"] == pytest.approx(25 / 30 - 0.3)
    # Seeds 0 and 2: six images are fooled by dwp alone and one by plain alone; seed 1: seven and one
    assert lines["dwp"]["plain_mcnemar_p"] == pytest.approx(2 * (1 + 7) / 2**7)
    assert lines["dwp"]["minus_random"] == ""
    control = row([1, 1, 1, 1, 0, 0, 0, 0, 0, 1], method="random", strength=0.5)
    lines = {line["method"]: line for line in summary_lines([*seeds, plain, control])}
    assert lines["dwp"]["minus_random"] == pytest.approx(25 / 30 - 0.5, abs=1e-6)
    assert lines["dwp"]["random_mcnemar_p"] == pytest.approx(2 / 2**3)  # three images by dwp alone
    assert lines["random"]["minus_random"] == ""
    # Wilson 1927: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    z, n, p = 1.959964, 10, 0.8
    middle, half = (p + z * z / 2 / n), z * (p * (1 - p) / n + z * z / 4 / n / n) ** 0.5
    assert wilson(8, 10) == pytest.approx(
        ((middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n))
    )
    assert wilson(7.5, 10)[0] == pytest.approx((wilson(7, 10)[0] + wilson(8, 10)[0]) / 2, abs=0.002)
    # Bonett and Price 2012: with b and c discordant images of n, (b+1, c+1) of n+2
    b, c, n = 3 / 6, 1 / 6, 6
    reach = 1.959964 * ((b + c - (b - c) ** 2) / n) ** 0.5
    assert gain(np.array([1, 1, 1, 1]), np.array([0, 0, 1, 1])) == pytest.approx(
        (0.5, b - c - reach, b - c + reach)
    )
    low, high = gain(np.ones(9), np.ones(9))[1:]
    assert low == pytest.approx(-high)
    assert high > 0.1


@given(st.integers(1, 1000), st.floats(0, 1))
def test_a_rate_lies_in_its_interval(count: int, rate: float) -> None:
    for share in (0.0, rate, 1.0):  # a bar of negative length cannot be drawn
        low, high = wilson(share * count, count)
        assert 0 <= low <= share * count / count <= high <= 1


def test_many_rare_successes_are_not_fewer() -> None:
    """Each seed fools other images: the sum over seeds is what counts."""
    plain = row([1, 1] + [0] * 28)
    seeds = [
        row([int(start <= place < start + 10) for place in range(30)], method="dwp", strength=0.5, seed=seed)
        for seed, start in enumerate((0, 10, 20))
    ]
    [line] = [line for line in summary_lines([plain, *seeds]) if line["method"] == "dwp"]
    assert line["plain_low"] > 0
    assert line["plain_mcnemar_p"] == pytest.approx(summary_lines([plain, seeds[1]])[1]["plain_mcnemar_p"])


def test_curves_are_drawn_from_the_seed_that_has_them() -> None:
    rows = [row([1, 0], seed=0, curve={2: 1}), row([1, 0], seed=1, curve={1: 0, 2: 1})]
    [line] = by_gradients(rows).axes[0].lines
    assert list(line.get_xydata()[:, 0]) == [1, 2]  # type: ignore[index,call-overload]


SMALL = ["transfer", "--methods", "plain,dwp:0.5,mup", "--images", "30", "--steps", "4", "--seed", "0,1"]


def rows_of(output: Path, name: str = "results") -> list[dict[str, str]]:
    return list(csv.DictReader((output / f"{name}.csv").open()))


def judged(output: Path) -> list[dict[str, str]]:
    """What does not depend on the clock, in one order."""
    rows = [{k: v for k, v in row.items() if k != "seconds_per_image"} for row in rows_of(output)]
    return sorted(rows, key=lambda row: json.dumps(row))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("transfer") / "whole"
    assert main([*SMALL, "-o", str(output)]) == 0
    return output


def test_the_table_is_what_a_judge_finds_in_the_files(whole: Path) -> None:
    pixels, labels = digits.load_images()
    pixels = (255 * pixels).round()
    networks = {f"digits:{name}": digits.load_network(name) for name in digits.NETWORKS}
    right = torch.stack([network(pixels / 255).argmax(1) == labels for network in networks.values()]).all(0)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    attacked = [index for index in order.tolist() if right[index]][:30]
    rows = rows_of(whole)
    assert len(rows) == 2 * 2 * 2 * (1 + 2 + 1)
    for found in rows:
        method = found["method"] + (f"-{float(found['strength']):g}" if found["strength"] else "")
        name = f"{found['goal']}-eps48-seed{found['seed']}"
        folder = whole / "images" / found["surrogate"].replace(":", "-") / method / name
        files = sorted(folder.glob("*.png"))
        adversarial = torch.tensor(np.stack([np.asarray(Image.open(file)) for file in files]))[
            :, None
        ].float()
        change = adversarial - pixels[attacked]
        assert float(found["linf_255"]) == pytest.approx(float(change.abs().max()))
        assert change.abs().max() <= 48
        assert float(found["l2"]) == pytest.approx(
            float((change / 255).flatten(1).norm(dim=1).mean()), abs=1e-4
        )
        answers = networks[found["target"]](adversarial / 255).argmax(1)
        if found["goal"] == "untargeted":
            assert int(found["success"]) == int((answers != labels[attacked]).sum())
        else:
            assert int(found["success"]) <= int((answers != labels[attacked]).sum())
        assert found["gradients"] == "4"
        assert abs(int(found["success"]) - int(found["success_before_rounding"])) <= 4
        assert found["white_box"] == str(found["surrogate"] == found["target"])
        assert float(found["wilson_low"]) <= int(found["success"]) / 30 <= float(found["wilson_high"])
    names = {"transfer", "gradients", "strength"}
    files = {f"{name}.{suffix}" for name in names for suffix in ("png", "svg")}
    assert {path.name for path in whole.iterdir()} == files | {
        "config.toml",
        "images",
        "report.html",
        "results.csv",
        "results.json",
        "summary.csv",
    }
    white = [
        float(found["rate"]) for found in rows if found["white_box"] == "True" and found["method"] == "plain"
    ]
    black = [
        float(found["rate"]) for found in rows if found["white_box"] == "False" and found["method"] == "plain"
    ]
    assert np.mean(white) > np.mean(black) > 0
    assert len(rows_of(whole, "summary")) == 2 * 2 * 2 * 3


def test_an_interrupted_transfer_goes_on_where_it_stopped(whole: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    command = [sys.executable, "-m", "prunus", *SMALL, "-o", str(broken)]
    for sign, expected in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        assert interrupt(command, sign) == expected  # after three cells
    assert 6 * 2 <= len(rows_of(broken)) < len(rows_of(whole))
    assert main([*SMALL, "-o", str(broken)]) == 0
    assert judged(broken) == judged(whole)


def two_processes(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "prunus"]
    return subprocess.run(
        [sys.executable, *launch, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_two_processes_share_the_work(whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "shared"
    done = two_processes([*SMALL, "-o", str(output)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Fooled, in percent of the 30 images") == 1
    assert "…" not in done.stdout  # no number is cut, however narrow the terminal
    assert not list(output.glob("*part*"))
    for found, expected in zip(judged(output), judged(whole), strict=True):
        # Other threads add up in another order
        assert abs(int(found["success"]) - int(expected["success"])) <= 2


def test_a_folder_can_be_added_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "grown"
    small = ["transfer", "--images", "8", "--steps", "2", "--goal", "untargeted", "-o", str(output)]
    assert main([*small, "--methods", "plain"]) == 0
    capsys.readouterr()
    assert main([*small, "--methods", "plain,dwp:0.1:0.3:0.1", "--seed", "5", "--discard-images"]) == 0
    assert capsys.readouterr().err.count("untargeted") == 2 * 4
    assert {found["method"] for found in rows_of(output)} == {"plain", "dwp"}
    assert main([*small, "--steps", "3"]) == 1
    assert "steps was 2, now 3; choose another folder" in capsys.readouterr().err


NETS = """
import torch
from torch import nn

def net(seed):
    torch.manual_seed(seed)
    pool = nn.AdaptiveAvgPool2d(2)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), pool, nn.Flatten(), nn.Linear(32, 5))

def one():
    return net(1)

def two():
    return net(1)  # the same answers, under another name
"""


def competition(
    folder: Path, model: Callable[[Tensor], Tensor], images: int, benchmark: bool = False
) -> list[int]:
    """A layout, NIPS 2017 or TransferAttack, labelled as this network answers; the targets."""
    (folder / "images").mkdir(parents=True)
    targets = []
    with (folder / ("labels.csv" if benchmark else "images.csv")).open("w", newline="") as file:
        writer = csv.writer(file)
        head = ["filename", "label", "targeted_label"]
        writer.writerow(head if benchmark else ["ImageId", "URL", "TrueLabel", "TargetClass"])
        for index in range(images):
            pixels = np.random.default_rng(index).integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"id{index}.png")
            label = int(model(torch.tensor(pixels).permute(2, 0, 1)[None].float() / 255).argmax())
            targets.append((label + 1 + index % 4) % 5)
            counted = [f"id{index}", "http://example.org", label + 1, targets[-1] + 1]
            writer.writerow([f"id{index}.png", label, targets[-1]] if benchmark else counted)
    return targets


@pytest.mark.parametrize("benchmark", [False, True])
def test_the_layout_of_the_competition(benchmark: bool, tmp_path: Path) -> None:
    nets = tmp_path / "nets.py"
    nets.write_text(NETS)
    model = load_network(f"{nets}:one").model
    targets = competition(tmp_path / "data", model, 12, benchmark)
    output = tmp_path / "results"
    command = [
        "transfer", "--data", tmp_path / "data", "-s", f"{nets}:one", "-t", f"{nets}:one,{nets}:two",
        "--methods", "plain", "--eps", "30/255", "--steps", "8", "--goal", "targeted", "-j", 0, "-o", output,
    ]  # fmt: skip
    assert main([str(part) for part in command]) == 0
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0)).tolist()
    files = sorted((output / "images").rglob("*.png"))
    assert len(files) == 12
    adversarial = torch.tensor(np.stack([np.asarray(Image.open(file)) for file in files])).permute(0, 3, 1, 2)
    hits = (model(adversarial.float() / 255).argmax(1) == torch.tensor(targets)[order]).sum()
    assert [int(found["success"]) for found in rows_of(output)] == [int(hits)] * 2
    assert hits > 0


LATE = """
import os, time
from pathlib import Path

def late():
    while os.environ.get("RANK") == "1" and not Path(os.environ["FIRST"]).exists():
        time.sleep(0.1)
    return net(1)
"""


def test_a_process_that_comes_late_does_its_part(tmp_path: Path) -> None:
    nets, output = tmp_path / "nets.py", tmp_path / "results"
    nets.write_text(NETS + LATE)
    competition(tmp_path / "data", load_network(f"{nets}:late").model, 8)
    command = [
        "transfer", "--data", tmp_path / "data", "-s", f"{nets}:late", "--methods", "plain,dwp",
        "--steps", "2", "--goal", "targeted", "-j", 0, "-o", output,
    ]  # fmt: skip
    done = two_processes([str(part) for part in command], FIRST=str(output / "results.json"))
    assert done.returncode == 0, done.stderr
    found = sorted((row["method"], row["seed"]) for row in rows_of(output))
    assert found == [("dwp", "0"), ("dwp", "1"), ("dwp", "2"), ("plain", "0")]


@pytest.mark.parametrize(
    ("attack", "gradients"),
    [
        ("ni+si --loss margin", 2 * 5),
        ("mi+di+ti --loss logit", 2),
        ("torchattacks:PGD", 2),
        ("torchattacks:VMIFGSM", 2 * 6),
    ],
)
def test_attacks_by_name_and_the_gradients_they_took(attack: str, gradients: int, tmp_path: Path) -> None:
    if "torchattacks" in attack:
        pytest.importorskip("torchattacks")
    command = (
        "transfer -s digits:residual --methods plain,dwp,ghost --images 8 --steps 2 --seed 0 --eps 16/255"
    )
    assert main([*command.split(), "--amp", "-o", str(tmp_path), "--attack", *attack.split()]) == 0
    assert {float(found["linf_255"]) for found in rows_of(tmp_path)} <= {float(level) for level in range(17)}
    assert {int(found["gradients"]) for found in rows_of(tmp_path)} == {gradients}


def test_an_attack_that_stops_early_on_some_batches(tmp_path: Path) -> None:
    command = "transfer -s digits:plain --methods plain --images 24 -b 2 --steps 4 --seed 0 --eps 32/255"
    pytest.importorskip("torchattacks")
    attack = "--attack torchattacks:APGDT --goal untargeted"
    assert main([*command.split(), *attack.split(), "-o", str(tmp_path)]) == 0
    [found] = rows_of(tmp_path)
    assert abs(int(found["success"]) - int(found["success_before_rounding"])) <= 2


def test_the_published_protocol_on_synthetic_images(tmp_path: Path) -> None:
    output = tmp_path / "results"
    command = [
        "transfer", "--preset", "targeted-imagenet", "--dummy", "--weights", "none", "--image-size", "80",
        "--steps", "2", "--images", "2", "-b", "2", "-j", "0", "--seed", "0",
        "--methods", "plain,dwp:0.7", "-s", "resnet50,inception_v3", "-o", str(output),
    ]  # fmt: skip
    assert main(command) == 0
    rows = rows_of(output)
    assert {found["surrogate"] for found in rows} == {"resnet50", "inception_v3"}
    assert len(rows) == 2 * 2 * 2
    assert {found["goal"] for found in rows} == {"targeted"}
    assert {float(found["linf_255"]) for found in rows} == {4.0}  # two steps of 2/255
    settings = json.loads((output / "results.json").read_text())["settings"]
    expected = {"loss": "logit", "attack": "mi+di+ti", "step": [2 / 255], "image_size": 80}
    assert settings.items() >= expected.items()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--methods", "dwp,magic"], 1, "methods must be one of plain, dwp"),
        (["--attack", "mi+xi"], 2, "'xi' is none of mi, ni, di, ti, si"),
        (["--attack", "torchattacks:PGD", "--loss", "ce"], 2, "PGD of torchattacks has a loss of its own"),
        (["--eps", "300/255"], 2, "is not in (0, 1]"),
        (["--eps", "big"], 2, "is not a number such as 8/255"),
        (["--eps", "0.5/255"], 2, "the least is 1/255"),
        (["--step", "1/255,2/255"], 2, "expected one number, got '1/255,2/255'"),
        (["--seed", "-1"], 1, "seed must be a whole number from 0, got -1"),
        (["--steps", "5"], 1, "steps must be a multiple of 2 for mup:0.15"),
        (["--methods", "dwp:abc"], 1, "'dwp:abc': 'abc' is not a number or a range"),
        (["--methods", "ghost:1"], 1, "rate must be below 1"),
        (["-s", "digits:plain", "-t", "resnet18", "--weights", "none"], 1, "and the other networks do not"),
        (
            ["-s", "resnet18", "--weights", "none"],
            1,
            "--data DIR with DIR/val/<class>/* or DIR/images.csv or DIR/labels.csv",
        ),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str], code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["transfer", "--images", "4", "-o", str(tmp_path / "results"), *arguments]) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ("Nope", "torchattacks has no attack 'Nope'"),
        ("CW", "torchattacks.CW takes no eps"),
        ("PGDL2", "torchattacks.PGDL2 takes eps in L2"),
        ("AutoAttack", "torchattacks.AutoAttack knows no targets"),
        ("FGSM", "this attack has no steps that could be fewer"),
    ],
)
def test_attacks_of_torchattacks_that_cannot_be_compared(
    attack: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchattacks")
    command = ["transfer", "--images", "4", "-o", str(tmp_path / "results")]
    assert main([*command, "--attack", f"torchattacks:{attack}"]) == 1
    printed = capsys.readouterr().err
    assert message in printed
    assert "seed 0" not in printed  # before any work


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("id0,2,2", "line 2: TrueLabel and TargetClass must differ and count from 1, got 2 and 2"),
        ("id0,0,2", "must differ and count from 1, got 0 and 2"),
        ("id0,cat,2", "line 2: TrueLabel and TargetClass must be numbers"),
        ("id0,1", "line 2: TrueLabel and TargetClass must be numbers"),
        ("id0,1,9", "images.csv, line 2: TargetClass 9 is none of 5 classes"),
        ("id0.png,2,2", "line 2: label and targeted_label must differ and count from 0, got 2 and 2"),
        ("id0.png,-1,2", "must differ and count from 0, got -1 and 2"),
        ("id0.png,5,2", "labels.csv, line 2: label 5 is none of 5 classes"),
    ],
)
def test_labels_that_cannot_be(
    line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nets = tmp_path / "nets.py"
    nets.write_text(NETS)
    benchmark = ".png" in line
    competition(tmp_path / "data", load_network(f"{nets}:one").model, 1, benchmark)
    table, head = next((tmp_path / "data").glob("*.csv")), "ImageId,TrueLabel,TargetClass"
    table.write_text(f"{'filename,label,targeted_label' if benchmark else head}\n{line}\n", "utf-8-sig")
    command = f"transfer --data {tmp_path}/data -s {nets}:one --methods plain -j 0 -o {tmp_path}/results"
    assert main(command.split()) == 1
    assert message in capsys.readouterr().err


def test_other_labels_and_targets_are_other_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nets = tmp_path / "nets.py"
    nets.write_text(NETS)
    competition(tmp_path / "data", load_network(f"{nets}:one").model, 6)
    command = (
        f"transfer --data {tmp_path}/data -s {nets}:one --methods plain -j 0 --steps 1 -o {tmp_path}/results"
    )
    assert main([*command.split(), "-t", f"{nets}:one,{nets}:two"]) == 0
    assert main([*command.split(), "-t", f"{nets}:two,{nets}:one"]) == 1
    assert "targets was ['one', 'two'], now ['two', 'one']" in capsys.readouterr().err
    table = tmp_path / "data" / "images.csv"
    rows = list(csv.DictReader(table.open()))
    changed = [f"{r['ImageId']},{r['TrueLabel']},{int(r['TrueLabel']) % 5 + 1}" for r in rows]
    table.write_text("\n".join(["ImageId,TrueLabel,TargetClass", *changed]))
    (tmp_path / "data" / "images" / "id3.png").write_bytes(b"junk")
    assert main([*command.split(), "-t", f"{nets}:one,{nets}:two", "--skip-bad-images"]) == 1
    said = capsys.readouterr().err
    assert "images attacked was" in said
    assert said.count("skipped unreadable image") == 1


def test_networks_of_other_classes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nets = tmp_path / "nets.py"
    nets.write_text(NETS + "\n\ndef wide():\n    return nn.Sequential(nn.Flatten(), nn.Linear(1200, 7))\n")
    for name in "abcde":
        (tmp_path / "data" / "val" / name).mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(tmp_path / "data" / "val" / name / "0.png")
    command = f"transfer --data {tmp_path}/data -s {nets}:one -t {nets}:wide -j 0 -o {tmp_path}/results"
    assert main(command.split()) == 1
    assert "must have the same number of classes, got one 5, wide 7" in capsys.readouterr().err
