"""Masks by place: of the weights that give outputs, that give gradients of inputs, and that get gradients."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

import prunus
from prunus.application.applying import unpruned
from tests.conftest import everything, layer_name, layer_zoo, same, small_net

transformers = pytest.importorskip("transformers")

PLACES = ("forward", "input_grad", "weight_grad")
GIVEN = [PLACES[:1], PLACES[1:2], PLACES[2:], PLACES[:2], PLACES[1:], (PLACES[0], PLACES[2]), PLACES]
NAMES = ["+".join(places) for places in GIVEN]


class Standardised(nn.Conv2d):
    """Its forward is its own, so that no formula of torch's is known."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


class First(nn.Module):
    """The first output of a layer that has several."""

    def __init__(self, layer: nn.Module, times: int = 1) -> None:
        super().__init__()
        self.layer, self.times = layer, times

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(*[x] * self.times)[0]
        return found


LAYERS = [
    *layer_zoo(),
    Standardised(4, 6, 3),
    transformers.pytorch_utils.Conv1D(5, 7),
    First(nn.LSTM(5, 4, batch_first=True)),
    First(nn.MultiheadAttention(6, 2, batch_first=True), times=3),
]


def name_of(layer: nn.Module) -> str:
    return layer_name(layer) if hasattr(layer, "weight") else type(layer.layer).__name__


def input_for(layer: nn.Module) -> Tensor:
    if isinstance(layer, First):
        return torch.randn(2, 3, 6 if layer.times == 3 else 5)
    weight = layer.get_parameter("weight")
    if weight.dim() == 2:
        return torch.randn(2, 3, 7 if isinstance(layer, transformers.pytorch_utils.Conv1D) else 5)
    return torch.randn(2, getattr(layer, "in_channels", 0), *[6] * (weight.dim() - 2))


def drawn(model: nn.Module, places: tuple[str, ...] = PLACES) -> dict[str, prunus.Masks]:
    """For each place half of every matrix's weights, drawn at random."""
    matrices = {name: p for name, p in model.named_parameters() if p.dim() > 1}
    return {
        place: prunus.Masks(
            {name: torch.rand_like(p, dtype=torch.float32) < 0.5 for name, p in matrices.items()}
        )
        for place in places
    }


def reference(layer: nn.Module, masks: dict[str, prunus.Masks], x: Tensor) -> Tensor:
    """What an unpruned layer gives when it is called with masked weights, three times."""

    def call(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        found: Tensor = functional_call(layer, weights, (x,))
        return found

    def keep(place: str, name: str, values: Tensor) -> Tensor:
        mask = masks.get(place, {}).get(name)
        return values if mask is None else values * mask

    own = dict(layer.named_parameters())
    seen = {name: keep("forward", name, p).detach() for name, p in own.items()}
    back = {name: keep("input_grad", name, p).detach() for name, p in own.items()}
    learning = {name: seen[name] + keep("weight_grad", name, p - p.detach()) for name, p in own.items()}
    by_x, by_weight = call(back, x), call(learning, x.detach())
    return by_weight + (by_x - by_x.detach())


def results(output: Tensor, model: nn.Module, x: Tensor) -> list[Tensor]:
    weight = torch.arange(1.0, output.numel() + 1, dtype=torch.float64).to(output).view_as(output).sin()
    wanted = [p for p in model.parameters() if p.requires_grad]
    return [output.detach(), *torch.autograd.grad((output * weight).sum(), [x, *wanted])]


def check(found: list[Tensor], wanted: list[Tensor], exact: bool = True) -> None:
    assert torch.equal(found[0], wanted[0]) or not exact
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("places", GIVEN, ids=NAMES)
@pytest.mark.parametrize("layer", LAYERS, ids=name_of)
def test_each_place_sees_its_own_mask(layer: nn.Module, places: tuple[str, ...]) -> None:
    layer, x = copy.deepcopy(layer).eval(), input_for(layer).requires_grad_()
    masks = drawn(layer, places)
    wanted = results(reference(layer, masks, x), layer, x)
    before, plain = copy.deepcopy(layer.state_dict()), layer(x)
    prunus.apply_masks(layer, **masks)
    check(results(layer(x), layer, x), wanted)
    for name, p in layer.named_parameters():
        mask = masks.get("forward", {}).get(name)
        assert torch.equal(p, before[name] if mask is None else before[name] * mask), name
    assert torch.equal(prunus.restore(layer)(x), plain)
    assert all(torch.equal(before[name], p) for name, p in layer.named_parameters())


@pytest.mark.parametrize("passes", ["both", "backward", "forward"])
def test_passes_are_short_for_places(passes: str) -> None:
    net, x = small_net().eval(), torch.randn(2, 3, 8, 8, requires_grad=True)
    mask = prunus.make_masks(net, 0.5, layers="all")
    meant = {"both": PLACES, "backward": ["input_grad"], "forward": ["forward"]}[passes]
    long = prunus.apply_masks(copy.deepcopy(net), **{place: copy.deepcopy(mask) for place in meant})
    short = prunus.apply_masks(net, mask, passes)
    for one, other in zip(results(long(x), long, x), results(short(x), short, x), strict=True):
        assert torch.equal(one, other)
    for place in PLACES:
        assert prunus.masks_of(short, place) == prunus.masks_of(long, place)
        assert set(prunus.masks_of(long, place)) == (set(mask) if place in meant else set())
    assert prunus.masks_of(long) == mask


def test_gradients_are_those_of_finite_differences_where_all_places_have_the_same_mask() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)).double()
    [masks] = drawn(net, PLACES[:1]).values()
    prunus.apply_masks(net, **{place: copy.deepcopy(masks) for place in PLACES})
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(net, (x,))
    assert torch.autograd.gradgradcheck(net, (x,))
    [found] = torch.autograd.grad(net(x).sum(), net[0].weight)
    for place in masks["0.weight"].nonzero().tolist():
        with torch.no_grad():
            net[0].weight[tuple(place)] += 1e-6
            above = net(x).sum()
            net[0].weight[tuple(place)] -= 2e-6
            slope = (above - net(x).sum()) / 2e-6
            net[0].weight[tuple(place)] += 1e-6
        torch.testing.assert_close(found[tuple(place)], slope, atol=1e-6, rtol=1e-4)
    assert not found[~masks["0.weight"]].any()


class Chain(nn.Module):
    """Layers one after the other, each by the reference."""

    def __init__(self, net: nn.Sequential, masks: dict[str, prunus.Masks]) -> None:
        super().__init__()
        self.net, self.masks = net, masks

    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.net):
            own = {
                place: prunus.Masks(
                    {"weight": found[f"{index}.weight"]} if f"{index}.weight" in found else {}
                )
                for place, found in self.masks.items()
            }
            x = reference(layer, own, x)
        return x


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(64, 5)
    )


def of_different_layers() -> tuple[nn.Sequential, dict[str, prunus.Masks], list[Tensor], Tensor]:
    """A network, masks of other weights at each place, what they should do, and the input for that."""
    model, x = net(), torch.randn(2, 3, 8, 8, requires_grad=True)
    masks, left_out = (
        drawn(model),
        {"forward": "4.weight", "input_grad": "2.weight", "weight_grad": "0.weight"},
    )
    masks = {
        place: prunus.Masks({name: mask for name, mask in found.items() if name != left_out[place]})
        for place, found in masks.items()
    }
    chain = Chain(copy.deepcopy(model), masks)
    return model, masks, results(chain(x), chain, x), x


def test_the_places_may_have_masks_of_different_weights() -> None:
    model, masks, wanted, x = of_different_layers()
    prunus.apply_masks(model, **masks)
    check(results(model(x), model, x), wanted)
    for place in PLACES:
        assert prunus.masks_of(model, place) == masks[place]
    with pytest.raises(
        ValueError, match=r"^0.weight has several masks: give the place of those wanted, forward"
    ):
        prunus.masks_of(model)
    with unpruned(model):
        assert not prunus.masks_of(model)
    check(results(model(x), model, x), wanted)
    prunus.apply_masks(model, forward=masks["forward"])
    assert prunus.masks_of(model) == masks["forward"]
    assert not prunus.masks_of(model, "weight_grad")


