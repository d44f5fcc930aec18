"""The lowest `int(p · N)` pieces, exactly, whatever the scores."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import prunus
from prunus.selection.pieces import Partition
from prunus.selection.scope import over_layers, over_network
from prunus.selection.scored import Scored, Scores, Stored
from tests.conftest import stream_few

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def lowest_by_sorting(scores: dict[str, Tensor], fraction: float) -> dict[str, Tensor]:
    """The obvious way: sort everything, ties by position, take the first ones."""
    flat = np.concatenate([score.double().numpy() for score in scores.values()])
    chosen = np.zeros(len(flat), bool)
    chosen[np.argsort(flat, kind="stable")[: int(fraction * len(flat))]] = True
    parts = torch.from_numpy(chosen).split([len(score) for score in scores.values()])
    return dict(zip(scores, parts, strict=True))


def scored(name: str, scores: Scores) -> Scored:
    """Scores of a vector of single weights."""
    count = len(scores)
    return Scored(name, scores, Partition(torch.Size([count]), (1, count, 1, 1), transposed=False, inside=()))


def stored(scores: dict[str, Tensor]) -> list[Scored]:
    return [scored(name, Stored(score)) for name, score in scores.items()]


@st.composite
def score_sets(draw: st.DrawFn) -> dict[str, Tensor]:
    """Several tensors of scores: spread, tied, all equal, mostly zero, denormal, both zeros, mixed dtypes."""
    seed = draw(st.integers(0, 2**32 - 1))
    generator = torch.Generator().manual_seed(seed)
    kinds = {
        "spread": lambda n: torch.rand(n, generator=generator, dtype=torch.float64),
        "15 levels": lambda n: torch.randint(15, (n,), generator=generator) / 15,
        "all equal": lambda n: torch.full((n,), 0.5),
        "mostly zero": lambda n: torch.rand(n, generator=generator).sub(0.9).clamp(min=0),
        "denormal": lambda n: torch.randint(4, (n,), generator=generator).double() * 2.0**-149,
        "both zeros": lambda n: torch.zeros(n) * torch.randint(-1, 2, (n,), generator=generator),
        "wide": lambda n: torch.randn(n, generator=generator, dtype=torch.float64).mul(9).exp(),
    }
    sizes = draw(
        st.lists(st.one_of(st.just(1), st.integers(1, 40), st.integers(1, 4000)), min_size=1, max_size=6)
    )
    kind = draw(st.sampled_from(sorted(kinds)))
    one = draw(st.sampled_from(DTYPES))
    mixed = draw(st.booleans())
    dtypes = [DTYPES[(seed + index) % 4] if mixed else one for index in range(len(sizes))]
    scores = {str(i): kinds[kind](n).to(d) for i, (n, d) in enumerate(zip(sizes, dtypes, strict=True))}
    return {name: score.clamp(max=torch.finfo(score.dtype).max) for name, score in scores.items()}


fractions = st.one_of(st.sampled_from([0.0, 1.0, 0.5, 0.3, 1 / 3, 1e-9]), st.floats(0, 1))


@pytest.fixture(autouse=True, params=[False, True], ids=["small", "streamed"])
def streamed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole road for few scores too: samples of 50, chunks of 64, and brackets that often miss."""
    if request.param:
        stream_few(monkeypatch, sample=50, chunk=64, block=128)


anyway = [HealthCheck.function_scoped_fixture]  # it is the same for every example


@settings(max_examples=300, deadline=None, suppress_health_check=anyway)
@given(score_sets(), st.lists(fractions, min_size=1, max_size=4))
def test_the_lowest_fraction_is_that_of_a_sort(scores: dict[str, Tensor], fractions: list[float]) -> None:
    for fraction, stream in zip(fractions, over_network(stored(scores), fractions), strict=True):
        kept = dict(stream)
        expected = lowest_by_sorting(scores, fraction)
        assert list(kept) == list(scores)
        assert all(torch.equal(~kept[name], expected[name]) for name in scores)


@settings(max_examples=100, deadline=None, suppress_health_check=anyway)
@given(score_sets(), fractions)
def test_layer_scope_cuts_every_layer_by_itself(scores: dict[str, Tensor], fraction: float) -> None:
    [stream] = over_layers(stored(scores), [fraction])
    kept = dict(stream)
    for name, score in scores.items():
        assert torch.equal(~kept[name], lowest_by_sorting({name: score}, fraction)[name])
        assert int((~kept[name]).sum()) == int(fraction * len(score))


class Counted:
    """Scores that count how often they are read through."""

    def __init__(self, scores: Tensor) -> None:
        self.stored, self.passes = Stored(scores), 0
        self.dtype, self.device = scores.dtype, scores.device

    def __len__(self) -> int:
        return len(self.stored)

    def chunks(self, scratch: Tensor) -> Iterator[np.ndarray]:
        self.passes += 1
        return self.stored.chunks(scratch)

    def every(self, first: int, step: int) -> Tensor:
        return self.stored.every(first, step)


@pytest.mark.parametrize("levels", [15, 2**20])
def test_many_ratios_are_ranked_in_the_passes_of_one(levels: int) -> None:
    source = Counted(torch.randint(levels, (10**5,)).float())
    streams = over_network([scored("weight", source)], [index / 20 for index in range(20)])
    assert source.passes <= 3
    before = source.passes
    for count, stream in enumerate(streams, 1):
        dict(stream)
        assert source.passes == before + count


@st.composite
def networks(draw: st.DrawFn) -> nn.Sequential:
    """Layers with weights of any floating type and memory layout, with ties."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    layers = []
    for _ in range(draw(st.integers(1, 4))):
        out, into, side = (draw(st.integers(1, limit)) for limit in (9, 9, 3))
        layer = nn.Conv2d(into, out, side, bias=False, dtype=draw(st.sampled_from(DTYPES)))
        levels = draw(st.sampled_from([2, 15, 10**6]))
        values = torch.randint(-levels, levels + 1, (out, into, side, side), generator=generator) / levels
        order = draw(st.permutations(range(4)))
        spacing = draw(st.integers(1, 2))
        places = values.permute(order).repeat_interleave(spacing, -1).to(layer.weight.dtype)
        layer.weight = nn.Parameter(places[..., ::spacing].permute(*np.argsort(order)))
        layers.append(layer)
    return nn.Sequential(*layers)


@settings(max_examples=200, deadline=None, suppress_health_check=anyway)
@given(networks(), fractions, st.booleans())
def test_weights_of_any_layout_and_of_a_pruned_network(
    model: nn.Sequential, fraction: float, pruned: bool
) -> None:
    scores = {f"{index}.weight": layer.weight.detach().abs().flatten() for index, layer in enumerate(model)}
    expected = lowest_by_sorting(scores, fraction)
    if pruned:
        prunus.global_prune(model, 0.5)
    masks = prunus.make_masks(model, fraction)
    assert all(torch.equal(~mask.flatten(), expected[name]) for name, mask in masks.items())


def test_a_small_layer_among_large_ones_in_another_layout() -> None:
    model = nn.Sequential(nn.Conv2d(64, 64, 3), nn.Conv2d(2, 1, 2), nn.Conv2d(64, 128, 3))
    wanted = prunus.make_masks(model, 0.3)
    assert prunus.make_masks(model.to(memory_format=torch.channels_last), 0.3) == wanted
