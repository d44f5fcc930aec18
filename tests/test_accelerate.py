"""Sparse layers give what dense ones do, what is kept what the network does; what is dropped is said."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import prunus
from prunus.compaction.forgood import for_good
from prunus.speed import products
from prunus.speed.choosing import PRODUCTS, sparse_layer, with_sparse_layers
from tests.conftest import everything, same


@pytest.fixture(autouse=True)
def quiet(recwarn: pytest.WarningsRecorder) -> None:
    """Torch calls sparse matrices a prototype, once in a process."""


def product(name: str) -> products.Convolution:
    try:
        return PRODUCTS[name]()
    except (RuntimeError, OSError, ImportError) as error:
        pytest.skip(f"no C++ compiler or no ninja: {error!s:.100}")


def empty_some(layer: nn.Module, zeros: float) -> nn.Module:
    weight = layer.get_parameter("weight")
    with torch.no_grad():
        weight[torch.rand_like(weight) < zeros] = 0
        weight[0] = 0  # a row without any
    return layer.eval()


def check(layer: nn.Module, name: str, x: Tensor) -> None:
    with torch.no_grad():
        wanted, found = layer(x), sparse_layer(layer, product(name))(x)
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    assert torch.allclose(found, wanted, atol=1e-5)
    assert torch.equal(sparse_layer(layer, product(name)).weight, layer.get_parameter("weight"))


pair = st.tuples(st.integers(1, 3), st.integers(1, 3))


@pytest.mark.parametrize("name", PRODUCTS)
@settings(max_examples=80, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=pair,
    dilation=pair,
    padding=st.sampled_from(["same", "valid", (0, 0), (1, 1), (2, 0), (3, 4)]),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    channels=st.tuples(st.integers(1, 5), st.integers(1, 70)),
    batch=st.integers(0, 3),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    bias=st.booleans(),
    last=st.booleans(),
    zeros=st.sampled_from([0.0, 0.7, 1.0]),
)
def test_convolutions(
    name: str,
    kernel: Any,
    stride: Any,
    dilation: Any,
    padding: Any,
    size: Any,
    channels: tuple[int, int],
    batch: int,
    dtype: torch.dtype,
    bias: bool,
    last: bool,
    zeros: float,
) -> None:
    if padding == "same":
        stride = 1
    layer = nn.Conv2d(*channels, kernel, stride, padding, dilation, bias=bias).to(dtype)
    x = torch.randn(batch, channels[0], *size, dtype=dtype)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    made = sparse_layer(empty_some(layer, zeros), product(name))
    try:
        with torch.no_grad():
            layer(x)
    except RuntimeError:  # smaller than the kernel
        with pytest.raises((RuntimeError, ValueError)):
            made(x)
        return
    check(layer, name, x)


@pytest.mark.parametrize("name", PRODUCTS)
def test_strides_beside_dilations(name: str) -> None:
    x = torch.randn(1, 3, 17, 19)
    for kernel, stride, dilation in itertools.product(range(1, 5), range(1, 5), range(1, 5)):
        layer = nn.Conv2d(3, 5, (kernel, 3), (stride, 2), (2, 1), (dilation, 1))
        check(empty_some(layer, 0.5), name, x)


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("shape", [(5,), (1, 5), (7, 5), (2, 33, 5), (0, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for zeros in (0.5, 1.0):
        check(empty_some(nn.Linear(5, 9).to(dtype), zeros), name, torch.randn(shape, dtype=dtype))
    check(empty_some(nn.Linear(5, 9, bias=False).to(dtype), 0.5), name, torch.randn(shape, dtype=dtype))


@pytest.mark.parametrize("name", PRODUCTS)
def test_layers_refuse_what_does_not_fit(name: str) -> None:
    convolution = sparse_layer(nn.Conv2d(3, 4, 3), product(name))
    with pytest.raises(ValueError, match=r"expected images of 3 channels, .* got \(1, 4, 9, 9\)"):
        convolution(torch.randn(1, 4, 9, 9))
    with pytest.raises(ValueError, match="no smaller than the kernel"):
        convolution(torch.randn(1, 3, 2, 9))
    with pytest.raises(ValueError, match="expected 5 features"):
        sparse_layer(nn.Linear(5, 4), product(name))(torch.randn(3, 6))
    with pytest.raises(RuntimeError):
        sparse_layer(nn.Linear(5, 4), product(name))(torch.randn(3, 5, dtype=torch.float64))


@pytest.mark.parametrize("name", PRODUCTS)
def test_compiled_whole(name: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(200, 5))
    for place in (0, 3):
        net[place] = sparse_layer(empty_some(net[place], 0.8), product(name))
    fast = torch.compile(net, fullgraph=True)
    with torch.no_grad():
        for batch in (1, 2, 5):
            x = torch.randn(batch, 3, 9, 9)
            assert torch.allclose(fast(x), net(x), atol=1e-5)


class Net(nn.Module):
    """Layers that can be sparse and some that cannot, and outputs in containers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, padding=1)
        self.grouped = nn.Conv2d(32, 32, 3, padding=1, groups=4)
        self.wide = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.dropout = nn.Dropout()
        self.last = nn.Linear(64, 10)

    def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Any]:
        x = self.wide(self.grouped(self.first(x).relu()).relu()).relu()
        return {"logits": self.last(self.dropout(x).mean((2, 3))) * scale, "features": [x], "scale": scale}


