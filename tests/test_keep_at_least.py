"""Every weight tensor keeps its highest pieces, and the count stays exact: beside sorting in plain Python."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import prunus
from prunus import digits
from prunus.cli.main import main
from tests.conftest import small_net, stream_few
from tests.test_faults import assert_same, weights_of
from tests.test_scope import over_rows

Pieces = dict[str, list[float]]  # scores by weight name
Flags = dict[str, list[bool]]


@pytest.fixture(autouse=True, params=[False, True], ids=["small", "streamed"])
def streamed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole road for few scores too: samples of 20, chunks of 16, and brackets that often miss."""
    if request.param:
        stream_few(monkeypatch, sample=20, chunk=16, block=64)


def kept_by_sorting(scores: Pieces, count: int, least: int) -> Flags | None:
    """The obvious way; None where it cannot be done."""
    order = sorted(
        (score, at, i) for at, every in enumerate(scores.values()) for i, score in enumerate(every)
    )
    tops = [
        sorted((score, i) for i, score in enumerate(every))[-least:] if least else []
        for every in scores.values()
    ]
    spared = {(at, i) for at, top in enumerate(tops) for _, i in top}
    free = [(at, i) for _, at, i in order if (at, i) not in spared]
    if count > len(free):
        return None
    fallen = set(free[:count])
    return {n: [(at, i) not in fallen for i in range(len(scores[n]))] for at, n in enumerate(scores)}


def kept_by_scope(scores: Pieces, p: float, least: int, scope: str) -> Flags | None:
    if scope == "global":
        return kept_by_sorting(scores, int(p * sum(map(len, scores.values()))), least)
    kept: Flags = {}
    for name, every in scores.items():
        found = kept_by_sorting({name: every}, int(p * len(every)), least)
        if found is None:
            return None
        kept |= found
    return kept


