"""A pruned network as whoever runs it needs it: zeros, and nothing that makes them."""

from __future__ import annotations

import copy

import torch
from torch import nn

from prunus.application.applying import masks_in_force, take_off
from prunus.application.ruled import check_unruled


def for_good(model: nn.Module) -> nn.Module:
    """A copy without masks and backups, whose forward is that of the model: what it prunes there is zero.

    Raises:
        ValueError: the model cannot be copied, has no values, or is under rules of `sparse_backward`.
    """
    check_unruled(model)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("model is on the meta device, where nothing is zero: load its weights first")
    try:
        made = copy.deepcopy(model)
    except Exception as error:  # whatever a module holds
        raise ValueError(
            f"model cannot be copied ({error!s:.200}): where torch.nn.utils.prune has pruned it, call its "
            "prune.remove first"
        ) from error
    make_good(made)
    return made


def make_good(model: nn.Module) -> None:
    """The same of the model itself."""
    placed = masks_in_force(model)
    take_off(model)
    with torch.no_grad():
        for name, masks in placed.items():
            if masks.forward is not None:
                model.get_parameter(name).masked_fill_(~masks.forward, 0)