def pruned(ratio: float = 0.95) -> nn.Module:
    net = Net().train()
    prunus.prune(net, ratio, layers="all", scope="layer")
    return net


def outputs(net: Any, *args: Any) -> Any:
    with torch.no_grad():
        return net(*args)


def close(one: Any, other: Any) -> bool:
    return bool(
        torch.allclose(one["logits"], other["logits"], atol=1e-4)
        and torch.allclose(one["features"][0], other["features"][0], atol=1e-4)
        and one["scale"] == other["scale"]
    )


def test_gives_what_the_network_does_and_leaves_it() -> None:
    net, x = pruned(), torch.randn(2, 3, 16, 16)
    before, random, threads = everything(net), torch.get_rng_state(), torch.get_num_threads()
    fast = prunus.accelerate(net, x, rounds=2)
    assert same(before, everything(net))
    assert all(module.training for module in net.modules())
    assert torch.equal(random, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    net.eval()
    for inputs in ((x,), (torch.randn_like(x),), (torch.randn(5, 3, 9, 21),), (x, 2.0)):
        assert close(fast(*inputs), outputs(net, *inputs))
    assert not fast(x)["logits"].requires_grad
    assert (
        fast.kept
        == min(
            (one for one in fast.candidates if one.milliseconds is not None),
            key=lambda one: one.milliseconds or 0,
        ).name
    )
    assert fast.kept in repr(fast)
    assert {"first", "wide", "last"} == set(fast.layers)
    assert all(0.9 < choice.zeros < 1 for choice in fast.layers.values())
    assert {one.name for one in fast.candidates} >= {"eager", "compile", "onnxruntime", "openvino"}
    assert all(one.name in str(fast) for one in fast.candidates)


@pytest.mark.parametrize("name", PRODUCTS)
def test_sparse_networks_are_right(name: str) -> None:
    """Whichever layers won."""
    product(name)
    net, x = for_good(pruned()).eval(), torch.randn(2, 3, 16, 16)
    made, choices, _ = with_sparse_layers(net, (x,), {}, {name: PRODUCTS[name]}, rounds=1)
    assert set(choices) == {"first", "wide", "last"}
    for path, choice in choices.items():
        dense = type(made.get_submodule(path)) in (nn.Conv2d, nn.Linear)
        assert dense == (choice.kept == "dense")
    assert close(outputs(made, x), outputs(net, x))


class Tensors(Net):
    """The same, which gives nothing else."""

    def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Any]:
        made = super().forward(x, scale)
        return {name: made[name] for name in ("logits", "features")}


def test_what_cannot_be_had_is_dropped_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = Tensors().train(), torch.randn(2, 3, 16, 16)
    prunus.prune(net, 0.95, layers="all", scope="layer")

    def refuse() -> products.Convolution:
        raise RuntimeError("Ninja is required to load C++ extensions")

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setitem(PRODUCTS, "kernel", refuse)
    fast = prunus.accelerate(net, x, runtimes=["eager", "onnxruntime", "openvino"], rounds=1)
    why = {one.name: one.why for one in fast.candidates}
    assert "onnxruntime is not installed" in why["onnxruntime"]
    assert 'pip install "prunus[export]"' in why["openvino"]
    assert "Ninja is required" in why["sparse by kernel"]
    assert fast.kept in ("eager", "sparse eager")
    assert "dropped: ImportError" in str(fast)
    assert torch.allclose(fast(x)["logits"], outputs(net.eval(), x)["logits"], atol=1e-4)
    with pytest.raises(RuntimeError, match=r"onnxruntime was dropped: .* is not installed"):
        prunus.accelerate(net, x, runtimes=["onnxruntime"], rounds=1)


