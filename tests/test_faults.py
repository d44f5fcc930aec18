"""Faults of the original research script, and of scripts like it, that must not happen here."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.selection.draw import bernoulli
from tests.conftest import small_net


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(model: nn.Module, before: dict[str, Tensor]) -> None:
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_activation_of_the_weights_own_shape_is_not_masked() -> None:
    layer = nn.Conv2d(3, 8, 3, bias=False)
    x = torch.randn(8, 3, 3, 3, requires_grad=True)  # the shape of the weight
    [plain] = torch.autograd.grad(layer(x).sum(), layer.weight)  # is made of the saved activation
    prunus.gradient_prune(layer, 0.5)
    [grad] = torch.autograd.grad(layer(x).sum(), layer.weight)
    assert torch.equal(grad, plain)


@pytest.mark.parametrize("passes", ["both", "backward", "forward"])
def test_biased_convolutions(passes: str) -> None:
    layer = nn.Conv2d(3, 8, 3, bias=True)
    bias = layer.bias.detach().clone()
    with prunus.prune(layer, 0.5, passes=passes):
        layer(torch.randn(1, 3, 5, 5, requires_grad=True)).sum().backward()
        assert torch.equal(layer.bias, bias)
    assert layer.bias.grad is not None


@pytest.mark.parametrize("granularity", ["weight", "kernel", "filter", "channel"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_both_ends_of_p_prune(granularity: str, scope: str) -> None:
    model = small_net()
    before = weights_of(model)
    assert prunus.make_masks(model, 0, granularity=granularity, scope=scope).pruned == 0
    prunus.global_prune(model, 0, granularity=granularity, scope=scope)
    assert_same(model, before)
    masks = prunus.prune(model, 1, granularity=granularity, scope=scope).masks
    assert masks.sparsity == 1
    assert not model[0].weight.any()
    prunus.restore(model)
    assert_same(model, before)


def test_zero_prunes_nothing_even_where_weights_are_zero() -> None:
    layer = nn.Conv2d(3, 8, 3)
    nn.init.zeros_(layer.weight)
    assert prunus.make_masks(layer, 0.0).pruned == 0
    assert prunus.make_masks(layer, 0.5, p_bern=0.0).pruned == 0


def test_pruning_twice_keeps_the_originals() -> None:
    model = small_net()
    before = weights_of(model)
    at_once = prunus.make_masks(model, 0.2)
    for passes in ("both", "forward", "backward", "both"):
        prunus.prune(model, 0.7, passes=passes)
    prunus.global_prune(model, 0.2)
    for name, mask in at_once.items():
        assert torch.equal(model.get_parameter(name), before[name] * mask)
    prunus.restore(model)
    prunus.restore(model)
    assert_same(model, before)


@pytest.mark.parametrize("passes", ["both", "backward", "forward"])
def test_deepcopy_and_pickle(passes: str) -> None:
    model = small_net()
    before = weights_of(model)
    prunus.prune(model, 0.5, passes=passes)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin[0].weight, model[0].weight)
        prunus.restore(twin)
        assert_same(twin, before)


def test_a_copy_does_not_change_when_the_original_is_restored() -> None:
    model = small_net()
    prunus.global_prune(model, 0.5)
    twin, pruned = copy.deepcopy(model), weights_of(model)
    prunus.restore(model)
    assert_same(twin, pruned)
    twin(torch.randn(1, 3, 8, 8))
    assert_same(twin, {**pruned, **{name: twin.state_dict()[name] for name in pruned if "1." in name}})


@pytest.mark.parametrize("passes", ["both", "backward", "forward"])
def test_frozen_models_stay_frozen(passes: str) -> None:
    model = small_net().requires_grad_(False)
    model[0].weight.requires_grad_(True)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    prunus.prune(model, 0.5, passes=passes)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    prunus.restore(model)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


def test_an_optimizer_made_before_still_trains_the_model() -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for change in (lambda: prunus.global_prune(model, 0.3), lambda: prunus.gradient_prune(model, 0.3)):
        change()
        before = model[0].weight.detach().clone()
        model(torch.randn(4, 3, 8, 8)).square().sum().backward()
        optimizer.step()
        assert not torch.equal(model[0].weight, before)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters()}


def test_the_global_random_state_is_not_consumed_when_nothing_is_random() -> None:
    model = small_net()
    for p_bern in (0.0, 1.0):
        before = torch.get_rng_state()
        prunus.prune(model, 0.5, p_bern=p_bern).redraw()
        assert torch.equal(torch.get_rng_state(), before)


def test_a_generator_is_the_only_source_of_randomness_where_one_is_given() -> None:
    model = small_net()

    def draw(seed: int) -> prunus.Masks:
        generator = torch.Generator().manual_seed(seed)
        return prunus.make_masks(model, 0.5, p_bern=0.5, criterion="random", seed=generator)

    state = torch.get_rng_state()
    first = draw(1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again, other = draw(1), draw(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_p_bern_is_an_independent_chance_of_every_candidate() -> None:
    layer = nn.Conv2d(100, 100, 3)
    candidates = ~prunus.make_masks(layer, 0.5)["weight"]
    fallen = ~prunus.make_masks(layer, 0.5, p_bern=0.3, seed=0)["weight"]
    assert not (fallen & ~candidates).any()
    assert abs(int(fallen.sum()) / int(candidates.sum()) - 0.3) < 0.01  # 4.6 standard deviations
    pieces = prunus.make_masks(layer, 0.5, p_bern=0.3, granularity="kernel")["weight"].flatten(2)
    assert (pieces.all(2) | ~pieces.any(2)).all()  # a kernel falls whole


@pytest.mark.parametrize("chance", [0.5, 0.25, 0.3, 1 / 3, 0.999, 0.001, 1e-9, 1 / 256])
def test_draws_have_their_chance_and_do_not_depend_on_their_neighbours(chance: float) -> None:
    count = 10**6 + 1
    drawn = bernoulli(count, chance, torch.Generator().manual_seed(0))
    for found, wanted in ((drawn, chance), (drawn[1:] & drawn[:-1], chance**2)):
        deviation = (wanted * (1 - wanted) / count) ** 0.5
        assert abs(float(found.double().mean()) - wanted) < 5 * deviation + 1 / count


@pytest.mark.parametrize("fraction", [0.1, 0.3, 1 / 3, 0.5, 0.77, 0.999])
def test_the_count_is_exact_where_weights_are_tied(fraction: float) -> None:
    layer = nn.Conv2d(16, 16, 3)
    with torch.no_grad():
        layer.weight.copy_((layer.weight / layer.weight.abs().max() * 7).round() / 7)  # 15 levels
    assert prunus.make_masks(layer, fraction).pruned == int(fraction * 2304)
    by_kernel = prunus.make_masks(layer, fraction, granularity="kernel")
    assert by_kernel.pruned == 9 * int(fraction * 256)


def test_masks_do_not_depend_on_the_default_device() -> None:
    model = small_net()
    expected = prunus.make_masks(model, 0.5)
    with torch.device("meta"):
        found = prunus.make_masks(model, 0.5)
    assert all(torch.equal(mask, expected[name]) for name, mask in found.items())


def test_a_tied_weight_goes_by_all_of_its_names() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3))
    model[1].weight = model[0].weight
    for name in ("0", "1", "0.weight", "1.weight"):
        assert list(prunus.make_masks(model, 0.5, exclude=name)) == ["2.weight"]
        assert list(prunus.make_masks(model, 0.5, include=name)) == ["0.weight"]
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 5), nn.Linear(3, 4))
    model[2].weight = model[0].weight
    assert list(prunus.make_masks(model, 0.5, layers="all", exclude="0.weight")) == ["1.weight"]


def test_ties_fall_in_the_order_of_modules_and_then_of_indices() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 2), nn.Conv2d(2, 2, 2))
    for layer in model:
        nn.init.ones_(layer.weight)
    masks = prunus.make_masks(model, 20 / 32)
    flat = torch.cat([mask.flatten() for mask in masks.values()])
    assert torch.equal(flat, torch.arange(32) >= 20)


@pytest.mark.parametrize("passes", ["both", "forward"])
def test_the_originals_follow_the_model_to_another_dtype(passes: str) -> None:
    model = small_net()
    before = {name: value.double() for name, value in weights_of(model).items()}
    prunus.prune(model, 0.5, passes=passes)
    model.double()
    assert model[0].weight_orig.dtype is torch.float64
    model(torch.randn(1, 3, 8, 8, dtype=torch.float64)).sum().backward()
    prunus.restore(model)
    assert all(torch.equal(model.get_parameter(n), before[n]) for n, _ in model.named_parameters())


@pytest.mark.parametrize("passes", ["both", "backward", "forward"])
def test_everything_follows_the_model_to_another_device(passes: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    model = small_net()
    before = weights_of(model)
    prunus.prune(model, 0.5, passes=passes)
    model.cuda()
    model(torch.randn(1, 3, 8, 8, device="cuda", requires_grad=True)).sum().backward()
    prunus.restore(model)
    assert_same(model.cpu(), {**before, **{n: b.cpu() for n, b in model.named_buffers()}})


def test_channels_last_and_strided_weights() -> None:
    model = small_net()
    wanted = prunus.make_masks(model, 0.4)
    model = model.to(memory_format=torch.channels_last)
    masks = prunus.make_masks(model, 0.4)
    assert all(torch.equal(masks[name], wanted[name]) for name in wanted)
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    before = weights_of(model)
    for passes in ("both", "backward", "forward"):
        with prunus.prune(model.eval(), 0.4, passes=passes):
            model(x).sum().backward()
        assert_same(model, before)
