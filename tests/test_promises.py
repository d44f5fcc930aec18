"""What other libraries' tests promise of pruning, said of ours.

The promises are those of torch.nn.utils.prune, open_lth and sparseml that no other file here tests.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from tests.conftest import everything, layer_name, layer_zoo, same, small_net, trained_under

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
GRANULARITIES = ["weight", "kernel", "filter", "channel"]
PASSES = ["both", "backward", "forward"]
ZOO = pytest.mark.parametrize("layer", layer_zoo(), ids=layer_name)


def mixed_net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Every kind of layer that numbers its outputs differently, of images of 6×6."""
    layers = (nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 6, 2), nn.Tanh(), nn.Conv2d(6, 4, 1), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(100, 5)).to(dtype)


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1)).to(dtype)


def input_of(layer: nn.Module) -> Tensor:
    weight = layer.get_parameter("weight")
    if isinstance(layer, nn.Linear):
        return torch.randn(3, weight.shape[1])
    return torch.randn(2, layer.in_channels, *[6] * (weight.dim() - 2))  # type: ignore[arg-type]


def slices(tensor: Tensor, layer: nn.Module, granularity: str) -> Tensor:
    """A row for each piece of a layer without convolution groups."""
    if granularity in ("weight", "kernel"):
        pieces = tensor.shape if granularity == "weight" else tensor.shape[:2]
        return tensor.reshape(pieces.numel(), -1)
    outputs = int(isinstance(layer, nn.ConvTranspose2d))
    return tensor.movedim(outputs if granularity == "filter" else 1 - outputs, 0).flatten(1)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def train(model: nn.Module, steps: int = 2) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(steps):
        step(model, optimizer, images())


def hooks(model: nn.Module) -> list[int]:
    return [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]


# Grids: type × structure × amount × scope


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("criterion", ["magnitude", "random"])
def test_as_many_whole_pieces_fall_as_were_asked_for(
    dtype: torch.dtype, granularity: str, scope: str, criterion: str
) -> None:
    model, plain = mixed_net(dtype), mixed_net(dtype)
    plain.load_state_dict(model.state_dict())
    layers = {f"{index}.weight": layer for index, layer in enumerate(plain) if hasattr(layer, "weight")}
    for amount in (0.0, 0.4, 0.6, 0.9, 0.99, 1.0):
        masks = prunus.make_masks(
            model, amount, granularity=granularity, scope=scope, criterion=criterion, layers="all"
        )
        assert list(masks) == list(layers)
        kept, scores = [], []
        for name, layer in layers.items():
            assert masks[name].shape == layer.weight.shape
            rows = slices(masks[name], layer, granularity)
            assert torch.equal(rows.any(1), rows.all(1))
            kept.append(rows.any(1))
            scores.append(slices(layer.weight.detach().double().abs(), layer, granularity).sum(1))
        if scope == "global":
            kept, scores = [torch.cat(kept)], [torch.cat(scores)]
        for flags, values in zip(kept, scores, strict=True):
            assert int((~flags).sum()) == int(amount * len(flags))
            if criterion == "magnitude" and 0 < amount < 1 and not flags.all():
                assert values[~flags].max() <= values[flags].min() * (1 + 1e-6)  # sums are kept as float32
        prunus.apply_masks(model, masks)
        assert all(torch.equal(model.get_parameter(n), layers[n].weight * mask) for n, mask in masks.items())
    assert torch.equal(model[5](torch.ones(1, 100, dtype=dtype))[0], model[5].bias)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_structures_stay_zero_through_training(dtype: torch.dtype, granularity: str, scope: str) -> None:
    model, x = mixed_net(dtype), images(dtype)
    # The default eps would be zero in float16
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, eps=1e-3)
    step(model, optimizer, x)
    masks = prunus.prune(model, 0.5, granularity=granularity, scope=scope, layers="all").masks
    for _ in range(3):
        before = {name: model.get_parameter(name).detach().clone() for name in masks}
        step(model, optimizer, x)
        for name, mask in masks.items():
            weight = model.get_parameter(name)
            assert weight.dtype is dtype
            assert not weight[~mask].any()
            assert not weight.grad[~mask].any()
            assert not mask.any() or not torch.equal(weight[mask], before[name][mask])
    assert prunus.masks_of(model) == masks


# Nothing pruned, everything pruned, and an example worked by hand