@st.composite
def networks(draw: st.DrawFn) -> nn.Sequential:
    """Layers of very different sizes and scales, with ties, so that some would lose all they have."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    layers = []
    for _ in range(draw(st.integers(1, 4))):
        out, into, side = (draw(st.integers(1, limit)) for limit in (7, 5, 3))
        layer = nn.Conv2d(into, out, side, bias=False)
        levels, scale = draw(st.sampled_from([1, 3, 1000])), draw(st.sampled_from([1, 2, 64]))
        values = torch.randint(-levels, levels + 1, layer.weight.shape, generator=generator)
        layer.weight = nn.Parameter(values / 8 * scale)
        layers.append(layer)
    return nn.Sequential(*layers)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    networks(),
    st.lists(st.one_of(st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.floats(0, 1)), min_size=1, max_size=3),
    st.one_of(st.integers(0, 4), st.sampled_from([20, 10**9])),
    st.sampled_from(["weight", "kernel", "filter", "channel"]),
    st.sampled_from(["global", "layer"]),
)
def test_what_is_kept_is_what_a_sort_keeps(
    model: nn.Sequential, fractions: list[float], least: int, granularity: str, scope: str
) -> None:
    ranking = prunus.rank(model, granularity=granularity, scope=scope, keep_at_least=least)
    scores = {name: found.every(0, 1).tolist() for name, found in ranking.scores.items()}
    expected = [kept_by_scope(scores, p, least, scope) for p in fractions]
    if None in expected:
        with pytest.raises(ValueError, match=r"keep_at_least protects [\d,]+ of them, which leaves"):
            list(ranking.candidates(fractions))
        return
    for candidates, kept in zip(ranking.candidates(fractions), expected, strict=True):
        assert {name: flags.tolist() for name, flags in candidates.kept.items()} == kept
    assert {name: found.every(0, 1).tolist() for name, found in ranking.scores.items()} == scores


def uneven() -> nn.Sequential:
    """A first layer that scores far below the second."""
    model = small_net()
    with torch.no_grad():
        model[0].weight.mul_(1e-6)
    return model


def test_every_verb_keeps_a_piece_of_every_layer_and_prunes_as_many() -> None:
    model, data = uneven(), [(torch.rand(2, 3, 8, 8), torch.tensor([0, 1]))]
    total = 8 * 27 + 12 * 72
    for least in (1, 5):
        masks = prunus.make_masks(model, 0.5, keep_at_least=least)
        assert masks.pruned == total // 2
        assert int(masks["0.weight"].sum()) == least
        top = model[0].weight.detach().abs().flatten().topk(least).indices
        assert masks["0.weight"].flatten()[top].all()
        for model_, again in (
            (model, prunus.prune(model, 0.5, keep_at_least=least).masks),
            (prunus.global_prune(model, 0.5, keep_at_least=least), None),
            (prunus.gradient_prune(model, 0.5, keep_at_least=least), None),
        ):
            assert (again or prunus.masks_of(model_)) == masks
        prunus.restore(model)
        surrogate = prunus.Diversified(model, 0.5, 1.0, keep_at_least=least)
        assert surrogate.redraw() == masks
        points = prunus.sweep(model, data, p_prune=(0.5, 0.9), keep_at_least=least)
        assert points[0].layers == masks.counts
        assert points[1].layers["0.weight"] == (216 - least, 216)
        assert points[1].setting.keep_at_least == least
    with pytest.warns(UserWarning, match="empties"):
        assert prunus.make_masks(model, 0.5)["0.weight"].sum() == 0
    prunus.global_prune(model, 0.5, keep_at_least=5, keep_original=False)
    assert int(model[0].weight.count_nonzero()) == 5


def test_a_floor_that_leaves_too_few_is_refused_with_the_counts() -> None:
    model = prunus.global_prune(small_net(), 0.2)
    before = weights_of(model)
    with pytest.raises(
        ValueError, match=r"asks for 1,080 of the 1,080 pieces of 2 tensors, but .* 2 of them, "
    ):
        prunus.global_prune(model, 1.0, keep_at_least=1)
    with pytest.raises(
        ValueError, match=r"8 of the 8 pieces of 0\.weight, .* 1 of them, which leaves 7: lower"
    ):
        prunus.prune(model, 1.0, keep_at_least=1, scope="layer", granularity="filter")
    for wrong in (-1, 1.5, True, "1"):
        with pytest.raises(ValueError, match="keep_at_least must be a whole number from 0, got"):
            prunus.make_masks(model, 0.5, keep_at_least=wrong)  # type: ignore[arg-type]
    assert_same(model, before)


def test_a_scope_of_ones_own_has_to_keep_them_itself() -> None:
    model = small_net()
    before = weights_of(model)
    assert prunus.make_masks(model, 0.5, scope=over_rows, keep_at_least=5) == prunus.make_masks(
        model, 0.5, scope=over_rows
    )
    for keep_original in (True, False):
        with pytest.raises(ValueError, match=r"scope keeps 0 of 216 pieces of 0\.weight; keep_at_least=5"):
            prunus.global_prune(model, 1.0, scope=over_rows, keep_at_least=5, keep_original=keep_original)
    assert_same(model, before)


@pytest.mark.parametrize("least", [1, 10**6])
def test_weights_that_cannot_be_ranked(least: int) -> None:
    model = small_net()
    with torch.no_grad():
        model[3].weight[1, 2, 0, 1] = torch.inf
    with pytest.raises(ValueError, match=r"3\.weight has values or scores that are NaN or infinite"):
        prunus.make_masks(model, 0.0, keep_at_least=least)


def test_in_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["inspect", "-a", "digits:plain", "--p-prune", "0.95", "--granularity", "filter"]
    arguments += ["--scope", "global"]
    assert main([*arguments, "--keep-at-least", "1"]) == 0
    out = capsys.readouterr().out
    masks = prunus.make_masks(
        digits.load_network("plain"), 0.95, granularity="filter", scope="global", keep_at_least=1
    )
    assert all(pruned < total for pruned, total in masks.counts.values())
    for name, (pruned, total) in masks.counts.items():
        row = next(row for row in out.splitlines() if row.startswith(f"{name.removesuffix('.weight')} "))
        assert row.split()[-6:-3] == [f"{total:,}", f"{pruned:,}", f"{pruned / total:.4f}"]
    assert main([*arguments, "--keep-at-least", "64"]) == 1
    assert "keep_at_least protects" in capsys.readouterr().err


EMPTIED = (
    r"empties 1 of 2 layers, all of whose weights fall: 0\.weight \(216 weights\); keep_at_least=1 leaves"
)


def test_a_layer_that_is_emptied_is_warned_of_once_a_call() -> None:
    for verb in (
        prunus.make_masks,
        prunus.prune,
        prunus.global_prune,
        prunus.gradient_prune,
        partial(prunus.global_prune, keep_original=False),
    ):
        with pytest.warns(UserWarning, match=EMPTIED) as caught:
            verb(uneven(), 0.5)  # type: ignore[operator]
        assert [warning.filename for warning in caught] == [__file__]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            verb(uneven(), 0.5, keep_at_least=1)  # type: ignore[operator]
            verb(uneven(), 1.0)  # type: ignore[operator]
            verb(uneven(), 0.1)  # type: ignore[operator]


def test_a_warning_made_an_error_leaves_the_model_as_it_was() -> None:
    model = prunus.global_prune(uneven(), 0.1)
    before = weights_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for verb in (prunus.prune, prunus.global_prune, prunus.gradient_prune, prunus.make_masks):
            with pytest.raises(UserWarning, match=EMPTIED):
                verb(model, 0.5)  # type: ignore[operator]
    assert_same(model, before)


def test_many_draws_and_settings_warn_once_or_never() -> None:
    model, data = uneven(), [(torch.rand(2, 3, 8, 8), torch.tensor([0, 1]))]
    with pytest.warns(UserWarning, match="empties 1 of 2 layers") as caught:  # noqa: PT031  # redraws are silent
        pruning = prunus.prune(model, 0.5)
        for _ in range(3):
            pruning.redraw()
    assert len(caught) == 1
    pruning.restore()
    says = r"1 of 2 layers at 2 of 4 settings \(p_prune from 0\.5\), all of whose weights fall: 0\.weight \("
    with pytest.warns(UserWarning, match=says) as caught:
        prunus.sweep(model, data, p_prune=(0.1, 0.5, 0.9, 1.0))
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        surrogate = prunus.Diversified(model, 0.5, 1.0)
        for _ in range(3):
            surrogate.redraw()
        prunus.sweep(model, data, p_prune=(0.5, 0.9), keep_at_least=1)


def test_many_emptied_layers_are_counted_and_the_first_named() -> None:
    small = [nn.Conv2d(1, 1, 1) for _ in range(7)]
    for layer in small:
        nn.init.constant_(layer.weight, 1e-9)
    with pytest.warns(
        UserWarning, match=r"7 of 8 layers.* 0\.weight \(1 weight\), .*4\.weight.* and 2 more;"
    ):
        prunus.make_masks(nn.Sequential(*small, nn.Conv2d(1, 50, 3)), 0.1)


def test_eval_and_sweep_say_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["eval", "-a", "digits:plain", "--prune-type", "global", "--granularity", "filter"]
    arguments += ["--scope", "global"]
    assert main([*arguments, "--p-prune", "0.95"]) == 0
    assert capsys.readouterr().err.count("warning: pruning empties 1 of 3 layers") == 1
    assert main([*arguments, "--p-prune", "0.95", "--keep-at-least", "1"]) == 0
    assert "warning" not in capsys.readouterr().err
