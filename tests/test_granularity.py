"""Pieces of every kind of layer, against index arithmetic written out."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import prunus
from prunus.selection.pieces import GRANULARITIES, Partition
from tests.conftest import layer_name, layer_zoo

LAYERS = pytest.mark.parametrize("layer", layer_zoo(), ids=layer_name)
PIECES = pytest.mark.parametrize("granularity", GRANULARITIES)


def piece_of(layer: nn.Module, granularity: str, index: tuple[int, ...]) -> tuple[int, ...]:
    """Which piece the weight at this index belongs to, by the definition of each layer."""
    first, second, *_ = layer.get_parameter("weight").shape
    groups, transposed = getattr(layer, "groups", 1), getattr(layer, "transposed", False)
    block = index[0] // (first // groups)  # the convolution group
    across = block * second + index[1]  # number over all groups of the axis that a group holds a part of
    if granularity == "weight":
        return index
    if granularity == "kernel":
        return index[:2]
    if (granularity == "filter") != transposed:
        return (index[0],)
    return (across,)


@LAYERS
@PIECES
def test_pieces_are_those_of_the_definition(layer: nn.Module, granularity: str) -> None:
    partition = Partition.of(layer, GRANULARITIES[granularity])
    number = partition.expand(torch.arange(partition.count))
    indices = list(itertools.product(*map(range, layer.get_parameter("weight").shape)))
    pieces = {piece_of(layer, granularity, index) for index in indices}
    assert partition.count == len(pieces)
    assert partition.count * partition.members == number.numel()
    assert len({(piece_of(layer, granularity, index), int(number[index])) for index in indices}) == len(
        pieces
    )


@LAYERS
@PIECES
def test_pieces_are_numbered_in_the_order_of_the_tensor(layer: nn.Module, granularity: str) -> None:
    partition = Partition.of(layer, GRANULARITIES[granularity])
    number = partition.expand(torch.arange(partition.count)).flatten().tolist()
    firsts = list(dict.fromkeys(number))
    assert firsts == sorted(firsts)


@LAYERS
@PIECES
def test_table_and_expand_agree(layer: nn.Module, granularity: str) -> None:
    partition = Partition.of(layer, GRANULARITIES[granularity])
    number = partition.expand(torch.arange(partition.count))
    assert number.is_contiguous()
    rows = partition.table(number)
    assert torch.equal(rows, torch.arange(partition.count)[:, None].expand_as(rows))


@LAYERS
@PIECES
@pytest.mark.parametrize("norm", ["l1", "mean"])
def test_the_pruned_pieces_have_the_lowest_sums(layer: nn.Module, granularity: str, norm: str) -> None:
    weight = layer.get_parameter("weight").detach()
    mask = prunus.make_masks(layer, 0.5, granularity=granularity, norm=norm, layers="all")["weight"]
    sums: dict[tuple[int, ...], list[float]] = {}
    kept: dict[tuple[int, ...], bool] = {}
    for index in itertools.product(*map(range, weight.shape)):
        piece = piece_of(layer, granularity, index)
        sums.setdefault(piece, []).append(abs(weight[index].item()))
        assert kept.setdefault(piece, bool(mask[index])) == bool(mask[index])
    fallen = [sum(sums[piece]) for piece in kept if not kept[piece]]
    assert len(fallen) == int(0.5 * len(sums))
    assert max(fallen) <= min(sum(sums[piece]) for piece in kept if kept[piece])


def test_mean_lets_a_small_kernel_survive_a_large_one() -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 1, 3, bias=False))
    with torch.no_grad():
        net[0].weight.fill_(0.5)
        net[1].weight.fill_(0.1)  # 0.9 in sum
    by_sum = prunus.make_masks(net, 0.5, granularity="kernel")
    by_mean = prunus.make_masks(net, 0.5, granularity="kernel", norm="mean")
    assert not by_sum["0.weight"].any()
    assert by_sum["1.weight"].all()
    assert by_mean["0.weight"].all()
    assert not by_mean["1.weight"].any()


def test_random_scores_do_not_depend_on_the_size_of_a_kernel() -> None:
    net = nn.Sequential(nn.Conv2d(60, 60, 1), nn.Conv2d(60, 60, 3))
    generator = torch.Generator().manual_seed(0)
    masks = prunus.make_masks(net, 0.5, criterion="random", granularity="kernel", seed=generator)
    shares = [pruned / total for pruned, total in masks.counts.values()]
    assert all(abs(share - 0.5) < 0.03 for share in shares)  # 3.6 standard deviations
