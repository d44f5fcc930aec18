"""How many images does a network classify correctly? Or, by a metric of one's own, how good is it?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.checks import knows_keywords
from prunus.evaluation.batches import Labelled, labelled, logits_of
from prunus.modes import eval_mode


@dataclass(frozen=True)
class Result:
    """Counts over a labelled data set and the mean cross-entropy, or the value of a metric in their place."""

    correct: int | None
    correct5: int | None
    images: int
    loss: float | None
    metric: Any = None

    @property
    def top1(self) -> float:
        """Percent of images whose label is the highest-scored class."""
        return self._percent("top1", self.correct)

    @property
    def top5(self) -> float:
        """Percent of images whose label is among the five highest-scored classes."""
        return self._percent("top5", self.correct5)

    def _percent(self, name: str, count: int | None) -> float:
        if count is None:
            raise AttributeError(f"no {name} was counted: metric= was given, and .metric is its value")
        return 100 * count / self.images


@runtime_checkable
class MetricObject(Protocol):
    """What every metric of torchmetrics is, and anything with these three methods."""

    def update(self, outputs: Any, targets: Any, /) -> object:
        """Take in one batch."""

    def compute(self) -> Any:
        """The value over all batches since the last reset."""

    def reset(self) -> object:
        """Forget all batches."""


Metric: TypeAlias = MetricObject | Callable[[Any, Any], Any]


@knows_keywords()
def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    amp: torch.dtype | None = None,
    *,
    metric: Metric | None = None,
) -> Result:
    """Classify every image of `loader`, or measure it by `metric`, in eval mode, without gradients.

    Args:
        model: from images (batch, ...) to logits (batch, classes), or to something that has them as `.logits`
            or ["logits"], as models of Hugging Face do.
        loader: batches (images, labels), or dicts with "labels" (or "label") whose other entries the model
            takes by name; moved to the device of the model. Labels are class indices (batch,).
        amp: run under autocast in this dtype; default off.
        metric: for other targets, or another measure: an object with `update(outputs, targets)`, `compute()`
            and `reset()`, such as any of torchmetrics, which is reset first and must be on the device of the
            model; or a function of (outputs, targets) that gives one number a batch, averaged by batch size
            (exact for means over examples; an F1 or R² needs an object). Outputs are the logits where there
            are some, or whatever the model gives.

    Returns:
        `.top1` and `.top5` in percent, `.correct`, `.correct5`, `.images` counts, mean `.loss`. With a metric
        instead of these `.images` and `.metric`: a float, or what else `compute` gives.

    Raises:
        TypeError: `metric` is neither an object of that kind nor a function.
        ValueError: no images; without a metric, a label that is no class of the model, targets that are no
            class indices (of a regression, say) or outputs that are no logits (batch, classes), such as those
            of a language model; a batch of another form; a function that gives more than a number.

    Example:
        >>> import prunus
        >>> images, labels = torch.eye(4), torch.tensor([0, 1, 2, 0])
        >>> prunus.evaluate(nn.Identity(), [(images, labels)]).top1
        75.0
        >>> line = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(line.weight, 2.0)
        >>> data = [{"x": torch.tensor([[1.0], [2.0]]), "labels": torch.tensor([[2.0], [5.0]])}]
        >>> prunus.evaluate(line, data, metric=F.mse_loss).metric
        0.5

        Whether a language model names the next token, where -100 stands for none:

        >>> class NextToken:
        ...     def reset(self):
        ...         self.right = self.tokens = 0
        ...     def update(self, logits, labels):
        ...         told, labels = logits[:, :-1].argmax(-1), labels[:, 1:]
        ...         self.right += int((told == labels).sum())
        ...         self.tokens += int((labels != -100).sum())
        ...     def compute(self):
        ...         return self.right / self.tokens
        >>> text = torch.tensor([[0, 1, 1, 2]])
        >>> same_again = nn.Embedding.from_pretrained(torch.eye(3))
        >>> round(prunus.evaluate(same_again, [(text, text)], metric=NextToken()).metric, 2)
        0.33
    """
    tally = _Classes() if metric is None else _measured(metric)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    images = 0
    with eval_mode(model), torch.no_grad():
        for given in loader:
            batch = labelled(given, model, device)
            if not len(batch):
                continue
            tally.update(_outputs(model, batch, device, amp), batch)
            images += len(batch)
    if not images:
        raise ValueError("loader is empty: expected at least one batch of (images, labels)")
    return tally.result(images)


def _outputs(model: nn.Module, batch: Labelled, device: torch.device, amp: torch.dtype | None) -> Any:
    with torch.autocast(device.type, amp, enabled=amp is not None):
        outputs = logits_of(model(*batch.args, **batch.kwargs))
    return outputs.float() if isinstance(outputs, Tensor) and outputs.dtype == amp else outputs


class _Classes:
    """Images classified correctly."""

    def __init__(self) -> None:
        self.correct = self.correct5 = 0
        self.loss = 0.0

    def update(self, outputs: Any, batch: Labelled) -> None:
        logits, labels = _checked(outputs, batch.targets)
        hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        hits &= ~logits.isnan().any(1, keepdim=True)  # topk takes NaN for the largest
        self.correct += int(hits[:, 0].sum())
        self.correct5 += int(hits.sum())
        self.loss += F.cross_entropy(logits, labels, reduction="sum").item()

    def result(self, images: int) -> Result:
        return Result(self.correct, self.correct5, images, self.loss / images)


def _checked(logits: Any, labels: Any) -> tuple[Tensor, Tensor]:
    """Logits (batch, classes) and labels (batch,) that fit each other."""
    _check_kind(labels)
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"model must give logits (batch, classes), or outputs with .logits, got {type(logits).__name__}; "
            "for other outputs give metric="
        )
    shape = tuple(logits.shape)
    if logits.dim() == 3:
        raise ValueError(
            f"model must give logits (batch, classes), got shape {shape}, as of a language model "
            "(batch, length, vocabulary): give metric=, which says how tokens are shifted and which count"
        )
    if logits.dim() != 2:
        raise ValueError(f"model must give logits (batch, classes), got shape {shape}; else give metric=")
    if tuple(labels.shape) != shape[:1]:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)} where the model gives logits {shape}: "
            "expected class indices (batch,); for other targets give metric="
        )
    if labels.min() < 0 or labels.max() >= shape[1]:
        raise ValueError(
            f"labels run from {int(labels.min())} to {int(labels.max())}, but the model has {shape[1]} "
            "classes; for targets that are no class indices give metric="
        )
    return logits.float(), labels.long()


def _check_kind(labels: Any) -> None:
    kind = str(labels.dtype) if isinstance(labels, Tensor) else type(labels).__name__
    whole = isinstance(labels, Tensor) and not (labels.is_floating_point() or labels.is_complex())
    if not whole or labels.dtype == torch.bool:
        raise ValueError(
            f"labels must be a tensor of class indices, whole numbers (batch,), got {kind}; for a "
            "regression or other targets give metric=, such as metric=torch.nn.functional.mse_loss"
        )


class _Object:
    """The value of a metric that counts by itself."""

    def __init__(self, metric: MetricObject) -> None:
        self.metric = metric
        metric.reset()

    def update(self, outputs: Any, batch: Labelled) -> None:
        self.metric.update(outputs, batch.targets)

    def result(self, images: int) -> Result:
        return Result(None, None, images, None, _plain(self.metric.compute()))


class _Mean:
    """The mean over examples of what a function gives for each batch."""

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self.function, self.total = function, 0.0

    def update(self, outputs: Any, batch: Labelled) -> None:
        value = self.function(outputs, batch.targets)
        try:
            self.total += float(value) * len(batch)
        except (TypeError, ValueError, RuntimeError):  # of None, of text or arrays, of tensors
            shown = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"{value!r:.80}"
            raise ValueError(f"metric must give one number a batch, got {shown}") from None

    def result(self, images: int) -> Result:
        return Result(None, None, images, None, self.total / images)


def _measured(metric: Metric) -> _Object | _Mean:
    if not isinstance(metric, type):  # whose methods are there, and cannot be called
        if isinstance(metric, MetricObject):
            return _Object(metric)
        if callable(metric):
            return _Mean(metric)
    got = f"the class {metric.__name__}" if isinstance(metric, type) else repr(metric)
    raise TypeError(
        "metric must be an object with update, compute and reset, or a function of (outputs, targets), "
        f"got {got}"
    )


def _plain(value: Any) -> Any:
    """Floats for tensors of one number; copies of others, for the metric may go on writing to them."""
    if isinstance(value, Tensor):
        return value.detach().clone() if value.dim() else value.item()
    return {key: _plain(entry) for key, entry in value.items()} if isinstance(value, Mapping) else value
