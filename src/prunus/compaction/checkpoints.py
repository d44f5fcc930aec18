"""Files of cut networks: safetensors, from whose shapes the network that they are loaded into is cut."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from prunus.checks import knows_keywords
from prunus.compaction.blocks import skip, skipped
from prunus.compaction.plan import Tensors, put
from prunus.compaction.sparse import distinct
from prunus.compaction.widths import fit
from prunus.files import whole_file
from prunus.weights import CUT

FORMAT = "prunus compact 1"
ModelT = TypeVar("ModelT", bound=nn.Module)


@knows_keywords()
def save_compact(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a network that was cut, whole or not at all.

    Args:
        model: such as `prunus.compact(...).model`.
        path: of a safetensors file.

    Raises:
        TypeError: something in its state_dict is no plain tensor.
        OSError: the file cannot be written.
    """
    tensors, aliases = distinct(model.state_dict())
    held = {
        name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    told = {"aliases": json.dumps(aliases), "skipped": json.dumps(skipped(model))}
    data = save(held, {"format": FORMAT, **told})
    with whole_file(path) as partial:
        partial.write_bytes(data)


def load_cut(build: Callable[[], ModelT], path: Path) -> ModelT:
    """See `prunus.load_compact`."""
    state = _read(path)
    model = build()
    if not isinstance(model, nn.Module):
        raise TypeError(f"build must give a torch.nn.Module, gave {type(model).__name__}")
    try:
        skip(model, blocks_out(path))
        shrink(model, state, keep_dtypes=False)
        model.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is of another network: {' '.join(str(error).split()):.300}") from error
    setattr(model, CUT, True)
    return model


def is_compact(path: str | os.PathLike[str]) -> bool:
    """Whether `save_compact` wrote a file."""
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except Exception:  # whatever another file makes of itself
        return False


def _alike(one: Tensor, other: Tensor, keep_dtypes: bool) -> bool:
    return one.shape == other.shape and (keep_dtypes or one.dtype == other.dtype)


def blocks_out(path: str | os.PathLike[str]) -> list[str]:
    """The names of those that a file of `save_compact` is without."""
    with safe_open(path, "pt") as file:
        return list(json.loads(file.metadata().get("skipped", "[]")))


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"no file {os.fspath(path)!r}")
    if not is_compact(path):
        raise ValueError(f"{path} is no file of save_compact")
    with safe_open(path, "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        aliases = json.loads(file.metadata()["aliases"])
    return state | {name: state[of] for name, of in aliases.items()}


def shrink(model: nn.Module, state: Mapping[str, Tensor], keep_dtypes: bool) -> None:
    """Give a network tensors of the shapes in a state_dict, with any values, and let its modules say so.

    Args:
        model: the network.
        state: of the cut one.
        keep_dtypes: whether tensors keep those that they have, or get those of the state_dict.

    Raises:
        ValueError: a tensor there is larger, or has other axes; nothing has changed then. Or no module can be
            so narrow.
    """
    tensors = Tensors.of(model)
    known = {name: tensors[name] for name in (*tensors.weights, *tensors.buffers)}
    smaller = {n: s for n, s in state.items() if n in known and not _alike(known[n], s, keep_dtypes)}
    for name, values in smaller.items():
        shape, before = values.shape, known[name].shape
        if len(shape) != len(before) or any(new > old for new, old in zip(shape, before, strict=True)):
            raise ValueError(f"{name} has shape {tuple(shape)} there, which is no part of {tuple(before)}")
    for name, values in smaller.items():
        dtype = known[name].dtype if keep_dtypes else values.dtype
        put(model, tensors, name, known[name].new_empty(values.shape, dtype=dtype))
    fit(model, {name: known[name].shape for name in smaller})