@ZOO
@pytest.mark.parametrize("passes", PASSES)
def test_a_mask_that_keeps_everything_changes_neither_output_nor_gradient(
    layer: nn.Module, passes: str
) -> None:
    layer = copy.deepcopy(layer)
    x, found = input_of(layer).requires_grad_(), []
    for pruned in (False, True):
        if pruned:
            prunus.prune(layer, 0.0, passes=passes, layers="all")
        y = layer(x)
        found.append((y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])))
    for wanted, got in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-5)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(layer(x), found[0][0])  # a second forward in a row


@ZOO
@pytest.mark.parametrize("passes", ["both", "forward"])
def test_without_weights_the_bias_is_left_and_is_never_pruned(layer: nn.Module, passes: str) -> None:
    layer = copy.deepcopy(layer)
    bias = torch.zeros(1) if layer.bias is None else layer.bias.detach().clone()
    with prunus.prune(layer, 1.0, passes=passes, layers="all") as pruning:
        assert list(pruning.masks) == ["weight"]
        y = layer(input_of(layer))
    one_each = y if isinstance(layer, nn.Linear) else y.movedim(1, -1)
    assert torch.equal(one_each, bias.expand_as(one_each))


@ZOO
def test_a_bias_is_pruned_where_it_is_asked_for_by_name(layer: nn.Module) -> None:
    layer = copy.deepcopy(layer)
    if layer.bias is None:
        with pytest.raises(ValueError, match="include='bias' matches nothing"):
            prunus.prune(layer, 0.5, layers="all", include="bias")
        return
    pruning = prunus.prune(layer, 0.5, layers="all", include="bias")
    assert list(pruning.masks) == ["bias"]
    assert int((layer.bias == 0).sum()) == len(layer.bias) // 2
    assert layer.weight.all()
    both = prunus.make_masks(layer, 0.25, layers="all", include=["*", "bias"])
    assert set(both) == {"weight", "bias"}


WORKED: dict[str, tuple[float, list[float], list[float], list[float]]] = {
    # output, gradient of the input, weights after a step, after they are restored
    "both": (9.0, [1, 0, 0, 8], [0.5, 0, 0, 7.5], [0.5, 2, 4, 7.5]),
    "backward": (15.0, [1, 0, 0, 8], [0.5, 1.5, 3.5, 7.5], [0.5, 1.5, 3.5, 7.5]),
    "forward": (9.0, [1, 2, 4, 8], [0.5, 0, 0, 7.5], [0.5, 2, 4, 7.5]),
}


@pytest.mark.parametrize("passes", PASSES)
def test_a_mask_of_ones_own_worked_by_hand(passes: str) -> None:
    layer, x = nn.Linear(4, 1, bias=False), torch.ones(1, 4, requires_grad=True)
    layer.weight.data = torch.tensor([[1.0, 2, 4, 8]])
    output, of_input, trained, restored = WORKED[passes]
    prunus.apply_masks(layer, prunus.Masks({"weight": torch.tensor([[True, False, False, True]])}), passes)
    y = layer(x)
    y.sum().backward()
    assert x.grad is not None
    assert (y.item(), x.grad[0].tolist()) == (output, of_input)
    torch.optim.SGD(layer.parameters(), 0.5).step()
    assert layer.weight[0].tolist() == trained
    assert prunus.restore(layer).weight[0].tolist() == restored


def test_masks_of_some_layers_leave_the_others_alone_and_no_masks_are_refused() -> None:
    model, plain = small_net(), small_net()
    mask = prunus.make_masks(model, 0.5)["3.weight"]
    prunus.gradient_prune(model, 0.3)
    prunus.apply_masks(model, prunus.Masks({"3.weight": mask}))
    assert torch.equal(model[3].weight, plain[3].weight * mask)
    assert torch.equal(model[0].weight, plain[0].weight)
    assert list(prunus.masks_of(model)) == ["3.weight"]
    with pytest.raises(ValueError, match="masks is empty"):
        prunus.apply_masks(model, prunus.Masks({}))
    assert list(prunus.masks_of(model)) == ["3.weight"]


