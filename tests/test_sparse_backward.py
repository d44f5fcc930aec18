"""Rules that prune the passes of layers: each against a short reference, and in what networks are put in."""

from __future__ import annotations

import copy
import gc
import itertools
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import prunus
from prunus.application.places import About
from prunus.backward import rules
from prunus.backward.presets import PRESETS
from tests.conftest import everything, layer_name, layer_zoo, same

transformers = pytest.importorskip("transformers")
Conv1D = transformers.pytorch_utils.Conv1D


# Rules that look at each value alone, so that any layout and padding of them gives the same


def positive(values: Tensor, about: About) -> Tensor:
    return values > 0


def small(values: Tensor, about: About) -> Tensor:
    return values.abs() < 0.2


def negative(values: Tensor, about: About) -> Tensor:
    return values < 0.1


def large(values: Tensor, about: About) -> Tensor:
    return values.abs() > 0.5


RULES = {
    "forward": positive,
    "input_grad": small,
    "weight_grad": negative,
    "output_grad": large,
    "activation": positive,
}
GIVEN = [*[(place,) for place in RULES], ("forward", "activation"), tuple(RULES)]


def reference(layer: nn.Module, used: dict[str, Any], x: Tensor, g: Tensor, *more: Any) -> list[Tensor]:
    """y, dL/dx, dL/dW and dL/db, each by a dense layer on what was masked before."""
    own = {name: p.detach().clone().requires_grad_() for name, p in layer.named_parameters()}
    x = x.detach().clone().requires_grad_()

    def keep(place: str, values: Tensor) -> Tensor:
        return values * used[place](values, None) if place in used else values

    def run(x: Tensor, weight: Tensor) -> Tensor:
        return functional_call(layer, {**own, "weight": weight}, (x, *more))

    back, left = "input_grad" if "input_grad" in used else "forward", keep("output_grad", g)
    found = [run(x, keep("forward", own["weight"])).detach()]
    found += torch.autograd.grad(run(x, keep(back, own["weight"])), x, left)
    [to_weight] = torch.autograd.grad(run(keep("activation", x), own["weight"]), own["weight"], left)
    # The rule of a weight's gradient looks at the weight
    found.append(to_weight * (used["weight_grad"](own["weight"], None) if "weight_grad" in used else 1))
    if "bias" in own:
        found += torch.autograd.grad(run(x, own["weight"]), own["bias"], g)
    return found


def results(layer: nn.Module, x: Tensor, g: Tensor, *more: Any) -> list[Tensor]:
    x = x.detach().clone().requires_grad_()
    y = layer(x, *more)
    wanted = [p for p in (layer.weight, layer.bias) if p is not None]
    return [y.detach(), *torch.autograd.grad(y, [x, *wanted], g)]


def check(found: list[Tensor], wanted: list[Tensor], **tolerance: float) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, **(tolerance or {"atol": 1e-5, "rtol": 1e-4}))


LAYERS = [
    *layer_zoo(),
    Conv1D(5, 7),
    nn.Linear(5, 7, bias=False),
    nn.Conv2d(4, 6, 3, stride=2, dilation=2, padding=(1, 2)),
    nn.Conv2d(4, 8, 3, groups=4),
    nn.Conv2d(4, 6, 3, padding="same"),
    nn.Conv2d(4, 6, (2, 4), padding="same"),
    nn.Conv2d(4, 6, 3, padding="valid"),
    nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    nn.Conv1d(4, 6, 4, padding=2, padding_mode="reflect"),
    nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
]


def input_for(layer: nn.Module, *batch: int) -> Tensor:
    weight = layer.weight
    if weight.dim() == 2:
        return torch.randn(*batch, 7 if isinstance(layer, Conv1D) else 5)
    return torch.randn(*batch, layer.in_channels, *[6] * (weight.dim() - 2))


@pytest.mark.parametrize("places", GIVEN, ids="+".join)
@pytest.mark.parametrize("layer", LAYERS, ids=layer_name)
def test_each_place_sees_its_rule(layer: nn.Module, places: tuple[str, ...]) -> None:
    used = {place: RULES[place] for place in places}
    batches = [(2,), (1,), (0,), ()] + [(2, 3)] * (layer.weight.dim() == 2)
    for dtype, batch in [(torch.float32, batch) for batch in batches] + [(torch.float64, (3,))]:
        plain = copy.deepcopy(layer).to(dtype)
        if batch == (0,) and isinstance(plain, nn.Conv1d) and plain.padding_mode == "reflect":
            continue  # which torch does not pad
        x = input_for(plain, *batch).to(dtype)
        y = plain(x)
        g = torch.randn_like(y)
        wanted = reference(plain, used, x, g)
        before = copy.deepcopy(plain.state_dict())
        with prunus.sparse_backward(plain, prunus.Places(**used)) as sparse:
            check(results(plain, x, g), wanted)
            assert set(sparse.report().layers[0].density) == set(places)
        assert torch.equal(plain(x), y)
        assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())


def test_a_transposed_layer_takes_the_size_of_its_output() -> None:
    layer, x = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), torch.randn(2, 4, 5, 5)
    g = torch.randn(2, 6, 12, 12)
    wanted = reference(layer, RULES, x, g, [12, 12])
    with prunus.sparse_backward(layer, prunus.Places(**RULES)):
        check(results(layer, x, g, [12, 12]), wanted)
        torch.testing.assert_close(layer(output_size=[12, 12], input=x), wanted[0])


def test_gradients_are_those_of_finite_differences_where_all_places_agree() -> None:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.Tanh(), nn.ConvTranspose2d(4, 2, 2), nn.Flatten(), nn.Linear(18, 2)
    ).double()
    prunus.sparse_backward(net, prunus.Places(forward=positive, weight_grad=positive))
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(net, (x,))
    assert torch.autograd.gradgradcheck(net, (x,))
    weight = net[4].weight
    kept = (weight > 0).detach()

    def by_weight(values: Tensor) -> Tensor:
        return functional_call(net, {"4.weight": torch.where(kept, values, weight)}, (x.detach(),))

    assert torch.autograd.gradcheck(by_weight, (weight.detach().clone().requires_grad_(),))