def loaded(model: nn.Module) -> nn.Module:
    found: nn.Module = pickle.loads(pickle.dumps(model))
    return found


def exchanged(model: nn.Module) -> nn.Module:
    """Every parameter by another of the same values before pruning, as `nn.Module.to` may do it."""
    plain = prunus.restore(copy.deepcopy(model))
    for module, other in zip(model.modules(), plain.modules(), strict=True):
        for name, p in list(other.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(p.detach().clone()))
    return model


@pytest.mark.parametrize("change", [copy.deepcopy, loaded, exchanged, lambda model: model.double().float()])
def test_masks_by_place_follow(change: Callable[[nn.Module], nn.Module]) -> None:
    model, masks, wanted, x = of_different_layers()
    plain = copy.deepcopy(model.state_dict())
    other = change(prunus.apply_masks(model, **masks))
    check(results(other(x), other, x), wanted)
    assert all(prunus.masks_of(other, place) == masks[place] for place in PLACES)
    prunus.restore(other)
    assert all(torch.equal(plain[name], p) for name, p in other.named_parameters())


@pytest.mark.parametrize("reentrant", [False, True])
def test_masks_by_place_in_checkpointed_segments(reentrant: bool) -> None:
    model, masks, wanted, x = of_different_layers()
    prunus.apply_masks(model, **masks)
    output = checkpoint(model, x, use_reentrant=reentrant)
    assert isinstance(output, Tensor)
    if reentrant:  # which has a backward, and no grad
        (output * torch.arange(1.0, output.numel() + 1).view_as(output).sin()).sum().backward()
        found = [output.detach(), *(t.grad for t in [x, *model.parameters()] if t.grad is not None)]
    else:
        found = results(output, model, x)
    check(found, wanted)


def test_masks_by_place_compiled() -> None:
    model, masks, wanted, x = of_different_layers()
    compiled = torch.compile(model, backend="aot_eager")
    compiled(x)
    prunus.apply_masks(model, **masks)
    check(results(compiled(x), model, x), wanted, exact=False)