@pytest.mark.parametrize(
    "masks",
    [{6: torch.ones(2, 2).bool()}, {"weight": [[True]]}, {"weight": torch.ones(2, 2)}, {"weight": None}],
    ids=["name", "list", "float", "none"],
)
def test_masks_are_boolean_tensors_by_name(masks: Any) -> None:
    with pytest.raises(TypeError, match=r"must be a (torch\.bool tensor|string), got"):
        prunus.Masks(masks)


# Scores of one's own


SCORED = {
    "0.weight": torch.tensor([[4.0, 2, 1, 3], [3, 1.5, 2.5, 5]]),
    "1.weight": torch.tensor([[0.0, 10]]),
}


@pytest.mark.parametrize(
    ("granularity", "scope", "amount", "kept"),
    [
        ("weight", "global", 0.3, [[[1, 1, 0, 1], [1, 0, 1, 1]], [[0, 1]]]),
        ("weight", "layer", 0.5, [[[1, 0, 0, 1], [1, 0, 0, 1]], [[0, 1]]]),
        ("filter", "layer", 0.5, [[[0, 0, 0, 0], [1, 1, 1, 1]], [[1, 1]]]),
        ("channel", "layer", 0.5, [[[1, 0, 0, 1], [1, 0, 0, 1]], [[0, 1]]]),
        ("filter", "global", 0.4, [[[0, 0, 0, 0], [1, 1, 1, 1]], [[1, 1]]]),
    ],
)
def test_scores_handed_over_decide_and_not_the_weights(
    granularity: str, scope: str, amount: float, kept: list[list[list[int]]]
) -> None:
    """Worked by hand; `filter` is a row of a linear layer, `channel` a column."""
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 1))
    model[0].weight.data = torch.tensor([[1.0, 2, 3, 4], [-4, -3, -2, -1]])

    def handed_over(pieces: prunus.Pieces) -> Tensor:
        scores = SCORED[pieces.name]
        return (scores.T if granularity == "channel" else scores).reshape(pieces.values.shape)

    masks = prunus.make_masks(
        model, amount, criterion=handed_over, granularity=granularity, scope=scope, layers="all"
    )
    assert [mask.int().tolist() for mask in masks.values()] == kept


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_scores_that_are_magnitudes_prune_as_magnitude_does(granularity: str) -> None:
    model = mixed_net()
    wanted = prunus.make_masks(model, 0.4, granularity=granularity, layers="all")
    masks = prunus.make_masks(
        model, 0.4, criterion=lambda p: p.values.abs(), granularity=granularity, layers="all"
    )
    assert masks == wanted


def test_layers_left_out_are_untouched_and_the_fraction_is_of_the_rest() -> None:
    model, plain = mixed_net(), mixed_net()
    plain.load_state_dict(model.state_dict())
    masks = prunus.prune(model, 0.3, layers="all", exclude=("1", "5.weight")).masks
    assert list(masks) == ["0.weight", "3.weight"]
    assert masks.pruned == int(0.3 * (8 * 3 * 9 + 4 * 6))
    for index in (1, 5):
        assert torch.equal(model[index].weight, plain[index].weight)
    model(images()).square().mean().backward()
    assert model[1].weight.grad.all()


# A call that fails


def fails_at_the_second(pieces: prunus.Pieces) -> Tensor:
    if pieces.name != "0.weight":
        raise ArithmeticError("no score")
    return pieces.values.abs()


def fails_after_the_first(tensors: Any, fractions: Any) -> Any:
    def stream() -> Any:
        yield tensors[0].name, torch.zeros(tensors[0].partition.count, dtype=torch.bool)
        raise ArithmeticError("no line")

    return (stream() for _ in fractions)


