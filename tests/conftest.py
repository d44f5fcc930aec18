from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several that run side by side: a thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from torch import Tensor, nn

from prunus.selection import arrays, line

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def nets(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A file of the networks that the test's own file has as NETS."""
    path = tmp_path / "nets.py"
    path.write_text(request.module.NETS)
    return path


@pytest.fixture(scope="session")
def shared() -> Path:
    """Pretrained networks, images and reference results, where this checkout has them beside it."""
    if not (SHARED / "reference").is_dir():
        pytest.skip("no shared folder with reference results beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def cifar_folder(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tarfile

    folder = tmp_path_factory.mktemp("data")
    with tarfile.open(shared / "data" / "cifar10-val-5000.tar") as archive:
        archive.extractall(folder, filter="data")
    return folder / "cifar10"


def import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def interrupt(command: list[str], sign: signal.Signals) -> int:
    """The exit code of a command that gets this signal after three lines on standard error."""
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # A job that a shell runs in the background would ignore the interrupt
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    for _ in range(3):
        process.stderr.readline()
    process.send_signal(sign)
    return process.wait()


def layer_zoo() -> list[nn.Module]:
    """One of every kind of layer that can be pruned."""
    return [
        nn.Conv1d(4, 6, 3),
        nn.Conv2d(4, 6, 3, bias=False),
        nn.Conv2d(4, 6, 1),
        nn.Conv2d(4, 8, 3, groups=2),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv3d(2, 4, (1, 2, 3)),
        nn.ConvTranspose1d(4, 6, 3),
        nn.ConvTranspose2d(4, 6, 3, groups=2),
        nn.ConvTranspose3d(2, 3, 2, bias=False),
        nn.Linear(5, 7),
    ]


def layer_name(layer: nn.Module) -> str:
    return f"{type(layer).__name__}{tuple(layer.get_parameter('weight').shape)}g{getattr(layer, 'groups', 1)}"


def small_net() -> nn.Sequential:
    """Biased and strided convolutions, batch norm and a head; deterministic."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, stride=2, bias=False),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, 10),
        )


def labels_of(model: nn.Module, images: Tensor) -> Tensor:
    """What the network predicts: every attack has to work for every image."""
    with torch.no_grad():
        return model(images).argmax(1)


def everything(model: nn.Module) -> dict[str, Any]:
    """Values, modes and gradients."""
    return {
        "values": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
    }


def same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    equal = all(torch.equal(value, after["values"][name]) for name, value in before["values"].items())
    gradients = (
        one is other if one is None or other is None else torch.equal(one, other)
        for one, other in zip(before["gradients"], after["gradients"], strict=True)
    )
    return equal and before["modes"] == after["modes"] and all(gradients)


def trained_under(model: nn.Module) -> None:
    """Steps with momentum, over zeros too, as a network has it that was trained before it was pruned."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.ones_like(parameter)
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()


def stream_few(monkeypatch: pytest.MonkeyPatch, sample: int, chunk: int, block: int) -> None:
    """Let few scores too go the whole road of many, with brackets that often miss."""
    monkeypatch.setattr(line, "SAMPLE", sample)
    monkeypatch.setattr(line, "CHUNK", chunk)
    monkeypatch.setattr(arrays, "BLOCK", block)
    monkeypatch.setattr(line, "MARGIN", 0.5)
