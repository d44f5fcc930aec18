"""`prunus train` as a user meets it: exact amounts, resumed to the bit, and what each way back means."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import prunus
from prunus.backward.rules import random as random_scores
from prunus.cli.main import main
from prunus.inputs import digits
from prunus.inputs.networks import load_network
from prunus.randomness import mixed
from prunus.training.batches import Order
from prunus.training.learning_rates import cosine
from prunus.training.methods import METHODS

NETS = """
from torch import nn

def linear():
    first, last = nn.Linear(3 * 12 * 12, 16), nn.Linear(16, 3)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Dropout(0.1), last)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes that can be told apart by their colour, twenty small images of each to train on."""
    from torchvision.transforms.functional import to_pil_image

    for split, count in (("train", 20), ("val", 5)):
        for channel, name in enumerate(("blue", "green", "red")):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for index in range(count):
                image = torch.rand(3, 12, 12)
                image[channel] += 0.3
                to_pil_image(image / 1.3).save(tmp_path / "data" / split / name / f"{index}.png")
    return tmp_path / "data"


def train(*arguments: object) -> int:
    return main(["train", *(str(argument) for argument in arguments)])


def rows_of(output: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((output / "results.csv").open()))


def networks_of(output: Path) -> dict[str, dict[str, Tensor]]:
    return {path.name: torch.load(path) for path in sorted((output / "networks").iterdir())}


def stored(output: Path) -> Any:
    """All that is in results.json but for the seconds."""
    results = json.loads((output / "results.json").read_text())
    assert all(point.pop("seconds") > 0 for point in results["points"])
    return results


def equal(one: dict[str, dict[str, Tensor]], other: dict[str, dict[str, Tensor]]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(v, other[name][key]) for name, state in one.items() for key, v in state.items())


def test_every_schedule_and_way_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    command = ["-a", "digits:plain", "--schedule", ",".join(METHODS), "--rewind", "none,lr,weights,init"]
    command += ["--to", "0.8", "--epochs", "2", "--retrain-epochs", "1", "--cuts", "6", "--seed", "0,1"]
    assert train(*command, "-o", output) == 0
    out = capsys.readouterr().out
    rows = rows_of(output)
    between = sum(method.between for method in METHODS.values())
    assert len(rows) == 2 * (1 + 4 * between + len(METHODS) - between)
    states = networks_of(output)
    assert len(states) == len(rows)
    for row in rows:
        pruned = int(row["pruned"])
        if row["schedule"] == "dense":
            assert pruned == 0
        elif METHODS[row["schedule"]].settle(prunus.Setting(0.5)).scope == "erk":
            assert pruned == pytest.approx(float(row["p_prune"]) * 5904, abs=3)  # rounded in each layer
        else:
            assert pruned == int(float(row["p_prune"]) * 5904)
        epochs = 3 if row["schedule"] == "iterative" else 1 if row["rewind"] else 2
        assert int(row["epochs"]) == epochs
    name = "digits-plain-iterative-weights-to-0.8-seed-1.pth"
    zeros = sum(int((states[name][f"{layer}.weight"] == 0).sum()) for layer in (0, 3, 7))
    assert zeros == int(0.8 * 5904)
    network = load_network("digits:plain", str(output / "networks" / name))
    result = prunus.evaluate(network.model, [digits.load_images()])
    [row] = [
        row for row in rows if all(row[key] == value for key, value in {
            "schedule": "iterative", "rewind": "weights", "p_prune": "0.8", "seed": "1"}.items())
    ]  # fmt: skip
    assert result.correct == int(row["correct"])
    lines = out.splitlines()
    assert len([line for line in lines if line.startswith("digits:plain")]) == len(rows) / 2
    summary = list(csv.DictReader((output / "summary.csv").open()))
    tops = [float(row["acc1"]) for row in rows if row["schedule"] == "dense"]
    assert float(summary[0]["acc1"]) == pytest.approx(sum(tops) / 2, abs=1e-4)
    assert float(summary[0]["acc1_reach"]) == pytest.approx(12.706 * abs(tops[0] - tops[1]) / 2, rel=1e-3)
    assert {"accuracy.png", "layers.svg"} <= {path.name for path in output.iterdir()}
    assert len({row["loss"] for row in rows if row["seed"] == "0"}) == len(rows) / 2  # no two are the same


def command_of(nets: Path, folder: Path) -> list[str]:
    arguments = ["--data", folder, "-a", f"{nets}:linear", "--layers", "Linear", "--to", "0.8", "-b", "16"]
    arguments += ["--schedule", "iterative,gradual,set", "--rewind", "weights,lr", "--epochs", "4", "-j", "0"]
    arguments += ["--retrain-epochs", "2", "--rate", "0.5", "--cuts", "5", "--augment", "shift,flip"]
    return [str(argument) for argument in [*arguments, "--checkpoint-every", "0", "--optimizer", "adamw"]]


def under_rules(nets: Path, folder: Path) -> list[str]:
    rules = "meprop:0.3,dither:0.3,swat:0.5:random,topkast:0.3,bimask:1:4"
    command = [*command_of(nets, folder), "--backward", rules, "--mask-every", "3", "--exclude", "4"]
    del command[(at := command.index("--to")) : at + 2]
    del command[(at := command.index("--schedule")) : at + 2]
    return command


def rules_of_each_image(nets: Path, folder: Path) -> list[str]:
    """Those whose choice does not depend on which other images a process sees."""
    return [
        *under_rules(nets, folder),
        "--backward",
        "meprop:0.3,topkast:0.3:random,bimask:1:4,magnitude:0.5",
    ]


def killed_while_it_trains(command: list[str], output: Path, after: float) -> bool:
    """Whether it was still running so many seconds after it had written a checkpoint."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    began = time.time()
    while process.poll() is None:
        written = [path.stat().st_mtime for path in (output / "checkpoints").rglob("*.pth")]
        if written and max(written) > began:
            break
        time.sleep(0.01)
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("made", [command_of, under_rules])
def test_killed_at_random_moments_and_started_again(
    made: Callable[[Path, Path], list[str]], nets: Path, folder: Path, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    command = [sys.executable, "-m", "prunus", "train", *made(nets, folder), "-o"]
    subprocess.run([*command, str(whole)], check=True, capture_output=True)
    moments, kills = random.Random(0), 0
    while kills < 3 and killed_while_it_trains([*command, str(broken)], broken, moments.uniform(0, 0.7)):
        kills += 1
    assert kills
    subprocess.run([*command, str(broken)], check=True, capture_output=True)
    assert stored(broken) == stored(whole)
    assert equal(networks_of(whole), networks_of(broken))
    assert not (broken / "checkpoints").exists()


def test_what_one_killed_at_its_very_end_left_is_cleared(nets: Path, folder: Path, tmp_path: Path) -> None:
    command = [*under_rules(nets, folder), "--backward", "meprop:0.3", "-o", tmp_path]
    assert train(*command) == 0
    before = stored(tmp_path)
    left = tmp_path / "checkpoints" / "any" / "left.pth"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"")
    assert train(*command) == 0
    assert not (tmp_path / "checkpoints").exists()
    assert stored(tmp_path) == before