@pytest.mark.parametrize("before", [None, *PASSES])
@pytest.mark.parametrize("choice", [{"criterion": fails_at_the_second}, {"scope": fails_after_the_first}])
@pytest.mark.parametrize(
    "verb",
    [
        prunus.prune,
        prunus.gradient_prune,
        prunus.global_prune,
        lambda *args, **choice: prunus.global_prune(*args, keep_original=False, **choice),
    ],
    ids=["prune", "gradient_prune", "global_prune", "for good"],
)
def test_a_criterion_or_scope_that_fails_half_way_leaves_the_network_as_it_was(
    verb: Callable, choice: dict[str, Any], before: str | None
) -> None:
    model, plain = small_net().eval(), small_net().eval()
    if before:
        prunus.prune(model, 0.3, passes=before)
    state, attached, masks = everything(model), hooks(model), copy.deepcopy(prunus.masks_of(model))
    with pytest.raises(ArithmeticError, match=r"no score|no line"):
        verb(model, 0.6, **choice)
    assert same(state, everything(model))
    assert hooks(model) == attached
    assert prunus.masks_of(model) == masks
    prunus.restore(model)
    assert same(everything(plain), everything(model))


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_a_recurrent_layer_is_pruned_in_all_of_its_matrices(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    model, x = kind(6, 5, num_layers=2, bidirectional=True), torch.randn(3, 2, 6)
    state, wanted = everything(model), model(x)[0]
    by_hand = copy.deepcopy(model)
    pruning = prunus.prune(model, 0.5, layers="all")
    assert set(pruning.masks) == {name for name, _ in model.named_parameters() if "weight" in name}
    for name, mask in pruning.masks.items():
        by_hand.get_parameter(name).data.mul_(mask)
        assert torch.equal(getattr(model, f"{name}_mask"), mask)
    assert torch.equal(model(x)[0], by_hand(x)[0])
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    model(x)[0].square().mean().backward()
    optimizer.step()
    for name, mask in pruning.masks.items():
        assert not model.get_parameter(name)[~mask].any()
        assert not model.get_parameter(name).grad[~mask].any()
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model.double())))
    assert {name: m.tolist() for name, m in prunus.masks_of(twin).items()} == {
        name: m.tolist() for name, m in pruning.masks.items()
    }
    for name, mask in pruning.masks.items():
        assert not twin.get_parameter(name)[~mask].any()
    model.float()
    with torch.no_grad():
        for name, mask in pruning.masks.items():  # as if it had not learned
            model.get_parameter(name).copy_(by_hand.get_parameter(name) * mask)
    for name, bias in by_hand.named_parameters():
        if "bias" in name:
            model.get_parameter(name).data.copy_(bias)
    prunus.restore(model)
    assert same(state, {**everything(model), **{k: v for k, v in state.items() if "grad" in k}})
    assert torch.equal(model(x)[0], wanted)


# Pruned again


def test_pruning_again_ranks_the_originals_and_brings_back_what_it_keeps() -> None:
    """Where torch.nn.utils.prune prunes what an earlier mask left, ours takes the place of that mask."""
    layer = nn.Linear(4, 2)
    layer.weight.data = torch.tensor([[1.0, 2, 3, 4], [-4, -3, -2, -1]])
    prunus.prune(layer, 0.5, layers="all", criterion=lambda p: -p.values.abs())  # the largest fall
    assert layer.weight.tolist() == [[1, 2, 0, 0], [0, 0, -2, -1]]
    for _ in range(2):  # and not two more at every call
        prunus.prune(layer, 0.25, layers="all")
        assert layer.weight.tolist() == [[0, 2, 3, 4], [-4, -3, -2, 0]]


def test_earlier_masks_are_respected_where_they_are_combined() -> None:
    model = mixed_net()
    earlier = prunus.prune(model, 0.3, layers="all").masks
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=3)
    for _ in range(3):
        step(model, optimizer, images())
    ranked = prunus.make_masks(model, 0.4, layers="all")
    # Survivors have shrunk below what pruned weights were: without combining, some would come back
    assert any((ranked[name] & ~mask).any() for name, mask in earlier.items())
    prunus.apply_masks(model, ranked & prunus.masks_of(model))
    step(model, optimizer, images())
    for name, mask in earlier.items():
        assert not model.get_parameter(name)[~mask].any()
    assert int(0.4 * earlier.total) < prunus.masks_of(model).pruned < int(0.7 * earlier.total)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_pruning_for_good_in_steps_counts_what_is_zero_already(granularity: str) -> None:
    model, choice = mixed_net(), {"granularity": granularity, "scope": "layer", "layers": "all"}
    counts = []
    zero = {name: p == 0 for name, p in model.named_parameters()}
    for amount in (0.25, 0.5, 0.25):
        prunus.global_prune(model, amount, keep_original=False, **choice)
        now = {name: p == 0 for name, p in model.named_parameters()}
        assert all((now[name] | ~flags).all() for name, flags in zero.items())
        zero = now
        counts.append(sum(int(flags.sum()) for flags in zero.values()))
    assert counts[1:] == [prunus.make_masks(mixed_net(), 0.5, **choice).pruned] * 2
    assert counts[0] < counts[1]