class Fixed(torch.autograd.Function):
    """x Wᵀ, each place by a mask."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, masks: dict[str, Tensor]) -> Tensor:
        ctx.masks = masks
        ctx.save_for_backward(x, weight)
        return x @ (weight * masks["forward"]).T

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        left = g * ctx.masks["output_grad"]
        to_weight = left.T @ (x * ctx.masks["activation"]) * ctx.masks["weight_grad"]
        return left @ (weight * ctx.masks["input_grad"]), to_weight, None


def test_second_derivatives_are_those_of_the_masked_gradients() -> None:
    layer = nn.Linear(5, 4, bias=False).double()
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    shapes = dict.fromkeys(("forward", "input_grad", "weight_grad"), (4, 5))
    shapes |= {"output_grad": (3, 4), "activation": (3, 5)}
    masks = {place: torch.rand(shape) < 0.5 for place, shape in shapes.items()}
    prunus.sparse_backward(
        layer,
        prunus.Places(**{place: lambda values, about, mask=mask: mask for place, mask in masks.items()}),
    )
    found = []
    for y in (layer(x), Fixed.apply(x, layer.weight, masks)):
        first = torch.autograd.grad(y.sin().sum(), [x, layer.weight], create_graph=True)
        found.append(
            [*first, *torch.autograd.grad(sum(one.square().sum() for one in first), [x, layer.weight])]
        )
    check(*found, atol=1e-12, rtol=1e-12)


# Presets


def top(values: Tensor, count: int) -> Tensor:
    """True for so many of the largest absolute values."""
    mask = torch.zeros(values.numel(), dtype=torch.bool)
    mask[values.abs().flatten().topk(count).indices] = True
    return mask.view(values.shape)


def image_net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Flatten())


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


@pytest.mark.parametrize("shape", [(3, 8), (2, 3, 8), (8,)])
def test_meprop_keeps_the_largest_of_each_row_and_the_whole_gradient_of_the_bias(
    shape: tuple[int, ...],
) -> None:
    layer, x = nn.Linear(8, 20), torch.randn(shape)
    g = torch.randn(*shape[:-1], 20)
    mask = torch.stack([top(row, 3) for row in g.reshape(-1, 20)]).view(g.shape)
    wanted = reference(layer, {"output_grad": lambda values, about: mask}, x, g)
    sparse = prunus.sparse_backward(layer, "meprop", k=0.17)  # int(3.4) of each 20
    check(results(layer, x, g), wanted)
    assert sparse.report().layers[0].density == {"output_grad": pytest.approx(3 / 20)}


def test_meprop_keeps_the_largest_of_each_image() -> None:
    layer, x, g = nn.Conv2d(3, 6, 3), torch.randn(4, 3, 6, 6), torch.randn(4, 6, 4, 4)
    mask = torch.stack([top(image, 9) for image in g])
    wanted = reference(layer, {"output_grad": lambda values, about: mask}, x, g)
    prunus.sparse_backward(layer, "meprop", k=0.1)  # int(9.6) of each 96
    check(results(layer, x, g), wanted)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 8, 3),
        nn.Conv2d(4, 8, 3, groups=2),
        nn.ConvTranspose2d(4, 8, 3, groups=2),
        nn.Linear(5, 8),
    ],
    ids=layer_name,
)
def test_channels_are_those_with_the_largest_sums_of_each_group(layer: nn.Module) -> None:
    x = input_for(layer, 3)
    g = torch.randn_like(layer(x))
    sums = g.abs().movedim(1, 0).flatten(1).sum(1)
    groups = getattr(layer, "groups", 1)
    kept = torch.cat([top(part, int(0.5 * len(part))) for part in sums.view(groups, -1)])
    mask = kept.view(1, -1, *[1] * (g.dim() - 2))
    wanted = reference(layer, {"output_grad": lambda values, about: mask}, x, g)
    sparse = prunus.sparse_backward(layer, "channels", k=0.5)
    check(results(layer, x, g), wanted)
    assert sparse.report().layers[0].density == {"output_grad": pytest.approx(0.5)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dithering_is_right_in_the_mean_and_keeps_about_k(dtype: torch.dtype) -> None:
    g = torch.randn(1, 20_000) * torch.linspace(0.001, 2, 20_000)
    g[:, :10_000:2] = 0  # what is zero stays so
    g = g.to(dtype)
    rule, generator = rules.dithered(0.1), torch.Generator().manual_seed(0)
    about = About(-1, 1, lambda device: generator, lambda place: None)
    draws = [rule(g, about) for _ in range(200)]
    assert all(draw.dtype == dtype for draw in draws)
    mean = torch.stack([draw.double() for draw in draws]).mean(0)
    step = min(draw[draw != 0].abs().min().item() for draw in draws)
    # The mean of 200 draws that deviate by step / 2 each at most, summed over thousands of entries
    for part in (slice(0, 4000), slice(4000, 12_000), slice(12_000, 20_000)):
        sign = g[0, part].double().sign()
        error = ((mean[0, part] - g[0, part].double()) * sign).sum()
        assert abs(error) < 4 * step / 2 * (len(sign) / 200) ** 0.5 + 0.004 * g[0, part].double().abs().sum()
    assert not mean[g.double() == 0].any()
    share = torch.stack([draw != 0 for draw in draws]).double().mean()
    assert abs(share - 0.1) < 0.01


def test_dithering_does_not_lose_what_half_precision_cannot_add() -> None:
    g = torch.full((1, 200_000), 0.001, dtype=torch.bfloat16)
    g[:, :2000] = 1  # so that the step is about 1
    generator = torch.Generator().manual_seed(0)
    draw = rules.dithered(0.012)(g, About(-1, 1, lambda device: generator, lambda place: None))
    assert draw[:, 2000:].double().mean() == pytest.approx(0.001, rel=0.3)  # four standard deviations


def test_dithering_looks_at_more_than_one_output() -> None:
    layer, g = nn.Linear(4, 512), torch.randn(4096, 512)
    g[:, 0] = 0
    sparse = prunus.sparse_backward(layer, "dither", k=0.1)
    layer(torch.randn(4096, 4)).backward(g)
    assert sparse.report().layers[0].density["output_grad"] == pytest.approx(0.1, abs=0.01)


def test_swat() -> None:
    for layer, x in ((nn.Linear(8, 20), torch.randn(6, 8)), (nn.Conv2d(3, 6, 3), torch.randn(4, 3, 6, 6))):
        g = torch.randn_like(layer(x))
        weight = top(layer.weight, int(0.3 * layer.weight.numel()))
        kept = top(x, int(0.3 * x.numel()))
        wanted = reference(
            layer, {"forward": lambda *_, m=weight: m, "activation": lambda *_, m=kept: m}, x, g
        )
        sparse = prunus.sparse_backward(layer, "swat", k=0.3)
        check(results(layer, x, g), wanted)
        assert torch.equal(sparse.masks["weight"], weight)


def fallen_by(optimizer: torch.optim.Optimizer, net: nn.Module, times: int = 1) -> Tensor:
    """What a step adds to the first weight's gradient besides that of the loss, which is zero."""
    optimizer.zero_grad()
    for _ in range(times):
        (net(torch.randn(2, 8)) * 0).sum().backward()
    optimizer.step()
    return net[0].weight.grad


def test_topkast_has_nested_sets_and_decays_the_outer_one_more() -> None:
    net, x, g = mlp(), torch.randn(6, 8), torch.randn(6, 16)
    inner, outer = top(net[0].weight, 25), top(net[0].weight, 51)  # of 128
    wanted = reference(net[0], {"forward": lambda *_: inner, "weight_grad": lambda *_: outer}, x, g)
    before = net[0].weight.detach().clone()
    prunus.sparse_backward(net, "topkast", k=0.2, wider=0.2, decay=0.01)
    check(results(net[0], x, g), wanted)
    found = fallen_by(torch.optim.SGD(net.parameters(), 0.0), net)
    torch.testing.assert_close(found, 0.01 * before * (inner + (outer & ~inner) / 0.2))


def test_srste_keeps_n_of_m_inputs() -> None:
    for layer in (nn.Linear(8, 6), Conv1D(6, 8), nn.Conv2d(8, 6, 3), nn.ConvTranspose1d(8, 6, 3)):
        first = isinstance(layer, (Conv1D, nn.ConvTranspose1d))  # the inputs
        weight = layer.weight.detach().transpose(0, 1) if first else layer.weight.detach()
        mask = torch.zeros_like(weight, dtype=torch.bool)
        for output, *at in itertools.product(*map(range, (6, *weight.shape[2:]))):
            for begin in (0, 4):
                place = (output, slice(begin, begin + 4), *at)
                mask[place] = top(weight[place], 2)
        mask = mask.transpose(0, 1) if first else mask
        x = torch.randn(3, 8, *[5] * (weight.dim() - 2))
        g = torch.randn_like(layer(x))
        wanted = reference(layer, {"forward": lambda *_, mask=mask: mask}, x, g)
        prunus.sparse_backward(layer, "srste")
        check(results(layer, x, g), wanted)