def test_workers_and_memory_change_nothing(nets: Path, folder: Path, tmp_path: Path) -> None:
    command = command_of(nets, folder)
    assert train(*command, "-o", tmp_path / "a") == 0
    assert train(*command, "-j", "2", "-o", tmp_path / "b") == 0
    assert train(*command, "--keep-images", "-o", tmp_path / "c") == 0
    before = torch.rand(1, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(3)
    assert train(*command, "-o", tmp_path / "d") == 0
    assert torch.equal(torch.rand(1), before)  # the global generator is none of its business
    for other in "bcd":
        assert equal(networks_of(tmp_path / "a"), networks_of(tmp_path / other))


def reference(rewind: str, rounds: int, epochs: int, last: int) -> dict[str, Tensor]:
    """A network that is trained dense, and then cut, taken back and trained in rounds, to 1 - 0.5^rounds."""
    images, labels = digits.load_images(train=True)
    model = digits.NETWORKS["plain"]()
    model.load_state_dict(load_anew(0))
    order = Order(len(images), 128, seed=0)
    earlier: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}

    def fit(first: int, end: int, optimizer: torch.optim.Optimizer, rate: Any) -> None:
        for epoch in range(end - first):
            order.start(fit.epoch, 0)  # type: ignore[attr-defined]
            fit.epoch += 1  # type: ignore[attr-defined]
            for number, keys in enumerate(order):
                done = (first + epoch) * 7 + number
                if done == (epochs - last) * 7 and not masks:
                    earlier.update({k: v.clone() for k, v in model.state_dict().items()})
                    earlier["state"] = {p: s["momentum_buffer"].clone() for p, s in optimizer.state.items()}  # type: ignore[assignment]
                optimizer.param_groups[0]["lr"] = 0.1 * rate(done / (epochs * 7))
                chosen = torch.tensor(keys) % len(images)
                optimizer.zero_grad()
                F.cross_entropy(model.train()(images[chosen]), labels[chosen]).backward()
                optimizer.step()
                with torch.no_grad():
                    for name, mask in masks.items():
                        model.get_parameter(name).mul_(mask)

    def sgd() -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)

    fit.epoch = 0  # type: ignore[attr-defined]
    fit(0, epochs, sgd(), cosine)
    fit.epoch = 0  # type: ignore[attr-defined]
    for number in range(rounds):
        weights = {f"{layer}.weight": model.get_parameter(f"{layer}.weight").detach() for layer in (0, 3, 7)}
        gone = {n: ~masks[n] if masks else torch.zeros_like(w) for n, w in weights.items()}
        scores = torch.cat([(w.abs() - 1.0 * gone[n]).flatten() for n, w in weights.items()])
        kept = torch.ones(len(scores), dtype=torch.bool)
        kept[scores.argsort(stable=True)[: int((1 - 0.5 ** (number + 1)) * len(scores))]] = False
        parts = kept.split([w.numel() for w in weights.values()])
        masks = {n: part.view(w.shape) for (n, w), part in zip(weights.items(), parts, strict=True)}
        optimizer = sgd()
        if rewind == "weights":
            model.load_state_dict({k: v for k, v in earlier.items() if k != "state"})
            for p, momentum in earlier["state"].items():  # type: ignore[attr-defined]
                optimizer.state[p]["momentum_buffer"] = momentum.clone()
        if rewind == "init":
            model.load_state_dict(load_anew(number + 1))
        with torch.no_grad():
            for name, mask in masks.items():
                parameter = model.get_parameter(name)
                parameter.mul_(mask)
                if optimizer.state[parameter]:
                    optimizer.state[parameter]["momentum_buffer"].mul_(mask)
        fit(epochs - last, epochs, optimizer, (lambda done: 0.01) if rewind == "none" else cosine)
    return model.state_dict()


