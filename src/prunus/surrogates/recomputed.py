"""What was drawn for a forward, drawn alike when `torch.utils.checkpoint` runs that forward again."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import torch

T = TypeVar("T")


class Drawn(Generic[T]):
    """Values by the checkpointed region that they were drawn in; they go with it."""

    def __init__(self) -> None:
        self._values: WeakKeyDictionary[Any, list[T]] = WeakKeyDictionary()
        self._replayed: WeakKeyDictionary[Any, tuple[object, int]] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[Callable[[], Drawn[T]], tuple[()]]:
        """A copy knows of no region."""
        return Drawn, ()

    def once(self, draw: Callable[[], T]) -> T:
        """What `draw` gives, or where a forward is run again, what it gave then.

        Raises:
            RuntimeError: a backward pass calls this, and it is not known which forward it runs again.
        """
        frame, run = _region()
        if run is not None and frame in self._values:
            last, count = self._replayed.get(frame, (None, 0))
            count = count if last == run else 0
            self._replayed[frame] = run, count + 1
            return self._values[frame][count]
        if torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                "a backward pass runs a surrogate again, and which mask its forward had is not known: of "
                'torch.utils.checkpoint use use_reentrant=False, not nested; or redraw="manual"'
            )
        value = draw()
        if frame is not None:
            self._values.setdefault(frame, []).append(value)
        return value


def _region() -> tuple[Any, object]:
    """The checkpointed region that is running, and which of its runs it is, None for the first.

    torch says so nowhere but in the hooks that it puts on what is saved for the backward pass.
    """
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    pack = inspect.unwrap(hooks[0]) if hooks else None
    if getattr(pack, "__module__", None) != "torch.utils.checkpoint":
        return None, None
    known = inspect.getclosurevars(pack).nonlocals
    if "target_frame_ref" in known:
        return known["target_frame_ref"](), known["gid"]
    return known.get("frame"), None