def test_bimask_is_n_of_m_along_outputs_too_in_the_best_order_that_was_tried() -> None:
    layer = nn.Linear(8, 8)
    with prunus.sparse_backward(layer, "bimask", tries=500) as sparse:
        kept = {place: one.mask for place, one in sparse.layers[""].masks().items()}
    forward = kept["forward"]
    assert all(row.view(2, 4).sum(1).tolist() == [2, 2] for row in forward)
    possible = []
    for rows in itertools.combinations(range(8), 4):  # however the outputs fall into two groups
        found = torch.zeros(8, 8, dtype=torch.bool)
        for group in (list(rows), [row for row in range(8) if row not in rows]):
            for column in range(8):
                found[group, column] = top((layer.weight.detach() * forward)[group, column], 2)
        possible.append(found & forward)
    assert any(torch.equal(kept["input_grad"], found) for found in possible)
    assert kept["input_grad"].sum() == max(found.sum() for found in possible)
    assert (kept["input_grad"] <= forward).all()


def test_magnitude_is_backward_only_pruning() -> None:
    net, x = image_net(), torch.randn(2, 3, 8, 8, requires_grad=True)
    masks = prunus.make_masks(net, 0.75, scope="layer")
    other = prunus.apply_masks(copy.deepcopy(net), input_grad=masks)
    prunus.sparse_backward(net, "magnitude", k=0.25)
    found = []
    for one in (net, other):
        y = one(x)
        found.append([y, *torch.autograd.grad(y.square().sum(), [x, *one.parameters()])])
    check(*found)
    assert torch.equal(*(one[0] for one in found))


STATIC = {
    "global_prune": lambda net, optimizer: prunus.prune(net, 0.7, layers="Linear"),
    "Gradual": lambda net, optimizer: prunus.Gradual(net, 0.8, range(1, 5), layers="Linear"),
    "RigL": lambda net, optimizer: prunus.RigL(net, 0.8, range(1, 5), optimizer=optimizer, layers="Linear"),
}


@pytest.mark.parametrize("faster", [False, True])
@pytest.mark.parametrize("how", STATIC)
def test_static_gives_the_weights_that_pruning_gives_without_it(how: str, faster: bool) -> None:
    ends = []
    for ruled in (False, True):
        torch.manual_seed(0)
        net = mlp()
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        pruner = STATIC[how](net, optimizer)
        if ruled:
            sparse = prunus.sparse_backward(net, "static", faster=faster)
        for _ in range(5):
            optimizer.zero_grad()
            net(torch.randn(6, 8)).square().sum().backward()
            optimizer.step()
            if how != "global_prune":
                pruner.step()
        ends.append([p.detach().clone() for p in net.parameters()])
        assert prunus.masks_of(net).pruned > 0
    check(*ends)
    prunus.restore(net)
    assert not sparse.report().dense
    assert "forward" not in vars(net[0])