# Made final, saved and carried on


def by_loading(model: nn.Sequential) -> None:
    state = copy.deepcopy(model.state_dict())
    prunus.restore(model).load_state_dict(state)


def by_pruning_for_good(model: nn.Sequential) -> None:
    prunus.global_prune(model, 0.5, layers="all", keep_original=False)


@pytest.mark.parametrize("finish", [by_loading, by_pruning_for_good])
def test_a_pruning_made_final_leaves_a_plain_network_of_the_same_parameters(finish: Callable) -> None:
    model = mixed_net()
    parameters, plain = list(model.parameters()), hooks(model)
    masks = prunus.prune(model, 0.5, layers="all").masks
    if finish is by_loading:  # the other ranks anew
        train(model)
    wanted = model(images())
    finish(model)
    assert torch.equal(model(images()), wanted)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert hooks(model) == plain
    assert len(prunus.masks_of(model)) == 0
    assert prunus.Masks.from_zeros(model) == masks
    prunus.restore(model)
    assert torch.equal(model(images()), wanted)
    train(model)  # as any network: nothing holds the zeros any more
    assert all(model.get_parameter(name)[~mask].any() for name, mask in masks.items())


@pytest.mark.parametrize(
    ("passes", "alike"),
    # A state_dict holds zeros, and not the values that gradients flowed through
    [("both", "both"), ("backward", "backward"), ("forward", "both")],
)
def test_a_file_of_a_state_dict_carries_pruning_and_training_on(
    passes: str, alike: str, tmp_path: Path
) -> None:
    model = mixed_net()
    masks = prunus.prune(model, 0.5, layers="all", passes=passes).masks
    train(model)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    masks.save(tmp_path / "masks.safetensors")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    other = mixed_net()
    assert list(state) == list(other.state_dict())
    other.load_state_dict(state)
    assert torch.equal(other(images()), model(images()))
    prunus.apply_masks(other, prunus.Masks.load(tmp_path / "masks.safetensors"), passes)
    prunus.apply_masks(model, masks, alike)
    for net in (model, other):
        train(net)
    for wanted, got in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(wanted, got)


@ZOO
@pytest.mark.parametrize("passes", PASSES)
def test_every_kind_of_layer_is_pickled_with_its_pruning(layer: nn.Module, passes: str) -> None:
    layer, plain = copy.deepcopy(layer), layer.get_parameter("weight").detach().clone()
    masks = prunus.prune(layer, 0.5, layers="all", passes=passes).masks
    twin = pickle.loads(pickle.dumps(layer))
    x = input_of(layer).requires_grad_()
    for one, other in zip(*(torch.autograd.grad(net(x).sum(), x) for net in (layer, twin)), strict=True):
        assert torch.equal(one, other)
    assert type(twin) is type(layer)
    assert torch.equal(twin(x), layer(x))
    assert prunus.masks_of(twin) == masks
    assert torch.equal(prunus.restore(pickle.loads(pickle.dumps(twin))).weight, plain)
    if passes != "backward":
        trained_under(twin)
        assert not twin.get_parameter("weight")[~masks["weight"]].any()


def rewind(model: nn.Sequential, start: dict[str, Tensor]) -> dict[str, Tensor]:
    model.load_state_dict(start)
    return start


def begin_anew(model: nn.Sequential, start: dict[str, Tensor]) -> dict[str, Tensor]:
    torch.manual_seed(7)
    fresh = mixed_net()
    torch.manual_seed(7)
    for layer in (model[0], model[1], model[3], model[5]):
        layer.reset_parameters()
    return fresh.state_dict()


@pytest.mark.parametrize("again", [rewind, begin_anew])
def test_a_winning_ticket_begins_again_under_its_mask(again: Callable) -> None:
    """Train, prune, go back to the first weights (Frankle, Carbin 2019, arXiv 1803.03635) or to new ones."""
    model = mixed_net()
    start = copy.deepcopy(model.state_dict())
    train(model)
    masks = prunus.prune(model, 0.5, layers="all").masks
    values = again(model, start)
    model(images())
    for name, mask in masks.items():
        assert torch.equal(model.get_parameter(name), values[name] * mask)
    train(model)
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        assert not weight[~mask].any()
        assert not torch.equal(weight, values[name] * mask)
