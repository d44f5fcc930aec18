"""Evidence collected from labelled batches, to be handed over or left in `.grad`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.checks import knows_keywords
from prunus.scores.criteria import CRITERIA, TRAITS, Criterion, needs_of
from prunus.scores.evidence import Batches, Evidence, Loss, check_rereadable
from prunus.scores.gradients import gradients
from prunus.weights import Layers, Patterns, find_weights


@dataclass(frozen=True)
class Samples:
    """Batches, sample by sample."""

    batches: Batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, targets in self.batches:
            yield from zip(torch.split(images, 1), torch.split(targets, 1), strict=True)


@knows_keywords()
def evidence(
    model: nn.Module,
    batches: Batches,
    *,
    criterion: str | Criterion | Sequence[str | Criterion] | None = None,
    loss: Loss = F.cross_entropy,
    layers: Layers = "all",
    include: Patterns | None = None,
    exclude: Patterns | None = (),
    per_sample: bool = False,
) -> Evidence:
    """Collect what criteria need to know beside the weights; the model is left as it was, `.grad` included.

    The model is run in eval mode, so no batch-norm statistics move.

    Args:
        model: the network; a pruned one gives the evidence of the pruned network.
        batches: (inputs, targets), moved to the device of the model; read once for each kind of evidence.
        criterion: the criterion or criteria whose needs are met, see `prunus.rank`; by default, and for a
            function of your own, gradients and norms of inputs, which most of them read.
        loss: from (outputs, targets) to a scalar tensor, by default the mean cross-entropy.
        layers: layer types whose weights it is about, by default every one prunable; likewise
            `include` and `exclude`, see `prunus.rank`.
        per_sample: let every sample be a batch of its own, so that "fisher" squares gradients one by one.

    Returns:
        A value for `evidence=` of `prunus.rank` and of all verbs.

    Raises:
        TypeError: `batches` can be read only once, and more than one kind of evidence is needed.
        ValueError: `batches` is empty, or nothing is prunable.

    Example:
        >>> import prunus, torch
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten())
        >>> data = [(torch.rand(2, 1, 3, 3), torch.tensor([0, 1]))]
        >>> evidence = prunus.evidence(net, data, criterion="taylor")
        >>> prunus.make_masks(net, 0.5, criterion="taylor", evidence=evidence)
        Masks(1 tensor, 18 of 36 weights pruned)
        >>> net[0].weight.grad is None
        True
    """
    if criterion is None:
        criterion = [name for name, function in CRITERIA.items() if not TRAITS[function].asked]
    several = criterion if isinstance(criterion, Sequence) and not isinstance(criterion, str) else [criterion]
    kinds = needs_of(several)
    if len(kinds) > 1:
        check_rereadable(batches)
    batches = Samples(batches) if per_sample else batches
    weights = list(find_weights(model, layers, include, exclude).values())
    return Evidence({kind: kind(model, weights, batches, loss) for kind in kinds})


@knows_keywords()
def fill_gradients(
    model: nn.Module,
    batches: Batches,
    loss: Loss = F.cross_entropy,
    layers: Layers = "all",
    include: Patterns | None = None,
    exclude: Patterns | None = (),
) -> nn.Module:
    """Set `.grad` of the prunable weights to the mean over batches of the loss gradient.

    The model is run in eval mode, so no batch-norm statistics move; modes, frozen flags and every
    other `.grad` stay as they were. `prunus.evidence` collects the same and touches no `.grad`.

    Args:
        model, batches, loss, layers, include, exclude: as `prunus.evidence`.

    Returns:
        The same model.

    Raises:
        ValueError: `batches` is empty or nothing is prunable.

    Example:
        >>> import prunus, torch
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten())
        >>> data = [(torch.rand(2, 1, 3, 3), torch.tensor([0, 1]))]
        >>> prunus.fill_gradients(net, data)[0].weight.grad.shape
        torch.Size([4, 1, 3, 3])
    """
    weights = list(find_weights(model, layers, include, exclude).values())
    found = gradients(model, weights, batches, loss)
    for weight in weights:
        weight.parameter.grad = found[weight.name].to(weight.parameter.dtype)
    return model