class Wild(nn.Module):
    """Another answer each time."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 4)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.last(x) * self.calls


def test_other_outputs_are_dropped() -> None:
    with pytest.raises(RuntimeError, match=r"eager was dropped: its outputs are .* of the largest apart"):
        prunus.accelerate(Wild(), torch.randn(2, 4), runtimes=["eager"])


def test_dense_networks_stay_dense() -> None:
    net, x = Net().eval(), torch.randn(1, 3, 8, 8)
    fast = prunus.accelerate(net, x, runtimes=["eager"], rounds=1)
    assert fast.kept == "eager"
    assert not fast.layers
    assert close(fast(x), outputs(net, x))


def test_layers_that_someone_reads_or_hooks() -> None:
    encoder = nn.TransformerEncoderLayer(32, 4, 256, batch_first=True).eval()
    prunus.global_prune(encoder, 0.97, layers="all", scope="layer")
    x = torch.randn(2, 50, 32)
    seen: list[int] = []
    fast = prunus.accelerate(encoder, x, runtimes=["eager"], rounds=1)
    with torch.no_grad():
        assert torch.allclose(fast(x), encoder(x), atol=1e-4)
    hooked = nn.Sequential(nn.Linear(32, 256), nn.Linear(256, 32))
    prunus.global_prune(hooked, 0.97, layers="all", scope="layer")
    hooked[0].register_forward_hook(lambda *_: seen.append(1))
    assert set(prunus.accelerate(hooked, x, runtimes=["eager"], rounds=1).layers) == {"1"}


def test_language_model() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_embd=64, n_layer=2, n_head=4, vocab_size=50, n_positions=16, use_cache=False
    )
    net = transformers.GPT2LMHeadModel(config).eval()
    prunus.global_prune(net, 0.98, layers="Conv1D", scope="layer")
    x = {"input_ids": torch.randint(50, (2, 16))}
    fast = prunus.accelerate(net, x, runtimes=["eager"], rounds=1)
    assert len(fast.layers) == 8
    with torch.no_grad():
        assert torch.allclose(fast(**x).logits, net(**x).logits, atol=1e-4)


def test_arguments() -> None:
    net, x = Net(), torch.randn(1, 3, 8, 8)
    for wrong, error, match in (
        ({"runtimes": ["tensorrt"]}, ValueError, "runtimes must be one of eager, compile, .* got 'tensorrt'"),
        ({"runtimes": "eager"}, TypeError, r"runtimes must be several names, such as \['eager'\]"),
        ({"runtimes": []}, ValueError, "runtimes is empty"),
        ({"rounds": 0}, ValueError, "rounds must be a whole number from 1"),
        ({"tolerance": -1}, ValueError, "tolerance must be 0 or more"),
        (
            {"runtime": ["eager"]},
            TypeError,
            "no keyword 'runtime': did you mean 'runtimes'",
        ),
    ):
        with pytest.raises(error, match=match):
            prunus.accelerate(net, x, **wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module"):
        prunus.accelerate(lambda x: x, x)  # type: ignore[arg-type]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_not_on_gpus() -> None:
    with pytest.raises(ValueError, match=r"is for CPUs, and first.weight of the model is on cuda:0"):
        prunus.accelerate(Net().cuda(), torch.randn(1, 3, 8, 8))


def test_two_of_four_needs_a_gpu() -> None:
    net = nn.Sequential(nn.Linear(64, 64))
    with pytest.raises(ValueError, match=r"is for CUDA devices, and 0.weight of the model is on cpu"):
        prunus.semi_structured(net)
    with pytest.raises(ValueError, match="no linear layers"):
        prunus.semi_structured(nn.Conv2d(3, 3, 3))
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module"):
        prunus.semi_structured(3)  # type: ignore[arg-type]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_two_of_four() -> None:
    net = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 128), nn.Linear(128, 7)).cuda().half()
    prunus.prune(net, 0.5, layers="Linear", scope="2:4", include=["0", "2"])
    before, x = everything(net), torch.randn(64, 256, device="cuda", dtype=torch.half)
    made = prunus.semi_structured(net)
    assert made.layers == ("0", "2")
    assert made.left == {"3": "its weight is not 2:4"}
    assert same(before, everything(net))
    with torch.no_grad():
        assert torch.allclose(made.model(x), net(x), atol=1e-2)
