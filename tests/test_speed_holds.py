"""What runs a network elsewhere holds for whatever that takes, gives and does, and for several threads."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prunus

SIX = torch.arange(6.0).view(2, 3)


class Net(nn.Module):
    """Two layers, and any forward."""

    def __init__(self, call: Callable[..., Any], width: int = 3) -> None:
        super().__init__()
        self.call, self.a, self.b = call, nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(self, *args, **kwargs)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.a(x) - self.b(y)


class Unused(Two):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.a(y)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("kind", [Two, Unused])
def test_inputs_that_are_one_tensor_or_not_used(kind: type[nn.Module], runtime: str, tmp_path: Path) -> None:
    pytest.importorskip(runtime)
    net, other = kind().eval(), torch.randn(2, 3)
    fast = prunus.accelerate(net, (SIX, SIX), runtimes=[runtime], rounds=1)
    assert torch.allclose(fast(SIX, other), net(SIX, other), atol=1e-4)
    suffix = {"onnxruntime": ".onnx", "openvino": ".xml"}[runtime]
    prunus.export(net, tmp_path / f"net{suffix}", (SIX, SIX), dynamic_batch=False)


def test_several_threads() -> None:
    pytest.importorskip("openvino")
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)).eval()
    images = [torch.randn(1, 3, 32, 32) for _ in range(4)]
    fast = prunus.accelerate(net, images[0], runtimes=["openvino"], rounds=1)
    with torch.no_grad():
        wanted = [net(image) for image in images]
    wrong = []

    def work(place: int) -> None:
        for _ in range(30):
            if not torch.allclose(fast(images[place]), wanted[place], atol=1e-4):
                wrong.append(place)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_is_no_tensor_is_made_anew() -> None:
    net = Net(lambda m, x: {"y": m.a(x), "total": float(m.a(x).sum())}).eval()
    fast = prunus.accelerate(net, SIX, runtimes=["eager", "onnxruntime"], rounds=1)
    assert fast.kept == "eager"
    assert "float, which eager alone makes anew" in str(fast)
    assert fast(2 * SIX)["total"] == net(2 * SIX)["total"]
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            copied(fast)
    arrays = Net(lambda m, x, a: m.a(x) * float(a[0])).eval()
    fast = prunus.accelerate(arrays, (SIX, np.array([1.0, 2.0])), runtimes=["eager"], rounds=1)
    assert torch.equal(fast(SIX, np.array([3.0, 2.0])), arrays(SIX, np.array([3.0, 2.0])))


def test_networks_that_write_to_what_they_are_given(tmp_path: Path) -> None:
    net, x = Net(lambda m, x: m.a(x.mul_(2))).eval(), SIX.clone()
    [row] = prunus.latency({"net": net}, x, runtimes=["eager"], rounds=2).rows
    assert row.apart == 0
    fast = prunus.accelerate(net, x, runtimes=["eager"], rounds=2)
    assert fast.kept == "eager"
    assert torch.equal(x, SIX)
    prunus.export(net, tmp_path / "net.pt2", x)
    assert torch.equal(x, SIX)


def test_forwards_that_read_their_layers_or_make_weights() -> None:
    def call(m: Any, x: Tensor) -> Any:
        return m.a(x.reshape(-1, m.a.in_features))

    net = Net(call, 512).eval()
    prunus.global_prune(net, 0.99, layers="all")
    fast = prunus.accelerate(net, torch.randn(64, 512), runtimes=["eager"], rounds=1)
    text = torch.randn(2, 3, 512)
    assert torch.allclose(fast(text), net(text), atol=1e-4)

    class Made(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.weights = nn.Linear(3, 3), nn.Linear(3, 9)
            del self.a.weight
            self.a.weight = torch.zeros(3, 3)

        def forward(self, x: Tensor) -> Any:
            self.a.weight = self.weights(x.mean(0)).view(3, 3)
            return self.a(x)

    made = Made().eval()
    with torch.no_grad():
        made(SIX)
    fast = prunus.accelerate(made, SIX, runtimes=["eager"], rounds=1)
    assert torch.allclose(fast(2 * SIX), made(2 * SIX), atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert prunus.accelerate(net, torch.randn(8, 512), runtimes=["eager"], rounds=1).kept


def test_signals_after_networks_of_openvino_are_gone() -> None:
    """Whose stacks it had put in the place of the thread's own."""
    pytest.importorskip("openvino")
    code = (
        "import faulthandler, gc, signal, subprocess, prunus, torch\nfrom torch import nn\n"
        "faulthandler.enable()\n"  # which makes a stack, as pytest does
        "signal.signal(signal.SIGCHLD, lambda *_: None)\n"
        "x, nets = torch.randn(1, 8), {'a': nn.Linear(8, 8), 'b': nn.Linear(8, 8), 'c': nn.Linear(8, 8)}\n"
        "prunus.latency(nets, x, runtimes=['openvino'], rounds=1)\n"
        "gc.collect()\n"
        "held = [torch.empty(1 << 20) for _ in range(64)]\n"
        "subprocess.run(['true'])\nprint('alive')\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_numbers_that_openvino_does_not_have() -> None:
    pytest.importorskip("openvino")
    whole = torch.arange(6).view(2, 3)
    fast = prunus.accelerate(Net(lambda m, x: x * 3).eval(), whole, runtimes=["openvino"], rounds=1)
    with pytest.raises(ValueError, match="whole numbers beyond int32"):
        fast(whole + 2**33)


def test_networks_that_do_not_take_any_numbers(tmp_path: Path) -> None:
    net = Net(lambda m, x: nn.functional.embedding((x * 3).long(), m.a.weight)).eval()
    assert prunus.export(net, tmp_path / "net.onnx", torch.rand(2, 3)).apart < 1e-6
    with pytest.raises(TypeError, match="path must be a str or a path, got 3"):
        prunus.export(net, 3, SIX)  # type: ignore[arg-type]


def test_a_kernel_that_cannot_be_kept_is_used(tmp_path: Path) -> None:
    """The folder for it is a file."""
    (tmp_path / "file").write_text("")
    code = (
        "import prunus, torch\nfrom torch import nn\n"
        "net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))\n"
        "net = prunus.global_prune(net, 0.9, layers='all')\n"
        "for _ in range(2):\n"
        "    fast = prunus.accelerate(net, torch.randn(8, 64), runtimes=['eager'], rounds=1)\n"
        "print([sorted(of.milliseconds) for of in fast.layers.values()], [c.why for c in fast.candidates])\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "TORCH_HOME": str(tmp_path / "file")},
        check=True,
    )
    if "no ninja" in done.stdout or "Error" in done.stdout:
        pytest.skip("no C++ compiler or no ninja")
    assert done.stdout.count("kernel") == 2