def load_anew(number: int) -> dict[str, Tensor]:
    build = load_network("digits:plain", "none").build
    assert build is not None
    return build(mixed(0, number)).state_dict()


@pytest.mark.parametrize("rewind", ["none", "lr", "weights", "init"])
def test_each_way_back_is_what_it_says(rewind: str, tmp_path: Path) -> None:
    command = ["-a", "digits:plain", "--schedule", "iterative", "--rate", "0.5", "--to", "0.75"]
    command += ["--epochs", "3", "--retrain-epochs", "2", "--rewind", rewind, "-o", tmp_path]
    assert train(*command) == 0
    found = networks_of(tmp_path)[f"digits-plain-iterative-{rewind}-to-0.75-seed-0.pth"]
    wanted = reference(rewind, rounds=2, epochs=3, last=2)
    assert all(torch.allclose(value, found[name], atol=1e-5) for name, value in wanted.items())
    assert all(torch.equal(found[f"{i}.weight"] == 0, wanted[f"{i}.weight"] == 0) for i in (0, 3, 7))


def test_under_rules_it_is_the_plain_loop(tmp_path: Path) -> None:
    command = [
        "-a",
        "digits:plain",
        "--backward",
        "meprop:0.3,srste:2:4,swat:0.4:random",
        "--mask-every",
        "2",
    ]
    assert train(*command, "--exclude", "0", "--epochs", "2", "--seed", "3", "-o", tmp_path) == 0
    images, labels = digits.load_images(train=True)
    build = load_network("digits:plain", "none").build
    assert build is not None
    for row, name, given in zip(
        rows_of(tmp_path)[1:],
        ("meprop-0.3", "srste-2-4", "swat-0.4-random"),
        (
            {"rules": "meprop", "k": 0.3},
            {"rules": "srste"},
            {"rules": "swat", "k": 0.4, "score": random_scores},
        ),
        strict=True,
    ):
        model = build(mixed(3, 0)).train()
        sparse = prunus.sparse_backward(model, **given, layers="Conv2d", exclude="0", every=2, seed=3)  # type: ignore[arg-type]
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
        order = Order(len(images), 128, seed=3)
        for step in range(14):
            if step % 7 == 0:
                order.start(step // 7, 0)
                keys = iter(order)
            optimizer.param_groups[0]["lr"] = 0.1 * cosine(step / 14)
            chosen = torch.tensor(next(keys)) % len(images)
            optimizer.zero_grad()
            F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
        kept = sparse.masks
        for layer, mask in kept.items():
            model.get_parameter(layer).data *= mask
        found = networks_of(tmp_path)[f"digits-plain-backward-{name}-seed-3.pth"]
        assert all(torch.equal(found[key], value) for key, value in model.state_dict().items())
        assert int(row["pruned"]) == kept.pruned == sum(int((found[layer] == 0).sum()) for layer in kept)
        result = prunus.evaluate(prunus.restore(model), [digits.load_images()])
        assert (result.correct, row["backward"]) == (int(row["correct"]), name.replace("-", ":"))


def test_rules_beside_schedules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["-a", "digits:plain", "--epochs", "1", "--seed", "0,1", "-o", tmp_path]
    assert train(*command, "--backward", "none,magnitude:0.5", "--schedule", "gradual", "--to", "0.5") == 0
    rows = [(row["schedule"], row["backward"], row["pruned"]) for row in rows_of(tmp_path)]
    assert rows == 2 * [("dense", "", "0"), ("dense", "magnitude:0.5", "0"), ("gradual", "", "2952")]
    for line in csv.DictReader((tmp_path / "summary.csv").open()):
        assert (line["lost"] == "") == (line["how"] == "dense")
        assert float(line["seconds"]) > 0
    capsys.readouterr()
    assert train(*command, "--backward", "magnitude:0.5", "--schedule", "gradual", "--to", "0.5") == 0
    assert capsys.readouterr().err == ""  # all is there, and more
    command = [*command, "--mask-every", "2"]
    assert train(*command, "--backward", "magnitude:0.5", "--schedule", "gradual", "--to", "0.5") == 1
    assert "mask_every was 1, now 2" in capsys.readouterr().err


def test_rows_of_earlier_versions(tmp_path: Path) -> None:
    command = ["-a", "digits:plain", "--epochs", "1", "--schedule", "static", "--to", "0.5", "-o", tmp_path]
    assert train(*command) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    for point in results["points"]:
        del point["seconds"], point["backward"]
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert train(*command) == 0
    assert [row["seconds"] for row in rows_of(tmp_path)] == ["", ""]


def test_networks_that_come_trained_learn_on_under_rules(tmp_path: Path) -> None:
    command = ["-a", "digits:plain", "--weights", "DEFAULT", "--backward", "topkast:0.5", "--epochs", "2"]
    assert train(*command, "-o", tmp_path) == 0
    dense, sparse = rows_of(tmp_path)
    assert (dense["acc1"], dense["epochs"], sparse["epochs"]) == ("98.2202", "0", "2")
    assert float(sparse["acc1"]) > 90
    assert int(sparse["pruned"]) == pytest.approx(0.5 * 5904, abs=3)


@pytest.mark.parametrize("made", [command_of, rules_of_each_image])
def test_several_processes_train_what_one_does(
    made: Callable[[Path, Path], list[str]], nets: Path, folder: Path, tmp_path: Path
) -> None:
    # SGD, as what grows makes its first step under Adam by the learning rate, and all of it ties
    command = [*made(nets, folder), "--epochs", "2", "--retrain-epochs", "1", "--optimizer", "sgd"]
    nets.write_text(NETS.replace("nn.Dropout(0.1)", "nn.Identity()"))  # which draws by process
    assert train(*command, "-o", tmp_path / "one") == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    several = [*torchrun, "--standalone", "-m", "prunus", "train", *command, "-o", str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(several, check=True, capture_output=True, env=environment)
    one, two = networks_of(tmp_path / "one"), networks_of(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, state in one.items():
        assert all(torch.allclose(value, two[name][key], atol=1e-4) for key, value in state.items()), name
    before = (tmp_path / "two" / "results.json").read_bytes()
    subprocess.run(several, check=True, capture_output=True, env=environment)
    assert (tmp_path / "two" / "results.json").read_bytes() == before


def test_networks_that_come_trained_are_recovered(tmp_path: Path) -> None:
    command = ["-a", "digits:plain", "--weights", "DEFAULT", "--schedule", "one-shot", "--to", "0.8"]
    assert train(*command, "--epochs", "3", "--criterion", "magnitude,taylor", "-o", tmp_path) == 0
    dense, magnitude, taylor = rows_of(tmp_path)
    assert (dense["acc1"], dense["epochs"]) == ("98.2202", "0")
    for row in (magnitude, taylor):
        assert float(row["acc1"]) > 90  # 20.58 without training
        assert row["pruned"] == str(int(0.8 * 5904))
    found = networks_of(tmp_path)["digits-plain-dense-seed-0.pth"]
    assert equal({"": found}, {"": digits.load_network("plain").state_dict()})


def idx(array: Tensor) -> bytes:
    """The format of MNIST."""
    sizes = b"".join(struct.pack(">I", size) for size in array.shape)
    return bytes([0, 0, 8, array.dim()]) + sizes + array.to(torch.uint8).numpy().tobytes()


def test_data_sets_of_torchvision_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for split, count in (("train", 64), ("t10k", 16)):
        (raw / f"{split}-images-idx3-ubyte").write_bytes(idx(torch.randint(256, (count, 28, 28))))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(idx(torch.arange(count) % 10))
    nets = Path(__file__).parents[1] / "benchmarks" / "nets.py"
    command = ["--data", f"FashionMNIST:{tmp_path}", "-a", f"{nets}:lenet_300_100", "--layers", "Linear"]
    more = [
        "--schedule",
        "rigl",
        "--to",
        "0.9",
        "--epochs",
        "1",
        "-b",
        "16",
        "-o",
        tmp_path / "out",
        "-j",
        "0",
    ]
    assert train(*command, *more) == 0
    assert [row["images"] for row in rows_of(tmp_path / "out")] == ["16", "16"]
    assert main(["eval", *command, "--weights", "none", "-j", "0", "--mean", "0.5", "--std", "0.5"]) == 0
    capsys.readouterr()
    for data, message in (
        (f"FashionMNIST:{tmp_path / 'nowhere'}", "FashionMNIST cannot be read from"),
        (f"FashionMINST:{tmp_path}", "no data set 'FashionMINST' of torchvision"),
        (f"CocoDetection:{tmp_path}", "no data set 'CocoDetection' of torchvision"),
    ):
        assert train("--data", data, *command[2:], "-o", tmp_path / "other") == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--p-bern", "0.5"], "p_bern has no meaning here"),
        (["--weights", "DEFAULT", "--rewind", "weights"], "the network must come untrained"),
        (["-a", "digits:plain,digits:residual", "--weights", "none,DEFAULT"], "none and others together"),
        (["--to", "1", "--schedule", "iterative"], "no number of rounds comes to"),
        (["--epochs", "2", "--retrain-epochs", "3"], "retrain_epochs=3 is more than epochs=2"),
        (["--schedule", "rigl", "--p-prune-of", "0=0.5"], "not for methods that regrow"),
        (["--lr", "1e9", "--epochs", "2"], "digits:plain dense seed 0: the loss is"),
        (["--schedule", "gradula"], "is not one of"),
        (["--scope", "2:4", "--to", "0.9", "--schedule", "one-shot"], "2:4"),
        (["--backward", "meprob:0.1"], "rules must be one of none, meprop, channels"),
        (["--backward", "static"], "rules must be one of none, meprop, channels"),
        (["--backward", "meprop:0"], "'meprop:0': k must be in (0, 1], got 0.0"),
        (["--backward", "meprop:few"], "'meprop:few': k must be a number, got 'few'"),
        (["--backward", "meprop:0.1:0.2"], "expected meprop, and by colons at most its k"),
        (["--backward", "srste:2.5:4"], "'srste:2.5:4': n must be a whole number, got '2.5'"),
        (["--backward", "dither:0.1:random"], "dither has no score that could be random"),
        (["--backward", "srste:2:5", "--exclude", "0"], "digits:plain by srste:2:5: 3.weight: its"),
        (["--backward", "meprop:0.1", "--to", "0.5"], "--to has no meaning beside --backward alone"),
    ],
)
def test_what_is_refused(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("-a", "digits:plain", "-o", tmp_path / "out", *more) in (1, 2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "results.json").exists()


def test_networks_of_names_alike_are_kept_apart(folder: Path, tmp_path: Path) -> None:
    nets = tmp_path / "nets.py"
    one = "def net_1():\n    return nn.Sequential(nn.Flatten(), nn.Linear(432, 3))\n"
    nets.write_text(f"from torch import nn\n{one}{one.replace('net_1', 'net__1')}")
    command = ["--data", folder, "--layers", "Linear", "--schedule", "one-shot", "--to", "0.5,0.50000001"]
    both = f"{nets}:net_1,{nets}:net__1"
    assert train(*command, "-a", both, "--epochs", "1", "-b", "16", "-j", "0", "-o", tmp_path / "out") == 0
    assert len(networks_of(tmp_path / "out")) == len(rows_of(tmp_path / "out")) == 6


def test_a_training_that_diverged_is_never_taken_for_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["-a", "digits:plain", "--lr", "1e38", "--epochs", "1", "--checkpoint-every", "0"]
    for _ in range(2):
        assert train(*command, "--schedule", "static", "-o", tmp_path) == 1
        assert "digits:plain dense seed 0: " in (said := capsys.readouterr().err)
        assert "loss is" in said
    [checkpoint, *_] = [*(tmp_path / "checkpoints").rglob("*.pth"), tmp_path / "none"]
    if checkpoint.exists():
        checkpoint.write_bytes(b"PK")
        assert train(*command, "--schedule", "static", "-o", tmp_path) == 1
        assert "is damaged" in capsys.readouterr().err


def test_unreadable_images_are_named_or_left_out(
    nets: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "train" / "red" / "3.png").write_bytes(b"no image")
    command = [*command_of(nets, folder), "-o", str(tmp_path / "out"), "--schedule", "static"]
    assert train(*command) == 1
    assert "cannot read image" in capsys.readouterr().err
    assert train(*command, "--skip-bad-images") == 0  # nothing was taken from where the other one stopped
    assert train(*command, "--skip-bad-images", "-o", tmp_path / "other") == 0
    assert equal(networks_of(tmp_path / "out"), networks_of(tmp_path / "other"))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_mixed_precision(half: torch.dtype, tmp_path: Path) -> None:
    """With float16 gradients are scaled, and steps at which they overflow are skipped."""
    from prunus.inputs.images import Source
    from prunus.progress import Monitor
    from prunus.training.experiment import Training
    from prunus.training.recipe import Recipe

    training = Training(
        [load_network("digits:plain", "none")],
        [prunus.Setting(0.8)],
        Source(),
        torch.device("cpu"),
        half,
        schedules=["gradual", "rigl", "iterative"],
        recipe=Recipe(epochs=4, rate=0.5),
        folder=tmp_path,
    )
    with Monitor("trainings", 4, 0) as monitor:
        [[dense], *others] = training.measure(training.items(), monitor)
    assert dense.point.result.top1 > 50
    for [row] in others:
        assert row.point.pruned == pytest.approx(0.8 * 5904, abs=3)
        assert row.point.result.top1 > 15  # by chance 10
