"""Reading weights leaves their storages resizable: FSDP frees and gathers parameters by resizing them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import prunus
from prunus.inputs.networks import Network
from prunus.selection.arrays import alias, as_array
from tests.conftest import small_net

BATCHES = [(torch.randn(4, 3, 8, 8), torch.arange(4))]


def squares(pieces: prunus.Pieces) -> torch.Tensor:
    return pieces.values.square()


def themselves(pieces: prunus.Pieces) -> torch.Tensor:
    """A view of the weights, and no copy."""
    return pieces.values


def all_passes(model: nn.Module) -> None:
    for passes in ("both", "backward", "forward"):
        pruning = prunus.prune(model, 0.5, p_bern=0.5, passes=passes)
        model(BATCHES[0][0]).sum().backward()
        pruning.redraw()
    prunus.restore(model)


def for_good(model: nn.Module) -> None:
    prunus.global_prune(model, 0.5, keep_original=False)


def files(model: nn.Module) -> None:
    path = Path("masks.safetensors")
    prunus.make_masks(model, 0.5).save(path)
    prunus.apply_masks(model, prunus.Masks.load(path))
    prunus.Masks.from_zeros(model).save(path)


READERS: dict[str, Callable[[nn.Module], object]] = {
    "weights": lambda model: prunus.make_masks(model, 0.5),
    "layer": lambda model: prunus.make_masks(model, 0.5, scope="layer"),
    "kernels": lambda model: prunus.make_masks(model, 0.5, granularity="kernel"),
    "criterion": lambda model: prunus.make_masks(model, 0.5, criterion=squares),
    "criterion that copies nothing": lambda model: prunus.make_masks(model, 0.5, criterion=themselves),
    "passes": all_passes,
    "for good": for_good,
    "files": files,
    "evidence": lambda model: prunus.make_masks(
        model, 0.5, criterion="taylor", evidence=prunus.evidence(model, BATCHES)
    ),
    "evaluate": lambda model: prunus.evaluate(model, BATCHES),
    "sweep": lambda model: prunus.sweep(model, BATCHES, p_prune=(0, 0.5), p_bern=(0.5,)),
    "fingerprint": lambda model: Network("small", model).fingerprint,
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize("strided", [False, True])
def test_storages_stay_resizable(
    read: Callable[[nn.Module], object], strided: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = small_net().to(memory_format=torch.channels_last if strided else torch.contiguous_format)
    read(model)
    tensors = model.state_dict().items()
    assert [name for name, tensor in tensors if not tensor.untyped_storage().resizable()] == []


def test_an_alias_is_the_same_memory() -> None:
    weight = nn.Parameter(torch.randn(3, 4).t())
    array = as_array(alias(weight.detach()))
    with torch.no_grad():
        weight[1, 2] = 7
    assert array[1, 2] == 7
    assert weight.untyped_storage().resizable()
