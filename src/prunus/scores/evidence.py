"""What does a criterion need to know beside the weights?"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.weights import Layers, Patterns, find_weights


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
