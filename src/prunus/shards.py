"""Sharded parameters, of which a process has a part: how they are told from whole ones."""

from __future__ import annotations

import gc
import sys

from torch import Tensor, nn


def check_unsharded(model: nn.Module) -> None:
    """Refuse a model that FSDP has sharded: all of it, a part of it, or what it is a part of.

    Raises:
        ValueError: names what is sharded, and by what.
    """
    kinds = _kinds()
    if not kinds:
        return
    computed = {}
    for path, module in model.named_modules():
        if isinstance(module, kinds):
            raise refusal(path or "model", type(module).__name__)
        head = f"{path}." if path else ""
        for attribute, parameter in module._parameters.items():
            if is_flattened(parameter) and not attribute.startswith("_flat_param"):  # which is the flat one
                raise refusal(head + attribute, kinds[0].__name__)
        views = [name for name, value in vars(module).items() if isinstance(value, Tensor) and _is_view(name)]
        if views:
            computed[id(module)] = head + views[0]
    # FSDP1 puts a view where the parameter was; so do others, and only FSDP knows which is its own.
    for sharder in sharders() if computed else ():
        for module in sharder.modules():
            if id(module) in computed:
                raise refusal(computed[id(module)], type(sharder).__name__)


def _is_view(name: str) -> bool:
    """Whether a tensor of this name may stand for a weight, and is neither a mask nor a backup of ours."""
    return "weight" in name and not name.endswith(("_mask", "_orig"))


def is_flattened(parameter: Tensor | None) -> bool:
    """Whether FSDP1 has made a parameter a part of a flat one: it goes on as the same object."""
    return getattr(parameter, "_fsdp_flattened", False)


def refusal(name: str, what: str) -> ValueError:
    """The error of a weight, or a module, that is sharded."""
    return ValueError(
        f"{name} is sharded ({what}): sharded parameters are not supported. Use DistributedDataParallel, or "
        "prune for good before sharding (global_prune with keep_original=False)"
    )


def sharders() -> list[nn.Module]:
    """Every living module that FSDP manages, of either kind: nothing leads to it from the layers within."""
    kinds = _kinds()
    return [found for found in gc.get_objects() if issubclass(type(found), kinds)] if kinds else []


def _kinds() -> tuple[type[nn.Module], ...]:
    """The classes of FSDP, none where it was never imported: then nothing is sharded by it."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    names = ("FullyShardedDataParallel", "FSDPModule")
    return tuple(kind for name in names if (kind := getattr(fsdp, name, None)))