@pytest.mark.parametrize("k", [0.1, 0.5])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_keeps_exact_counts_of_weights(preset: str, k: float) -> None:
    net = mlp()
    settings = (
        {"k": k}
        if "k" in PRESETS[preset].__code__.co_varnames[: PRESETS[preset].__code__.co_argcount]
        else {}
    )
    sparse = prunus.sparse_backward(net, preset, **settings)
    for path, ruled in sparse.layers.items():
        total = net.get_parameter(f"{path}.weight").numel()
        counts = {place: int(one.mask.sum()) for place, one in ruled.masks().items()}
        wanted = {
            "swat": {"forward": int(k * total)},
            "topkast": {"forward": int(k * total), "weight_grad": int((k + 0.1) * total)},
            "srste": {"forward": total // 2},
            "bimask": {"forward": total // 2, "input_grad": counts.get("input_grad")},
            "magnitude": {"input_grad": int(k * total)},
            "static": dict.fromkeys(("forward", "input_grad", "weight_grad"), total),
        }
        assert counts == wanted.get(preset, {})


# Penalties


def decayed(net: nn.Sequential) -> Tensor:
    """The penalty of srste at strength 1 of the first weight, by hand."""
    rows = net[0].weight.detach().view(-1, 4)
    return torch.where(torch.stack([top(row, 2) for row in rows]), 0, rows).view(net[0].weight.shape)


def test_a_penalty_is_added_once_a_step_however_gradients_came() -> None:
    net = mlp()
    prunus.sparse_backward(net, "srste", decay=1.0)  # nobody keeps the handle
    gc.collect()
    wanted = decayed(net)
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    torch.testing.assert_close(fallen_by(optimizer, net), wanted)
    torch.testing.assert_close(fallen_by(optimizer, net, times=3), wanted)
    optimizer.step()  # no gradient has come since
    torch.testing.assert_close(net[0].weight.grad, wanted)
    other = copy.deepcopy(net)
    torch.testing.assert_close(fallen_by(torch.optim.Adam(other.parameters(), 0.0), other), wanted)
    again = pickle.loads(pickle.dumps(net))
    torch.testing.assert_close(fallen_by(torch.optim.SGD(again.parameters(), 0.0), again), wanted)
    optimizer.zero_grad()
    fallen_by(torch.optim.SGD(net[2].parameters(), 0.0), net)
    assert not net[0].weight.grad.any()  # which that optimizer does not move
    optimizer.zero_grad()
    prunus.restore(net)
    assert not fallen_by(optimizer, net).any()


@pytest.mark.parametrize("named", [False, True])
def test_a_penalty_is_added_to_the_gradient_of_a_closure(named: bool) -> None:
    net = mlp()
    prunus.sparse_backward(net, "srste", decay=1.0)
    optimizer, wanted = torch.optim.SGD(net.parameters(), 0.0), decayed(net)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (net(torch.randn(2, 8)) * 0).sum()
        loss.backward()
        return loss

    assert optimizer.step(**{"closure": closure}) == 0 if named else optimizer.step(closure) == 0
    torch.testing.assert_close(net[0].weight.grad, wanted)


@pytest.mark.parametrize("fused", [False, True])
def test_a_penalty_is_not_scaled_as_losses_are(fused: bool) -> None:
    net = mlp()
    prunus.sparse_backward(net, "srste", decay=1.0)
    optimizer = torch.optim.SGD(net.parameters(), 0.5, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    wanted = net[0].weight.detach() - 0.5 * decayed(net)
    for _ in range(2):
        scaler.scale((net(torch.randn(2, 8)) * 0).sum()).backward()
    scaler.step(optimizer)
    torch.testing.assert_close(net[0].weight.detach(), wanted)


def test_dense_steps_have_no_penalty() -> None:
    net = mlp()
    prunus.sparse_backward(net, "srste", decay=1.0, warmup=1, dense_every=2)
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    assert [bool(fallen_by(optimizer, net).any()) for _ in range(5)] == [False, True, False, True, False]


# When rules act


def test_steps_of_warmup_and_every_so_many_th_one_are_dense() -> None:
    layer, x = nn.Linear(8, 16), torch.randn(3, 8)
    plain = layer(x)
    prunus.sparse_backward(layer, "swat", k=0.1, warmup=2, dense_every=3)
    dense = []
    for _ in range(8):
        layer.eval()
        layer(x)  # which is no step
        layer.train()
        y = layer(x)
        y.sum().backward()
        dense.append(torch.equal(y, plain))
    assert dense == [True, True, False, False, True, False, False, True]
    layer.eval()
    assert not torch.equal(layer(x), plain)


def test_masks_hold_for_so_many_steps_while_gradients_are_looked_at_in_each() -> None:
    net = nn.Sequential(nn.Linear(8, 16))
    drawn = prunus.Places(forward=rules.largest(0.5, rules.random), output_grad=rules.largest_of_each(0.25))
    sparse = prunus.sparse_backward(net, drawn, every=3)
    masks = []
    for _ in range(9):
        net.zero_grad()
        x, g = torch.randn(4, 8), torch.randn(4, 16)
        net(x).backward(g)
        masks.append(sparse.layers["0"].kept["forward"].mask.clone())
        left = torch.stack([torch.where(top(row, 4), row, 0) for row in g])
        torch.testing.assert_close(net[0].weight.grad, left.T @ x)
        with torch.no_grad():
            net(x)
            net[0].weight += 1
    for begin in (0, 3, 6):
        assert all(torch.equal(mask, masks[begin]) for mask in masks[begin : begin + 3])
    assert not torch.equal(masks[0], masks[3])
    assert not torch.equal(masks[3], masks[6])


RANDOM = prunus.Places(
    forward=rules.largest(0.5, rules.random),
    output_grad=rules.dithered(0.3),
    activation=rules.largest(0.5, rules.random),
)


def trained(
    net: nn.Module, sparse: prunus.SparseBackward | None, steps: range, optimizer: Any
) -> list[Tensor]:
    for step in steps:
        optimizer.zero_grad()
        x = torch.randn(6, 8, generator=torch.Generator().manual_seed(step))
        net(x).square().sum().backward()
        optimizer.step()
    return [p.detach().clone() for p in net.parameters()]


def optimizer_of(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)


def test_a_seed_says_what_is_drawn() -> None:
    start, ends = mlp(), []
    for seed in (0, 0, 1):
        net = copy.deepcopy(start)
        torch.manual_seed(len(ends))
        before = torch.get_rng_state()
        ends.append(trained(net, prunus.sparse_backward(net, RANDOM, seed=seed), range(5), optimizer_of(net)))
        assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, ends[0], ends[1]))
    assert not any(map(torch.equal, ends[0], ends[2]))


@pytest.mark.parametrize(
    ("what", "plan"),
    [
        (RANDOM, {"every": 3, "warmup": 1}),
        (RANDOM, {"dense_every": 4}),
        ("topkast", {"every": 4, "decay": 0.1}),
        ("bimask", {"every": 2}),
    ],
)
def test_training_goes_on_from_a_state_to_the_bit(what: Any, plan: dict[str, Any], tmp_path: Path) -> None:
    start = mlp()
    whole = copy.deepcopy(start)
    prunus.sparse_backward(whole, what, **plan)
    wanted = trained(whole, None, range(10), optimizer_of(whole))
    first = copy.deepcopy(start)
    sparse, optimizer = prunus.sparse_backward(first, what, **plan), optimizer_of(first)
    trained(first, sparse, range(5), optimizer)
    assert set(first.state_dict()) == set(start.state_dict())
    torch.save((first.state_dict(), optimizer.state_dict(), sparse.state_dict()), tmp_path / "state")
    states = torch.load(tmp_path / "state", weights_only=True)
    second = mlp()
    sparse, optimizer = prunus.sparse_backward(second, what, **plan), optimizer_of(second)
    for one, state in zip((second, optimizer, sparse), states, strict=True):
        one.load_state_dict(state)
    assert all(map(torch.equal, trained(second, sparse, range(5, 10), optimizer), wanted))


def test_patterns_say_how_much_is_kept_and_where() -> None:
    net = nn.Sequential(mlp(), nn.ReLU(), nn.Linear(4, 10))
    sparse = prunus.sparse_backward(net, "swat", k={"0.0": 0.5, "0": 0.25}, exclude="2")
    assert {path: ruled.masks()["forward"].share for path, ruled in sparse.layers.items()} == {
        "0.0": 0.5,
        "0.2": 0.25,
    }
    assert set(prunus.sparse_backward(net, "swat", k={"2": 0.5}).layers) == {"2"}
    assert "forward" not in vars(net[0][0])


# What networks are put in


def test_masks_that_hold_follow_to_another_device() -> None:
    net = mlp()
    sparse = prunus.sparse_backward(net, "swat", every=9)
    net(torch.randn(2, 8))
    net.to("meta")
    assert sparse.layers["0"].masks()["forward"].mask.is_meta


def test_what_is_computed_in_place_afterwards() -> None:
    for x in (torch.randn(2, 3, 6, 6), torch.randn(3, 6, 6)):
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True)
        )
        apart = nn.Sequential(net[0], nn.ReLU(), net[2], nn.ReLU())
        for plan in ({}, {"warmup": 9}):
            prunus.sparse_backward(net, "meprop", **plan)
            check(gradients(net, x), gradients(apart, x), atol=0, rtol=0)


def test_autocast_runs_the_rules_in_its_dtype() -> None:
    for layer, x in ((nn.Linear(8, 32), torch.randn(16, 8)), (nn.Conv2d(3, 8, 3), torch.randn(4, 3, 6, 6))):
        sparse = prunus.sparse_backward(
            layer, prunus.Places(forward=positive, output_grad=rules.channels(0.5))
        )
        x = x.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        g = torch.randn_like(y)
        found = torch.autograd.grad(y, [x, layer.weight, layer.bias], g)
        assert y.dtype == torch.bfloat16
        assert all(one.dtype == torch.float32 for one in found)
        whole = results(layer, x, g.float())
        check([y.float().detach(), *found], whole, atol=0.05 * whole[2].abs().max().item(), rtol=0.05)
        assert sparse.report().layers[0].density["output_grad"] == pytest.approx(0.5)


def gradients(
    net: nn.Module, x: Tensor, run: Callable[..., Any] | None = None, times: int = 4
) -> list[Tensor]:
    """Of several steps, and the last output."""
    found = []
    for _ in range(times):
        given = x.detach().clone().requires_grad_()
        y = (run or net)(given)
        found += torch.autograd.grad(y.square().sum(), [given, *net.parameters()])
    return [*found, y.detach()]


WHAT = {**{name: (name, {"every": 2}) for name in PRESETS}, "random": (RANDOM, {"every": 2, "warmup": 1})}


@pytest.mark.parametrize("what", ["channels", "swat", "topkast", "random"])
def test_compiled_networks_are_pruned_as_others(what: str) -> None:
    net, x = mlp(), torch.randn(3, 8)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="aot_eager")
    plain = compiled(x)
    given, plan = WHAT[what]
    prunus.sparse_backward(net, given, **plan)
    wanted = gradients(net, x)
    sparse = prunus.sparse_backward(net, given, **plan)
    check(gradients(net, x, compiled), wanted, atol=0, rtol=0)
    assert sparse.layers["0"].steps == 4
    sparse.restore()
    assert torch.equal(compiled(x), plain)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("what", WHAT)
