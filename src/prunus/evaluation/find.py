"""How much can go?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prunus.application.applying import unpruned
from prunus.checks import Amount, check_fraction, check_number, knows_keywords
from prunus.evaluation.batches import with_example
from prunus.evaluation.evaluate import Metric, Result, evaluate
from prunus.evaluation.sensitivity import Sensitivity
from prunus.evaluation.statistics import wilson
from prunus.masks import Masks
from prunus.selection.ranking import Choice, Ranking, rank
from prunus.verbs import apply_masks

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True, repr=False)
class Found:
    """The largest ratio that was found to hold, and what it costs.

    Args:
        p_prune: the fraction that becomes candidates.
        amount: the same as `prunus.prune` takes it: where it was allotted, a fraction for each layer.
        masks: of that pruning.
        result, clean: of the network at that ratio, and unpruned.
        tried: every ratio that was measured, in the order of measuring.
    """

    p_prune: float
    amount: Amount
    masks: Masks
    result: Result
    clean: Result
    tried: Sequence[tuple[float, Result]]

    def __repr__(self) -> str:
        return (
            f"Found(p_prune={self.p_prune:g}: {self.masks.pruned:,} of {self.masks.total:,} weights pruned)"
        )

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval (Wilson) of the top-1 accuracy, in percent, on images like those looked at."""
        low, high = wilson(self.result.top1 / 100 * self.result.images, self.result.images)
        return 100 * low, 100 * high


@knows_keywords(Choice)
def find(
    model: nn.Module,
    loader: Iterable[Any],
    at_least: float,
    *,
    by: Sensitivity | None = None,
    tolerance: float = 0.01,
    amp: torch.dtype | None = None,
    metric: Metric | None = None,
    **choice: Unpack[Choice],
) -> Found:
    """Find the largest pruned fraction at which the network is still good enough; it stays as it was.

    By bisection: accuracy is taken to fall as the ratio rises. Where it rises again, another ratio that holds
    may be found than the largest.

    Args:
        model: from images to logits; of a pruned one, the original weights are pruned.
        loader: (images, labels) batches, or others that `evaluate` takes; read once for every ratio tried.
        at_least: top-1 accuracy in percent that must be left, as `Result.top1`, or value of the metric.
        by: allot each ratio among the layers by what `prunus.sensitivity` found, of other images than these.
        tolerance: how near to the largest ratio it must come; about log2(1 / tolerance) ratios are measured.
        amp, metric: see `prunus.evaluate`.
        **choice: keyword arguments of `prunus.rank`.

    Raises:
        TypeError: `loader` can be read only once.
        TypeError, ValueError: the unpruned network is not good enough; or as `prunus.rank` and `evaluate` do.

    Example:
        >>> import prunus
        >>> model = prunus.digits.load_network("plain")
        >>> images, labels = prunus.digits.load_images()
        >>> found = prunus.find(model, [(images[:200], labels[:200])], at_least=95)
        >>> found.result.top1 >= 95, 0.2 < found.p_prune < 0.8
        (True, True)
    """
    if isinstance(loader, Iterator):
        raise TypeError("loader is an iterator, which can be read once only: give a DataLoader or a list")
    if not isinstance(by, Sensitivity | None):
        raise TypeError(f"by must come from prunus.sensitivity, got {by!r}")
    wanted, tolerance = check_number("at_least", at_least), check_fraction("tolerance", tolerance)
    if not tolerance:
        raise ValueError("tolerance must be above 0, got 0")
    choice = with_example(choice, loader, model)
    ranking = rank(model, **choice)
    with unpruned(model):
        clean = evaluate(model, loader, amp, metric=metric)
    if not _value(clean) >= wanted:
        raise ValueError(f"at_least={at_least!r}, but the unpruned network gives {_value(clean):g}")
    amount: Amount = 0.0
    best, tried = (amount, _masks(ranking, amount), clean), []
    low, high = 0.0, by.most if by else 1.0
    while high - low > tolerance:
        middle = (low + high) / 2
        if not low < middle < high:  # as near as numbers come
            break
        amount = by.allot(middle) if by else middle
        masks = _masks(ranking, amount)
        with unpruned(model):
            apply_masks(model, masks)
            result = evaluate(model, loader, amp, metric=metric)
        tried.append((middle, result))
        if _value(result) >= wanted:
            low, best = middle, (amount, masks, result)
        else:
            high = middle
    amount, masks, result = best
    return Found(low, amount, masks, result, clean, tried)


def _masks(ranking: Ranking, amount: Amount) -> Masks:
    [candidates] = ranking.candidates([amount])
    return candidates.draw()


def _value(result: Result) -> float:
    return result.top1 if result.metric is None else float(result.metric)
