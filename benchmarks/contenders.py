"""Prunus and what is used instead of it, called alike: a network and a fraction in, masks out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import prunus

Select = Callable[[nn.Module, float], object]


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The convolutions, or without any the linear layers."""
    modules = list(model.modules())
    return [m for m in modules if isinstance(m, nn.Conv2d)] or [
        m for m in modules if isinstance(m, nn.Linear)
    ]


def weights_of(model: nn.Module) -> list[Tensor]:
    """Their weights."""
    return [layer.get_parameter("weight").detach() for layer in layers_of(model)]


def kinds_of(model: nn.Module) -> tuple[type[nn.Module], ...]:
    """Their types."""
    return tuple({type(layer) for layer in layers_of(model)})


def read(model: nn.Module) -> list[Tensor]:
    """The floor: every weight is read once."""
    return [weight.sum() for weight in weights_of(model)]


def by_prunus(model: nn.Module, fraction: float) -> prunus.Masks:
    """`make_masks` over these layers."""
    return prunus.make_masks(model, fraction, layers=kinds_of(model))


def for_good_by_prunus(model: nn.Module, fraction: float) -> nn.Module:
    """`global_prune` that keeps nothing; done again it finds other ties, but does as much."""
    return prunus.global_prune(model, fraction, layers=kinds_of(model), keep_original=False)


def by_sorting(model: nn.Module, fraction: float) -> Sequence[Tensor]:
    """What most scripts do: concatenate, sort, compare."""
    weights = weights_of(model)
    ranked = torch.cat([weight.abs().flatten() for weight in weights]).sort().values
    threshold = ranked[int(fraction * len(ranked))]
    return [weight.abs() >= threshold for weight in weights]


def by_torch(model: nn.Module, fraction: float) -> nn.Module:
    """`torch.nn.utils.prune`, which puts its masks on the network."""
    places = [(layer, "weight") for layer in layers_of(model)]
    torch_prune.global_unstructured(places, pruning_method=torch_prune.L1Unstructured, amount=fraction)
    return model


def tidy(select: Select, model: nn.Module) -> Callable[[], None]:
    """What has to be done to the network before it can be called again."""

    def undo_torch() -> None:  # which its library cannot
        for layer in layers_of(model):
            original = layer.get_parameter("weight_orig").detach().clone()
            torch_prune.remove(layer, "weight")  # type: ignore[no-untyped-call]
            layer.get_parameter("weight").data = original

    return undo_torch if select is by_torch else lambda: None


def filters_by_prunus(model: nn.Module, fraction: float) -> prunus.Masks:
    """Whole output channels, by their mean magnitude."""
    return prunus.make_masks(model, fraction, granularity="filter", scope="global", norm="mean")


def two_of_four(model: nn.Module) -> list[Tensor]:
    """2:4 as one would write it: the two largest of every four along the inputs."""
    kept = []
    for weight in weights_of(model):
        groups = weight.abs().view(-1, 4)
        mask = torch.zeros_like(groups, dtype=torch.bool)
        kept.append(mask.scatter_(1, groups.topk(2, dim=1).indices, True).view_as(weight))
    return kept


def wanda(model: nn.Module, norms: Sequence[Tensor], fraction: float) -> list[Tensor]:
    """As the program of its authors does: every row is sorted, and its lowest are scattered into a mask."""
    kept = []
    for weight, norm in zip(weights_of(model), norms, strict=True):
        scores = weight.abs() * norm
        lowest = scores.sort(dim=-1, stable=True).indices[:, : int(fraction * weight.shape[1])]
        kept.append(torch.ones_like(scores, dtype=torch.bool).scatter_(1, lowest, False))
    return kept


def filters_by_torch_pruning(model: nn.Module, fraction: float) -> object:
    """Torch-Pruning's choice: groups of channels that hang together, which it could also cut out."""
    import torch_pruning

    pruner = torch_pruning.pruner.BasePruner(
        model,
        torch.zeros(1, 3, 64, 64),
        importance=torch_pruning.importance.MagnitudeImportance(p=1),
        global_pruning=True,
        pruning_ratio=fraction,
        ignored_layers=[module for module in model.modules() if isinstance(module, nn.Linear)],
    )
    return list(pruner.step(interactive=True))
