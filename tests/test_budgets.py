"""Where the budget holds, and what a block is: exact counts beside obviously right references."""

from __future__ import annotations

import itertools
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import prunus
from prunus.cli.main import main
from tests.conftest import layer_name, layer_zoo
from tests.test_scope import by_output

LAYERS = pytest.mark.parametrize("layer", layer_zoo(), ids=layer_name)


def stack() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3),
        nn.Conv2d(8, 16, 3, groups=2),
        nn.Conv2d(16, 4, 1),
        nn.Flatten(),
        nn.Linear(64, 12),
    )


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.dim() > 1}


@LAYERS
def test_a_row_is_an_output(layer: nn.Module) -> None:
    mask = prunus.make_masks(layer, 0.4, scope="row", layers="all")["weight"]
    weight = layer.get_parameter("weight").detach().abs()
    for kept, values in zip(by_output(layer, mask), by_output(layer, weight), strict=True):
        fallen = int(0.4 * kept.numel())
        assert int((~kept).sum()) == fallen
        assert kept.flatten().tolist() == [
            i not in values.flatten().argsort()[:fallen] for i in range(kept.numel())
        ]


@pytest.mark.parametrize("n_m", [(2, 4), (4, 8), (1, 4), (1, 2), (3, 4)])
@pytest.mark.parametrize(
    "layer", [nn.Linear(16, 6), nn.Conv2d(8, 5, 3), nn.Conv2d(16, 4, 3, groups=2)], ids=layer_name
)
def test_n_of_m_along_the_inputs(layer: nn.Module, n_m: tuple[int, int]) -> None:
    n, m = n_m
    mask = prunus.make_masks(layer, 1 - n / m, scope=f"{n}:{m}", layers="all")["weight"]
    values = layer.get_parameter("weight").detach().abs()
    kept, rows = (t.movedim(1, -1).reshape(-1, m) for t in (mask, values))
    for flags, row in zip(kept, rows, strict=True):
        assert flags.tolist() == [i in row.topk(n).indices for i in range(m)]
    nothing = prunus.make_masks(layer, 0, scope=f"{n}:{m}", layers="all")
    assert nothing.pruned == 0


def test_what_n_of_m_cannot_do_is_refused_by_name() -> None:
    for p_prune in (0.3, 1.0):
        with pytest.raises(ValueError, match=rf"scope='2:4' prunes 0\.5 or nothing: .* got {p_prune:g}"):
            prunus.make_masks(stack(), p_prune, scope="2:4")
    with pytest.raises(
        ValueError, match=r"scope='2:4': the 3 inputs of weight are no multiple of 4: exclude it"
    ):
        prunus.make_masks(nn.Conv2d(3, 8, 3), 0.5, scope="2:4")
    for wrong in ("4:2", "0:4", "4:4"):
        with pytest.raises(ValueError, match=f"scope='{wrong}' must keep some of each"):
            prunus.make_masks(stack(), 0.5, scope=wrong)
    with pytest.raises(ValueError, match=r"scope must be one of global, layer, .*n:m; got '2:x'"):
        prunus.make_masks(stack(), 0.5, scope="2:x")
    with pytest.raises(ValueError, match=r"scope='row': each output of 0.weight is one piece"):
        prunus.make_masks(stack(), 0.5, scope="row", granularity="filter")


