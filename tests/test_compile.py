"""Compiled, traced and exported networks are the pruned ones."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from tests.conftest import trained_under

testing = pytest.importorskip("torch._dynamo.testing")
PASSES = ("both", "backward", "forward")


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3))


def input_gradient(run: Callable[[Tensor], Tensor]) -> Tensor:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    return torch.autograd.grad(run(x).square().sum(), x)[0]


def graphs(
    run: Callable[..., Any], model: nn.Module, pruning: prunus.Pruning | None
) -> tuple[int, list[int]]:
    """How often a network was compiled as people use it, and the convolutions of each graph."""
    counter = testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    run(compiled, model, pruning)
    convolutions = [sum("conv2d" in str(node.target) for node in g.graph.nodes) for g in counter.graphs]
    return counter.frame_count, convolutions


def as_people_do(
    compiled: Callable[[Tensor], Tensor], model: nn.Module, pruning: prunus.Pruning | None
) -> None:
    x = torch.randn(2, 3, 32, 32).requires_grad_()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    for _ in range(3):
        if pruning:
            pruning.redraw()
        optimizer.zero_grad()
        compiled(x).sum().backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        compiled(x)
        compiled(x)
    with torch.inference_mode():
        compiled(x)
    model.requires_grad_(False)
    compiled(x).sum().backward()
    compiled(x).sum().backward()


def test_a_residual_network_compiles_to_one_graph_as_the_unpruned_one_does() -> None:
    resnet18 = pytest.importorskip("torchvision.models").resnet18
    wanted = graphs(as_people_do, resnet18(), None)
    assert set(wanted[1]) == {20}
    for passes in PASSES:
        torch._dynamo.reset()
        model = resnet18()
        pruning = prunus.prune(model, 0.5, p_bern=0.5, passes=passes)
        assert graphs(as_people_do, model, pruning) == wanted, passes


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("before", [False, True], ids=["pruned first", "compiled first"])
def test_compiled_gradients_follow_prune_redraw_and_restore(passes: str, before: bool) -> None:
    model, plain = net(), input_gradient(net())
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    if before:
        assert torch.equal(input_gradient(compiled), plain)
    pruning = prunus.prune(model, 0.5, p_bern=0.5, passes=passes, layers="all")
    for _ in range(3):
        masks = pruning.redraw()
        wanted = input_gradient(prunus.apply_masks(net(), masks, passes))
        assert torch.allclose(input_gradient(compiled), wanted, atol=1e-6)
        assert not torch.allclose(wanted, plain)
    pruning.restore()
    assert torch.allclose(input_gradient(compiled), plain, atol=1e-6)
    prunus.prune(model, 0.9, passes=passes, layers="all")
    assert torch.allclose(input_gradient(compiled), input_gradient(model), atol=1e-6)


def test_gradients_of_pruned_weights_are_zero_in_a_compiled_network_and_stay_so_in_a_compiled_step() -> None:
    model, x = net(), torch.randn(2, 3, 8, 8)
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    model(x).sum().backward()
    optimizer.step()
    mask = prunus.prune(model, 0.5).masks["0.weight"]
    compiled = torch.compile(model, backend="aot_eager")
    step = torch.compile(lambda: optimizer.step(), backend="aot_eager")
    for _ in range(2):
        optimizer.zero_grad()
        compiled(x).sum().backward()
        assert not model[0].weight.grad[~mask].any()
        step()
        assert not model[0].weight[~mask].any()
        assert model[0].weight[mask].all()


def test_an_attention_layer_compiles_under_every_pass() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    x = torch.randn(2, 5, 8)

    def gradient(run: Callable[[Tensor], Tensor]) -> Tensor:
        given = x.clone().requires_grad_()
        return torch.autograd.grad(run(given).square().sum(), given)[0]

    for passes in PASSES:
        prunus.prune(layer, 0.5, layers="all", passes=passes)
        compiled = torch.compile(layer, backend="aot_eager")
        assert torch.allclose(gradient(compiled), gradient(layer), atol=1e-5)


def test_functional_call_compiles() -> None:
    model, x = net(), torch.randn(2, 3, 8, 8)
    dense = {name: p.detach().clone() for name, p in model.named_parameters()}
    prunus.global_prune(model, 0.5)

    def run(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, parameters, (x,))

    assert torch.allclose(torch.compile(run, backend="aot_eager", fullgraph=True)(dense), model(x))


def dense_write(model: nn.Sequential) -> None:
    """A write that leaves no trace, over pruned weights too."""
    for index in (0, 2):
        model[index].weight.data.add_(0.1)


EXPORTS: dict[str, Callable[[nn.Module, Tensor], Callable[[Tensor], Tensor]]] = {
    "export": lambda m, x: torch.export.export(m, (x,)).module(),
    "strict export": lambda m, x: torch.export.export(m, (x,), strict=True).module(),
    "trace": lambda m, x: torch.jit.trace(m, x),
    "fx": lambda m, x: torch.fx.symbolic_trace(m),
}


@pytest.mark.parametrize("how", EXPORTS)
@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("then", [trained_under, dense_write], ids=["after a step", "after a silent write"])
def test_what_is_exported_is_the_pruned_network_and_that_alone(
    how: str, passes: str, then: Callable[[nn.Sequential], object]
) -> None:
    model, x = net(), torch.randn(2, 3, 8, 8)
    keys = {*net().state_dict()}
    prunus.prune(model, 0.5, passes=passes)
    then(model)
    exported = EXPORTS[how](model, x)
    given = exported(x)
    assert torch.allclose(given, model(x), atol=1e-6)
    tensors = {
        **dict(exported.named_parameters()),
        **dict(exported.named_buffers()),
    }
    assert {*tensors} == keys
    zeros = 0 if passes == "backward" else 108 + 144 - int(0.5 * (108 + 144))
    assert sum(int((tensors[f"{i}.weight"] == 0).sum()) for i in (0, 2)) == zeros


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.filterwarnings("ignore")
def test_onnx_holds_the_pruned_network(passes: str, dynamo: bool, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    model, x = net(), torch.randn(2, 3, 8, 8)
    prunus.prune(model, 0.5, passes=passes)
    trained_under(model)
    torch.onnx.export(model, (x,), str(tmp_path / "net.onnx"), dynamo=dynamo, verbose=False)
    tensors = onnx.load(tmp_path / "net.onnx").graph.initializer
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in tensors}
    assert {*net().state_dict()} >= {name for name in arrays if "weight" in name}
    assert not any("mask" in name or "orig" in name for name in arrays)
    zeros = sum(int((array == 0).sum()) for name, array in arrays.items() if "weight" in name)
    assert zeros == (0 if passes == "backward" else int(0.5 * (108 + 144)))


def test_a_traced_network_is_saved_without_mask_and_backup() -> None:
    model, x = net().eval(), torch.randn(2, 3, 8, 8)
    tensors = []
    for each in (net().eval(), prunus.global_prune(model, 0.5, layers="all")):
        file = io.BytesIO()
        torch.jit.save(torch.jit.trace(each, x), file)
        stored = zipfile.ZipFile(file).infolist()
        tensors.append([entry.file_size for entry in stored if "/data/" in entry.filename])
    assert tensors[1] == tensors[0]
