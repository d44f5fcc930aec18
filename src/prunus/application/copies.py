"""A network once more around the same tensors, or around others, without a write to the original.

What `torch.nn.DataParallel` does for every device: modules are copied, tensors are not.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from types import MethodType
from typing import Any

from torch import Tensor, nn

PLAIN = (bool, int, float, str, type(None))


def detached(tensor: Tensor) -> Tensor:
    """A copy without a gradient."""
    return tensor.detach().clone()


def replicate(
    root: nn.Module,
    swap: Mapping[Tensor, Tensor] | None = None,
    held: Callable[[Tensor], Tensor] = detached,
) -> Any:
    """Copies of a module and all modules in it, each with hooks and a mode of its own.

    References among the modules (attributes, lists, bound methods) lead to the copies.

    Args:
        root: stays as it is.
        swap: other tensors in place of parameters and buffers; the rest are the same objects. By
            default the copies hold the very dictionaries of the originals, so that each sees what is
            assigned to the other.
        held: what becomes of tensors in plain attributes, which a forward may write to.
    """
    modules = list(root.modules())
    copies: dict[int, Any] = {id(module): object.__new__(type(module)) for module in modules}
    copies.update((id(tensor), tensor) for tensor in (*root.parameters(), *root.buffers()))
    if swap:
        copies.update((id(old), new) for old, new in swap.items())
    for module in modules:
        own = vars(copies[id(module)])
        for name, value in vars(module).items():
            keep = swap is None and name in ("_parameters", "_buffers")
            own[name] = value if keep or type(value) in PLAIN else _follow(value, copies, held)
        own["_compiled_call_impl"] = None  # it would run the original
    return copies[id(root)]


def _follow(value: Any, copies: dict[int, Any], held: Callable[[Tensor], Tensor]) -> Any:
    """The value, with copies in place of their originals."""
    if id(value) in copies:
        return copies[id(value)]
    if isinstance(value, Tensor):
        return copies.setdefault(id(value), held(value))
    kind = type(value)
    if kind in (dict, OrderedDict):
        followed = value.copy()
        for key, item in value.items():
            followed[key] = _follow(item, copies, held)
        return followed
    if kind in (list, tuple):
        return kind(_follow(item, copies, held) for item in value)
    if kind is MethodType and id(value.__self__) in copies:
        return MethodType(value.__func__, copies[id(value.__self__)])
    if kind is partial:
        keywords = {key: _follow(item, copies, held) for key, item in value.keywords.items()}
        return partial(_follow(value.func, copies, held), *_follow(value.args, copies, held), **keywords)
    return value