@given(p_prune=st.floats(0, 1), scope=st.sampled_from(["uniform", "erk"]), least=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_budgets_of_layers_sum_exactly(p_prune: float, scope: str, least: int) -> None:
    model = stack()
    sizes = {name: weight.numel() for name, weight in weights(model).items()}
    total = sum(sizes.values())
    if int(p_prune * total) > total - least * len(sizes):
        with pytest.raises(ValueError, match="keep_at_least leaves"):
            prunus.make_masks(model, p_prune, scope=scope, layers="all", keep_at_least=least)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of layers that are emptied
        masks = prunus.make_masks(model, p_prune, scope=scope, layers="all", keep_at_least=least)
    assert masks.pruned == int(p_prune * total)
    for name, mask in masks.items():
        fallen, weight = int((~mask).sum()), weights(model)[name].abs().flatten()
        assert mask.numel() - fallen >= least
        assert not mask.flatten()[weight.argsort(stable=True)[:fallen]].any()
        if scope == "uniform" and not least:
            assert abs(fallen - p_prune * sizes[name]) < 1 + 1e-6


def erk_by_hand(shapes: dict[str, tuple[int, ...]], density: float) -> dict[str, float]:
    """As in the program of RigL's authors: layers that would be over-full are dense, and the factor anew."""
    dense: set[str] = set()
    while True:
        rest = [name for name in shapes if name not in dense]
        left = density * sum(map(math.prod, shapes.values())) - sum(math.prod(shapes[name]) for name in dense)
        factor = left / sum(sum(shapes[name]) for name in rest)
        found = {name: factor * sum(shapes[name]) / math.prod(shapes[name]) for name in rest}
        over = {name for name, value in found.items() if value > 1}
        if not over:
            return {name: found.get(name, 1.0) for name in shapes}
        dense |= over


@pytest.mark.parametrize("p_prune", [0.1, 0.3, 0.5, 0.9])
def test_erdos_renyi_kernel(p_prune: float) -> None:
    model = stack()
    wanted = erk_by_hand({name: tuple(w.shape) for name, w in weights(model).items()}, 1 - p_prune)
    masks = prunus.make_masks(model, p_prune, scope="erk", layers="all")
    for name, mask in masks.items():
        assert abs(int(mask.sum()) - wanted[name] * mask.numel()) <= 1.5


def blocks_of(layer: nn.Module, down: int, across: int) -> list[list[tuple[int, ...]]]:
    """The indices of the weights of each block, in order: written out."""
    weight, groups = layer.get_parameter("weight"), getattr(layer, "groups", 1)
    transposed = getattr(layer, "transposed", False)
    first, second = weight.shape[0] // groups, weight.shape[1]
    a, b = (across, down) if transposed else (down, across)
    found: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for index in itertools.product(*map(range, weight.shape)):
        group, row = divmod(index[0], first)
        found.setdefault((group, row // a, index[1] // b), []).append(index)
    assert second
    return [found[key] for key in sorted(found)]


@LAYERS
@pytest.mark.parametrize("norm", ["l1", "mean"])
@pytest.mark.parametrize("block", [(1, 1), (2, 1), (1, 2), (4, 4), (3, 2), (16, 1)])
@pytest.mark.filterwarnings("ignore:granularity=")
def test_blocks(layer: nn.Module, norm: str, block: tuple[int, int]) -> None:
    name = f"{block[0]}x{block[1]}"
    [tensor] = prunus.rank(layer, granularity=name, norm=norm, layers="all").tensors
    weight = layer.get_parameter("weight").detach().double().abs()
    pieces = blocks_of(layer, *block)
    sums = torch.stack([torch.stack([weight[i] for i in piece]).sum() for piece in pieces])
    sizes = torch.tensor([len(piece) for piece in pieces])
    wanted = sums / sizes if norm == "mean" else sums
    torch.testing.assert_close(tensor.scores.every(0, 1).double(), wanted, rtol=1e-5, atol=1e-6)
    if block == (1, 1):
        [kernels] = prunus.rank(layer, granularity="kernel", norm=norm, layers="all").tensors
        assert torch.equal(kernels.scores.every(0, 1), tensor.scores.every(0, 1))
    mask = prunus.make_masks(layer, 0.5, granularity=name, norm=norm, layers="all")["weight"]
    fallen = set(wanted.float().argsort(stable=True)[: len(pieces) // 2].tolist())
    found = {i for i, piece in enumerate(pieces) if not any(bool(mask[index]) for index in piece)}
    assert len(found) == len(fallen)
    assert all(len({bool(mask[index]) for index in piece}) == 1 for piece in pieces)
    assert wanted[list(found)].sum().item() == pytest.approx(wanted[list(fallen)].sum().item(), rel=1e-4)


def test_ragged_blocks_are_said_and_blocks_of_nothing_refused() -> None:
    with pytest.warns(
        UserWarning, match=r"granularity='4x4' does not divide 1 tensor, such as weight of shape"
    ):
        prunus.make_masks(nn.Linear(10, 7), 0.5, granularity="4x4", layers="all")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prunus.make_masks(nn.Linear(8, 4), 0.5, granularity="4x4", layers="all")
    with pytest.raises(ValueError, match="block of nothing"):
        prunus.make_masks(nn.Linear(8, 4), 0.5, granularity="0x4", layers="all")


def test_fractions_by_name() -> None:
    model = stack()
    masks = prunus.make_masks(model, {"0": 0.5, "[12].*": 0.25, "*": 0.0}, layers="all")
    sizes = {name: weight.numel() for name, weight in weights(model).items()}
    assert masks.counts["0.weight"][0] == int(0.5 * sizes["0.weight"])
    assert masks.counts["4.weight"][0] == 0
    both = masks.counts["1.weight"][0] + masks.counts["2.weight"][0]
    assert both == int(0.25 * (sizes["1.weight"] + sizes["2.weight"]))  # together, as the scope is global
    by_layer = prunus.make_masks(model, {"[12].*": 0.25}, scope="layer")
    assert by_layer.counts["1.weight"][0] == int(0.25 * sizes["1.weight"])
    assert by_layer["0.weight"].all()
    whole = prunus.make_masks(model, {"*": 0.3}, layers="all")
    assert whole == prunus.make_masks(model, 0.3, layers="all")
    pruning = prunus.prune(model, {"0": 0.5}, granularity="filter")
    deeper = pruning.deepen({"0": 0.75, "1": 0.5})
    assert deeper.counts["0.weight"][0] == 0.75 * sizes["0.weight"]
    prunus.restore(model)
    prunus.global_prune(model, {"0": 0.5}, keep_original=False)
    assert int((model[0].weight == 0).sum()) == sizes["0.weight"] // 2


@pytest.mark.parametrize(
    ("amount", "message"),
    [
        ({}, "p_prune is empty: expected a fraction by each name pattern"),
        ({"0": 1.5}, r"p_prune of '0' must be in \[0, 1\], got 1.5"),
        ({"conv": 0.5}, "'conv' matches no weight; names are like 0.weight, 1.weight"),
        ({"*": 0.5, "0": 0.25}, "'0' matches no weight that '.*' has not taken"),
    ],
)
def test_wrong_fractions_by_name_change_nothing(amount: dict[str, float], message: str) -> None:
    model = stack()
    with pytest.raises(ValueError, match=message):
        prunus.prune(model, amount)
    assert not prunus.masks_of(model)


def test_whole_filters_fall_layer_by_layer_and_no_layer_is_emptied() -> None:
    """Over the network, the sums of small layers would fall first: 11 of the 20 layers of a ResNet-18."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), *(nn.Conv2d(16, 16, 3) for _ in range(3)), nn.Conv2d(16, 64, 3)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for granularity in ("filter", "channel"):
            masks = prunus.make_masks(model, 0.9, granularity=granularity)
            assert all(mask.any() for mask in masks.values())
            [point] = prunus.sweep(
                model,
                [(torch.rand(1, 3, 16, 16), torch.zeros(1, 6, 6).long())],
                p_prune=0.9,
                granularity=granularity,
                metric=lambda outputs, labels: 0.0,
            )
            assert (point.setting.scope, point.layers) == ("layer", masks.counts)
    assert prunus.make_masks(model, 0.5, granularity="filter", scope="global") != prunus.make_masks(
        model, 0.5, granularity="filter"
    )


@pytest.mark.parametrize("command", ["inspect", "sweep", "eval"])
def test_budgets_on_the_command_line(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: pytest.TempPathFactory
) -> None:
    arguments = [command, "-a", "digits:residual", "--p-prune", "0.5", "--granularity", "weight"]
    arguments += ["--prune-type", "global"] if command == "eval" else []
    arguments += ["-o", f"{tmp_path}/results"] if command == "sweep" else []
    assert main([*arguments, "--scope", "2:4", "--exclude", "0"]) == 0
    assert ("27,648" if command == "inspect" else "0.5000") in capsys.readouterr().out  # half of six layers
    arguments = [one.replace("/results", "/others") for one in arguments]
    assert main([*arguments, "--scope", "2:4"]) == 1
    assert "the 1 inputs of 0.weight are no multiple of 4: exclude it" in capsys.readouterr().err
    assert main([*arguments, "--scope", "2:5:1"]) == 2
    assert "is not one of global, layer, uniform, erk, row, n:m" in capsys.readouterr().err


@pytest.mark.parametrize("scope", ["uniform", "erk"])
@given(
    steps=st.lists(st.floats(0, 1), min_size=2, max_size=5).map(sorted),
    sides=st.lists(st.integers(1, 9), min_size=2, max_size=4),
)
@settings(max_examples=60, deadline=None)
@pytest.mark.filterwarnings("ignore:pruning empties")
def test_rounded_budgets_are_exact_and_nest(scope: str, steps: list[float], sides: list[int]) -> None:
    model = nn.Sequential(*(nn.Linear(side, 7, bias=False) for side in sides))
    pruning = prunus.prune(model, steps[0], scope=scope, layers="all")
    total = 7 * sum(sides)
    for p_prune in steps:
        before = pruning.masks
        masks = pruning.deepen(p_prune)
        assert masks.pruned == int(p_prune * total)
        assert masks & before == masks


def test_a_rounding_that_goes_up_is_taken_back() -> None:
    model = nn.Sequential(
        nn.Linear(20, 20), nn.Linear(25, 10)
    )  # 0.7 · 400 + 0.7 · 250 > 0.7 · 650, in floats
    assert prunus.make_masks(model, 0.7, layers="all", scope="uniform").pruned == int(0.7 * 650)


def test_synaptic_flow_goes_in_cuts_when_deepened_and_within_every_scope() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 2, 1),
    )
    known = prunus.evidence(model, [(torch.rand(2, 1, 3, 3), torch.zeros(2))], criterion="synflow")
    choice = {"criterion": "synflow", "evidence": known}
    for scope in ("global", "layer", "uniform", "erk", "row"):
        prunus.make_masks(model, 0.5, scope=scope, **choice)
    with pytest.raises(ValueError, match="criterion='synflow' goes in 100 cuts, and scope='2:4' allows one"):
        prunus.make_masks(model, 0.5, scope="2:4", exclude="0", **choice)
    pruning = prunus.prune(model, 0.1, **choice)
    deeper = pruning.deepen(0.97)
    assert all(mask.any() for mask in deeper.values())
    assert deeper.pruned == int(0.97 * deeper.total)
    by_name = prunus.make_masks(model, {"2": 0.9, "*": 0.5}, **choice)
    assert by_name.counts["2.weight"][0] == int(0.9 * 4608)


def test_all_names_of_a_tied_weight_count() -> None:
    embed, out = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
    out.weight = embed.weight
    model = nn.ModuleDict({"embed": embed, "out": out})
    assert prunus.make_masks(model, {"out": 0.5}, layers="all").pruned == 18
    with pytest.raises(ValueError, match="nothing to prune"):
        prunus.make_masks(nn.Sequential(nn.Conv2d(4, 0, 3)), 0.5)
