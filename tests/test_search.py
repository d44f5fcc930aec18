"""Which layers can take it, and how much can go: beside pruning and measuring by hand."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import prunus
from prunus import Probe, Result, Sensitivity, digits
from prunus.cli.main import main
from prunus.evaluation.statistics import wilson
from tests.conftest import everything, same


def data(train: bool = False) -> list[tuple[Tensor, Tensor]]:
    images, labels = digits.load_images(train=train)
    return [(images[:300], labels[:300])]


def test_each_weight_is_pruned_alone() -> None:
    model = digits.load_network("plain")
    prunus.global_prune(model, 0.9)  # of a pruned network the original is looked at
    before = everything(model)
    found = prunus.sensitivity(model, data(), p_prune=(0.5, 0.9))
    assert same(before, everything(model))
    prunus.restore(model)
    assert found.clean == prunus.evaluate(model, data())
    scores = {name: source.every(0, 1) for name, source in prunus.rank(model).scores.items()}
    total = float(sum(source.sum() for source in scores.values()))
    for probe in found.probes:
        with prunus.prune(model, probe.p_prune, include=probe.group) as pruning:
            assert probe.result == prunus.evaluate(model, data())
            assert (probe.pruned, probe.weights) == pruning.masks.counts[probe.group]
            fallen = scores[probe.group][~pruning.masks[probe.group].flatten()].sum()
        assert probe.predicted == pytest.approx(float(fallen) / total, rel=1e-4)
    mean = {g: sum(p.result.loss or 0 for p in probes) for g, probes in found.groups.items()}
    assert found.ranked == sorted(mean, key=lambda group: -mean[group])
    assert list(found.groups) == list(scores)


def test_groups_are_pruned_together_and_by_a_metric() -> None:
    model = digits.load_network("residual")
    names = list(prunus.make_masks(model, 0))
    block = names[1].split(".")[0]
    found = prunus.sensitivity(
        model, data(), p_prune=(0.5,), groups=[f"{block}.*"], metric=lambda outputs, labels: 1.0
    )
    [probe] = found.probes
    assert probe.result.metric == 1
    with prunus.prune(model, 0.5, include=f"{block}.*") as pruning:
        assert (probe.pruned, probe.weights) == (pruning.masks.pruned, pruning.masks.total)
    with pytest.raises(ValueError, match="only losses can be added up"):
        found.allot(0.1)
    with pytest.raises(ValueError, match="'nothing' matches no weight; names are like"):
        prunus.sensitivity(model, data(), groups=["nothing"])
    with pytest.raises(TypeError, match="loader is an iterator"):
        prunus.sensitivity(model, iter(data()))


def curve(losses: list[float], name: str, size: int) -> list[Probe]:
    ratios = [0.25, 0.5, 0.75, 1.0]
    return [
        Probe(name, p, int(p * size), size, 0.0, Result(0, 0, 1, loss))
        for p, loss in zip(ratios, losses, strict=True)
    ]


@given(
    slopes=st.lists(st.lists(st.floats(0, 5), min_size=4, max_size=4).map(sorted), min_size=2, max_size=3),
    quarters=st.integers(0, 12),
)
@settings(max_examples=60, deadline=None)
def test_convex_losses_are_allotted_as_by_trying_all(slopes: list[list[float]], quarters: int) -> None:
    """Where a budget is a whole number of quarters of equal layers, no other choice costs less."""
    losses = [list(itertools.accumulate(rises)) for rises in slopes]
    quarters = min(quarters, 4 * len(losses))
    probes = [p for i, loss in enumerate(losses) for p in curve([1 + x for x in loss], f"layer{i}", 8)]
    found = Sensitivity(Result(1, 1, 1, 1.0), probes).allot(quarters / (4 * len(losses)))
    assert sum(found.values()) * 4 == pytest.approx(quarters)

    def cost(choice: tuple[int, ...]) -> float:
        return sum(loss[number - 1] if number else 0 for loss, number in zip(losses, choice, strict=True))

    choices = [c for c in itertools.product(range(5), repeat=len(losses)) if sum(c) == quarters]
    taken = [4 * found[f"layer{i}"] for i in range(len(losses))]
    whole = tuple(round(number) for number in taken)
    assert all(abs(number - near) < 1e-6 for number, near in zip(taken, whole, strict=True))
    assert cost(whole) == pytest.approx(min(map(cost, choices)), abs=1e-6)


def test_what_was_not_measured_cannot_be_allotted() -> None:
    found = Sensitivity(Result(1, 1, 1, 1.0), curve([1, 2, 3, 4], "a", 8)[:2])
    assert found.most == 0.5
    assert found.allot(0.5) == {"a": 0.5}
    with pytest.raises(ValueError, match=r"p_prune=0\.75 is more than was measured, 0\.5 at most"):
        found.allot(0.75)


def test_the_largest_ratio_that_holds() -> None:
    model = digits.load_network("plain")
    before = everything(model)
    found = prunus.find(model, data(), 95, tolerance=0.02, granularity="kernel")
    assert same(before, everything(model))
    assert found.result.top1 >= 95
    assert len(found.tried) == 6
    for ratio, result in found.tried:
        with prunus.prune(model, ratio, granularity="kernel"):
            assert result == prunus.evaluate(model, data())
    failing = min(ratio for ratio, result in found.tried if result.top1 < 95)
    assert 0 < failing - found.p_prune <= 0.02
    with prunus.prune(model, found.amount, granularity="kernel") as pruning:
        assert pruning.masks == found.masks
    assert found.interval == pytest.approx([100 * e for e in wilson(found.result.correct or 0, 300)])
    assert found.interval[0] < found.result.top1 < found.interval[1]


def test_by_layer_and_by_a_metric() -> None:
    model = digits.load_network("plain")
    sensitivity = prunus.sensitivity(model, data(train=True), p_prune=(0.2, 0.4, 0.6, 0.8))
    found = prunus.find(model, data(), 95, by=sensitivity, tolerance=0.05)
    assert isinstance(found.amount, dict)
    assert found.result.top1 >= 95
    assert found.masks.sparsity == pytest.approx(found.p_prune, abs=0.001)
    assert found.p_prune <= sensitivity.most
    by_metric = prunus.find(
        model, data(), 0.95, metric=lambda y, t: (y.argmax(1) == t).float().mean(), tolerance=0.05
    )
    assert by_metric.result.metric >= 0.95


def test_what_cannot_be_found_is_refused() -> None:
    model = digits.load_network("plain")
    with pytest.raises(ValueError, match=r"at_least=101, but the unpruned network gives 9\d"):
        prunus.find(model, data(), 101)
    with pytest.raises(ValueError, match="tolerance must be above 0, got 0"):
        prunus.find(model, data(), 90, tolerance=0)
    with pytest.raises(TypeError, match="find\\(\\) has no keyword 'granularty'"):
        prunus.find(model, data(), 90, granularty="kernel")
    with pytest.raises(ValueError, match=r"scope='2:4' prunes 0\.5 or nothing"):
        prunus.find(model, data(), 90, scope="2:4", exclude="0", tolerance=0.1)
    none = prunus.find(
        model,
        data(),
        prunus.evaluate(model, data()).top1,
        criterion="random",
        tolerance=0.3,
        seed=0,
    )
    assert none.masks.pruned in (0, int(none.p_prune * none.masks.total))


def test_sensitivity_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "sensitivity",
        "-a",
        "digits:plain",
        "--p-prune",
        "0.5,0.9",
        "--criterion",
        "magnitude,taylor",
    ]
    assert main([*arguments, "-o", str(tmp_path / "out")]) == 0
    told = capsys.readouterr()
    images, labels = digits.load_images()
    model = digits.load_network("plain")
    found = prunus.sensitivity(model, [(images, labels)], p_prune=(0.5, 0.9))
    lines = told.out.splitlines()
    assert lines[0].strip() == "digits:plain · magnitude"
    assert [line.split()[0] for line in lines[2:5]] == [name.removesuffix(".weight") for name in found.ranked]
    row = next(line.split() for line in lines if line.startswith("3 "))
    assert row[-2:] == [f"{probe.result.top1:.2f}" for probe in found.groups["3.weight"]]
    for name in ("results.csv", "results.json", "sensitivity.png", "sensitivity.svg"):
        assert (tmp_path / "out" / name).stat().st_size
    assert main([*arguments, "-o", str(tmp_path / "out")]) == 0  # all of which is there
    again = capsys.readouterr()
    assert (again.out, again.err) == (told.out, "")
    assert main([*arguments, "--groups", "0,[36]", "-o", str(tmp_path / "other")]) == 0
    assert "[36]" in capsys.readouterr().out
    assert main([*arguments, "--groups", "0", "-o", str(tmp_path / "out")]) == 1  # of other groups
    assert "groups" in capsys.readouterr().err
    assert main([*arguments, "--p-bern", "0.5"]) == 2
    assert "p_bern has no meaning here" in capsys.readouterr().err


def test_find_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["find", "-a", "digits:plain", "--keep-accuracy", "0.95", "--tolerance", "0.1"]) == 0
    images, labels = digits.load_images()
    model, loader = digits.load_network("plain"), [(images, labels)]
    found = prunus.find(model, loader, 0.95 * prunus.evaluate(model, loader).top1, tolerance=0.1)
    told = " ".join(capsys.readouterr().out.split())
    low, high = found.interval
    assert (
        f"p_prune {found.p_prune:.4f}: top-1 {found.result.top1:.2f}% (95%: {low:.2f} to {high:.2f})" in told
    )
    assert f"{found.masks.total:,} {found.masks.pruned:,} {found.masks.sparsity:.4f}" in told
    assert main(["find", "-a", "digits:plain", "--per-layer", "--tolerance", "0.2"]) == 0
    assert main(["find", "--p-prune", "0.5"]) == 2
    assert "p_prune has no meaning here" in capsys.readouterr().err


def test_groups_and_numbers_that_make_no_sense_are_refused() -> None:
    model = digits.load_network("plain")
    wrong = [
        ({"groups": "03"}, TypeError, r"groups must be several name patterns, got '03': give \['03'\]"),
        ({"groups": []}, ValueError, "groups is empty"),
        ({"p_prune": []}, ValueError, "p_prune is empty"),
        ({"groups": ["*", "0"]}, ValueError, r"groups '\*' and '0' both match 0.weight"),
    ]
    for choice, error, message in wrong:
        with pytest.raises(error, match=message):
            prunus.sensitivity(model, data(), **choice)
    assert len(prunus.sensitivity(model, data(), p_prune=0.5).probes) == 3
    with pytest.raises(TypeError, match=r"by must come from prunus\.sensitivity, got 0\.5"):
        prunus.find(model, data(), 90, by=0.5)  # type: ignore[arg-type]
    found = prunus.find(model, data(), 90, tolerance=1e-300)  # as near as numbers come
    assert found.result.top1 >= 90


def test_names_that_look_like_patterns() -> None:
    named = torch.nn.Sequential()
    named.add_module("a[0]", torch.nn.Conv2d(1, 10, 3))
    named.add_module("flat", torch.nn.Flatten())
    loader = [(torch.rand(4, 1, 3, 3), torch.arange(4))]
    found = prunus.sensitivity(named, loader, p_prune=0.5)
    assert prunus.make_masks(named, found.allot(0.25)).pruned == int(0.25 * 90)