def test_checkpointed_networks_have_the_same_gradients(what: str, reentrant: bool) -> None:
    net, x = nn.Sequential(mlp(), nn.Linear(4, 8), mlp()), torch.randn(3, 8)
    given, plan = WHAT[what]

    def run(x: Tensor) -> Tensor:
        for part in net:
            x = checkpoint(part, x, use_reentrant=reentrant)
        return x

    def backward(
        run: Callable[[Tensor], Tensor],
    ) -> list[Tensor]:  # reentrant ones have no torch.autograd.grad
        found = []
        for _ in range(4):
            net.zero_grad()
            given = x.detach().clone().requires_grad_()
            run(given).square().sum().backward()
            found += [given.grad, *(p.grad for p in net.parameters())]
        return found

    prunus.sparse_backward(net, given, **plan)
    wanted = backward(net)
    prunus.sparse_backward(net, given, **plan)
    check(backward(run), wanted, atol=0, rtol=0)


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_a_layer_that_is_called_twice_makes_one_step(reentrant: bool | None) -> None:
    layer, x = nn.Linear(8, 8), torch.randn(3, 8, requires_grad=True)
    sparse = prunus.sparse_backward(layer, RANDOM, every=2)

    def call(x: Tensor) -> Tensor:
        return layer(x) if reentrant is None else checkpoint(layer, x, use_reentrant=reentrant)

    kept = []
    for step in range(1, 5):
        call(call(x).relu()).sum().backward()
        kept.append(sparse.layers[""].kept["forward"].mask.clone())
        assert sparse.layers[""].steps == step
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[1], kept[2])


def test_a_layer_that_is_called_twice_sums_what_its_calls_give() -> None:
    layer, xs = nn.Linear(5, 7), torch.randn(2, 3, 5)
    gs = torch.randn(2, 3, 7)
    first, second = (reference(layer, RULES, x, g) for x, g in zip(xs, gs, strict=True))
    prunus.sparse_backward(layer, prunus.Places(**RULES))
    torch.autograd.backward([layer(x) for x in xs], list(gs))
    check([layer.weight.grad, layer.bias.grad], [a + b for a, b in zip(first[2:], second[2:], strict=True)])


def test_timing_ends_between_steps_where_layers_are_checkpointed() -> None:
    layer, x = nn.Linear(64, 64), torch.randn(3, 64, requires_grad=True)
    sparse = prunus.sparse_backward(layer, "topkast", k=0.01, wider=0.01, faster=True)
    for _ in range(8):
        y = checkpoint(layer, x, use_reentrant=False)
        checkpoint(layer, y, use_reentrant=False).sum().backward()
    assert sparse.report().layers[0].way
    assert sparse.layers[""].steps == 8


def test_layers_that_share_a_weight_share_its_masks() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    net[1].weight = net[0].weight
    sparse = prunus.sparse_backward(net, "srste", decay=1.0)
    wanted = decayed(net)
    torch.testing.assert_close(fallen_by(torch.optim.SGD(net.parameters(), 0.0), net), wanted)
    assert list(sparse.masks) == ["0.weight"]
    sparse = prunus.sparse_backward(net, "magnitude", k=0.5, score=rules.random)
    one, other = (ruled.masks()["input_grad"].mask for ruled in sparse.layers.values())
    assert torch.equal(one, other)


@pytest.mark.parametrize("change", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
@pytest.mark.parametrize("what", WHAT)
def test_copies_are_pruned_alike_and_apart(what: str, change: Callable[[nn.Module], nn.Module]) -> None:
    net, x = mlp(), torch.randn(3, 8)
    given, plan = WHAT[what]
    sparse = prunus.sparse_backward(net, given, **plan)
    gradients(net, x, times=1)
    other = change(net)
    wanted = gradients(net, x)
    check(gradients(other, x), wanted, atol=0, rtol=0)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert not other(x).any()
    assert torch.equal(net(x).detach(), wanted[-1]) or what in (
        "srste",
        "bimask",
        "swat",
        "topkast",
        "random",
    )
    prunus.restore(other)
    assert "forward" not in vars(other[0])
    assert not other[0]._forward_pre_hooks
    assert sparse.layers["0"].is_attached


@pytest.mark.parametrize("what", WHAT)
def test_functional_calls_and_their_gradients(what: str) -> None:
    net, x = mlp(), torch.randn(3, 8)
    given, plan = WHAT[what]
    parameters = {name: p.detach().clone() for name, p in net.named_parameters()}
    others = {name: 2 * p for name, p in parameters.items()}
    twice = copy.deepcopy(net)
    twice.load_state_dict(others)
    prunus.sparse_backward(twice, given, **plan)
    prunus.sparse_backward(net, given, **plan)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(net, parameters, (x,)).square().sum()

    for _ in range(3):
        found = grad(loss)(others)
        wanted = torch.autograd.grad(twice(x).square().sum(), list(twice.parameters()))
        check(list(found.values()), list(wanted))
    copy.deepcopy(net).load_state_dict(net.state_dict())
    assert all(torch.equal(parameters[name], p) for name, p in net.named_parameters())
    pickle.dumps(net)


def test_what_vmap_stacks_is_refused() -> None:
    net, x = mlp(), torch.randn(3, 8)
    own = {name: p.detach() for name, p in net.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(net, parameters, (x,)).square().sum()

    prunus.sparse_backward(net, "magnitude", k=0.2)
    each = vmap(grad(loss), (None, 0))(own, x)  # samples, each of which sees the same masks
    for index, one in enumerate(x):
        check([found[index] for found in each.values()], list(grad(loss)(own, one).values()))
    stack = {name: torch.stack([p, 2 * p]) for name, p in own.items()}
    with pytest.raises(RuntimeError, match=r"^vmap runs a stack of several networks' parameters"):
        vmap(grad(loss), (0, None))(stack, x)
    prunus.sparse_backward(net, "meprop")
    with pytest.raises(RuntimeError, match=r"^the rule of output_grad cannot look at what vmap has stacked"):
        vmap(grad(loss), (None, 0))(own, x)


def test_dithering_has_first_derivatives_alone() -> None:
    net, x = mlp(), torch.randn(3, 8, requires_grad=True)
    prunus.sparse_backward(net, "dither", k=0.5)
    [found] = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="has no second derivative"):
        found.sum().backward()


def test_an_encoder_of_torch_does_not_go_past_the_rules() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(2, 3, 8)
    with pytest.warns(
        UserWarning, match=r"^passes stay dense of self_attn.out_proj.weight, which nn.Multihead"
    ):
        sparse = prunus.sparse_backward(layer, "swat", k=0.2)
    wanted = layer(x).detach()
    zeroed = copy.deepcopy(layer)
    prunus.apply_masks(prunus.restore(zeroed), sparse.masks)
    torch.testing.assert_close(zeroed(x), wanted)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), wanted)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), wanted)
    assert "out_proj.weight: dense, which nn.MultiheadAttention uses" in repr(sparse.report())


@pytest.mark.parametrize("what", WHAT)
def test_inference_leaves_nothing_that_training_stumbles_over(what: str) -> None:
    net, x = mlp(), torch.randn(3, 8)
    given, plan = WHAT[what]
    prunus.sparse_backward(net, given, **plan)
    wanted = gradients(net, x)
    prunus.sparse_backward(net, given, **plan)
    with torch.inference_mode():
        net(x)
    check(gradients(net, x), wanted, atol=0, rtol=0)


@pytest.mark.parametrize("what", WHAT)
def test_what_is_frozen_gets_no_gradient(what: str) -> None:
    given, plan = WHAT[what]
    for make, x in ((mlp, torch.randn(3, 8)), (image_net, torch.randn(2, 3, 8, 8))):
        if make is image_net and what in ("srste", "bimask"):
            continue  # three inputs
        whole = make()
        net = copy.deepcopy(whole)
        prunus.sparse_backward(whole, given, **plan)
        whole(x).square().sum().backward()
        net[0].weight.requires_grad_(False)
        net[2].bias.requires_grad_(False)
        prunus.sparse_backward(net, given, **plan)
        net(x).square().sum().backward()
        assert net[0].weight.grad is None
        assert net[2].bias.grad is None
        check([net[0].bias.grad, net[2].weight.grad], [whole[0].bias.grad, whole[2].weight.grad])
        net.requires_grad_(False)
        x.requires_grad_()
        net(x).sum().backward()
        assert x.grad is not None


