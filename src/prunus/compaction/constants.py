"""Constants that empty channels leave behind, as of biases and shifts, and who takes them when these go.

A layer that reads a constant adds the same to its outputs everywhere: its bias takes that. Where it has none,
or pads with zeros, so that edges see less of the constant, one such channel stays, and its weights take the
others', in proportion. Either is exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from prunus.compaction.plan import Kept, Tensors
from prunus.coupling.nodes import Unit
from prunus.weights import conv1d

CARRIER = "carry a constant for others to a layer that has no bias, or pads"
UNSEEN = "have a scale, a slope or a shift that is not zero, for what cannot take a constant"
VARYING = "are neither zero nor constant"


@dataclass
class Seen:
    """What layers were given at each of their inputs: the least and the most."""

    spans: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def add(self, name: str, axes: int, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        """What a layer is given now; `axes` come after that of its inputs."""
        x = args[0] if args else next(iter(kwargs.values()))
        if not isinstance(x, Tensor) or not x.numel():
            return
        flat = x.detach().movedim(-1 - axes, 0).flatten(1)
        low, high = flat.amin(1), flat.amax(1)
        if name in self.spans:
            if len(low) != len(self.spans[name][0]):
                return  # of inputs that the layer does not take
            low, high = torch.minimum(low, self.spans[name][0]), torch.maximum(high, self.spans[name][1])
        self.spans[name] = low, high

    def values(self) -> dict[str, Tensor]:
        """By the name of a weight, the constant at each input; NaN where it is none."""
        found = {}
        for name, (low, high) in self.spans.items():
            low, high = low.double().cpu(), high.double().cpu()
            same = high - low <= 1e-6 * torch.maximum(low.abs(), high.abs())
            found[name] = torch.where(same, (low + high) / 2, torch.nan)
        return found


@contextmanager
def seeing(tensors: Tensors) -> Iterator[Seen]:
    """Within the block, what is given to layers that can take a constant is noted."""
    seen, kinds = Seen(), (_ConvNd, nn.Linear, *conv1d())
    with ExitStack() as stack:
        for name, weight in tensors.weights.items():
            owner = weight.owners[0]
            if weight.attribute == "weight" and isinstance(owner, kinds) and _alone(weight):
                axes = len(owner.kernel_size) if isinstance(owner, _ConvNd) else 0
                hook = owner.register_forward_pre_hook(partial(seen.add, name, axes), with_kwargs=True)
                stack.callback(hook.remove)
        yield seen


def _alone(weight: Any) -> bool:
    """Whether nobody else has the weight, and would take its changes."""
    return len(weight.owners) == 1 and not weight.elsewhere


@dataclass(frozen=True)
class Constants:
    """What goes where.

    Args:
        values: by the name of a weight, the constant at each input; 0 where nothing is to be taken.
        carriers: by name, the input that takes the others'; of the rest, biases take them.
    """

    values: Mapping[str, Tensor]
    carriers: Mapping[str, int]

    def taken(self, tensors: Tensors, kept: Mapping[str, Kept]) -> int:
        """Let the layers take the constants of all that is not kept; to how many inputs that was done."""
        count = 0
        for name, values in self.values.items():
            axis = _inputs(tensors, name)
            if axis not in kept.get(name, {}):
                continue
            values = values.clone()
            values[kept[name][axis]] = 0
            going = values.nonzero().flatten()
            if len(going):
                self._take(tensors, name, axis, going, values[going])
                count += len(going)
        return count

    def _take(self, tensors: Tensors, name: str, axis: int, going: Tensor, values: Tensor) -> None:
        weight = tensors.weights[name].parameter
        columns = weight.detach().movedim(axis, -1).to("cpu", torch.float64)
        added = columns[..., going] @ values
        with torch.no_grad():
            if name in self.carriers:
                place = self.carriers[name]
                total = columns[..., place] + added / float(self.values[name][place])
                weight.select(axis, place).copy_(total)
            else:
                bias: Any = tensors.weights[name].owners[0].bias
                bias.copy_(bias.to("cpu", torch.float64) + added.reshape(len(bias), -1).sum(1))


def _inputs(tensors: Tensors, name: str) -> int:
    """The axis along which a weight has its inputs."""
    owner = tensors.weights[name].owners[0]
    return 0 if isinstance(owner, conv1d()) or getattr(owner, "transposed", False) else 1


def _has_bias_for_it(owner: Any) -> bool:
    """Whether a constant at an input adds the same to every output, and there is a bias."""
    if not isinstance(owner, _ConvNd):
        return owner.bias is not None
    pads = owner.padding_mode == "zeros" and owner.padding != "valid" and any(owner.padding)
    return owner.bias is not None and not pads and not owner.transposed


def constants(
    tensors: Tensors, dead: list[Unit], values: Mapping[str, Tensor], spared: Counter[str]
) -> Constants:
    """What the layers that read these channels are to take; `dead` loses those that cannot go.

    Args:
        tensors: of the network.
        dead: what would go.
        values: see `Seen.values`.
        spared: gets the reasons.
    """
    seen = [unit for unit in dead if not _shifts_unseen(tensors, unit, values)]
    matters = {id(unit): _matters(tensors, unit, values) for unit in seen}
    fixed = [unit for unit in seen if not any(value != value for *_, value in matters[id(unit)])]
    for why, count in ((UNSEEN, len(dead) - len(seen)), (VARYING, len(seen) - len(fixed))):
        if count:
            spared[why] += count
    found = {name: torch.zeros_like(of) for name, of in values.items()}
    for unit in fixed:
        for name, index, value in matters[id(unit)]:
            found[name][index] = value
    found = {name: of for name, of in found.items() if of.any()}
    carriers, staying = _carriers(tensors, fixed, found)
    if staying:
        spared[CARRIER] += len(staying)
    dead[:] = [unit for unit in fixed if id(unit) not in staying]
    return Constants(found, carriers)


def _shifts_unseen(tensors: Tensors, unit: Unit, values: Mapping[str, Tensor]) -> bool:
    """Whether a bias or a shift leaves a constant to what is no layer that could take it."""
    unseen = any(
        name in tensors.weights and name not in values and not tensors.zero(name, axis)[index]
        for name, axis, index in unit.reads
    )
    shifts = (tensors[name][tuple(tensors.where(name, place))] for name, place in unit.entries)
    return unseen and any(bool(shift != 0) for shift in shifts)


def _matters(tensors: Tensors, unit: Unit, values: Mapping[str, Tensor]) -> list[tuple[str, int, float]]:
    """Where the constant of a unit counts, and what it is there."""
    return [
        (name, index, float(values[name][index]))
        for name, axis, index in unit.reads
        if name in values and not tensors.zero(name, axis)[index] and float(values[name][index])
    ]


def _carriers(
    tensors: Tensors, units: Sequence[Unit], values: Mapping[str, Tensor]
) -> tuple[dict[str, int], set[int]]:
    """By weight, the input that stays to take the others'; and the units to which these belong."""
    carriers: dict[str, int] = {}
    staying: set[int] = set()
    readers: dict[str, list[tuple[int, int]]] = {}
    for unit in units:
        for name, _, index in unit.reads:
            if name in values and values[name][index]:
                readers.setdefault(name, []).append((id(unit), index))
    for name, places in readers.items():
        if not _has_bias_for_it(tensors.weights[name].owners[0]):
            of = values[name]
            carrier, carriers[name] = max(places, key=lambda at: (at[0] in staying, abs(float(of[at[1]]))))
            staying.add(carrier)
    return carriers, staying
