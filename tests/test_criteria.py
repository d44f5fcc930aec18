"""Every criterion beside a reference of ten lines, with batch norm, groups and shared weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from tests.conftest import everything, same

Scores = dict[str, Tensor]


class Shared(nn.Module):
    """Batch norm, a grouped convolution, one convolution that is called twice, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
        self.again = self.grouped
        self.linear = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        x = self.again(self.grouped(x).tanh()).relu()
        return self.linear(x.mean((2, 3)))


NAMES = ("first.weight", "grouped.weight", "linear.weight")


def network(dtype: torch.dtype = torch.float32) -> Shared:
    torch.manual_seed(0)
    model = Shared()
    with torch.no_grad():
        model.norm.running_mean.uniform_(-0.5, 0.5)
        model.norm.running_var.uniform_(0.5, 2)
        model.norm.weight.uniform_(0.5, 1.5)
    return model.to(dtype).train()


def batches(dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 2, 5, 5, generator=generator).to(dtype), torch.arange(n) % 3) for n in (4, 3, 5)]


def loss(model: nn.Module, weights: list[Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    x, labels = batch
    given = dict(zip(NAMES, weights, strict=True))
    return F.cross_entropy(torch.func.functional_call(model, given, (x,)), labels)


def plain(model: nn.Module) -> tuple[nn.Module, list[Tensor]]:
    """The same in eval mode and float64, and its weights."""
    twin = copy.deepcopy(model).eval().double()
    return twin, [twin.get_parameter(name).detach().requires_grad_() for name in NAMES]


def by_gradient(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    twin, weights = plain(model)
    mean = torch.stack([loss(twin, weights, (x.double(), y)) for x, y in data]).mean()
    return list(torch.autograd.grad(mean, weights))


def taylor(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [(w * g).abs() for w, g in zip(plain(model)[1], by_gradient(model, data), strict=True)]


def grasp(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """The derivative of ‖g‖²/2 along w, whole: what shrinking w takes from the gradient flow."""
    twin, weights = plain(model)
    mean = torch.stack([loss(twin, weights, (x.double(), y)) for x, y in data]).mean()
    found = torch.autograd.grad(mean, weights, create_graph=True)
    flow = torch.stack([g.square().sum() for g in found]).sum() / 2
    return [w * h for w, h in zip(weights, torch.autograd.grad(flow, weights), strict=True)]


def fisher(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    each = [by_gradient(model, [batch]) for batch in data]
    squares = [torch.stack(gs).square().mean(0) for gs in zip(*each, strict=True)]
    return [w.square() * s / 2 for w, s in zip(plain(model)[1], squares, strict=True)]


def synflow(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    twin, weights = plain(model)
    with torch.no_grad():
        for tensor in twin.state_dict().values():
            tensor.abs_()
    positive = [w.detach().abs().requires_grad_() for w in weights]
    ones = torch.ones(1, 2, 5, 5, dtype=torch.float64)
    total = torch.func.functional_call(twin, dict(zip(NAMES, positive, strict=True)), (ones,)).sum()
    return [w * g for w, g in zip(positive, torch.autograd.grad(total, positive), strict=True)]


def lamp(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    scores = []
    for weight in plain(model)[1]:
        flat, place = weight.detach().flatten().square(), torch.arange(weight.numel())
        after = [(flat > s) | ((flat == s) & (place >= i)) for i, s in enumerate(flat)]  # ties by position
        scores.append(
            torch.stack([s / flat[a].sum() for s, a in zip(flat, after, strict=True)]).view_as(weight)
        )
    return scores


REFERENCES: dict[str, Callable[..., list[Tensor]]] = {
    "taylor": taylor,
    "snip": taylor,
    "grasp": grasp,
    "fisher": fisher,
    "synflow": synflow,
    "lamp": lamp,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", REFERENCES)
def test_scores_are_those_of_the_definition(name: str, dtype: torch.dtype) -> None:
    model, data = network(dtype), batches(dtype)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)  # of the user's own
    before = everything(model)
    known = prunus.evidence(model, data, criterion=name)
    found = prunus.rank(model, criterion=name, layers="all", evidence=known).scores
    assert tuple(found) == NAMES
    # In bfloat16 gradients are as coarse as that: within some percent of the largest
    tolerance = 1e-4 if dtype is torch.float32 or name in ("synflow", "lamp") else 0.1
    for wanted, scores in zip(REFERENCES[name](model, data), found.values(), strict=True):
        close = (scores.every(0, 1).double() - wanted.detach().flatten()).abs()
        assert float(close.max()) <= tolerance * float(wanted.abs().max())
    assert same(before, everything(model))


def test_samples_one_by_one_are_batches_of_one() -> None:
    model, data = network(), batches()
    single = [(x[None], y[None]) for images, labels in data for x, y in zip(images, labels, strict=True)]
    known = prunus.evidence(model, data, criterion="fisher", per_sample=True)
    scores = prunus.rank(model, criterion="fisher", layers="all", evidence=known).scores
    for wanted, found in zip(fisher(model, single), scores.values(), strict=True):
        torch.testing.assert_close(
            found.every(0, 1).double(), wanted.detach().flatten(), rtol=1e-3, atol=1e-9
        )


def test_grasp_keeps_what_gradient_flow_needs() -> None:
    """The sign: without the lowest, ‖g‖² is higher than without the highest."""
    model, data = network(), batches()
    known = prunus.evidence(model, data, criterion="grasp")
    flows = []
    for flip in (1, -1):
        twin = copy.deepcopy(model)
        scores = prunus.rank(model, criterion="grasp", layers="all", evidence=known).scores
        flat = torch.cat([flip * source.every(0, 1) for source in scores.values()])
        line = flat.sort().values[len(flat) // 20]
        with torch.no_grad():
            for name, source in scores.items():
                weight = twin.get_parameter(name)
                weight[(flip * source.every(0, 1) < line).view_as(weight)] = 0
        flows.append(float(sum(g.square().sum() for g in by_gradient(twin, data))))
    assert flows[0] > flows[1]


def test_snip_is_the_derivative_by_a_factor_of_the_whole_piece() -> None:
    model, data = network(), batches()
    known = prunus.evidence(model, data, criterion="snip")
    found = prunus.rank(model, criterion="snip", granularity="filter", evidence=known).scores["first.weight"]
    twin, weights = plain(model)
    factors = torch.ones(8, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    mean = torch.stack(
        [loss(twin, [weights[0] * factors, *weights[1:]], (x.double(), y)) for x, y in data]
    ).mean()
    [wanted] = torch.autograd.grad(mean, factors)
    torch.testing.assert_close(found.every(0, 1).double(), wanted.flatten().abs(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("granularity", ["filter", "channel", "4x1"])
def test_filters_near_the_geometric_median_go_first(granularity: str) -> None:
    model = network()
    found = prunus.rank(model, criterion="fpgm", granularity=granularity).scores["first.weight"]
    weight = model.first.weight.detach().double()
    rows = {
        "filter": list(weight),
        "channel": list(weight.transpose(0, 1)),
        "4x1": [weight[4 * i : 4 * i + 4, j] for i in range(2) for j in range(2)],
    }[granularity]
    wanted = torch.stack([torch.stack([(a - b).norm() for b in rows]).sum() for a in rows])
    torch.testing.assert_close(found.every(0, 1), wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"first.weight: fpgm compares pieces of several weights"):
        prunus.rank(model, criterion="fpgm")


def test_lamp_is_rising_with_magnitude_and_its_highest_is_one() -> None:
    model = network()
    with torch.no_grad():
        model.linear.weight.zero_()
        model.first.weight[0] = 0.25  # ties: by position
    scores = prunus.rank(model, criterion="lamp", layers="all").scores
    for name, source in scores.items():
        squares, found = model.get_parameter(name).detach().flatten().square(), source.every(0, 1)
        order = squares.argsort(stable=True)
        assert (found[order].diff() >= 0).all()
        assert float(found.max()) == (0 if name == "linear.weight" else 1)


def test_wanda_compares_within_an_output() -> None:
    layer, x = nn.Linear(6, 5), torch.randn(7, 6)
    known = prunus.evidence(layer, [(x, torch.zeros(7))], criterion="wanda")
    mask = prunus.make_masks(layer, 0.5, criterion="wanda", layers="all", evidence=known)["weight"]
    scores = layer.weight.detach().abs() * x.norm(dim=0)
    for row, kept in zip(scores, mask, strict=True):
        assert kept.tolist() == (row > row.sort().values[2]).tolist()
    whole = prunus.make_masks(layer, 0.5, criterion="wanda", scope="global", layers="all", evidence=known)
    assert (whole["weight"] != mask).any()


def synflow_masks(model: nn.Module, p_prune: float, cuts: int) -> Scores:
    """Algorithm 1 of the paper, by hand."""
    masks = {name: torch.ones_like(model.get_parameter(name)) for name in NAMES}
    total = sum(mask.numel() for mask in masks.values())
    for cut in range(1, cuts + 1):
        twin = copy.deepcopy(model)
        for name, mask in masks.items():
            twin.get_parameter(name).data.mul_(mask)
        flat = torch.cat([score.detach().flatten() for score in synflow(twin, [])])
        flat[torch.cat([mask.flatten() for mask in masks.values()]) == 0] = -1
        fallen = flat.argsort(stable=True)[: int((1 - (1 - p_prune) ** (cut / cuts)) * total + 1e-9)]
        kept = torch.ones(total)
        kept[fallen] = 0
        sizes = [mask.numel() for mask in masks.values()]
        masks = {n: k.view_as(masks[n]) for n, k in zip(masks, kept.split(sizes), strict=True)}
    return masks


def test_synaptic_flow_in_a_hundred_cuts_does_not_collapse() -> None:
    model = network()
    known = prunus.evidence(model, batches()[:1], criterion="synflow")
    masks = prunus.make_masks(model, 0.9, criterion="synflow", layers="all", evidence=known)
    wanted = synflow_masks(model, 0.9, 100)
    assert masks.pruned == int(0.9 * masks.total)
    differing = sum(int((masks[name] != wanted[name].bool()).sum()) for name in NAMES)
    assert differing <= 0.01 * masks.total
    assert all(mask.any() for mask in masks.values())
    with prunus.prune(model, 0.5, criterion="synflow", layers="all", evidence=known) as pruning:
        before = pruning.masks
        assert pruning.deepen(0.75) & before == pruning.masks
    [point] = prunus.sweep(
        model.eval(), batches(), p_prune=0.9, criterion="synflow", layers="all", evidence=known
    )
    assert point.layers == masks.counts
    gone = prunus.global_prune(
        copy.deepcopy(model), 0.9, criterion="synflow", layers="all", evidence=known, keep_original=False
    )
    assert prunus.Masks.from_zeros(gone) == masks


def test_evidence_is_what_the_criterion_asks_for_and_the_rest_is_named() -> None:
    model, data = network(), batches()
    usual = prunus.evidence(model, data)
    for name in ("gradient", "taylor", "snip", "wanda"):
        prunus.make_masks(model, 0.5, criterion=name, layers="all", evidence=usual)
    for name, kind in {
        "grasp": "hessian_gradients",
        "fisher": "squared_gradients",
        "synflow": "flow",
    }.items():
        with pytest.raises(ValueError, match=f"first.weight has no {kind}.*criterion="):
            prunus.make_masks(model, 0.5, criterion=name, layers="all", evidence=usual)
    with pytest.raises(TypeError, match="batches is an iterator"):
        prunus.evidence(model, iter(data), criterion="grasp")
    prunus.evidence(model, iter(data), criterion="fisher")


def test_scores_below_zero_are_scores() -> None:
    model, data = network(), batches()
    known = prunus.evidence(model, data, criterion="grasp")
    source = prunus.rank(model, criterion="grasp", layers="all", evidence=known).scores
    flat = torch.cat([scores.every(0, 1) for scores in source.values()])
    below = int((flat < 0).sum())
    masks = prunus.make_masks(model, below / len(flat), criterion="grasp", layers="all", evidence=known)
    assert math.isclose(masks.pruned, below, abs_tol=1)
    kept = torch.cat([mask.flatten() for mask in masks.values()])
    assert float(flat[~kept].max()) < 0