TRACED = {
    "export": lambda net, x: torch.export.export(net, (x,)).module()(x),
    "jit": lambda net, x: torch.jit.trace(net, x)(x),
}


@pytest.mark.parametrize("how", TRACED)
def test_traced_forwards_are_pruned(how: str) -> None:
    net, x = image_net().eval(), torch.randn(2, 3, 8, 8)
    prunus.sparse_backward(net, "swat", k=0.2, every=3)
    wanted = gradients(net, x)[-1]
    torch.testing.assert_close(TRACED[how](net, x), wanted)
    torch.testing.assert_close(gradients(net, x)[-1], wanted)
    pickle.dumps(net)


# Refusals, and the end


BAD = [
    ("nope", {}, ValueError, "rules must be one of meprop, channels, dither, .*; got 'nope'"),
    ("meprop", {"kk": 1}, TypeError, r"sparse_backward\(\) has no keyword 'kk': did you mean 'k'"),
    ("static", {"k": 0.1}, TypeError, r"sparse_backward\(\) has no keyword 'k'"),
    ("meprop", {"k": 0}, ValueError, r"k must be in \(0, 1\], got 0"),
    ("dither", {"k": float("nan")}, ValueError, "k must be in .*, got nan"),
    ("swat", {"k": "a"}, TypeError, "k must be a number in .*, got 'a'"),
    ("swat", {"k": {"9": 0.1}}, ValueError, "'9' matches no weight; names are like 0.weight"),
    ("swat", {"k": [0.1]}, TypeError, r"k must be a number in .*, got \[0.1\]"),
    ("swat", {"include": "0.bias"}, ValueError, "nothing to prune: 0.bias, which is no weight of a Linear"),
    ("swat", {"k": {}}, ValueError, "k is empty: expected a value by each name pattern"),
    ("swat", {"score": 3}, ValueError, "score must be one of magnitude, random; got 3"),
    ("srste", {"n": 4}, ValueError, "n must be less than m=4, got 4"),
    ("srste", {"m": 3}, ValueError, "0.weight: its 8 inputs are no multiple of 3: exclude it"),
    ("bimask", {"n": 4, "m": 8}, ValueError, "2.weight: its 4 outputs are no multiple of 8: exclude it"),
    ("srste", {"decay": -1.0}, ValueError, "decay must be in .*, got -1.0"),
    ("topkast", {"wider": 2}, ValueError, "wider must be in .*, got 2"),
    ("bimask", {"tries": 0}, ValueError, "tries must be a whole number from 1, got 0"),
    ("swat", {"every": 0}, ValueError, "every must be a whole number from 1, got 0"),
    ("swat", {"warmup": -1}, ValueError, "warmup must be a whole number from 0, got -1"),
    ("swat", {"dense_every": 0.5}, ValueError, "dense_every must be a whole number from 0, got 0.5"),
    ("swat", {"seed": None}, ValueError, "seed must be a whole number from 0, below .* got None"),
    ("swat", {"include": "zz"}, ValueError, "include='zz' matches nothing"),
    (
        prunus.Places(forward=lambda values, about: values),
        {},
        ValueError,
        "0.weight: the rule of forward gave torch.float32 of shape .16, 8.: expected booleans of shape",
    ),
    (
        prunus.Places(weight_grad=lambda values, about: values[:1] > 0),
        {},
        ValueError,
        "0.weight: the rule of weight_grad gave torch.bool of shape .1, 8.: expected booleans of shape .16, ",
    ),
]


@pytest.mark.parametrize(("what", "settings", "kind", "words"), BAD)
def test_what_cannot_be_meant_is_refused_and_changes_nothing(
    what: Any, settings: dict[str, Any], kind: type[Exception], words: str
) -> None:
    net = mlp()
    sparse = prunus.sparse_backward(net, "swat", k=0.3)
    before, attached = everything(net), dict(vars(net[0]))
    with pytest.raises(kind, match=f"^{words}"):
        prunus.sparse_backward(net, what, **settings)
    assert same(before, everything(net))
    assert vars(net[0]) == attached
    assert all(ruled.is_attached for ruled in sparse.layers.values())


def test_rules_of_gradients_must_give_what_fits_them() -> None:
    layer = nn.Linear(8, 4)
    for rule in (
        lambda values, about: values[:1],
        lambda values, about: torch.ones(2, *values.shape, dtype=torch.bool),
        lambda values, about: torch.ones(4, dtype=torch.bool),
        lambda values, about: values.long(),
    ):
        for place, y in itertools.product(("output_grad", "activation"), (0, 1)):
            prunus.sparse_backward(layer, prunus.Places(**{place: rule}))
            with pytest.raises(
                ValueError, match=f"^the rule of {place} gave torch.* of shape .*: expected booleans"
            ):
                layer(torch.randn(3, 8)).sum().backward()
            assert y or layer.weight.grad is None


def test_a_rule_may_keep_no_channel_at_all() -> None:
    layer, x = nn.Conv2d(4, 6, 1), torch.randn(2, 4, 3, 3, requires_grad=True)
    prunus.sparse_backward(
        layer, prunus.Places(output_grad=lambda v, _: torch.zeros(1, 6, 1, 1, dtype=torch.bool))
    )
    layer(x).sum().backward()
    assert not layer.weight.grad.any()
    assert not x.grad.any()
    assert layer.bias.grad.all()


def test_rules_and_masks_of_one_pass_exclude_each_other() -> None:
    net = mlp()
    masks = prunus.make_masks(net, 0.5, layers="Linear")
    prunus.apply_masks(net, masks, "backward")
    with pytest.raises(ValueError, match=r"^0.weight is under masks of one pass"):
        prunus.sparse_backward(net, "swat")
    assert prunus.masks_of(net) == masks
    prunus.restore(net)
    sparse = prunus.sparse_backward(net, "swat")
    for passes in ("backward", "forward"):
        with pytest.raises(ValueError, match=r"^0.weight: sparse_backward prunes the passes of its layer"):
            prunus.apply_masks(net, masks, passes)
    assert sparse.layers["0"].is_attached
    assert not prunus.masks_of(net)
    prunus.apply_masks(net, masks)
    x = torch.randn(3, 8)
    kept = {name: sparse.masks[name] & masks[name] for name in masks}
    plain = prunus.apply_masks(prunus.restore(copy.deepcopy(net)), prunus.Masks(kept))
    torch.testing.assert_close(net(x), plain(x))


def test_restoring() -> None:
    net, x = mlp(), torch.randn(3, 8)
    plain, before = net(x), everything(net)
    with prunus.sparse_backward(net, "swat", k=0.1) as outer:
        assert not torch.equal(net(x), plain)
        with prunus.sparse_backward(net, "topkast", k=0.5) as inner:
            assert repr(outer) == "SparseBackward(2 layers, forward, activation, ended)"
            assert repr(inner) == "SparseBackward(2 layers, forward, weight_grad)"
            outer.restore()  # has nothing to say here
            assert inner.layers["0"].is_attached
        assert torch.equal(net(x), plain)
    assert torch.equal(net(x), plain)
    with pytest.raises(ZeroDivisionError), prunus.sparse_backward(net, "swat", k=0.1):
        raise ZeroDivisionError
    assert torch.equal(net(x), plain)
    prunus.global_prune(net, 0.5, layers="Linear")
    prunus.sparse_backward(net, "swat", k=0.1)
    prunus.restore(net)
    assert torch.equal(prunus.restore(net)(x), plain)
    assert same(before, everything(net))
    assert not net[0]._forward_pre_hooks
    assert "forward" not in vars(net[0])


