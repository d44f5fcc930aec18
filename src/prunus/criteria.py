"""How important is each weight?

A criterion is a function from `Groups` to scores: one for every weight, shape (groups, members),
or one for every group, shape (groups, 1). Lower means less important. Scores of one group are
then summed or averaged (`norm`). To add one, write the function and name it in `CRITERIA`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.weights import Layers, Patterns, find_weights


@dataclass(frozen=True)
class Groups:
    """What a criterion sees of one weight tensor, seen as (groups, members)."""

    name: str
    values: Tensor
    maybe_gradients: Tensor | None = None
    generator: torch.Generator | None = None

    @property
    def gradients(self) -> Tensor:
        """The parameter's `.grad`, same shape as `values`.

        Raises:
            ValueError: the parameter has no `.grad`.
        """
        if self.maybe_gradients is None:
            raise ValueError(
                f"{self.name} has no .grad, which this criterion needs: "
                "call prunus.fill_gradients(model, batches) or loss.backward() first"
            )
        return self.maybe_gradients


Criterion: TypeAlias = Callable[[Groups], Tensor]


def magnitude(groups: Groups) -> Tensor:
    """|w| (Han et al. 2015, arXiv 1506.02626, section 3)."""
    return groups.values.abs()


def random(groups: Groups) -> Tensor:
    """One uniform number a group whatever its size: the control any other criterion must beat."""
    count, generator = len(groups.values), groups.generator
    device = generator.device if generator else "cpu"
    return torch.rand((count, 1), generator=generator, device=device, dtype=torch.float64)


def gradient(groups: Groups) -> Tensor:
    """|g|, from the parameter's `.grad`."""
    return groups.gradients.abs()


def taylor(groups: Groups) -> Tensor:
    """|w·g|: first-order change of the loss without w (Molchanov et al. 2019, arXiv 1906.10771, eq. 8)."""
    wide = torch.promote_types(groups.values.dtype, torch.float32)  # the product of two halfs underflows
    return (groups.values.to(wide) * groups.gradients).abs()


CRITERIA: dict[str, Criterion] = {
    "magnitude": magnitude,
    "random": random,
    "gradient": gradient,
    "taylor": taylor,
}

GRADIENT_CRITERIA = ("gradient", "taylor")


def fill_gradients(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    layers: Layers = "all",
    include: Patterns | None = None,
    exclude: Patterns | None = (),
) -> nn.Module:
    """Set `.grad` of the prunable weights to the mean over batches of the loss gradient.

    The model is run in eval mode, so no batch-norm statistics move; modes, frozen flags and every
    other `.grad` stay as they were.

    Args:
        model: the network; a pruned one gives the gradients of the pruned network.
        batches: (inputs, targets), moved to the device of the model.
        loss: from (outputs, targets) to a scalar tensor, by default the mean cross-entropy.
        layers: layer types whose weights get a gradient, by default every one prunable; likewise
            `include` and `exclude`, see `prunus.rank`.

    Returns:
        The same model.

    Raises:
        ValueError: `batches` is empty or nothing is prunable.

    Example:
        >>> import prunus
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten())
        >>> data = [(torch.rand(2, 1, 3, 3), torch.tensor([0, 1]))]
        >>> prunus.fill_gradients(net, data)[0].weight.grad.shape
        torch.Size([4, 1, 3, 3])
    """
    parameters = [weight.parameter for weight in find_weights(model, layers, include, exclude).values()]
    modes = {module: module.training for module in model.modules()}
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    wide = [torch.promote_types(parameter.dtype, torch.float32) for parameter in parameters]
    sums, count = [torch.zeros_like(p, dtype=dtype) for p, dtype in zip(parameters, wide, strict=True)], 0
    try:
        model.eval()
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            for inputs, targets in batches:
                device = parameters[0].device
                value = loss(model(inputs.to(device)), targets.to(device))
                grads = torch.autograd.grad(value, parameters, allow_unused=True)
                for total, grad in zip(sums, grads, strict=True):
                    if grad is not None:
                        total += grad
                count += 1
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for module, training in modes.items():
            module.training = training
    if not count:
        raise ValueError("batches is empty: expected at least one (inputs, targets)")
    for parameter, total in zip(parameters, sums, strict=True):
        parameter.grad = (total / count).to(parameter.dtype)
    return model
