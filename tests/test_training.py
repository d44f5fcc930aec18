"""Pruned while it trains: exact counts that nest, cleared state, and a resumed run that is the same."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.masks import Masks

SCHEDULES = [prunus.Cubic(), prunus.Linear(), prunus.Exponential(), prunus.OneShot(), prunus.Iterative(0.6)]
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, after: Callable[[int], Any]
) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(8, 1, 6, 6, generator=generator), torch.randint(3, (8,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        after(step)


@settings(max_examples=60, deadline=None)
@given(
    schedule=st.sampled_from(SCHEDULES),
    to=st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]),
    cuts=st.integers(5, 9),
    scope=st.sampled_from(["global", "layer", "erk"]),
)
def test_counts_are_exact_and_masks_nest(schedule: prunus.Schedule, to: float, cuts: int, scope: str) -> None:
    if isinstance(schedule, prunus.Iterative) and to == 1.0:
        return  # which is never reached
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    steps = range(2, 2 + cuts)
    pruner = prunus.Gradual(
        model, to, steps, schedule=schedule, optimizer=optimizer, layers="all", scope=scope
    )
    seen: list[Masks] = []

    def after(step: int) -> None:
        assert pruner.step() == (step in steps)
        if step in steps:
            part = schedule(0.0, to, step - 2, cuts)
            total = 36 + 192
            wanted = int(part * 36) + int(part * 192) if scope == "layer" else int(part * total)
            assert pruner.masks.pruned == wanted
            seen.append(Masks({name: mask.clone() for name, mask in pruner.masks.items()}))
        for name, mask in pruner.masks.items():
            assert not model.get_parameter(name)[~mask].any()
            momentum = optimizer.state[model.get_parameter(name)]["momentum_buffer"]
            assert not momentum[~mask].any()

    train(model, optimizer, range(1, 4 + cuts), after)
    assert all((later[name] <= mask).all() for mask_, later in pairwise(seen) for name, mask in mask_.items())
    assert prunus.sparsity(model).zeros == seen[-1].pruned


@given(cycles=st.integers(1, 5), more=st.integers(0, 9), to=st.floats(0.1, 1))
def test_every_cycle_is_a_cubic_schedule(cycles: int, more: int, to: float) -> None:
    cuts = 2 * cycles + more
    amounts = [prunus.Cyclic(cycles)(0.0, to, cut, cuts) for cut in range(cuts)]
    begins = [cut for cut, amount in enumerate(amounts) if amount == 0.0]
    assert len(begins) == cycles
    for first, end in pairwise([*begins, cuts]):
        assert amounts[first:end] == [prunus.Cubic()(0.0, to, cut, end - first) for cut in range(end - first)]


def test_what_comes_back_between_cycles_starts_at_zero() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    pruner = prunus.Gradual(
        model, 0.8, range(1, 7), schedule=prunus.Cyclic(2), start=0.5, optimizer=optimizer, layers="all"
    )

    def after(step: int) -> None:
        fallen = {name: ~mask for name, mask in pruner.masks.items()}
        kept = {name: model.get_parameter(name).detach().clone() for name in fallen}
        pruner.step()
        if step == 4:
            assert pruner.masks.pruned == 114 < sum(int(gone.sum()) for gone in fallen.values())
            for name, gone in fallen.items():
                assert not model.get_parameter(name)[gone].any()
                survivors = pruner.masks[name] & ~gone
                assert torch.equal(model.get_parameter(name)[survivors], kept[name][survivors])
                assert not optimizer.state[model.get_parameter(name)]["momentum_buffer"][gone].any()

    train(model, optimizer, range(1, 7), after)
    assert pruner.masks.pruned == int(0.8 * 228)
    regrown = prunus.restore(model)
    assert prunus.sparsity(regrown).zeros < int(0.8 * 228)  # what fell last was something


def test_a_cycle_that_cannot_begin_leaves_all_as_it_was() -> None:
    model = network()
    bad = [False]

    def criterion(pieces: prunus.Pieces) -> Tensor:
        if bad[0]:
            raise OSError("no scores")
        return pieces.values.abs()

    pruner = prunus.Gradual(
        model, 0.8, range(1, 5), schedule=prunus.Cyclic(2), layers="all", criterion=criterion
    )
    pruner.step(), pruner.step()
    before, masks = copy.deepcopy(model.state_dict()), pruner.masks
    bad[0] = True
    with pytest.raises(OSError, match="no scores"):
        pruner.step()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert pruner.masks == masks == prunus.masks_of(model)
    bad[0] = False
    assert pruner.step()
    assert pruner.masks.pruned == 0


def test_the_cubic_schedule_is_that_of_the_paper() -> None:
    model = network()
    pruner = prunus.Gradual(model, 0.9, range(1000, 8000, 100), start=0.1, layers="all")
    for cut in (0, 1, 35, 69):
        t, t0, n, delta = 1000 + 100 * cut, 1000, 69, 100
        assert pruner.amount(cut) == pytest.approx(0.9 + (0.1 - 0.9) * (1 - (t - t0) / (n * delta)) ** 3)
    assert pruner.amount(69) == 0.9


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_what_optimizers_remember_of_what_falls_is_cleared(kind: str) -> None:
    model = network()
    optimizer = OPTIMIZERS[kind](model.parameters())
    pruner = prunus.Gradual(model, 0.5, [3], optimizer=optimizer, layers="all")
    checked = []

    def after(step: int) -> None:
        pruner.step()
        for name, mask in pruner.masks.items():
            parameter = model.get_parameter(name)
            for key, value in optimizer.state[parameter].items():
                if isinstance(value, Tensor) and value.shape == mask.shape:
                    assert not value[~mask].any(), key
                    assert value[mask].any() or step > 3
                    checked.append(key)

    train(model, optimizer, range(1, 6), after)
    assert checked


Made = Callable[[nn.Module, torch.optim.Optimizer], Any]
PRUNERS: dict[str, Made] = {
    "gradual": lambda m, o: prunus.Gradual(m, 0.8, range(2, 20, 3), optimizer=o, layers="all"),
    "random": lambda m, o: prunus.Gradual(
        m,
        0.8,
        range(2, 20, 3),
        optimizer=o,
        layers="all",
        criterion="random",
        seed=1,
    ),
    "iterative": lambda m, o: prunus.Gradual(
        m, {"0": 0.5, "4": 0.8}, range(2, 20, 3), schedule=prunus.Iterative(0.4), optimizer=o, layers="all"
    ),
    "cyclic": lambda m, o: prunus.Gradual(
        m, 0.8, range(2, 20, 3), schedule=prunus.Cyclic(2), optimizer=o, layers="all"
    ),
    "coupled": lambda m, o: prunus.Gradual(
        m,
        0.5,
        range(2, 20, 3),
        optimizer=o,
        granularity="filter",
        coupled=True,
        example_inputs=torch.zeros(1, 1, 6, 6),
    ),
    "set": lambda m, o: prunus.SET(m, 0.8, range(2, 20, 3), optimizer=o, layers="all", seed=1),
    "rigl": lambda m, o: prunus.RigL(m, 0.8, range(2, 20, 3), optimizer=o, layers="all", seed=1),
}


@pytest.mark.parametrize("kind", PRUNERS)
@pytest.mark.parametrize("stop", [1, 7, 8, 12])
@pytest.mark.parametrize("model_first", [True, False])
def test_a_resumed_run_is_the_undisturbed_one(kind: str, stop: int, model_first: bool) -> None:
    def begin() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        model = network()
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        return model, optimizer, PRUNERS[kind](model, optimizer)

    whole, optimizer, pruner = begin()
    train(whole, optimizer, range(1, 25), lambda _: pruner.step())
    half, optimizer, pruner = begin()
    train(half, optimizer, range(1, stop + 1), lambda _: pruner.step())
    file = io.BytesIO()
    torch.save([half.state_dict(), optimizer.state_dict(), pruner.state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again, optimizer, resumed = begin()
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.add_(1.0)  # another state than that which is loaded
    parts = list(zip((again, optimizer, resumed), saved, strict=True))
    for part, state in parts if model_first else reversed(parts):
        part.load_state_dict(state)
    train(again, optimizer, range(stop + 1, 25), lambda _: resumed.step())
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
    assert prunus.masks_of(again) == prunus.masks_of(whole)


@pytest.mark.parametrize("kind", ["set", "rigl"])
@pytest.mark.parametrize("scope", ["erk", "layer"])
def test_as_many_grow_as_fall(kind: str, scope: str) -> None:
    model = network()
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    made = prunus.RigL if kind == "rigl" else prunus.SET
    steps = range(3, 12, 3)
    pruner = made(model, 0.7, steps, optimizer=optimizer, drop=0.5, scope=scope, layers="all")
    counts = pruner.masks.counts
    state: dict[str, Any] = {}

    def backward_of_whole_weights(step: int) -> dict[str, Tensor]:
        """The gradient of every weight as if none were pruned: of the same network without masks."""
        other = copy.deepcopy(model)
        values = {name: p.detach().clone() for name, p in other.named_parameters()}
        prunus.restore(other)
        with torch.no_grad():
            for name, parameter in other.named_parameters():
                parameter.copy_(values[name])
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(8, 1, 6, 6, generator=generator), torch.randint(3, (8,), generator=generator)
        other.zero_grad()
        F.cross_entropy(other(x), y).backward()
        return {
            name: parameter.grad for name, parameter in other.named_parameters() if parameter.grad is not None
        }

    for step in range(1, 14):
        dense = backward_of_whole_weights(step)
        before = {name: mask.clone() for name, mask in pruner.masks.items()}

        def after(step: int, dense: dict[str, Tensor] = dense, before: dict[str, Tensor] = before) -> None:
            magnitudes = {name: model.get_parameter(name).detach().abs().clone() for name in before}
            moved = pruner.step()
            assert moved == (step in steps)
            assert pruner.masks.counts == counts
            for name, mask in pruner.masks.items():
                parameter, old = model.get_parameter(name), before[name]
                begun, gone = mask & ~old, old & ~mask
                if not moved:
                    assert torch.equal(mask, old)
                    continue
                part = 0.5 / 2 * (1 + math.cos(math.pi * steps.index(step) / len(steps)))
                count = min(int(part * int(old.sum())), int((~old).sum()))
                assert gone.sum() <= count
                dropped = magnitudes[name].masked_fill(~old, math.inf).flatten().argsort(stable=True)[:count]
                assert set(gone.flatten().nonzero().flatten().tolist()) <= set(dropped.tolist())
                assert not parameter[begun].any()
                assert not parameter[~mask].any()
                momentum = optimizer.state[parameter]["momentum_buffer"]
                assert not momentum[begun | ~mask].any()
                if kind == "rigl":
                    free = ~old.clone().flatten()
                    free[dropped] = True
                    best = dense[name].abs().flatten().masked_fill(~free, -1).argsort(descending=True)[:count]
                    grown = mask.flatten() & free
                    assert set(grown.nonzero().flatten().tolist()) == set(best.tolist())
            state["moved"] = state.get("moved", 0) + moved

        train(model, optimizer, range(step, step + 1), after)
    assert state["moved"] == 3


def test_no_gradient_is_kept_between_updates_and_scaled_infinities_move_nothing() -> None:
    model = network()
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    pruner = prunus.RigL(model, 0.7, [2, 4], optimizer=optimizer, layers="all")
    train(model, optimizer, range(1, 2), lambda _: pruner.step())
    before = {name: mask.clone() for name, mask in pruner.masks.items()}
    optimizer.zero_grad()
    (model(torch.randn(2, 1, 6, 6)) * math.inf).sum().backward()  # a scaler skips such a step
    assert pruner.step()
    assert all(torch.equal(mask, before[name]) for name, mask in pruner.masks.items())
    assert not pruner._gradients
    optimizer.zero_grad()
    train(model, optimizer, range(3, 4), lambda _: pruner.step())
    assert not pruner._gradients
    with pytest.raises(RuntimeError, match=r"has got no gradient in this step"):
        pruner.step()
    prunus.restore(model)
    with pytest.raises(RuntimeError, match="restored or pruned anew"):
        pruner.step()


def test_accumulated_gradients_are_summed() -> None:
    model = network().eval()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    pruner = prunus.RigL(model, 0.7, [1], optimizer=optimizer, layers="all")
    x, y = torch.randn(8, 1, 6, 6), torch.randint(3, (8,))
    for part in (slice(0, 4), slice(4, 8)):
        F.cross_entropy(model(x[part]), y[part], reduction="sum").backward()
    summed = {name: gradient.clone() for name, gradient in pruner._gradients.items()}
    pruner._gradients.clear()
    F.cross_entropy(model(x), y, reduction="sum").backward()
    for name, gradient in pruner._gradients.items():
        torch.testing.assert_close(summed[name], gradient)


def test_rewinding_weights_and_the_learning_rate() -> None:
    model = network()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
    train(model, optimizer, range(1, 4), lambda _: scheduler.step())
    snapshot = prunus.Snapshot(model, optimizer, scheduler)
    weights, statistics = model[4].weight.detach().clone(), model[1].running_mean.clone()
    train(model, optimizer, range(4, 10), lambda _: scheduler.step())
    pruning = prunus.prune(model, 0.5, layers="all")
    mask, late = pruning.masks["4.weight"], model[4].weight.detach().clone()
    snapshot.rewind(weights=False)
    assert torch.equal(model[4].weight, late)
    assert scheduler.last_epoch == 3
    assert optimizer.param_groups[0]["lr"] == 0.005
    assert optimizer.state[model[4].weight]["step"] == 3
    assert not optimizer.state[model[4].weight]["exp_avg"][~mask].any()
    snapshot.rewind()
    assert torch.equal(model[4].weight, weights * mask)
    assert torch.equal(model[1].running_mean, statistics)
    assert prunus.masks_of(model) == pruning.masks
    train(model, optimizer, range(4, 6), lambda _: scheduler.step())
    assert not model[4].weight[~mask].any()
    snapshot.rewind()  # again, and the state is what it was
    assert torch.equal(model[4].weight, weights * mask)
    with pytest.raises(TypeError, match="int has no state_dict"):
        prunus.Snapshot(model, 3)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"steps": 5}, TypeError, "steps must be numbers of steps"),
    ({"steps": []}, ValueError, "steps must be one or more rising numbers"),
    ({"steps": [3, 2]}, ValueError, "steps must be one or more rising numbers"),
    ({"steps": [0]}, ValueError, "steps must be a whole number from 1, got 0"),
    ({"to": 1.5}, ValueError, "to must be in .0, 1., got 1.5"),
    (
        {"schedule": prunus.Iterative(0.2)},
        ValueError,
        r"5 steps are too few: Iterative.* comes to 0.67",
    ),
    ({"optimizer": 3}, TypeError, "optimizer must be"),
    ({"colour": 1}, TypeError, "Gradual.. has no keyword 'colour'"),
]


@pytest.mark.parametrize(("changed", "error", "match"), BAD, ids=[match[:30] for _, _, match in BAD])
def test_wrong_arguments(changed: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        prunus.Gradual(network(), **{"to": 0.9, "steps": range(1, 6), "layers": "all", **changed})


def test_states_of_others_are_refused() -> None:
    model = network()
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    for made in (
        lambda steps, m: prunus.Gradual(m, 0.5, steps, layers="all"),
        lambda steps, m: prunus.SET(m, 0.5, steps, optimizer=optimizer, layers="all"),
    ):
        pruner = made([1, 2], model)
        pruner.step()
        before = prunus.masks_of(model)
        with pytest.raises(ValueError, match="the state is of other steps: 1 up to 3, here 2 up to 2"):
            pruner.load_state_dict(made([3], network()).state_dict())
        other = made([1, 2], nn.Sequential(nn.Linear(3, 4)))
        other.step()
        with pytest.raises(ValueError, match="the state is of another network"):
            pruner.load_state_dict(other.state_dict())
        assert prunus.masks_of(model) == before


def test_evidence_is_collected_at_every_cut() -> None:
    model = network()
    data = [(torch.randn(4, 1, 6, 6), torch.tensor([0, 1, 2, 0]))]
    calls: list[int] = []

    def collect() -> prunus.Evidence:
        calls.append(1)
        return prunus.evidence(model, data, criterion="snip")

    pruner = prunus.Gradual(model, 0.5, [1, 2, 4], collect=collect, criterion="snip", layers="all")
    for _ in range(5):
        pruner.step()
    assert len(calls) == 3
    assert pruner.masks.pruned == 114


def test_sparsity_counts_zeros_whoever_made_them() -> None:
    model = network()
    assert prunus.sparsity(model).layers == {"0.weight": (0, 36), "4.weight": (0, 192)}
    with torch.no_grad():
        model[4].weight[0] = 0
        model[1].bias.zero_()
    found = prunus.sparsity(model)
    assert (found.zeros, found.weights, found.fraction) == (64, 228, 64 / 228)
    assert repr(found) == "Sparsity(0.2807: 64 of 228 weights are zero)"


def test_a_criterion_that_reads_what_fell_resumes_to_the_bit() -> None:
    choice: dict[str, Any] = {"layers": "Conv2d", "criterion": "fpgm", "granularity": "filter", "start": 0.3}
    for seed in range(10):
        torch.manual_seed(seed)
        model = nn.Conv2d(3, 16, 3)
        pruner = prunus.Gradual(model, 0.6, [1, 2], **choice)
        pruner.step()
        saved = copy.deepcopy([model.state_dict(), pruner.state_dict()])
        pruner.step()
        again = nn.Conv2d(3, 16, 3)
        resumed = prunus.Gradual(again, 0.6, [1, 2], **choice)
        again.load_state_dict(saved[0])
        resumed.load_state_dict(saved[1])
        resumed.step()
        assert resumed.masks == pruner.masks


@pytest.mark.parametrize("kind", ["gradual", "iterative", "coupled", "rigl", "set"])
def test_a_copy_goes_its_own_way(kind: str) -> None:
    model = network()
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    pruner = PRUNERS[kind](model, optimizer)
    pruner._counter.generator = None  # which cannot be copied
    train(model, optimizer, range(1, 5), lambda _: pruner.step())
    other, others_optimizer, others_pruner = copy.deepcopy((model, optimizer, pruner))
    before = {name: mask.clone() for name, mask in pruner.masks.items()}
    random = torch.get_rng_state()
    train(other, others_optimizer, range(5, 25), lambda _: others_pruner.step())
    assert all(torch.equal(mask, before[name]) for name, mask in pruner.masks.items())
    torch.set_rng_state(random)
    train(model, optimizer, range(5, 25), lambda _: pruner.step())
    assert others_pruner.masks == pruner.masks
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_an_earlier_state_undoes_what_came_after_it() -> None:
    model = network()
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    pruner = prunus.Gradual(model, 0.5, [2, 4], start=0.2, optimizer=optimizer, layers="all")
    early = copy.deepcopy([model.state_dict(), pruner.state_dict()])
    train(model, optimizer, range(1, 6), lambda _: pruner.step())
    pruner.load_state_dict(early[1])
    assert not prunus.masks_of(model)
    model.load_state_dict(early[0])
    train(model, optimizer, range(1, 6), lambda _: pruner.step())
    assert pruner.masks.pruned == 114


def test_gradients_of_autograd_grad_are_none_of_a_step() -> None:
    model, x = nn.Linear(6, 6), torch.randn(5, 6)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = prunus.RigL(model, 0.5, [1], optimizer=optimizer, layers="Linear")
    (penalty,) = torch.autograd.grad(model(x).square().sum(), model.weight, create_graph=True)
    (0 * penalty.sum() + model(x).sum()).backward()
    torch.testing.assert_close(pruner._gradients["weight"], x.sum(0).expand(6, 6))


def test_a_step_that_fails_is_not_counted_and_changes_nothing() -> None:
    model = network()
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    pruner = prunus.RigL(model, 0.8, [1, 2], optimizer=optimizer, layers="all")
    before = {name: mask.clone() for name, mask in pruner.masks.items()}
    model[4].weight.requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"4\.weight has got no gradient"):
        train(model, optimizer, range(1, 2), lambda _: pruner.step())
    assert all(torch.equal(mask, before[name]) for name, mask in pruner.masks.items())
    other = prunus.SET(network(), 0.8, [1], optimizer=optimizer, layers="all")
    with torch.no_grad():
        other.model[4].weight.fill_(math.nan)
    with pytest.raises(ValueError, match=r"4\.weight has values or scores that are NaN"):
        other.step()
    calls: list[int] = []

    def collect() -> prunus.Evidence:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("no data")
        return prunus.evidence(network(), [(torch.randn(2, 1, 6, 6), torch.tensor([0, 1]))], criterion="snip")

    gradual = prunus.Gradual(network(), 0.5, [1], collect=collect, criterion="snip", layers="all")
    with pytest.raises(OSError, match="no data"):
        gradual.step()
    assert gradual.step()
    assert gradual.masks.pruned == 114


@pytest.mark.parametrize("made", [prunus.SET, prunus.RigL])
def test_sparse_gradients_of_embeddings(made: Any) -> None:
    model = nn.Sequential(nn.Embedding(20, 8, sparse=True), nn.Flatten(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    pruner = made(model, 0.8, [2, 4], optimizer=optimizer, layers="all")
    for _ in range(6):
        optimizer.zero_grad()
        model(torch.randint(20, (4, 2))).square().sum().backward()
        optimizer.step()
        pruner.step()
    for name, mask in pruner.masks.items():
        assert not model.get_parameter(name)[~mask].any()
        assert not optimizer.state[model.get_parameter(name)]["momentum_buffer"].to_dense()[~mask].any()


@pytest.mark.parametrize("schedule", SCHEDULES[:4])
def test_no_rounding_is_in_the_way(schedule: prunus.Schedule) -> None:
    for start, to in ((0.03, 0.29), (0.29, 0.29), (0.0, 0.07), (0.1, 0.7)):
        pruner = prunus.Gradual(
            nn.Linear(10, 10), to, range(1, 6), start=start, schedule=schedule, layers="Linear"
        )
        for _ in range(5):
            pruner.step()
        assert pruner.masks.pruned == int(to * 100)


def test_what_else_is_refused() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"start=0\.3 is more than to=0\.05 of '0\.\*'"):
        prunus.Gradual(model, {"0.*": 0.05, "*": 0.9}, [1, 2], start=0.3, layers="all")
    with pytest.raises(ValueError, match="LBFGS remembers all weights in one vector"):
        prunus.Gradual(model, 0.5, [1], optimizer=torch.optim.LBFGS(model.parameters()), layers="all")
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    state = prunus.SET(network(), 0.5, [1], optimizer=optimizer, layers="all").state_dict()
    pruner = prunus.SET(model, 0.5, [1], optimizer=optimizer, layers="all", seed=torch.Generator())
    before = {name: mask.clone() for name, mask in pruner.masks.items()}
    with pytest.raises(ValueError, match="the state is of one without a generator"):
        pruner.load_state_dict(state)
    assert all(torch.equal(mask, before[name]) for name, mask in pruner.masks.items())
    snapshot = prunus.Snapshot(model, optimizer)
    train(model, optimizer, range(1, 3), lambda _: None)
    late = copy.deepcopy(model.state_dict())
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    with pytest.raises(ValueError, match="parameter group"):
        snapshot.rewind()
    assert all(torch.equal(value, late[name]) for name, value in model.state_dict().items())
    prunus.restore(model)
    with pytest.raises(RuntimeError, match="restored or pruned anew"):
        pruner.state_dict()