def test_a_cut_network_is_restored_where_only_rules_are_on_it() -> None:
    net, x = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval(), torch.randn(2, 4, 5, 5)
    prunus.prune(net, 0.5, granularity="filter", scope="layer")
    small = prunus.compact(net, x).model
    wanted = small(x)
    prunus.sparse_backward(small, "swat")
    assert torch.equal(prunus.restore(small)(x), wanted)


def test_what_copies_or_cuts_a_ruled_network_refuses_it(tmp_path: Path) -> None:
    net, x = image_net().eval(), torch.randn(2, 3, 8, 8)
    sparse = prunus.sparse_backward(net, "swat", k=0.2)
    wanted = net(x)
    for call in (
        lambda: prunus.Diversified(net, 0.5),
        lambda: prunus.MUP(net, 0.5),
        lambda: prunus.compact(net, x),
        lambda: prunus.accelerate(net, x),
        lambda: prunus.export(net, tmp_path / "net.pt2", x),
    ):
        with pytest.raises(
            ValueError, match=r"^sparse_backward prunes the passes of 0: prunus.restore\(model\)"
        ):
            call()
    assert not list(tmp_path.iterdir())
    assert torch.equal(net(x), wanted)
    masks = sparse.masks
    zeroed = prunus.apply_masks(prunus.restore(net), masks)
    torch.testing.assert_close(zeroed(x), wanted)


def test_evaluating_sees_what_the_forward_keeps() -> None:
    net, data = mlp(), [(torch.randn(50, 8), torch.randint(4, (50,))) for _ in range(2)]
    prunus.sparse_backward(net, "swat", k=0.1)
    right = sum(int((net(x).argmax(1) == y).sum()) for x, y in data)
    assert prunus.evaluate(net, data).top1 == pytest.approx(right)
    assert right != sum(int((prunus.restore(net)(x).argmax(1) == y).sum()) for x, y in data)


def test_a_state_of_something_else_is_refused_and_changes_nothing() -> None:
    net, x = mlp(), torch.randn(3, 8)
    sparse = prunus.sparse_backward(net, "swat", every=5)
    gradients(net, x)
    before = sparse.state_dict()
    wider = nn.Sequential(nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 4))
    for other in (
        prunus.sparse_backward(wider, "swat"),
        prunus.sparse_backward(mlp(), "magnitude"),
        prunus.sparse_backward(mlp(), "swat", exclude="2"),
    ):
        gradients(other.model, x)
        with pytest.raises(ValueError, match=r"^the state is of another network, or of other layers"):
            sparse.load_state_dict(other.state_dict())
    after = sparse.state_dict()
    assert all(before[path]["steps"] == after[path]["steps"] == 4 for path in before)
    assert all(
        torch.equal(before[path]["kept"]["forward"], after[path]["kept"]["forward"]) for path in before
    )


# Time, and what is reported


@pytest.mark.parametrize("way", ["dense", "pruned", "sparse"])
@pytest.mark.parametrize("what", ["topkast", "static", "meprop", "magnitude"])
@pytest.mark.parametrize("make", [nn.Linear, Conv1D])
def test_whatever_is_faster_gives_dense_or_pruned_results(make: Any, what: str, way: str) -> None:
    layer, x = make(40, 40), torch.randn(2, 8, 40)
    masks = prunus.make_masks(layer, 0.8, layers=(nn.Linear, Conv1D))
    prunus.apply_masks(layer, masks)
    g = torch.randn(2, 8, 40)
    dense = results(layer, x, g)
    settings = {} if what == "static" else {"k": 0.05}
    prunus.sparse_backward(layer, what, **settings)
    pruned = results(layer, x, g)
    sparse = prunus.sparse_backward(layer, what, **settings, faster=True)
    found = [results(layer, x, g) for _ in range(8)]
    for one in found[:6]:
        check(one, dense)
    settled = sparse.report().layers[0].way
    assert settled in ("dense", "pruned", "sparse")
    check(found[-1], dense if settled == "dense" else pruned)
    if way == "sparse" and what == "meprop":
        return  # no rule of weights, no sparse matrix
    sparse.layers[""].trial.way = way  # as if that had been faster
    check(results(layer, x, g), dense if way == "dense" else pruned, atol=1e-5, rtol=1e-5)
    x = x.requires_grad_()
    [first] = torch.autograd.grad(layer(x).sin().sum(), x, create_graph=True)
    first.sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        layer(x.detach()).sum().backward()
    assert f" {way}\n" in repr(sparse.report())
    assert set(sparse.report().layers[0].milliseconds) >= {"dense", "pruned"}


def test_a_way_that_fails_is_not_chosen() -> None:
    layer = nn.Linear(32, 32).bfloat16()  # of which torch has no sparse products on the CPU
    sparse = prunus.sparse_backward(layer, "topkast", k=0.05, faster=True)
    for _ in range(8):
        layer(torch.randn(4, 32, dtype=torch.bfloat16)).sum().backward()
    found = sparse.report().layers[0]
    assert found.way in ("dense", "pruned")
    assert found.milliseconds["sparse"] == float("inf")


def test_one_may_evaluate_while_others_train() -> None:
    layer = nn.Linear(8, 8)
    sparse = prunus.sparse_backward(layer, "swat", faster=True)
    for _ in range(6):
        layer(torch.randn(2, 8)).sum().backward()
    with torch.no_grad():
        layer(torch.randn(2, 8))
    assert sparse.report().layers[0].way == ""  # decided by all processes, where a gradient is wanted
    layer(torch.randn(2, 8))
    assert sparse.report().layers[0].way


def test_the_report_counts_as_one_counts_by_hand() -> None:
    net, x, g = nn.Sequential(nn.Linear(8, 20)), torch.randn(5, 8), torch.randn(5, 20)
    sparse = prunus.sparse_backward(net, "swat", k=0.25)
    for _ in range(2):
        net(x).backward(g)
    [one] = sparse.report().layers
    assert one.density == {"activation": pytest.approx(0.25), "forward": pytest.approx(0.25)}
    macs = 2 * 5 * 8 * 20
    assert one.macs == {"forward": macs, "weight_grad": macs}  # nobody wants that of x
    assert one.left == {"forward": pytest.approx(macs / 4), "weight_grad": pytest.approx(macs / 4)}
    assert sparse.report().saved == pytest.approx(0.75)
    net.zero_grad()
    sparse = prunus.sparse_backward(net, "topkast", k=0.25, wider=0.25)
    net(x.requires_grad_()).backward(g)
    [one] = sparse.report().layers
    macs //= 2
    assert one.density == {"forward": pytest.approx(0.25), "weight_grad": pytest.approx(0.5)}
    assert one.left == {
        "forward": pytest.approx(macs / 4),
        "input_grad": pytest.approx(macs / 4),
        "weight_grad": pytest.approx(macs / 2),
    }
    sparse = prunus.sparse_backward(net, "meprop", k=0.5, warmup=1)
    x = x.detach().relu()
    for _ in range(2):
        net(x.requires_grad_()).backward(F.relu(g))
    [one] = sparse.report().layers
    each = [min(10, int((row > 0).sum())) for row in g]
    assert one.density == {"output_grad": pytest.approx(sum(each) / 100)}
    assert one.macs == dict.fromkeys(("forward", "input_grad", "weight_grad"), 2 * macs)
    assert one.left["input_grad"] == pytest.approx(macs + macs * sum(each) / 100)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(5, 7),
        Conv1D(5, 7),
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Conv3d(2, 4, (1, 2, 3)),
        nn.Conv2d(4, 6, (2, 4), padding="same"),
        nn.ConvTranspose2d(4, 6, 3, stride=2),
    ],
    ids=layer_name,
)
@pytest.mark.parametrize("warmup", [0, 1])
def test_dense_multiplications_are_those_that_torch_counts(layer: nn.Module, warmup: int) -> None:
    x = input_for(layer, 3).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    sparse = prunus.sparse_backward(layer, "swat", warmup=warmup)
    layer(x).sum().backward()
    assert 2 * sum(sparse.report().layers[0].macs.values()) == counter.get_total_flops()


