"""Masking Unimportant Parameters: every image is attacked on a network pruned for that image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn import functional as F

from prunus.application.detour import StandIn
from prunus.checks import check_fraction, choose, chosen, knows_keywords
from prunus.scores.criteria import CRITERIA, Criterion, Pieces, Traits, score, traits
from prunus.scores.evidence import Loss
from prunus.scores.gradients import gradients
from prunus.selection.line import keep_rows
from prunus.selection.pieces import GRANULARITIES, NORMS, Partition
from prunus.selection.scored import check_finite
from prunus.surrogates.surrogate import Surrogate
from prunus.weights import Layers, Patterns, find_weights


@dataclass(frozen=True)
class Plan:
    """The arguments of a `MUP`, and how each weight tensor falls into pieces."""

    p_prune: float
    criterion: Criterion
    pool: Callable[[Tensor, Tensor | None], Tensor]
    loss: Loss
    partitions: Mapping[str, Partition]


class MUP(Surrogate):
    """Masking Unimportant Parameters (Yang, Yu, Xiao, Luo 2023, arXiv 2304.06908).

    Whenever a gradient with respect to the input is being asked for, one forward and backward pass
    ranks the weights of every layer for each image, the lowest fraction is masked, and the answer is
    that of the masked network. A batch has one mask for each image, and gives what its images give one by
    one; it takes two tensors as large as the weights times the batch.

    Args:
        model: from images (batch, ...) to logits (batch, classes).
        p_prune: fraction of the pieces of each layer that is masked, in [0, 1].
        criterion: "taylor" |w·g|, another that needs no more than gradients, or a function; see
            `prunus.rank`, also for `granularity`, `norm`, `layers`, `include` and `exclude`.
        loss: from (logits, labels) to the scalar whose gradient ranks the weights.

    Attributes:
        wrapped: the network.
        labels: classes of the images to come, shape (batch,), for the ranking loss; None (the default)
            takes what the network predicts for each.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range, see `prunus.rank`; a network that is compiled or pruned;
            labels of another number than images; batch norm in training mode, which mixes images.

    Example:
        >>> import prunus
        >>> net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Flatten(), nn.MaxPool1d(36), nn.Linear(16, 10)).eval()
        >>> surrogate = prunus.MUP(net, 0.15)
        >>> x = torch.rand(4, 3, 8, 8, requires_grad=True)
        >>> surrogate.labels = torch.tensor([3, 1, 4, 1])
        >>> F.cross_entropy(surrogate(x), surrogate.labels).backward()
        >>> x.grad.shape
        torch.Size([4, 3, 8, 8])
    """

    @knows_keywords()
    def __init__(
        self,
        model: nn.Module,
        p_prune: float = 0.15,
        *,
        criterion: str | Criterion = "taylor",
        granularity: str = "weight",
        norm: str = "l1",
        layers: Layers = (nn.Conv2d,),
        include: Patterns | None = None,
        exclude: Patterns | None = (),
        loss: Loss = F.cross_entropy,
    ) -> None:
        super().__init__(model)
        p_prune, by = check_fraction("p_prune", p_prune), chosen("criterion", criterion, CRITERIA)
        missing = [kind.__name__ for kind in (traits(by) or Traits()).needs if kind is not gradients]
        if missing:
            raise ValueError(f"criterion {by.__name__!r} needs {missing[0]}; MUP has gradients only")
        pieces = choose("granularity", granularity, GRANULARITIES)
        weights = find_weights(model, layers, include, exclude)
        partitions = {
            name: Partition.of(weight.owners[0], pieces, weight.attribute) for name, weight in weights.items()
        }
        self.labels: Tensor | None = None
        self._plan = Plan(p_prune, by, choose("norm", norm, NORMS), loss, partitions)

    def expect(self, labels: Tensor) -> None:
        """Set `labels`."""
        self.labels = labels

    def _changed(self, x: Tensor) -> Any:
        for name, module in self.named_modules():
            if module.training and isinstance(module, nn.modules.batchnorm._BatchNorm):
                raise ValueError(f"{name} is in training mode and mixes images: call eval() first")
        labels = None if self.labels is None else torch.as_tensor(self.labels, device=x.device)
        if labels is not None and labels.shape != (len(x),):
            raise ValueError(
                f"labels must be one for each of {len(x)} images, got shape {tuple(labels.shape)}"
            )
        weights = {
            name: _row_major(self._shell.get_parameter(name).detach()) for name in self._plan.partitions
        }
        by_image = (None, 0, None if labels is None else 0)
        found = vmap(grad(self._ranking_loss), by_image, randomness="different")(
            weights, _row_major(x.detach()), labels
        )
        masked = {name: self._mask(name, weight, found.pop(name)) for name, weight in weights.items()}
        return vmap(self._answer, randomness="different")(masked, _row_major(x))

    def _answer(self, weights: Mapping[str, Tensor], image: Tensor) -> Any:
        others: dict[Tensor, Tensor] = {p: _row_major(p.detach()) for p in self.parameters() if p.dim() > 2}
        copy = self._copy({**others, **{self._shell.get_parameter(name): w for name, w in weights.items()}})
        return copy(image[None])[0]

    def _ranking_loss(self, weights: Mapping[str, Tensor], image: Tensor, label: Tensor | None) -> Tensor:
        logits = self._answer(weights, image)
        return self._plan.loss(logits[None], (logits.argmax() if label is None else label)[None])

    def _mask(self, name: str, weight: Tensor, by_image: Tensor) -> Tensor:
        """The weight as each image has it, shape (batch, *weight.shape), by a gradient for each image."""
        plan, partition = self._plan, self._plan.partitions[name]

        def scores(gradient: Tensor) -> Tensor:
            pieces = Pieces(name, partition.table(weight), {gradients: partition.table(gradient)})
            return score(pieces, plan.criterion, plan.pool)

        table = vmap(scores, randomness="different")(by_image)
        check_finite(name, table)
        kept = vmap(partition.expand)(keep_rows(table, plan.p_prune))
        return StandIn(kept.to(weight.device))(weight)  # random scores are made on the CPU


def _row_major(tensor: Tensor) -> Tensor:
    """The same values in this order: under vmap, torch's average pooling is wrong where channels come last.

    `contiguous()` would leave the strides of 1×1 kernels as they are, and what they make comes out alike.
    """
    return tensor.clone(memory_format=torch.contiguous_format)