@pytest.mark.parametrize("places", GIVEN, ids=NAMES)
def test_masks_by_place_under_autocast(places: tuple[str, ...]) -> None:
    model = nn.Conv2d(3, 4, 3)
    x, masks = torch.randn(2, 3, 6, 6, requires_grad=True), drawn(model, places)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        wanted = results(reference(model, masks, x), model, x)
    prunus.apply_masks(model, **masks)
    with torch.autocast("cpu", torch.bfloat16):
        found = results(model(x), model, x)
    assert torch.equal(found[0], wanted[0])
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("places", GIVEN, ids=NAMES)
@pytest.mark.parametrize("kind", [nn.Linear, Standardised])
def test_a_functional_call_uses_the_masks_on_what_it_is_given(places: tuple[str, ...], kind: type) -> None:
    model = nn.Linear(5, 4) if kind is nn.Linear else Standardised(4, 6, 3)
    other, x = copy.deepcopy(model), input_for(model).requires_grad_()
    with torch.no_grad():
        other.weight.normal_()
    masks = drawn(model, places)
    wanted = results(reference(other, masks, x), other, x)
    prunus.apply_masks(model, **masks)
    given = {name: p * 1 for name, p in other.named_parameters()}
    check(results(functional_call(model, given, (x,)), other, x), wanted)
    assert all(p is model.get_parameter(name) for name, p in model.named_parameters())

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, weights, (x,)).sum()

    def by_hand(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        y = reference(other, masks, x)
        return y.sum()

    plain = {name: p.detach() for name, p in other.named_parameters()}
    of_x = grad(loss, 1)(plain, x.detach())
    torch.testing.assert_close(of_x, torch.autograd.grad(by_hand(plain, x), x)[0], atol=1e-5, rtol=1e-4)
    each = vmap(grad(loss), (None, 0))(plain, x.detach()[:, None])
    whole = torch.autograd.grad(by_hand(plain, x), list(other.parameters()))
    for one, all_ in zip(each.values(), whole, strict=True):
        torch.testing.assert_close(one.sum(0), all_, atol=1e-5, rtol=1e-4)


def test_zero_means_zero_where_the_forward_alone_is_pruned_and_training_moves_no_backup() -> None:
    model, x = net(), torch.randn(2, 3, 8, 8)
    masks = drawn(model)
    plain = copy.deepcopy(model)
    prunus.apply_masks(model, **masks)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        for name, mask in masks["forward"].items():
            assert not model.get_parameter(name)[~mask].any()
            assert not model.get_parameter(name).grad[~masks["weight_grad"][name]].any()
    prunus.restore(model)
    for name, mask in masks["forward"].items():
        assert torch.equal(model.get_parameter(name)[~mask], plain.get_parameter(name)[~mask])


def test_what_gets_no_gradient_stands_still_but_for_decay_and_momentum_from_before() -> None:
    model, x = nn.Linear(5, 4), torch.randn(2, 5)
    [(place, masks)] = drawn(model, PLACES[2:]).items()
    frozen = ~masks["weight"]

    def moved(optimizer: torch.optim.Optimizer) -> Tensor:
        before = model.weight.detach().clone()
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
        assert (model.weight != before)[~frozen].all()
        return (model.weight != before)[frozen]

    older = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    moved_before = moved(older)
    prunus.apply_masks(model, **{place: masks})
    assert moved_before.all()
    assert moved(older).all()
    assert not moved(torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)).any()
    assert not moved(torch.optim.Adam(model.parameters(), 0.01)).any()
    assert moved(torch.optim.SGD(model.parameters(), 0.01, weight_decay=0.1)).all()


def test_compacting_looks_at_the_forward_alone() -> None:
    model, x = small_net().eval(), torch.randn(2, 3, 8, 8)
    masks = prunus.make_masks(model, 0.5, granularity="filter", scope="layer")
    others = prunus.Masks({name: torch.zeros_like(mask) for name, mask in masks.items()})
    prunus.apply_masks(model, input_grad=others, weight_grad=others)
    size = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in prunus.compact(model, x).model.parameters()) == size
    prunus.apply_masks(model, forward=masks, input_grad=others, weight_grad=others)
    small = prunus.compact(model, x).model
    assert sum(p.numel() for p in small.parameters()) < size
    torch.testing.assert_close(small(x), model(x))


def test_what_cannot_be_meant_is_refused_and_changes_nothing() -> None:
    model = small_net()
    masks, other = prunus.make_masks(model, 0.5), prunus.make_masks(nn.Conv2d(3, 9, 3), 0.5)
    prunus.apply_masks(model, forward=masks, weight_grad=masks)
    before = everything(model)
    apply: Callable[..., nn.Module] = prunus.apply_masks
    for given, words in [
        ({}, "masks is empty: expected one of a weight at least"),
        ({"weight_grad": prunus.Masks({})}, "weight_grad is empty"),
        (
            {"masks": masks, "input_grad": masks},
            "masks and input_grad are given: expected masks of passes, or of",
        ),
        ({"passes": "backward", "forward": masks}, "passes='backward' and forward are given"),
        (
            {"forward": masks, "weight_grad": other},
            "masks belong to another network: it has no weight 'weight'",
        ),
    ]:
        with pytest.raises(ValueError, match=words):
            apply(model, **given)
    with pytest.raises(TypeError, match=r"^weight_grad must be prunus.Masks, got dict"):
        apply(model, forward=masks, weight_grad=dict(masks))
    with pytest.raises(
        ValueError, match=r"^place must be one of forward, input_grad, weight_grad; got 'back'"
    ):
        prunus.masks_of(model, "back")
    assert same(before, everything(model))
    assert prunus.masks_of(model, "forward") == prunus.masks_of(model, "weight_grad") == masks
    assert not prunus.masks_of(model, "input_grad")
