"""Which layers are faster with sparse weights, each by itself?"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunus.speed.products import Convolution, compiled_conv2d, csr_conv2d
from prunus.speed.sparse_layers import SparseConv1D, SparseConv2d, SparseLinear
from prunus.weights import conv1d

FEWEST = 0.5  # zeros of a layer that is timed: with fewer, no product here was ever faster
PRODUCTS: dict[str, Callable[[], Convolution]] = {"CSR": lambda: csr_conv2d, "kernel": compiled_conv2d}


@dataclass(frozen=True)
class Choice:
    """What was timed of one layer.

    Args:
        zeros: fraction of its weights.
        milliseconds: of one call alone, "dense" and by each product; the median.
    """

    zeros: float
    milliseconds: Mapping[str, float]

    @property
    def kept(self) -> str:
        """The name of the fastest."""
        return min(self.milliseconds, key=self.milliseconds.__getitem__)


def in_turns(tasks: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, in turns, so that what else the machine does meets all alike.

    Every time a call comes first that is not timed: threads of the task before may still wait for work in a
    loop, as those of ONNX Runtime do, and take the processor.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            task()
            begun = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(times) for name, times in seconds.items()}


def with_sparse_layers(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    products: Mapping[str, Callable[[], Convolution]] = PRODUCTS,
    rounds: int = 7,
) -> tuple[nn.Module, dict[str, Choice], dict[str, str]]:
    """A copy whose layers have sparse weights where that is faster.

    Args:
        model: in eval mode, without masks, on the CPU.
        args, kwargs: what it is called with.
        products: by name, what gives those that are tried.
        rounds: of timing of each layer.

    Returns:
        The copy; by module path, what was timed; and by product, why it cannot be had.
    """
    had: dict[str, Convolution] = {}
    missing = {}
    for name, product in products.items():
        try:
            had[name] = product()
        except Exception as error:  # of compilers
            missing[name] = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
    inputs = _inputs(model, args, kwargs)
    choices = {}
    made = copy.deepcopy(model)
    with torch.no_grad():
        for path, x in inputs.items():
            layer = model.get_submodule(path)
            ways = {"dense": layer, **{name: sparse_layer(layer, of) for name, of in had.items()}}
            try:
                times = in_turns({name: partial(way, x) for name, way in ways.items()}, rounds)
            except Exception:  # of inputs that a product is not made for, as within autocast or vmap
                continue
            choice = Choice(_zeros(layer), {name: 1000 * time for name, time in times.items()})
            choices[path] = choice
            if choice.kept != "dense":
                made.set_submodule(path, ways[choice.kept])
    return made, choices, missing


def sparse_layer(layer: nn.Module, convolution: Convolution) -> nn.Module:
    """The same layer with sparse weights."""
    if isinstance(layer, nn.Conv2d):
        return SparseConv2d(layer, convolution)
    kind = SparseLinear if isinstance(layer, nn.Linear) else SparseConv1D
    return kind(layer.get_parameter("weight"), getattr(layer, "bias", None), convolution)


def _inputs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Of layers that can be sparse, and that the forward calls with one tensor, the first that each gets."""
    found: dict[str, Tensor] = {}

    def noting(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            if len(given) == 1 and not keywords and isinstance(given[0], Tensor) and given[0].numel():
                found.setdefault(path, given[0])

        return hook

    with ExitStack() as stack, torch.no_grad():
        for path, module in model.named_modules():
            if path and can_be_sparse(module) and _zeros(module) >= FEWEST:
                handle = module.register_forward_pre_hook(noting(path), with_kwargs=True)
                stack.callback(handle.remove)
        model(*args, **kwargs)
    return found


def can_be_sparse(module: nn.Module) -> bool:
    """Whether its weight can be a sparse matrix: Linear, Conv1D, and Conv2d of one group, padded by zeros.

    No subclasses: nobody knows what these do. No layers with hooks, which would be lost.
    """
    if type(module) is nn.Conv2d:
        plain = module.groups == 1 and module.padding_mode == "zeros"
    else:
        plain = type(module) in (nn.Linear, *conv1d())
    hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    weight = module._parameters.get("weight") if plain and not hooked else None  # some networks compute it
    return weight is not None and weight.dtype in (torch.float32, torch.float64)


def _zeros(module: nn.Module) -> float:
    weight = module.get_parameter("weight")
    return 1 - int(weight.count_nonzero()) / max(1, weight.numel())
