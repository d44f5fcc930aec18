"""SparseGPT beside a reference of ten lines, and that nothing is lost where it fails or is undone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.reconstruction import BUDGETS, solve


def reference(w: Tensor, h: Tensor, p: float, block: int, dampening: float = 0.01) -> tuple[Tensor, Tensor]:
    """Optimal brain surgeon by rows, columns from left to right (Frantar, Alistarh 2023, section 3)."""
    w, kept = w.double().clone(), torch.ones_like(w, dtype=torch.bool)
    h = h.double() + dampening * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
    inverses = [torch.linalg.inv(h[j:, j:]) for j in range(len(h))]
    for j in range(len(h)):
        if j % block == 0:
            end, rows = min(j + block, len(h)), len(w)
            scores = torch.stack([w[:, i] ** 2 / inverses[i][0, 0] for i in range(j, end)], 1)
            fallen = scores.flatten().argsort(stable=True)[: int(p * (rows * end)) - int(p * (rows * j))]
            kept[:, j:end] = torch.ones(scores.numel()).index_fill(0, fallen, 0).view(scores.shape).bool()
        error = torch.where(kept[:, j], 0.0, w[:, j]) / inverses[j][0, 0]
        w[:, j:] -= error[:, None] * inverses[j][0]
        w[:, j] *= kept[:, j]
    return w, kept


@settings(max_examples=40, deadline=None)
@given(
    p=st.sampled_from([0.0, 0.1, 0.33, 0.5, 0.9, 1.0]),
    block=st.sampled_from([1, 3, 4, 100]),
    rows=st.integers(1, 5),
    inputs=st.integers(1, 9),
    seed=st.integers(0, 9),
)
def test_the_solution_is_that_of_the_reference(
    p: float, block: int, rows: int, inputs: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, inputs, generator=generator, dtype=torch.float64)
    x = torch.randn(20, inputs, generator=generator, dtype=torch.float64) @ torch.randn(
        inputs, inputs, generator=generator, dtype=torch.float64
    )
    expected, mask = reference(w, x.T @ x, p, block)
    found, kept = solve(w[None], (x.T @ x)[None], p, BUDGETS["layer"], block)
    assert torch.equal(kept[0], mask)
    assert int((~mask).sum()) == int(p * w.numel())
    torch.testing.assert_close(found[0], expected, rtol=1e-7, atol=1e-9)


def conv1d(inputs: int, outputs: int) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    layer: nn.Module = transformers.pytorch_utils.Conv1D(outputs, inputs)
    return layer


LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "Linear": (lambda: nn.Linear(8, 6), (5, 3, 8)),
    "Conv1D": (lambda: conv1d(8, 6), (5, 3, 8)),
    "Conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, dilation=(1, 2)), (5, 4, 9, 9)),
    "grouped": (lambda: nn.Conv2d(8, 6, 3, groups=2), (5, 8, 6, 6)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding_mode="circular", padding=1), (5, 4, 6, 6)),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3), (5, 4, 9)),
    "Conv3d": (lambda: nn.Conv3d(2, 3, 2), (5, 2, 4, 4, 4)),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_kind_of_layer_is_a_linear_one_of_its_patches(kind: str, dtype: torch.dtype) -> None:
    """What is told of the error of its outputs is what they say."""
    made, shape = LAYERS[kind]
    layer, x = made().to(dtype), torch.randn(shape).to(dtype)
    clean, before = layer(x).float(), layer.weight.detach().clone()
    bias = layer.bias.detach().float()
    without = clean - (bias if kind in ("Linear", "Conv1D") else bias.view(-1, *[1] * (x.dim() - 2)))
    solved = prunus.sparsegpt(layer, [(x, torch.zeros(5))], 0.5, layers="all")
    mask = solved.masks["weight"]
    assert int((~mask).sum()) == mask.numel() // 2
    assert not layer.weight[~mask].any()
    error = float((layer(x).float() - clean).square().sum() / without.square().sum())
    assert error == pytest.approx(solved.errors["weight"], rel=1e-3 if dtype is torch.float32 else 0.2)
    magnitude = prunus.make_masks(layer, 0.5, layers="all")
    solved.restore()
    assert torch.equal(layer.weight, before)
    with torch.no_grad():
        layer.weight.mul_(magnitude["weight"])
    assert error < float((layer(x).float() - clean).square().sum() / without.square().sum())


def test_columns_of_a_convolution_are_those_of_unfold() -> None:
    layer, x = nn.Conv2d(4, 6, 3, padding=1, bias=False), torch.randn(3, 4, 5, 5)
    columns = F.unfold(x, 3, padding=1).transpose(0, 1).flatten(1).double()  # (in·k, places)
    order = torch.arange(36).view(4, 9).T.flatten()  # positions before inputs
    w = layer.weight.detach().flatten(1)[:, order]
    expected, kept = reference(w, columns[order] @ columns[order].T, 0.4, 5)
    solved = prunus.sparsegpt(layer, [(x, torch.zeros(3))], 0.4, block=5)
    assert torch.equal(solved.masks["weight"].flatten(1)[:, order], kept)
    torch.testing.assert_close(layer.weight.detach().flatten(1)[:, order], expected.float())


@pytest.mark.parametrize("kind", ["Linear", "Conv1D", "Conv2d", "grouped"])
@pytest.mark.parametrize("scope", ["2:4", "1:2", "row"])
def test_scopes(kind: str, scope: str) -> None:
    made, shape = LAYERS[kind]
    layer = made()
    solved = prunus.sparsegpt(layer, [(torch.randn(shape), torch.zeros(5))], 0.5, scope=scope, layers="all")
    weight = solved.masks["weight"]
    rows = weight.T if kind == "Conv1D" else weight.flatten(2).mT if weight.dim() > 2 else weight
    if scope == "row":
        assert (rows.flatten(1).sum(1) == rows[0].numel() // 2).all()
    else:
        n, m = map(int, scope.split(":"))
        assert (rows.reshape(-1, m).sum(1) == n).all()


class Deep(nn.Module):
    """Layers in another order than they are called in."""

    def __init__(self) -> None:
        super().__init__()
        self.second, self.first, self.never = nn.Linear(6, 4), nn.Linear(8, 6), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


DATA = [(torch.randn(30, 8), torch.zeros(30)), (torch.randn(10, 8), torch.zeros(10))]
CHOICE: dict[str, Any] = {"layers": "Linear", "exclude": "never"}


def test_a_layer_sees_what_the_pruned_ones_before_it_give() -> None:
    model = Deep()
    other = copy.deepcopy(model)
    solved = prunus.sparsegpt(model, DATA, 0.5, **CHOICE)
    assert list(solved.errors) == ["first.weight", "second.weight"]
    with torch.no_grad():
        other.first.weight.copy_(model.first.weight)
    prunus.sparsegpt(other, DATA, 0.5, include="second", layers="Linear")
    assert torch.equal(other.second.weight, model.second.weight)


def test_it_is_undone_to_the_bit() -> None:
    model = Deep()
    before = copy.deepcopy(model.state_dict())
    with prunus.sparsegpt(model, DATA, {"first": 0.5, "second": 0.25}, **CHOICE) as solved:
        assert solved.masks.counts == {"first.weight": (24, 48), "second.weight": (6, 24)}
        assert prunus.masks_of(model) == solved.masks
        changed = model.first.weight.detach().clone()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        model(DATA[0][0]).sum().backward()
        optimizer.step()
        assert not model.first.weight[~solved.masks["first.weight"]].any()
    assert all(
        torch.equal(value, before[name]) for name, value in model.state_dict().items() if "bias" not in name
    )
    prunus.sparsegpt(model, DATA, 0.5, **CHOICE)
    prunus.restore(model)
    assert torch.equal(model.first.weight, before["first.weight"])
    assert not torch.equal(changed, before["first.weight"])


def test_another_pruning_on_top_starts_from_the_original_weights() -> None:
    model = Deep()
    before = copy.deepcopy(model.state_dict())
    expected = prunus.make_masks(model, 0.3, layers="Linear")
    first = prunus.sparsegpt(model, DATA, 0.5, **CHOICE)
    values = copy.deepcopy(model.state_dict())
    assert prunus.make_masks(model, 0.3, layers="Linear") == expected
    again = prunus.sparsegpt(model, DATA, 0.5, **CHOICE)
    assert again.masks == first.masks
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    other = copy.deepcopy(model)
    first.restore()  # has ended: others are in force
    assert prunus.masks_of(model) == again.masks
    with prunus.prune(model, 0.3, layers="Linear") as pruning:
        assert pruning.masks == expected
    for network in (model, prunus.restore(other)):
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_layers_that_some_batches_reach_and_batches_by_name() -> None:
    class Either(Deep):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.first(x))
            return self.second(x) if len(x) == 10 else x

    assert len(prunus.sparsegpt(Either(), DATA, 0.5, **CHOICE).errors) == 2
    model = Deep()
    expected = prunus.sparsegpt(copy.deepcopy(model), DATA, 0.5, **CHOICE)
    for batches in (
        [{"x": x, "labels": y} for x, y in DATA],
        [({"x": x}, 0) for x, _ in DATA],
        [(x, 0) for x, _ in DATA],
    ):
        assert prunus.sparsegpt(copy.deepcopy(model), batches, 0.5, **CHOICE).errors == expected.errors


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"exclude": ()}, ValueError, "never.weight is of a layer that is never called"),
    ({"scope": "global"}, ValueError, "scope must be one of layer, row, n:m; got 'global'"),
    ({"scope": "2:4", "p_prune": 0.3}, ValueError, "prunes 0.5 or nothing: p_prune must be that, got 0.3"),
    ({"scope": "3:5"}, ValueError, "prunes 0.4 or nothing"),
    ({"scope": "4:8", "include": "second"}, ValueError, "the 6 inputs of second.weight are no multiple of 8"),
    ({"block": 0}, ValueError, "block must be a whole number from 1"),
    ({"dampening": 0}, ValueError, "dampening must be above 0, got 0"),
    ({"batches": iter(DATA)}, TypeError, "batches is an iterator"),
    ({"batches": []}, ValueError, "batches is empty"),
    (
        {"batches": [(torch.full((2, 8), torch.nan), torch.zeros(2))]},
        ValueError,
        "first.weight has inputs that are NaN",
    ),
    ({"spoil": torch.nan}, ValueError, "second.weight has values or scores that are NaN"),
    ({"p_prune": {"third": 0.5}}, ValueError, "'third' matches no weight"),
    ({"p_prune": 1.5}, ValueError, "p_prune must be in"),
    ({"colour": 1}, TypeError, "sparsegpt.. has no keyword 'colour'"),
]


@pytest.mark.parametrize(("changed", "error", "match"), BAD, ids=[match[:30] for _, _, match in BAD])
def test_what_fails_changes_nothing(changed: dict[str, Any], error: type[Exception], match: str) -> None:
    model = Deep()
    earlier = prunus.prune(model, 0.25, layers="Linear").masks
    if "spoil" in changed:
        with torch.no_grad():
            model.second.weight[earlier["second.weight"]] = changed.pop("spoil")
    before = copy.deepcopy(model.state_dict())
    choice = {"batches": DATA, "p_prune": 0.5, **CHOICE, **changed}
    with pytest.raises(error, match=match):
        prunus.sparsegpt(model, **choice)
    now = model.state_dict()
    assert all(torch.equal(value.nan_to_num(9), before[name].nan_to_num(9)) for name, value in now.items())
    assert prunus.masks_of(model) == earlier


def test_an_interrupt_in_the_second_layer_changes_nothing() -> None:
    model = Deep()
    earlier = prunus.prune(model, 0.25, layers="Linear").masks
    before, calls = copy.deepcopy(model.state_dict()), []

    class Interrupted:
        def __iter__(self) -> Any:
            calls.append(1)
            if len(calls) == 3:  # for the order, for the first layer, for the second
                raise KeyboardInterrupt
            return iter(DATA)

    with pytest.raises(KeyboardInterrupt):
        prunus.sparsegpt(model, Interrupted(), 0.5, **CHOICE)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert prunus.masks_of(model) == earlier


@pytest.mark.parametrize("layer", [nn.Embedding(4, 4), nn.LSTM(4, 4), nn.ConvTranspose2d(4, 4, 3)], ids=str)
def test_layers_that_are_not_solved_for_are_named(layer: nn.Module) -> None:
    with pytest.raises(ValueError, match=rf"is of a {type(layer).__name__}, which is not solved for"):
        prunus.sparsegpt(layer, [(torch.zeros(2), torch.zeros(2))], 0.5, layers="all")


def test_inputs_that_are_never_there_and_layers_that_are_called_twice() -> None:
    layer = nn.Linear(4, 4, bias=False)
    x = torch.randn(20, 4) * torch.tensor([1.0, 0.0, 1.0, 1.0])
    solved = prunus.sparsegpt(nn.Sequential(layer, layer), [(x, torch.zeros(20))], 0.25, layers="Linear")
    assert layer.weight.isfinite().all()
    assert solved.masks.pruned == 4
    none = prunus.sparsegpt(nn.Sequential(nn.Linear(4, 4)), [(x * 0, x)], 0.5, layers="Linear")
    assert none.errors == {"0.weight": 0.0}


def test_norms_of_inputs_take_the_memory_of_one_output() -> None:
    for made, shape in LAYERS.values():
        layer = made()
        found = prunus.evidence(
            layer, [(torch.randn(shape), torch.zeros(5))], criterion="wanda", loss=lambda *_: None
        )
        [norms] = next(iter(found.found.values())).values()
        assert norms.shape == layer.weight.shape
        outputs = layer.weight.shape[1] if type(layer).__name__ == "Conv1D" else layer.weight.shape[0]
        if getattr(layer, "groups", 1) == 1:  # each group has inputs of its own
            assert norms.untyped_storage().nbytes() // 4 == norms.numel() // outputs
