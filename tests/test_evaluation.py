"""What pruning costs, counted."""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

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


class Named(nn.Module):
    """As Hugging Face models are called, and what they give."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, pixel_values: Tensor, scale: Tensor | None = None, labels: Tensor | None = None) -> Any:
        assert labels is None  # with which the model would compute a loss that nobody reads
        return self.wrap(pixel_values if scale is None else pixel_values * scale)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"logits": x}, lambda x: SimpleNamespace(logits=x)])
def test_batches_by_name_and_outputs_with_logits(wrap: Callable[[Tensor], Any]) -> None:
    images, labels, model = torch.eye(6), torch.tensor([0, 1, 2, 3, 0, 0]), Named(wrap)
    expected = prunus.evaluate(nn.Identity(), [(images, labels)])
    assert (expected.correct, expected.images) == (4, 6)
    batch = {"labels": labels, "pixel_values": images}
    assert prunus.evaluate(model, [batch]) == prunus.evaluate(model, [UserDict(batch)]) == expected
    assert prunus.evaluate(model, [{"label": labels, "img": images}]) == expected
    assert prunus.evaluate(nn.DataParallel(model), [batch]) == expected
    assert prunus.evaluate(model, [{**batch, "scale": torch.tensor(-1)}]).correct == 0
    assert prunus.evaluate(nn.Identity(), [[images, labels.to(torch.uint8)]]) == expected


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"pixel_values": torch.eye(2)}, "keys 'pixel_values': expected targets at \"labels\""),
        ({"labels": torch.zeros(2)}, "keys 'labels': .*beside them what the model takes"),
        (
            {"pixel_values": 1, "idx": 2, "labels": torch.zeros(2)},
            "loader gives 'idx' .*Named.forward does not",
        ),
        (torch.eye(2), "loader gives batches of the form Tensor: expected"),  # would unpack, row by row
        ((torch.eye(2),), "batches of the form tuple of 1"),
        ((torch.eye(2), torch.zeros(2), torch.zeros(2)), "batches of the form tuple of 3"),
        ((torch.eye(2), torch.tensor(1)), "the targets tensor\\(1\\), expected a batch"),
        ((torch.eye(2), [0, 1]), "labels must be a tensor of class indices.*got list.*give metric="),
        ((torch.eye(2), torch.zeros(2)), "class indices.*got torch.float32; for a regression.*give metric="),
        ((torch.eye(2), torch.eye(2)), "class indices.*got torch.float32"),
        ((torch.eye(2), torch.eye(2) > 0), "class indices.*got torch.bool"),
        (
            (torch.eye(2), torch.tensor([[0], [1]])),
            r"labels have shape \(2, 1\) where the model gives logits \(2, 2\)",
        ),
        ((torch.eye(2), torch.tensor([0, 1, 1])), r"labels have shape \(3,\)"),
        (
            (torch.ones(2, 1), torch.tensor([3, 7])),
            "from 3 to 7, but the model has 1 classes; .*give metric=",
        ),
        (
            (torch.zeros(2, 5, 9), torch.zeros(2, 5, dtype=torch.long)),
            r"shape \(2, 5, 9\), as of a language model .*give metric=",
        ),
        (
            (torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long)),
            r"shape \(2, 3, 4, 4\); else give metric=",
        ),
    ],
)
def test_what_is_no_classification_is_refused(batch: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prunus.evaluate(Named(lambda x: x), [batch])


def test_outputs_without_logits() -> None:
    with pytest.raises(ValueError, match=r"outputs with \.logits, got tuple; .* give metric="):
        prunus.evaluate(Named(lambda x: (x, x)), [(torch.eye(2), torch.tensor([0, 1]))])


class Total:
    """A metric that keeps writing to the tensor that it gave."""

    def __init__(self) -> None:
        self.sum = torch.tensor([7.0, 7.0])

    def reset(self) -> None:
        self.sum.zero_()

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.sum += torch.stack([outputs.sum(), targets.sum()])

    def compute(self) -> dict[str, Any]:
        return {"both": self.sum, "first": self.sum[0]}


def test_a_metric_in_place_of_accuracy() -> None:
    inputs, targets = torch.randn(7, 2), torch.randn(7, 2)
    loader = [(inputs[:4], targets[:4]), {"x": inputs[4:], "labels": targets[4:]}]
    result = prunus.evaluate(nn.Identity(), loader, metric=nn.MSELoss())
    assert result.metric == pytest.approx(F.mse_loss(inputs, targets).item())  # of unequal batches
    assert result.images == 7
    assert result.correct is result.correct5 is result.loss is None
    with pytest.raises(AttributeError, match=r"no top1 was counted: metric= was given"):
        _ = result.top1
    metric = Total()
    first = prunus.evaluate(nn.Identity(), loader, metric=metric).metric
    again = prunus.evaluate(nn.Identity(), [(inputs * 2, targets)], metric=metric).metric
    assert first["both"].tolist() == pytest.approx([inputs.sum().item(), targets.sum().item()], rel=1e-4)
    assert isinstance(first["first"], float)
    assert again["first"] == pytest.approx(2 * first["first"], rel=1e-4)


def test_a_metric_sees_whatever_the_model_gives_in_single_precision_and_out_of_autocast() -> None:
    seen: list[Any] = []

    def metric(outputs: Any, targets: Any) -> int:
        seen.append((outputs, torch.is_autocast_enabled("cpu"), torch.is_grad_enabled(), len(targets)))
        return 0

    prunus.evaluate(nn.Linear(2, 3), [(torch.eye(2), torch.eye(2))], torch.bfloat16, metric=metric)
    pair = nn.Module()
    pair.forward = lambda x: (x, x)  # type: ignore[method-assign, assignment]
    boxes = [{"boxes": torch.zeros(3, 4)}, {"boxes": torch.zeros(1, 4)}]  # as detection has them
    assert prunus.evaluate(pair, [([torch.eye(2), torch.eye(3)], boxes)], metric=metric).images == 2
    (single, *how), (tuples, *_) = seen
    assert (single.dtype, how) == (torch.float32, [False, False, 2])
    assert isinstance(tuples, tuple)


@pytest.mark.parametrize(
    ("metric", "error", "message"),
    [
        (nn.MSELoss(reduction="none"), ValueError, r"one number a batch, got a tensor \(2, 2\)"),
        (lambda outputs, targets: None, ValueError, "one number a batch, got None"),
        ("f1", TypeError, "metric must be an object with update, compute and reset.*got 'f1'"),
        (nn.MSELoss, TypeError, "got the class MSELoss"),
        (Total, TypeError, "got the class Total"),
    ],
)
def test_what_is_no_metric(metric: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        prunus.evaluate(nn.Identity(), [(torch.eye(2), torch.eye(2))], metric=metric)


def test_metrics_of_torchmetrics() -> None:
    torchmetrics = pytest.importorskip("torchmetrics")
    model, options = digits.load_network("plain"), {"task": "multiclass", "num_classes": 10}
    accuracy = torchmetrics.Accuracy(**options, average="micro")
    accuracy.update(torch.eye(10), torch.zeros(10, dtype=torch.long))  # is forgotten
    result = prunus.evaluate(model, batches(), metric=accuracy)
    assert 100 * result.metric == pytest.approx(prunus.evaluate(model, batches()).top1)
    both = torchmetrics.MetricCollection([accuracy, torchmetrics.ConfusionMatrix(**options)])
    values = prunus.evaluate(model, batches(), metric=both).metric
    assert values["MulticlassAccuracy"] == result.metric
    assert values["MulticlassConfusionMatrix"].sum() == 899
    regression = prunus.evaluate(
        nn.Identity(), [(IMAGES[1].float(), IMAGES[1] + 0.5)], metric=torchmetrics.MeanSquaredError()
    )
    assert regression.metric == 0.25


def test_a_sweep_by_a_metric() -> None:
    model = digits.load_network("plain")
    points = prunus.sweep(model, batches(), p_prune=(0, 0.6), metric=F.cross_entropy)
    accuracy = prunus.sweep(model, batches(), p_prune=(0, 0.6))
    for point, other in zip(points, accuracy, strict=True):
        assert point.result.metric == pytest.approx(other.result.loss, rel=1e-5)
        assert f"metric {point.result.metric}" in repr(point)
    assert points[0].result.metric < points[1].result.metric


def test_models_and_batches_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.ViTConfig(**size, image_size=8, patch_size=4, num_labels=3)
    images, labels = torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    model = transformers.ViTForImageClassification(config).eval()
    right = model(images).logits.argmax(1)
    assert prunus.evaluate(model, [{"pixel_values": images, "labels": right}]).top1 == 100
    assert prunus.evaluate(model, [(images, right)]).top1 == 100
    words = {"input_ids": torch.randint(0, 20, (6, 5)), "attention_mask": torch.ones(6, 5, dtype=torch.long)}
    words["attention_mask"][:, 3:] = 0
    bert = transformers.BertConfig(**size, vocab_size=20, num_labels=3)
    text = transformers.BertForSequenceClassification(bert).eval()
    batch = transformers.BatchEncoding({**words, "labels": labels})
    loss = prunus.evaluate(text, [batch]).loss
    assert loss == pytest.approx(text(**batch).loss.item(), rel=1e-5)
    speaker = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    )
    with pytest.raises(ValueError, match=r"\(6, 5, 20\), as of a language model"):
        prunus.evaluate(speaker, [{**words, "labels": words["input_ids"]}])


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
        seed=(3, 4),
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
            seed=setting.seed,
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
