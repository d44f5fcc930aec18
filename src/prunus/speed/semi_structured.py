"""Weights of which two of four are zero, as GPUs multiply them faster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.sparse import to_sparse_semi_structured

from prunus.checks import knows_keywords
from prunus.compaction.forgood import for_good


@dataclass(frozen=True)
class SemiStructured:
    """A network with weights for sparse tensor cores.

    Args:
        model: the network; for inference.
        layers: paths of the linear layers that have such weights.
        left: why the other linear layers have none, by path.
    """

    model: nn.Module
    layers: tuple[str, ...]
    left: Mapping[str, str]

    def __str__(self) -> str:
        return "\n".join([*(f"{path} stays dense: {why}" for path, why in self.left.items()), repr(self)])

    def __repr__(self) -> str:
        return f"SemiStructured({len(self.layers)} of {len(self.layers) + len(self.left)} linear layers)"


@knows_keywords()
def semi_structured(model: nn.Module) -> SemiStructured:
    """Give linear layers whose weights are 2:4 to a GPU's sparse tensor cores; for inference.

    `prune(..., scope="2:4")` makes such weights: of four beside each other in a row, two are zero at least.
    Here torch stores them as its semi-structured tensors, which its kernels take in float16 and bfloat16, on
    GPUs of Nvidia from Ampere on, and in the shapes that they say. Whether it is faster depends on the shape.

    Args:
        model: on a CUDA device; it is left as it is.

    Returns:
        `.model`, a copy in eval mode; `print` shows which layers stay dense, and why.

    Raises:
        TypeError: no module.
        ValueError: a linear layer is not on CUDA, or there is none.

    Example:
        >>> semi_structured(nn.Linear(64, 64))
        Traceback (most recent call last):
        ValueError: semi_structured is for CUDA devices, and weight of the model is on cpu
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    linear = [path for path, module in model.named_modules() if type(module) is nn.Linear]
    if not linear:
        raise ValueError("model has no linear layers: nothing else can be 2:4 here")
    for path in linear:
        device = model.get_submodule(path).get_parameter("weight").device
        if device.type != "cuda":
            name = f"{path}.weight".lstrip(".")
            raise ValueError(f"semi_structured is for CUDA devices, and {name} of the model is on {device}")
    made, left = for_good(model).eval().requires_grad_(False), {}
    for path in linear:
        layer = made.get_submodule(path)
        weight = layer.get_parameter("weight").data
        if not is_2_4(weight):
            left[path] = "its weight is not 2:4"
            continue
        try:
            held = to_sparse_semi_structured(weight)
            nn.functional.linear(weight.new_zeros(64, weight.shape[1]), held)
        except (RuntimeError, ValueError, NotImplementedError) as error:  # of a dtype, a shape or a GPU
            left[path] = f"torch refuses it: {' '.join(str(error).split()):.200}"
        else:
            layer.register_parameter("weight", nn.Parameter(held, requires_grad=False))
    return SemiStructured(made, tuple(path for path in linear if path not in left), left)


def is_2_4(weight: Tensor) -> bool:
    """Whether of four beside each other in a row at most two are not zero.

    Example:
        >>> import torch
        >>> is_2_4(torch.tensor([[1.0, 0, 2, 0, 0, 0, 0, 3]])), is_2_4(torch.ones(1, 4))
        (True, False)
    """
    if weight.dim() != 2 or weight.shape[1] % 4:
        return False
    return bool((weight.reshape(len(weight), -1, 4).count_nonzero(2) <= 2).all())
