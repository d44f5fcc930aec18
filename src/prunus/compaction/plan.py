"""What can be cut out of a network without a difference: channels that are empty, or that nobody reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from prunus.coupling.nodes import Filter, Unit
from prunus.coupling.trace import traced
from prunus.weights import WeightTensor, layer_weights

Kept = Mapping[int, Tensor]  # by axis, the indices along it that stay
Site = tuple[str, int, int]  # the name of a tensor, an axis, and an index along it


@dataclass
class Tensors:
    """Parameters and buffers of a network, by name.

    Args:
        weights: parameters, tied ones once.
        buffers: those that have a value a channel may be among them.
        lasting: names of buffers that state_dicts have.
    """

    weights: Mapping[str, WeightTensor]
    buffers: Mapping[str, Tensor]
    lasting: Collection[str] = ()
    _zeros: dict[str, Tensor] = field(default_factory=dict)
    _sites: dict[int, list[Site] | None] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module) -> Tensors:
        """All of a network."""
        return cls(layer_weights(model), dict(model.named_buffers()), set(model.state_dict(keep_vars=True)))

    def __getitem__(self, name: str) -> Tensor:
        return self.weights[name].parameter.detach() if name in self.weights else self.buffers[name]

    def where(self, name: str, place: int) -> list[int]:
        """The index of a place in the order of memory."""
        tensor = self[name]
        sides = zip(tensor.shape, tensor.stride(), strict=True)
        return [place // stride % size if size > 1 else 0 for size, stride in sides]

    def fixed(self, filter_: Filter) -> int | None:
        """The axis of a weight along which a filter is one index; None where it takes more than that."""
        owner, dims = self.weights[filter_.name].owners[0], self[filter_.name].dim()
        if isinstance(owner, _ConvNd):
            return None if owner.transposed and owner.groups > 1 else 1 if owner.transposed else 0
        return 1 - filter_.inputs if dims == 2 else None

    def zero(self, name: str, axis: int) -> Tensor:
        """Of each index along an axis, whether all that is there is zero."""
        key = f"{name} {axis}"
        if key not in self._zeros:
            tensor = self[name]
            self._zeros[key] = (tensor == 0).movedim(axis, 0).reshape(tensor.shape[axis], -1).all(1).cpu()
        return self._zeros[key]

    def sites(self, unit: Unit) -> list[Site] | None:
        """Names, axes and indices of all that goes with a unit; None where some of it is no whole slice."""
        if id(unit) not in self._sites:
            self._sites[id(unit)] = self._found(unit)
        return self._sites[id(unit)]

    def _found(self, unit: Unit) -> list[Site] | None:
        found = list(unit.reads)
        for one in unit.filters:
            axis = self.fixed(one)
            if axis is None:
                return None
            found.append((one.name, axis, self.where(one.name, one.place)[axis]))
        by_name: dict[str, list[list[int]]] = {}
        for name, place in unit.entries:
            by_name.setdefault(name, []).append(self.where(name, place))
        for name, indices in by_name.items():
            slices = self._slices(name, indices)
            if slices is None:
                return None
            found += slices
        return list(dict.fromkeys(found))

    def _slices(self, name: str, indices: Sequence[Sequence[int]]) -> list[Site] | None:
        """The slices that these entries are, along one axis."""
        shape = self[name].shape
        for axis, size in enumerate(shape):
            counts = Counter(index[axis] for index in indices)
            if size > 1 and all(count == shape.numel() // size for count in counts.values()):
                return [(name, axis, index) for index in counts]
        return None


def dead_units(tensors: Tensors, units: Sequence[Unit], spared: Counter[str]) -> list[Unit]:
    """Those that are empty, or not read, and may go; of the others it is noted why they stay."""
    found = []
    for unit in units:
        why = _staying(tensors, unit)
        if why is None:
            found.append(unit)
        elif why:
            spared[why] += 1
    return found


def _staying(tensors: Tensors, unit: Unit) -> str | None:
    """Why a unit stays; "" where it is not empty at all, None where it can go."""
    filters = [
        (one.name, axis, tensors.where(one.name, one.place)[axis])
        for one in unit.filters
        if (axis := tensors.fixed(one)) is not None
    ]
    empty = [bool(tensors.zero(name, axis)[index]) for name, axis, index in filters]
    if not _unread(tensors, unit):
        if not any(empty):
            return ""
        if not all(empty) or len(filters) < len(unit.filters):
            return "hang together with filters that are not zero, or not seen to be"
    if unit.why or unit.counted:
        return (unit.why or [unit.counted])[0]
    if any(name in tensors.buffers and name not in tensors.lasting for name, _, _ in unit.reads):
        return "are read in a buffer that state_dicts are without"
    return "are no whole slices of what holds them" if tensors.sites(unit) is None else None


def _unread(tensors: Tensors, unit: Unit) -> bool:
    """Whether all weights that read a unit are zero there."""
    reads = [(name, axis, index) for name, axis, index in unit.reads if name in tensors.weights]
    return bool(reads) and all(tensors.zero(name, axis)[index] for name, axis, index in reads)


def consistent(tensors: Tensors, units: list[Unit], spared: Counter[str]) -> dict[str, dict[int, Tensor]]:
    """By name and axis the indices that stay, if these go; fewer go where that is not possible.

    `units` loses those that stay.
    """
    while True:
        gone = _gone(tensors, units)
        why, staying = _problem(tensors, units, gone)
        if not staying:
            return {
                name: {axis: (~flags).nonzero().flatten() for axis, flags in of.items()}
                for name, of in gone.items()
            }
        spared[why] += len(staying)
        ids = {id(unit) for unit in staying}
        units[:] = [unit for unit in units if id(unit) not in ids]


def rounded(tensors: Tensors, units: list[Unit], round_to: int, spared: Counter[str]) -> None:
    """Let as many stay as make the outputs that layers keep a multiple, or leave a layer whole.

    `units` loses those that stay.
    """
    while staying := _odd(tensors, units, round_to):
        spared[f"make widths multiples of {round_to}"] += len(staying)
        ids = {id(unit) for unit in staying}
        units[:] = [unit for unit in units if id(unit) not in ids]


def _odd(tensors: Tensors, units: Sequence[Unit], round_to: int) -> list[Unit]:
    """Some that must stay for the outputs of one layer."""
    outputs = {
        (one.name, axis) for unit in units for one in unit.filters if (axis := tensors.fixed(one)) is not None
    }
    gone = _gone(tensors, units)
    for name, axis in outputs:
        short = -int((~gone[name][axis]).sum()) % round_to
        going = [unit for unit in units if _at(tensors, unit, name, axis)]
        if short and going:
            each = max(len(_at(tensors, unit, name, axis)) for unit in going)
            return going[: (short + each - 1) // each]
    return []


def part(values: Tensor, kept: Kept) -> Tensor:
    """Of a tensor that which stays, in memory of its own; channels last, if they were."""
    last = values.dim() == 4 and not values.is_contiguous()
    for axis, indices in kept.items():
        values = values.index_select(axis, indices.to(values.device))
    return values.clone(memory_format=torch.channels_last) if last else values.clone()


def _gone(tensors: Tensors, units: Sequence[Unit]) -> dict[str, dict[int, Tensor]]:
    gone: dict[str, dict[int, Tensor]] = {}
    for unit in units:
        for name, axis, index in tensors.sites(unit) or ():
            of = gone.setdefault(name, {})
            if axis not in of:
                of[axis] = torch.zeros(tensors[name].shape[axis], dtype=torch.bool)
            of[axis][index] = True
    return gone


def _problem(
    tensors: Tensors, units: Sequence[Unit], gone: Mapping[str, Mapping[int, Tensor]]
) -> tuple[str, list[Unit]]:
    """Why not all of these can go, and some that must stay; none where all can."""
    for name, of in gone.items():
        for axis, flags in of.items():
            if bool(flags.all()):
                first = next(unit for unit in units if _at(tensors, unit, name, axis))
                return "are all that a layer has", [first]
        owner = tensors.weights[name].owners[0] if name in tensors.weights else None
        if isinstance(owner, _ConvNd) and owner.groups > 1 and 0 in of and not owner.transposed:
            broken = _broken_groups(of[0], owner.groups)
            staying = [unit for unit in units if any(broken[i] for i in _at(tensors, unit, name, 0))]
            if staying:
                return "are a part of a group of a convolution", staying
    return _uneven(tensors, units, gone)


def _uneven(
    tensors: Tensors, units: Sequence[Unit], gone: Mapping[str, Mapping[int, Tensor]]
) -> tuple[str, list[Unit]]:
    """The same of layers and directions of recurrent networks, which are all as wide."""
    counts: dict[int, dict[str, int]] = {}
    for name, weight in tensors.weights.items():
        if isinstance(weight.owners[0], nn.RNNBase) and weight.attribute.startswith("weight_hh"):
            flags = gone.get(name, {}).get(1)
            counts.setdefault(id(weight.owners[0]), {})[name] = 0 if flags is None else int(flags.sum())
    for of in counts.values():
        for name, count in of.items():
            if surplus := count - min(of.values()):
                staying = [unit for unit in units if _at(tensors, unit, name, 1)]
                return "are more than other layers of theirs lose", staying[-surplus:]
    return "", []


def _at(tensors: Tensors, unit: Unit, name: str, axis: int) -> list[int]:
    """The indices along an axis of a tensor that go with a unit."""
    return [site[2] for site in tensors.sites(unit) or () if site[:2] == (name, axis)]


def _broken_groups(flags: Tensor, groups: int) -> Tensor:
    """Of each output, whether its group loses some and keeps others."""
    of_group = flags.view(groups, -1)
    broken = of_group.any(1) & ~of_group.all(1)
    return broken[:, None].expand_as(of_group).reshape(-1)


def units_of(model: nn.Module, tensors: Tensors, example_inputs: Any) -> tuple[list[Unit], set[str]]:
    """What hangs together and where it is read, and the parameters that the forward does not use."""
    parameters = {name: weight.parameter for name, weight in tensors.weights.items()}
    found = traced(model, parameters, tensors.buffers, example_inputs)
    return found.nodes.units(), parameters.keys() - found.used


def put(model: nn.Module, tensors: Tensors, name: str, values: Tensor) -> None:
    """Exchange a parameter, wherever it is, or a buffer of a network.

    Args:
        model: the network.
        tensors: of it.
        name: of the parameter or buffer.
        values: of any shape.
    """
    if name in tensors.buffers:
        path, _, attribute = name.rpartition(".")
        model.get_submodule(path)._buffers[attribute] = values
        return
    weight = tensors.weights[name]
    parameter = nn.Parameter(values, requires_grad=weight.parameter.requires_grad)
    for owner in weight.owners:
        owner._parameters[weight.attribute] = parameter
    for path, _, attribute in (other.rpartition(".") for other in weight.elsewhere):
        model.get_submodule(path)._parameters[attribute] = parameter
