"""One forward, through which the labels of channels are carried along.

Below autograd every operation of torch is seen, whatever the forward is written like (`torch.fx` and
`torch.export` see no more of it, and refuse some). A label's own rule is in `rules.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from prunus.coupling.nodes import OPAQUE, Nodes, Unit, merged, narrowed
from prunus.coupling.rules import Call, Label, rule_of, unknown
from prunus.modes import as_written, eval_mode

OUTPUTS = "are outputs of the network"


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is on, labels follow what operations do.

    Args:
        parameters: of the network, by name.
        buffers: of the network, by name, of which is told who reads them.
    """

    def __init__(self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nodes = Nodes()
        self._buffers = {_memory(buffer): name for name, buffer in buffers.items()}
        self.used: set[str] = set()  # names of parameters that an operation has taken
        self._parameters = {name: p for name, p in parameters.items() if _is_dense(p)}
        self._labels: Any = WeakTensorKeyDictionary()
        self._written: dict[int, tuple[Tensor, Tensor]] = {}
        self._homes: dict[int, list[tuple[str, Tensor]]] = {}  # where their values lie, by memory
        for name, parameter in self._parameters.items():
            self._homes.setdefault(_memory(parameter), []).append((name, parameter))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation, and label what it gives."""
        given = kwargs or {}
        for tensor in tree_leaves((args, given)):
            if isinstance(tensor, Tensor) and (homes := self._homes.get(_memory(tensor))):
                self.used.update(name for name, _ in homes)
        rule = rule_of(func)
        if rule is unknown:
            with self:
                output = func.decompose(*args, **given)
            if output is not NotImplemented:
                return output
        output = func(*args, **given)
        if all(self.is_parameter(tensor) for tensor in tree_leaves(output)):
            return output  # a view
        call = Call(func, args, given, output)
        try:
            labels = rule(self, call)
        except Exception:  # of an operation on labels, which it may not be made for
            labels = unknown(self, call)
        several = labels if isinstance(labels, (list, tuple)) else [labels]
        written = call.written
        for tensor, label in zip(call.outputs, several, strict=False):
            if label is not None:
                self._set(tensor, narrowed(label).expand(tensor.shape), any(tensor is w for w in written))
        return output

    def _set(self, tensor: Tensor, label: Tensor, written: bool) -> None:
        """Label what came out, or what was written into memory that others may see."""
        seen = _memory(tensor) in self._written
        if written and (seen or tensor not in self._labels):
            self.write(tensor, lambda place: place.copy_(label))
        elif not seen:  # of a view of such memory it has the labels already
            self._labels[tensor] = label

    def label(self, tensor: Any) -> Label:
        """Of each entry, the filter that it comes from, or the entry of a parameter that it is."""
        if not isinstance(tensor, Tensor):
            return None
        found = self.label_of_activation(tensor)
        home = self._home(tensor) if found is None else None
        if home is None:
            return found
        name, values = home
        return self.nodes.first(name, values.numel()) + _places(tensor, values)

    def label_of_activation(self, tensor: Tensor) -> Label:
        """The same, None of what is a parameter's."""
        if tensor in self._labels:
            found: Tensor = self._labels[tensor]
            return found
        held = self._written.get(_memory(tensor))
        return held and held[1].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def is_labelled(self, tensor: Tensor) -> bool:
        """Whether it has labels of its own, and not those of memory that was written to."""
        return tensor in self._labels

    def is_parameter(self, tensor: Any) -> bool:
        """Whether this is one, or a view of one."""
        plain = isinstance(tensor, Tensor) and self.label_of_activation(tensor) is None
        return plain and self._home(tensor) is not None

    def settles(self, output: Any, operands: Sequence[Tensor]) -> bool:
        """Whether this is a whole parameter again, masked or converted, as which it counts from now on."""
        home = self._home(operands[0]) if operands else None
        labelled = any(self.label(other) is not None for other in operands[1:])
        if home is None or labelled or not isinstance(output, Tensor):
            return False
        if output.dim() < 2 or (output.shape, output.stride()) != (home[1].shape, home[1].stride()):
            return False
        self._homes.setdefault(_memory(output), []).append((home[0], output))
        return True

    def joined(self, a: Label, b: Label) -> Label:
        """Let two hang together at every place, and label it by what they are then."""
        if a is None or b is None:
            return b if a is None else a
        size = torch.broadcast_shapes(a.shape, b.shape)  # type: ignore[no-untyped-call]
        a, b = narrowed(a.expand(size)), narrowed(b.expand(size))
        self.nodes.join(a, b)
        return self.nodes.roots(torch.maximum(a, b)).expand(size)

    def at_places(self, a: Label, b: Label) -> Label:
        """The same, but for values that are spread over several channels, and so belong to none of them.

        That is what varies along no axis along which the other does, as a scale of all channels or a bias of
        positions; other than entries that are many for one channel.
        """
        if a is None or b is None or bool((a == OPAQUE).any()) or bool((b == OPAQUE).any()):
            return self.joined(a, b)
        size = torch.broadcast_shapes(a.shape, b.shape)  # type: ignore[no-untyped-call]
        a, b = narrowed(a.expand(size)), narrowed(b.expand(size))
        axes = [{axis for axis, length in enumerate(label.shape) if length > 1} for label in (a, b)]
        filters = [self.nodes.of_filters(label) for label in (a, b)]
        entries_of_one = any(own and not along for own, along in zip(filters, axes, strict=True)) and not all(
            filters
        )
        if axes[0] & axes[1] or not (axes[0] | axes[1]) or entries_of_one:
            return self.joined(a.expand(size), b.expand(size))
        for label, along in zip((a, b), axes, strict=True):
            if all(filters) and (all(axes) or not along):
                self.nodes.fix(label, "are spread over several channels")
        return (a if filters[0] and (axes[0] or not filters[1]) else b).expand(size)

    def filters(self, weight: Tensor, axis: int | None = None, part: bool = False) -> Label:
        """Of a weight as (..., outputs, inputs) the label of each output; None where it is no parameter's.

        Args:
            weight: that, or a view of some of its inputs.
            axis: of the parameter, along which inputs lie, where its layer says so.
            part: whether those at other inputs are other filters, as in another group of a convolution.
        """
        home = self._home(weight) if self.label_of_activation(weight) is None else None
        if axis is None and home is not None:
            axis = _axis(home[1], weight)
        if home is None or axis is None:
            return None
        name, values = home
        places, along = _places(weight.select(-1, 0), values), values.stride(axis)
        first = places if part else places - places // along % values.shape[axis] * along
        found = self.nodes.first(name, values.numel(), axis) + first
        self.nodes.add_filters(narrowed(found))
        return found

    def read(self, weight: Tensor, label: Label, axis: int | None = None) -> None:
        """Note which channels a weight has at its inputs.

        Args:
            weight: as (outputs, inputs), or a view of some of its outputs.
            label: of activations (..., inputs), which must be the same in all rows.
            axis: of the parameter, along which inputs lie, where its layer says so.
        """
        home = self._home(weight) if self.label_of_activation(weight) is None else None
        if axis is None and home is not None:
            axis = _axis(home[1], weight)
        if label is None or home is None or axis is None or home[1].shape[axis] != label.shape[-1]:
            return
        small = merged(narrowed(label), range(label.dim() - 1))
        if small is not None:
            self.nodes.read(home[0], axis, small.expand(*small.shape[:-1], label.shape[-1]).flatten())

    def read_buffer(self, buffer: Any, label: Label) -> None:
        """The same of a buffer that has a value a channel, and activations (batch, channels, ...)."""
        name = self._buffers.get(_memory(buffer)) if isinstance(buffer, Tensor) else None
        small = None if label is None else merged(narrowed(label), [0, *range(2, label.dim())])
        if name and label is not None and small is not None:
            self.nodes.read(name, 0, small.flatten().expand(label.shape[1]))

    def write(self, tensor: Tensor, change: Callable[[Tensor], Any]) -> None:
        """Let a part of some memory have other labels, which hang together with those that it had."""
        before = self.label(tensor)
        if before is not None and _memory(tensor) not in self._written:
            after = before.clone(memory_format=torch.contiguous_format)
            change(after)
            self.nodes.join(before, after)
            return
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        _, labels = self._written.setdefault(_memory(tensor), (tensor, torch.zeros(size, dtype=torch.int64)))
        place = labels.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        before = place.clone()
        change(place)
        self.nodes.join(before, place)

    def _home(self, tensor: Tensor) -> tuple[str, Tensor] | None:
        """The parameter of which this is a view, and where it lies."""
        for name, values in self._homes.get(_memory(tensor), ()):
            if 0 <= tensor.storage_offset() - values.storage_offset() < values.numel():
                return name, values
        return None


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _is_dense(parameter: Tensor) -> bool:
    """Whether its entries fill a piece of memory, each at a place of its own."""
    if parameter.layout is not torch.strided or type(parameter.data) is not Tensor or parameter.is_meta:
        return False
    sides = zip(parameter.shape, parameter.stride(), strict=True)
    return 1 + sum((size - 1) * stride for size, stride in sides) == parameter.numel()


def _places(view: Tensor, values: Tensor) -> Tensor:
    """The place of each entry of a view among those of the parameter, in the order of its memory."""
    places = torch.tensor(view.storage_offset() - values.storage_offset())
    for axis, (size, stride) in enumerate(zip(view.shape, view.stride(), strict=True)):
        places = places + (torch.arange(size) * stride).view(
            [-1 if i == axis else 1 for i in range(view.dim())]
        )
    return places.expand(view.shape)


def _axis(values: Tensor, weight: Tensor) -> int | None:
    """The axis of a parameter along which the last axis of a view goes."""
    sides = list(zip(values.shape, values.stride(), strict=True))
    if weight.shape[-1] == 1:
        return next((axis for axis, (size, _) in reversed(list(enumerate(sides))) if size == 1), None)
    steps = [axis for axis, (size, stride) in enumerate(sides) if size > 1 and stride == weight.stride(-1)]
    return steps[0] if steps else None


def trace(model: nn.Module, parameters: Mapping[str, Tensor], example_inputs: Any) -> list[Unit]:
    """What of these parameters hangs together in a network, by one forward in eval mode without gradients.

    Args:
        model: stays as it is.
        parameters: by name.
        example_inputs: what the network is called with: a tensor, a tuple of arguments or a dict of keywords.
    """
    return traced(model, parameters, {}, example_inputs).nodes.units()


def traced(
    model: nn.Module, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], example_inputs: Any
) -> Trace:
    """The trace of that forward."""
    tracing = Trace(parameters, buffers)
    device = next(iter(parameters.values())).device
    args, kwargs = arguments(example_inputs, device)
    random = [device] if device.type == "cuda" else []
    with eval_mode(model), torch.inference_mode(False), torch.no_grad(), _plainly():
        with torch.random.fork_rng(random), tracing:
            output = model(*args, **kwargs)
        found = tensors_in(output)
        if not found:
            kind = type(output).__name__
            raise ValueError(f"coupled=True cannot tell what the outputs are: a {kind} without tensors")
        for tensor in found:
            label = tracing.label(tensor)
            if label is not None:
                tracing.nodes.fix(narrowed(label), OUTPUTS)
    return tracing


def tensors_in(output: Any, depth: int = 4) -> list[Tensor]:
    """All that are in what a network gives: in containers and dataclasses, or else in objects' attributes.

    Objects beside tensors are no outputs, as caches of keys and values.
    """
    leaves = tree_leaves(output)
    inner = [leaf for leaf in leaves if hasattr(leaf, "__dict__") and not isinstance(leaf, (type, Tensor))]
    found = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    for leaf in inner if depth else ():
        if is_dataclass(leaf):
            found += tensors_in(dict(vars(leaf)), depth - 1)
    for leaf in inner if depth and not found else ():
        found += tensors_in(dict(vars(leaf)), depth - 1)
    return found


def arguments(example_inputs: Any, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments and keywords, on this device."""
    given = tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, example_inputs)
    if isinstance(given, Mapping):
        return (), dict(given)
    return (tuple(given) if isinstance(given, (tuple, list)) else (given,)), {}


@contextmanager
def _plainly() -> Iterator[None]:
    """Within the block attention, recurrent and compiled parts run as operations that can be followed."""
    with ExitStack() as stack:
        stack.enter_context(as_written())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        set_flags: Any = torch.backends.mkldnn.set_flags
        stack.callback(set_flags, set_flags(False)[0])
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield
