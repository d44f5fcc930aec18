"""A scope is one function of pieces in their place: rows and n:m, written here, beside the built-in ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.selection.line import keep_rows
from prunus.selection.scored import Kept, Scored
from tests.conftest import layer_name, layer_zoo, small_net

LAYERS = pytest.mark.parametrize("layer", layer_zoo(), ids=layer_name)


def over_rows(tensors: Sequence[Scored], fractions: Sequence[float]) -> Iterator[Kept]:
    """The lowest fraction of every output."""

    def kept(fraction: float) -> Kept:
        for tensor in tensors:
            yield tensor.name, tensor.partition.flat(keep_rows(tensor.grid().flatten(1), fraction))

    return (kept(fraction) for fraction in fractions)


def one_of_two_inputs(tensors: Sequence[Scored], fractions: Sequence[float]) -> Iterator[Kept]:
    """1:2 along the input axis, whatever the fraction."""

    def kept() -> Kept:
        for tensor in tensors:
            grid = tensor.grid()
            pairs = grid.movedim(1, 2).reshape(-1, 2)
            keep = keep_rows(pairs, 0.5).reshape(grid.shape[0], grid.shape[2], grid.shape[1]).movedim(1, 2)
            yield tensor.name, tensor.partition.flat(keep)

    return (kept() for _ in fractions)


def by_output(layer: nn.Module, tensor: Tensor) -> list[Tensor]:
    """What belongs to each output, as (inputs, positions): written out for every kind of layer."""
    groups = getattr(layer, "groups", 1)
    blocks = tensor.reshape(groups, tensor.shape[0] // groups, tensor.shape[1], -1)
    if getattr(layer, "transposed", False):
        return [block[:, out] for block in blocks for out in range(block.shape[1])]
    return [block[out] for block in blocks for out in range(block.shape[0])]


@LAYERS
def test_a_budget_of_every_row(layer: nn.Module) -> None:
    mask = prunus.make_masks(layer, 0.4, scope=over_rows, layers="all")["weight"]
    weight = layer.get_parameter("weight").detach().abs()
    for kept, values in zip(by_output(layer, mask), by_output(layer, weight), strict=True):
        assert int((~kept).sum()) == int(0.4 * kept.numel())
        if (~kept).any():
            assert values[~kept].max() <= values[kept].min()


@pytest.mark.parametrize(
    "layer", [nn.Linear(8, 5), nn.Conv2d(4, 6, 3), nn.Conv2d(8, 6, 3, groups=2)], ids=layer_name
)
def test_one_of_two_along_the_inputs(layer: nn.Module) -> None:
    mask = prunus.make_masks(layer, 0.5, scope=one_of_two_inputs, layers="all")["weight"]
    assert mask.sum() == mask.numel() / 2
    assert (mask[:, 0::2] != mask[:, 1::2]).all()
    weight = layer.get_parameter("weight").detach().abs()
    assert ((weight[:, 0::2] > weight[:, 1::2]) == mask[:, 0::2]).all()


@LAYERS
@pytest.mark.parametrize("granularity", ["weight", "kernel", "filter", "channel"])
def test_a_grid_leads_back(layer: nn.Module, granularity: str) -> None:
    [tensor] = prunus.rank(layer, granularity=granularity, layers="all").tensors
    number = torch.arange(tensor.partition.count)
    grid = tensor.partition.grid(number)
    assert torch.equal(tensor.partition.flat(grid), number)
    outputs = by_output(layer, tensor.partition.expand(number))
    if granularity != "channel":  # where a piece belongs to one output
        assert [set(row.flatten().tolist()) for row in grid] == [set(o.flatten().tolist()) for o in outputs]
    if granularity == "weight":
        assert all(torch.equal(row, output) for row, output in zip(grid, outputs, strict=True))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda kept: iter(kept[:1]),
            r"scope gave NoneType for None; expected for 3\.weight a boolean",
        ),
        (lambda kept: iter(kept[::-1]), r"for 3\.weight; expected for 0\.weight"),
        (lambda kept: ((n, flags[:-1]) for n, flags in kept), r"\(215,\)\) for 0\.weight; .* shape \(216,\)"),
        (lambda kept: ((n, flags.float()) for n, flags in kept), r"torch\.float32.* boolean tensor of shape"),
    ],
)
def test_a_scope_that_gives_something_else_is_refused_before_anything_is_done(
    wrong: Callable[[list[tuple[str, Tensor]]], Kept], message: str
) -> None:
    def scope(tensors: Sequence[Scored], fractions: Sequence[float]) -> Iterator[Kept]:
        return (wrong(list(kept)) for kept in over_rows(tensors, fractions))

    model = small_net()
    before = copy.deepcopy(model.state_dict())
    for keep_original in (True, False):
        with pytest.raises(ValueError, match=message):
            prunus.global_prune(model, 0.5, scope=scope, keep_original=keep_original)
    with pytest.raises(ValueError, match=r"scope gave nothing for p_prune 0\.5"):
        prunus.global_prune(model, 0.5, scope=lambda tensors, fractions: iter(()))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_scope_of_ones_own_in_every_verb() -> None:
    model = small_net()
    before = copy.deepcopy(model.state_dict())
    with prunus.prune(model, 0.5, scope=over_rows) as pruning:
        assert (~pruning.masks["3.weight"]).flatten(1).sum(1).tolist() == [36] * 12
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"0\.weight has values or scores that are NaN or infinite"):
        prunus.make_masks(model, 0.5, scope=over_rows)
