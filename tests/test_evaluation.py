"""What pruning costs, counted."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.inputs import digits
from prunus.inputs.images import Source, open_images
from prunus.inputs.networks import Network
from prunus.scores.criteria import CRITERIA
from tests.conftest import small_net
from tests.test_faults import assert_same, weights_of

IMAGES = digits.load_images()


def batches() -> list[tuple[Tensor, Tensor]]:
    return list(zip(IMAGES[0].split(256), IMAGES[1].split(256), strict=True))


def test_counts_are_those_of_the_definition() -> None:
    model = digits.load_network("plain")
    result = prunus.evaluate(model, batches())
    logits, labels = model(IMAGES[0]), IMAGES[1]
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert result.images == len(labels) == 899
    assert result.correct == int((ranks == 0).sum())
    assert result.correct5 == int((ranks < 5).sum())
    assert result.top1 == 100 * result.correct / 899
    assert result.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


def test_fewer_than_five_classes() -> None:
    result = prunus.evaluate(nn.Identity(), [(torch.eye(3), torch.tensor([0, 1, 0]))])
    assert (result.correct, result.correct5, result.images) == (2, 3, 3)


def test_an_output_that_is_not_a_number_is_never_right() -> None:
    logits = torch.full((4, 3), torch.nan)
    result = prunus.evaluate(
        nn.Identity(), [(logits, torch.tensor([0, 1, 2, 0])), (logits[:0], logits[:0, 0])]
    )
    assert (result.correct, result.correct5, result.images) == (0, 0, 4)


def test_a_loader_that_can_be_read_only_once_and_ratios_of_numpy() -> None:
    model = digits.load_network("plain")
    with pytest.raises(TypeError, match="loader is an iterator"):
        prunus.sweep(model, iter(batches()), p_prune=0.5)
    points = prunus.sweep(model, batches(), p_prune=np.array([0.0, 0.5, 0.5]))
    assert [point.setting.p_prune for point in points] == [0, 0.5]


def test_modes_come_back_and_statistics_do_not_move() -> None:
    model = small_net()
    model[1].eval()
    modes, before = [module.training for module in model.modules()], weights_of(model)
    prunus.evaluate(model, [(torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.long))])
    assert [module.training for module in model.modules()] == modes
    assert_same(model, before)


def test_labels_and_outputs_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="labels run from 0 to 3, but the model has 3 classes"):
        prunus.evaluate(nn.Identity(), [(torch.eye(3), torch.tensor([0, 1, 3]))])
    with pytest.raises(ValueError, match=r"logits \(batch, classes\), got shape \(3,\)"):
        prunus.evaluate(nn.Identity(), [(torch.zeros(3), torch.zeros(3, dtype=torch.long))])
    with pytest.raises(ValueError, match="loader is empty"):
        prunus.evaluate(nn.Identity(), [])


def test_a_point_of_a_sweep_is_what_prune_and_evaluate_give() -> None:
    model = digits.load_network("plain")
    before = weights_of(model)
    points = prunus.sweep(
        model,
        batches(),
        p_prune=(0.2, 0.6),
        p_bern=(0.5, 1.0),
        granularity=("weight", "filter"),
        criterion=("magnitude", "random"),
        scope=("global", "layer"),
        seeds=(3, 4),
    )
    assert len(points) == 64
    assert len({point.setting for point in points}) == 64
    for point in points[::7]:
        setting = point.setting
        with prunus.prune(
            model,
            setting.p_prune,
            p_bern=setting.p_bern,
            granularity=setting.granularity,
            criterion=setting.criterion,
            scope=setting.scope,
            generator=torch.Generator().manual_seed(setting.seed),
        ) as pruning:
            assert point.layers == pruning.masks.counts
            assert point.pruned_fraction == pruning.masks.sparsity
            assert point.result == prunus.evaluate(model, batches())
    assert_same(model, before)


def test_a_sweep_ranks_once_for_all_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(groups: prunus.Groups) -> Tensor:
        calls.append(groups.name)
        return groups.values.abs()

    monkeypatch.setitem(CRITERIA, "counted", counted)
    points = prunus.sweep(
        digits.load_network("plain"), batches(), p_prune=(0, 0.1, 0.5, 1), criterion="counted"
    )
    assert [point.pruned for point in points] == [0, 590, 2952, 5904]
    assert len(calls) == 3  # one a layer


def test_a_ranking_may_be_cut_and_applied_in_turn() -> None:
    model = small_net()
    wanted = [prunus.make_masks(model, p) for p in (0.5, 0.3)]
    for candidates, masks in zip(prunus.rank(model).candidates([0.5, 0.3]), wanted, strict=True):
        drawn = candidates.draw()
        prunus.apply_masks(model, drawn)
        assert drawn == masks
    with pytest.raises(ValueError, match="p_bern"):
        candidates.draw(2.0)


def test_a_pruned_model_is_pruned_as_before_after_a_sweep() -> None:
    model = digits.load_network("plain")
    clean = prunus.evaluate(model, batches())
    pruning = prunus.prune(model, 0.3, passes="forward")
    before = weights_of(model)
    [point] = prunus.sweep(model, batches(), p_prune=0)
    assert point.result == clean
    assert_same(model, before)
    assert torch.equal(model[0].weight_mask, pruning.masks["0.weight"])
    with pytest.raises(ValueError, match="p_prune"):
        prunus.sweep(model, batches(), p_prune=(0.1, 2.0))
    assert_same(model, before)
    pruning.redraw()
    pruning.restore()  # the handle is good as before
    assert prunus.evaluate(model, batches()) == clean


def test_an_interrupted_sweep_leaves_the_model_as_it_was() -> None:
    model = digits.load_network("plain")
    before = weights_of(model)

    class Interrupted:
        def __iter__(self):  # type: ignore[no-untyped-def]
            yield batches()[0]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prunus.sweep(model, Interrupted(), p_prune=0.5)
    assert_same(model, before)
    assert not model[0]._forward_pre_hooks


def test_a_mean_over_many_batches_in_half_precision() -> None:
    model, batch = small_net().bfloat16(), (torch.randn(2, 3, 8, 8).bfloat16(), torch.tensor([0, 1]))
    once, often = (
        prunus.fill_gradients(model, count * [batch]).get_parameter("0.weight").grad for count in (1, 600)
    )
    torch.testing.assert_close(often, once, rtol=0.01, atol=1e-5)


def test_synthetic_images_are_as_the_network_takes_them() -> None:
    v2 = pytest.importorskip("torchvision.transforms")
    transform = v2.Compose([v2.Resize(12), v2.ToTensor()])
    network = Network("fixed", nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 7)), transform)
    images, labels = next(iter(open_images(network, Source(dummy=True))))
    assert images.shape[1:] == (3, 12, 12)
    assert set(labels.tolist()) == set(range(7))


def test_gradient_criteria_are_those_of_the_definition() -> None:
    model = digits.load_network("plain").requires_grad_(False)
    before = weights_of(model)
    prunus.fill_gradients(model, batches())
    assert_same(model, before)
    assert not any(parameter.requires_grad for parameter in model.parameters())

    twin = digits.load_network("plain")
    for images, labels in batches():
        (F.cross_entropy(twin(images), labels) / len(batches())).backward()
    for name in ("0.weight", "3.weight", "12.weight"):
        grad = model.get_parameter(name).grad
        torch.testing.assert_close(grad, twin.get_parameter(name).grad)
    half = copy.deepcopy(model).half()
    half[0].weight.grad = (model[0].weight.grad * 1e-3).half()
    scores = prunus.rank(half, criterion="taylor", include="0").scores["0.weight"].every(0, 1)
    assert (scores > 0).sum() > 100  # no underflow
    taylor = prunus.make_masks(model, 0.5, criterion="taylor", scope="layer")["0.weight"]
    scores = (model[0].weight * model[0].weight.grad).abs()
    assert scores[~taylor].max() <= scores[taylor].min()
    gradient = prunus.make_masks(model, 0.5, criterion="gradient", scope="layer")["0.weight"]
    assert model[0].weight.grad[~gradient].abs().max() <= model[0].weight.grad[gradient].abs().min()


def test_gradients_of_no_batches() -> None:
    with pytest.raises(ValueError, match="batches is empty"):
        prunus.fill_gradients(small_net(), [])


def test_what_the_field_knows_about_the_built_in_networks() -> None:
    def accuracy(name: str, granularity: str) -> float:
        [point] = prunus.sweep(digits.load_network(name), batches(), p_prune=0.6, granularity=granularity)
        return point.result.top1

    assert accuracy("residual", "weight") > accuracy("plain", "weight") > accuracy("plain", "kernel")
    assert accuracy("residual", "weight") > accuracy("residual", "kernel") > accuracy("plain", "kernel")
