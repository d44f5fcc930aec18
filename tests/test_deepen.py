"""Deeper pruning is only among survivors: masks nest, counts are exact, beside a reference of ten lines."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import prunus
from tests.conftest import small_net, stream_few


def deeper(scores: list[Tensor], before: list[Tensor], p_prune: float) -> list[Tensor]:
    """Which pieces are candidates: those of before, then the lowest, of equal ones the first."""
    flat, was = torch.cat(scores), torch.cat(before)
    order = sorted(range(len(flat)), key=lambda i: (not was[i], 0 if was[i] else float(flat[i]), i))
    fallen = torch.zeros(len(flat), dtype=torch.bool)
    fallen[order[: int(p_prune * len(flat))]] = True
    return list(fallen.split([len(part) for part in scores]))


def parameters(model: nn.Module, masks: prunus.Masks) -> list[Tensor]:
    return [model.get_parameter(name).detach() for name in masks]


@pytest.mark.parametrize("streamed", [False, True], ids=["small", "streamed"])
@pytest.mark.filterwarnings("ignore:pruning empties")
@given(
    steps=st.lists(st.floats(0, 1), min_size=2, max_size=4).map(sorted),
    scope=st.sampled_from(["global", "layer"]),
    passes=st.sampled_from(["both", "backward", "forward"]),
    granularity=st.sampled_from(["weight", "kernel", "filter"]),
    levels=st.sampled_from([2, 1000]),
)
@settings(max_examples=25, deadline=None)
def test_candidates_are_those_of_before_and_the_lowest_of_the_others(
    streamed: bool, steps: list[float], scope: str, passes: str, granularity: str, levels: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if streamed:
            stream_few(patch, sample=20, chunk=16, block=64)
        model = small_net()
        torch.manual_seed(len(steps))
        choice = {"scope": scope, "granularity": granularity}
        pruning = prunus.prune(model, steps[0], passes=passes, **choice)
        before = [~kept for kept in pruning.candidates.kept.values()]
        for p_prune in steps[1:]:
            with torch.no_grad():  # as training does, though to values many of which are equal
                for weight in parameters(model, pruning.masks):
                    weight.copy_(torch.randint(1, levels, weight.shape) * torch.randn(weight.shape).sign())
            former = pruning.masks
            model(torch.zeros(1, 3, 8, 8))
            scores = [
                prunus.rank(model, **choice).scores[name].every(0, 1).double() for name in pruning.masks
            ]
            expected = (
                deeper(scores, before, p_prune)
                if scope == "global"
                else [deeper([s], [b], p_prune)[0] for s, b in zip(scores, before, strict=True)]
            )
            masks = pruning.deepen(p_prune)
            before = [~kept for kept in pruning.candidates.kept.values()]
            assert all(torch.equal(a, b) for a, b in zip(before, expected, strict=True))
            assert masks & former == masks
            assert prunus.masks_of(model) == masks
            assert all(
                not weight[~mask].any() or passes == "backward"
                for weight, mask in zip(parameters(model, masks), masks.values(), strict=True)
            )


def test_what_was_drawn_stands_and_only_new_candidates_are_drawn() -> None:
    model = nn.Conv2d(64, 64, 3)
    pruning = prunus.prune(model, 0.4, p_bern=0.5, seed=0)
    first, candidates = pruning.masks["weight"], ~pruning.candidates.kept["weight"].view_as(model.weight)
    second = pruning.deepen(0.8)["weight"]
    assert torch.equal(first[candidates], second[candidates])
    joined = ~pruning.candidates.kept["weight"].view_as(model.weight) & ~candidates
    assert int(joined.sum()) == int(0.8 * model.weight.numel()) - int(0.4 * model.weight.numel())
    assert 0.47 < float((~second[joined]).float().mean()) < 0.53
    assert second[~joined & ~candidates].all()
    drawn = pruning.redraw()["weight"]  # of all candidates, as ever
    assert not torch.equal(drawn[candidates], second[candidates])


def test_less_than_before_is_refused_and_changes_nothing() -> None:
    model = small_net()
    pruning = prunus.prune(model, 0.5)
    masks, values = pruning.masks, copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"p_prune=0\.25 is less than before"):
        pruning.deepen(0.25)
    with pytest.raises(ValueError, match=r"p_prune must be .* got 1\.5"):
        pruning.deepen(1.5)
    assert pruning.masks is masks
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    prunus.restore(model)
    with pytest.raises(RuntimeError, match="has ended"):
        pruning.deepen(0.75)


def test_the_floor_holds_and_new_evidence_counts() -> None:
    model = small_net()
    names = list(prunus.make_masks(model, 0))

    def evidence(seed: int) -> prunus.Evidence:
        torch.manual_seed(seed)
        return prunus.evidence(model, [(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0]))])

    choice = {"criterion": "taylor", "keep_at_least": 3}
    [early, late] = [
        prunus.prune(copy.deepcopy(model), 0.5, evidence=evidence(0), **choice) for _ in range(2)
    ]
    assert early.deepen(0.9) != late.deepen(0.9, evidence=evidence(1))
    for pruning in (early, late):
        assert all(int(pruning.masks[name].sum()) >= 3 for name in names)
        assert pruning.masks.pruned == int(0.9 * pruning.masks.total)


def test_a_layer_that_deepening_empties_is_said_once() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 64, 3))
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
    with pytest.warns(UserWarning, match="0.weight"):
        pruning = prunus.prune(model, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruning.deepen(0.6)
    assert not prunus.masks_of(model)["0.weight"].any()


def test_survivors_are_restored_as_trained_and_the_fallen_as_they_were_when_they_fell() -> None:
    model = nn.Conv2d(1, 16, 3, bias=False)
    start = model.weight.detach().clone()
    pruning = prunus.prune(model, 0.25)
    first = pruning.masks["weight"]
    with torch.no_grad():
        model.weight.add_(first * 1.0)
    second = pruning.deepen(0.75)["weight"]
    with torch.no_grad():
        model.weight.add_(second * 1.0)
    prunus.restore(model)
    assert torch.equal(model.weight, start + first * 1.0 + second * 1.0)
