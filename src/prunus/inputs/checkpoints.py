"""What is in a weights file? Tensors by name, out of the wrappings that training leaves around them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors.torch import load_file
from torch import Tensor

from prunus.compaction.sparse import is_sparse, load_sparse

StateDict = dict[str, Tensor]

KEYS = ("state_dict", "model_state_dict", "model_state", "model", "net")  # where training code puts it
DEEPEST = 8  # of these in one another
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")  # DataParallel, torch.compile, Lightning


def read_state_dict(path: str | os.PathLike[str]) -> tuple[StateDict, list[str]]:
    """The tensors of a .safetensors, sparse or torch file, onto the CPU, without running code.

    Sparse files are those of `prunus.save_sparse`.

    A training checkpoint is read at "state_dict" or another of `KEYS`. Averages of weights, such as timm's
    "state_dict_ema", are another network: they are read only from a file of their own.

    Returns:
        Tensors by name, and what was done to find them, in words.

    Raises:
        ValueError: no such file, no state_dict in it, or more than one that could be meant.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"model": {"weight": torch.ones(2)}, "epoch": 3}, f"{folder}/a.pth")
        ...     read_state_dict(f"{folder}/a.pth")
        ({'weight': tensor([1., 1.])}, ["read at its key 'model'"])
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no weights file {os.fspath(path)!r}")
    if is_sparse(path):
        return load_sparse(path), []
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path)), []
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make the readers raise nearly anything
        raise ValueError(
            f"{path} is not a readable state_dict (truncated, or more than tensors): {_reason(error)}"
        ) from error
    return _unwrapped(held, path)


def _reason(error: Exception) -> str:
    """The one line of it that helps."""
    refused = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
    if refused:  # what torch says first is how to run the code in the file
        return f"it holds {refused[1]}, and no code is run to read it: save the state_dict alone"
    return f"{str(error).splitlines()[0]:.300}" if str(error) else type(error).__name__


def _unwrapped(held: Any, path: Path, *, inside: str = "") -> tuple[StateDict, list[str]]:
    if _is_state_dict(held):
        return dict(held), []
    if not isinstance(held, Mapping):
        raise ValueError(
            f"{path} is not a state_dict{inside}: expected names and tensors, got {type(held).__name__}"
        )
    keys = [key for key in KEYS if _has_tensors(held.get(key))]
    keys = keys or [key for key in KEYS if isinstance(held.get(key), Mapping)]  # one in another
    if inside.count(" at its key ") > DEEPEST:  # or the file holds itself
        raise ValueError(f"{path} is not a state_dict: one is in another without end")
    if len(keys) > 1:
        raise ValueError(
            f"{path} has a state_dict at {_listed(keys)}{inside}: save the one that is meant alone"
        )
    if not keys:
        raise ValueError(
            f"{path} is not a state_dict{inside}: expected names and tensors, by themselves or at one of "
            f"the keys {_listed(KEYS)}; found the keys {_listed(held)}"
        )
    [key] = keys
    state, steps = _unwrapped(held[key], path, inside=f"{inside} at its key {key!r}")
    others = [name for name, value in held.items() if name != key and _has_tensors(value)]
    beside = f" (and not at {_listed(others)})" if others else ""
    return state, [f"read at its key {key!r}{beside}", *steps]


def _is_state_dict(held: Any) -> TypeGuard[Mapping[str, Tensor]]:
    return isinstance(held, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in held.items()
    )


def _has_tensors(held: Any) -> bool:
    return isinstance(held, Mapping) and len(held) > 0 and _is_state_dict(held)


def _listed(keys: Iterable[object], most: int = 8) -> str:
    names = [repr(key) for key in keys]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def fitted(state: StateDict, wanted: Mapping[str, Tensor]) -> tuple[StateDict, list[str]]:
    """A state_dict under the names that a network has for it.

    Prefixes of wrappers are taken off where more names fit without them, and never those that the network
    has itself. The pairs `weight_orig`, `weight_mask` of torch.nn.utils.prune become their product.

    Args:
        state: as it was read.
        wanted: the state_dict of the network.

    Returns:
        Tensors by name, and what was done, in words.

    Raises:
        ValueError: a pair of different shapes.

    Example:
        >>> wanted = torch.nn.Linear(1, 1, bias=False).state_dict()
        >>> fitted({"module._orig_mod.weight": torch.ones(1, 1)}, wanted)
        ({'weight': tensor([[1.]])}, ["took 'module._orig_mod.' off its names"])
    """
    prefix = _wrappers(state, wanted)
    bare = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    (plain, pairs), (stripped, bare_pairs) = _multiplied(state, wanted), _multiplied(bare, wanted)
    steps = []
    if len(bare) == len(state) and len(stripped.keys() & wanted) > len(plain.keys() & wanted):
        plain, pairs = stripped, bare_pairs
        steps.append(f"took {prefix!r} off its names")
    if pairs:
        rest = f" and {len(pairs) - 1} more" if len(pairs) > 1 else ""
        steps.append(f"multiplied {pairs[0]}_orig with its mask{rest}")
    return plain, steps


def _wrappers(state: StateDict, wanted: Mapping[str, Tensor]) -> str:
    """The prefix that wrappers one in another have put before names of a network."""
    whole = ""
    while True:
        for prefix in PREFIXES:
            found = any(name.startswith(whole + prefix) for name in state)
            if found and not any(name.startswith(prefix) for name in wanted):
                whole += prefix
                break
        else:
            return whole


def _multiplied(state: StateDict, wanted: Mapping[str, Tensor]) -> tuple[StateDict, list[str]]:
    """The same with weights in place of what torch.nn.utils.prune makes of them, and the names of these."""
    made = dict(state)
    names = [name.removesuffix("_orig") for name in state if name.endswith("_orig")]
    # A network that was pruned so itself has no weight of that name, and keeps its pairs
    pairs = [name for name in names if name in wanted and f"{name}_mask" in state]
    for name in pairs:
        weight, mask = made.pop(f"{name}_orig"), made.pop(f"{name}_mask")
        if weight.shape != mask.shape:
            raise ValueError(
                f"{name}_orig has shape {tuple(weight.shape)}, but {name}_mask {tuple(mask.shape)}"
            )
        made[name] = weight * mask.to(weight.dtype)
    return made, pairs
