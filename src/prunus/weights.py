"""Which tensors may be pruned?"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias, cast

import torch
from torch import nn

Layers: TypeAlias = "Sequence[type[nn.Module]] | Literal['all']"
Patterns: TypeAlias = "str | Sequence[str]"

ALL_LAYERS: tuple[type[nn.Module], ...] = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Weight:
    """One prunable parameter and every module that holds it (several where weights are tied)."""

    name: str
    parameter: nn.Parameter
    owners: tuple[nn.Module, ...]


def find_weights(
    model: nn.Module,
    layers: Layers = (nn.Conv2d,),
    include: Patterns | None = None,
    exclude: Patterns = (),
) -> dict[str, Weight]:
    """Collect the weights of the chosen layers, in module order, tied weights once.

    A pattern is a shell wildcard (`fnmatch`) for the name of a weight ("layer1.0.conv1.weight")
    or of any module around it ("layer1.0.conv1", "layer1"). Warns where the layer types hold less
    than half of the model's weights.

    Raises:
        TypeError: `model` is not a module, or `layers` is neither "all" nor module types.
        ValueError: nothing is left to prune, a pattern matches nothing, or a chosen weight is
            not a plain floating-point parameter.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
        >>> list(find_weights(net, exclude="0"))
        ['2.weight']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    types = _layer_types(layers)
    found = {
        name: weight
        for name, weight in layer_weights(model).items()
        if any(isinstance(owner, types) for owner in weight.owners)
    }
    _check_layers(model, types, found)
    chosen = _match(found, include, exclude)
    for weight in chosen.values():
        _check_weight(weight)
    return chosen


def layer_weights(model: nn.Module) -> dict[str, Weight]:
    """Every parameter called `weight`, of any layer, in module order, tied weights once."""
    names: dict[int, str] = {}
    found: dict[str, Weight] = {}
    for path, module in model.named_modules():
        parameter = module._parameters.get("weight")
        if parameter is not None:
            first = names.setdefault(id(parameter), f"{path}.weight" if path else "weight")
            owners = found[first].owners if first in found else ()
            found[first] = Weight(first, parameter, (*owners, module))
    return found


def _layer_types(layers: Layers) -> tuple[type[nn.Module], ...]:
    if layers == "all":
        return ALL_LAYERS
    types = tuple(layers) if isinstance(layers, Sequence) else (layers,)
    if not types or not all(isinstance(t, type) and issubclass(t, nn.Module) for t in types):
        raise TypeError(f'layers must be torch.nn.Module types or "all", got {layers!r}')
    return cast("tuple[type[nn.Module], ...]", types)


def _check_layers(model: nn.Module, types: tuple[type[nn.Module], ...], found: dict[str, Weight]) -> None:
    if any(nn.parameter.is_lazy(p) for p in model.parameters()):
        raise ValueError("model has uninitialized lazy parameters: run one forward pass first")
    for path, module in model.named_modules():
        if isinstance(module, types) and module._parameters.get("weight") is None:
            raise ValueError(
                f"{path or 'model'}: the weight of this {type(module).__name__} is not a parameter (a "
                "parametrization, torch.nn.utils.prune or weight_norm computes it, or there is none): "
                "undo that first, or choose other layers"
            )
    total = sum(p.numel() for p in model.parameters())
    held = sum(weight.parameter.numel() for weight in found.values())
    names = "/".join(t.__name__ for t in types)
    hint = "" if types == ALL_LAYERS else '; layers="all" takes every convolution and linear layer'
    if held == 0:
        raise ValueError(f"nothing to prune: {names} layers hold 0% of the model's {total:,} weights{hint}")
    if hint and held < total / 2:
        warnings.warn(
            f"{names} layers hold only {held / total:.1%} of the model's {total:,} weights{hint}",
            stacklevel=_depth_outside(),
        )


def _depth_outside() -> int:
    """How many frames up a warning belongs: to the user's own line."""
    depth, frame = 1, sys._getframe(1)
    while frame.f_back and str(frame.f_globals.get("__name__")).startswith("prunus."):
        depth, frame = depth + 1, frame.f_back
    return depth


def _match(found: dict[str, Weight], include: Patterns | None, exclude: Patterns) -> dict[str, Weight]:
    included = set(found) if include is None else _matched("include", include, found)
    excluded = _matched("exclude", exclude, found)
    chosen = {name: found[name] for name in found if name in included - excluded}
    if not chosen:
        raise ValueError(f"nothing to prune: include={include!r}, exclude={exclude!r} leave no weight")
    return chosen


def _matched(argument: str, patterns: Patterns, names: dict[str, Weight]) -> set[str]:
    matched: set[str] = set()
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{argument} must be name patterns, got {pattern!r}")
        hits = {name for name in names if any(fnmatchcase(part, pattern) for part in _prefixes(name))}
        if not hits:
            raise ValueError(
                f"{argument}={pattern!r} matches no weight of the chosen layers; "
                f"names are like {', '.join(list(names)[:3])}"
            )
        matched |= hits
    return matched


def _prefixes(name: str) -> Iterator[str]:
    """The weight's own name and those of the modules around it: a.b.weight, a.b, a."""
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(len(parts), 0, -1))


def _check_weight(weight: Weight) -> None:
    dtype = weight.parameter.dtype
    if dtype not in DTYPES:
        raise ValueError(f"{weight.name} is {dtype}; prunable are float16, bfloat16, float32, float64")
    if weight.parameter.is_meta:
        raise ValueError(f"{weight.name} is on the meta device and has no values to rank")