DISTRIBUTED = """
import os
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import prunus
from prunus.backward import rules

dist.init_process_group("gloo")
rank = dist.get_rank()
RANDOM = prunus.Places(forward=rules.largest(0.5, rules.random), output_grad=rules.dithered(0.5))
for what, plan in [
    ("meprop", {}), ("channels", {}), ("swat", {"every": 2}), ("srste", {"decay": 0.1}), ("bimask", {}),
    ("topkast", {"faster": True}), (RANDOM, {"every": 2, "faster": True}),
]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    lonely = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    lonely.load_state_dict(model.state_dict())
    sparse = prunus.sparse_backward(model, what, **plan)
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    torch.manual_seed(rank)
    for step in range(9):
        optimizer.zero_grad()
        parallel(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
        if rank == 0:  # alone
            with torch.no_grad():
                model(torch.randn(4, 8))
        flat = torch.cat([p.detach().flatten() for p in model.parameters()])
        flat = torch.cat([flat, *(mask.flatten().float() for mask in sparse.masks.values())])
        everyone = [torch.empty_like(flat) for _ in range(2)]
        dist.all_gather(everyone, flat)
        assert torch.equal(everyone[0], everyone[1]), (what, step)
    ways = [None, None]
    dist.all_gather_object(ways, [layer.way for layer in sparse.report().layers])
    assert ways[0] == ways[1] and all(ways[0]), ways
print("done", rank, flush=True)
dist.barrier()
os._exit(0)
"""


def test_processes_prune_alike(tmp_path: Path) -> None:
    (tmp_path / "ranks.py").write_text(DISTRIBUTED)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "ranks.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(prunus.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("done") == 2


def test_channels_are_held_for_every_so_many_steps_and_over_a_resumed_training() -> None:
    def trained(sparse: prunus.SparseBackward, steps: range) -> list[Tensor]:
        found = []
        for step in steps:
            sparse.model.zero_grad()
            sparse.model(
                torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
            ).square().sum().backward()
            found.append(sparse.model.weight.grad.clone())
        return found

    net = nn.Linear(6, 8)
    whole = trained(prunus.sparse_backward(copy.deepcopy(net), "channels", k=0.25, every=3), range(6))
    rows = [tuple(gradient.abs().sum(1).nonzero().flatten().tolist()) for gradient in whole]
    assert rows[0] == rows[1] == rows[2]
    assert rows[3] == rows[4] == rows[5]
    each = trained(prunus.sparse_backward(copy.deepcopy(net), "channels", k=0.25), range(6))
    assert torch.equal(each[0], whole[0])
    assert torch.equal(each[3], whole[3])
    assert not all(map(torch.equal, each, whole))
    first = prunus.sparse_backward(copy.deepcopy(net), "channels", k=0.25, every=3)
    before = trained(first, range(2))
    second = prunus.sparse_backward(copy.deepcopy(net), "channels", k=0.25, every=3)
    second.load_state_dict(first.state_dict())
    assert all(map(torch.equal, [*before, *trained(second, range(2, 6))], whole))


def test_what_reads_the_masks_changes_no_training() -> None:
    def trained(read: bool) -> Tensor:
        torch.manual_seed(0)
        net, x = nn.Linear(8, 8), torch.randn(4, 8)
        optimizer = torch.optim.SGD(net.parameters(), 0.5)
        sparse = prunus.sparse_backward(net, "srste", decay=0.5, score="random", every=2)
        for _ in range(5):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            if read:
                assert sparse.masks
            optimizer.step()
        return net.weight.detach()

    assert torch.equal(trained(read=True), trained(read=False))


def test_layers_that_timing_leaves_dense_have_no_masks() -> None:
    net, x = nn.Linear(8, 8), torch.randn(4, 8)
    sparse = prunus.sparse_backward(net, "srste", faster=True)
    assert not sparse.masks
    for _ in range(7):
        net(x).sum().backward()
    assert sparse.report().layers[0].way in ("dense", "pruned", "sparse")
    assert bool(sparse.masks) == (sparse.report().layers[0].way != "dense")
    assert bool(sparse.masks) != torch.equal(net(x), nn.functional.linear(x, net.weight, net.bias))


def test_a_state_of_other_rules_is_refused() -> None:
    net, x = nn.Linear(8, 8), torch.randn(4, 8)
    first = prunus.sparse_backward(net, "channels", every=10)
    net(x).sum().backward()
    state = first.state_dict()
    second = prunus.sparse_backward(net, "srste", every=10)
    with pytest.raises(ValueError, match="of other layers"):
        second.load_state_dict(state)


@pytest.mark.parametrize("every", [1, 10])
def test_what_regrows_sees_whole_gradients(every: int) -> None:
    def grown(static: bool) -> Tensor:
        torch.manual_seed(0)
        net, x = nn.Linear(10, 20), torch.randn(8, 10)
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        generator = torch.Generator().manual_seed(0)
        pruner = prunus.RigL(net, 0.8, range(2, 8, 2), optimizer=optimizer, layers="Linear", seed=generator)
        if static:
            prunus.sparse_backward(net, "static", every=every)
        for _ in range(9):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
            pruner.step()
        return pruner.masks["weight"]

    assert torch.equal(grown(static=True), grown(static=False))


def test_shallow_copies_are_refused_by_name() -> None:
    net = nn.Linear(8, 8)
    prunus.sparse_backward(net, "meprop")
    with pytest.raises(RuntimeError, match=r"a shallow copy of a Linear .* copy\.deepcopy"):
        copy.copy(net)(torch.randn(2, 8))


def test_channels_are_held_where_no_smaller_product_is_made() -> None:
    net = nn.ConvTranspose2d(8, 16, 3, groups=2)
    prunus.sparse_backward(net, "channels", every=3)
    chosen = []
    for _ in range(3):
        net.zero_grad()
        net(torch.randn(2, 8, 4, 4)).square().sum().backward()
        chosen.append(net.weight.grad.unflatten(0, (2, -1)).abs().sum((1, 3, 4)) != 0)
    assert torch.equal(chosen[0], chosen[1])
    assert torch.equal(chosen[0], chosen[2])


def test_two_way_masks_by_chance_keep_as_many_as_those_by_magnitude() -> None:
    net = nn.Linear(64, 64)
    shares = [
        prunus.sparse_backward(net, "bimask", score=score).layers[""].masks()["input_grad"].share
        for score in ("magnitude", "random")
    ]
    assert abs(shares[0] - shares[1]) < 0.03
