"""A network without the channels that pruning emptied."""

from __future__ import annotations

import copy
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.utils._pytree import tree_leaves

from prunus.checks import check_number, knows_keywords
from prunus.compaction.comparing import random_like
from prunus.compaction.forgood import for_good
from prunus.compaction.plan import Kept, Tensors, consistent, dead_units, put, units_of
from prunus.compaction.widths import fit
from prunus.coupling.nodes import Unit
from prunus.coupling.trace import arguments, tensors_in
from prunus.macs import macs
from prunus.modes import eval_mode
from prunus.weights import depth_outside


@dataclass(frozen=True, repr=False)
class Compacted:
    """A smaller network, and what was cut.

    Args:
        model: the network.
        shapes: of every parameter that was cut, before and after.
        kept: by name in the state_dict and axis, the indices that stayed; none of what is whole.
        spared: how many channels are zero and stayed, by the reason.
        weights: entries of all parameters, before and after.
        macs: multiply-accumulates of the example inputs, before and after.
    """

    model: nn.Module
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    kept: Mapping[str, Kept]
    spared: Mapping[str, int]
    weights: tuple[int, int]
    macs: tuple[int, int]

    def state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Another state_dict of the whole network, such as an average of its weights, cut likewise.

        Raises:
            ValueError: a name that is none of the network's, with or without "module." before it.
        """
        known = {f"{prefix}{name}": of for name, of in self.kept.items() for prefix in ("", "module.")}
        for name in state.keys() - known.keys() - {"n_averaged"}:
            raise ValueError(f"{name!r} is none of the network's: expected names such as {min(self.kept)!r}")
        return {name: _part(values, known.get(name, {})) for name, values in state.items()}

    def carry(self, optimizer: Optimizer, model: nn.Module) -> Optimizer:
        """An optimizer of the cut network, with what this one remembers of its entries.

        Args:
            optimizer: of the whole network.
            model: the whole network.

        Raises:
            ValueError: it has parameters that are not of the network, or remembers what has no entries.
        """
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        smaller = dict(self.model.named_parameters())
        if any(id(p) not in names for group in optimizer.param_groups for p in group["params"]):
            raise ValueError("optimizer has parameters that are not of the model")
        if isinstance(optimizer, LBFGS):
            raise ValueError("LBFGS remembers all weights in one vector, which cannot be cut")
        state: dict[Tensor, dict[str, Any]] = defaultdict(dict)
        for parameter, remembered in optimizer.state.items():
            name = names[id(parameter)]
            state[smaller[name]] = {k: self._carried(name, parameter, k, v) for k, v in remembered.items()}
        groups = [
            {
                key: [smaller[names[id(p)]] for p in value] if key == "params" else copy.deepcopy(value)
                for key, value in group.items()
            }
            for group in optimizer.param_groups
        ]
        made = copy.copy(optimizer)
        made.__setstate__({"defaults": optimizer.defaults, "param_groups": groups, "state": state})
        return made

    def _carried(self, name: str, parameter: Tensor, key: str, value: Any) -> Any:
        kept = self.kept.get(name, {})
        if not kept or not isinstance(value, Tensor) or value.numel() == 1:
            return copy.deepcopy(value)
        if value.shape != parameter.shape:
            raise ValueError(
                f"{key} of {name} has shape {tuple(value.shape)}, and no value for each of its entries"
            )
        return _part(value, kept)

    def __repr__(self) -> str:
        told = {"weights": self.weights, "MACs": self.macs}
        sizes = (f"{new:,} of {old:,} {what}" for what, (old, new) in told.items())
        stayed = f", {sum(self.spared.values()):,} empty channels stayed" if self.spared else ""
        return f"Compacted({', '.join(sizes)}{stayed})"

    def __str__(self) -> str:
        width = max((len(name) for name in self.shapes), default=0)
        lines = [
            f"{name:{width}}  {_shown(old)} -> {_shown(new)}" for name, (old, new) in self.shapes.items()
        ]
        lines += [f"{count:,} empty channels stayed: they {why}" for why, count in self.spared.items()]
        return "\n".join([*lines, repr(self)])


def _shown(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


@knows_keywords()
def compact(model: nn.Module, example_inputs: Any, *, tolerance: float = 1e-5) -> Compacted:
    """Cut out the channels of which every weight is zero, so that the outputs stay what they are.

    What can go is found by one forward (see `prunus.rank`, coupled): filters that hang together, with the
    biases, scales and statistics of their channels, and the inputs of the layers that read them. The cut
    network is then run beside the other one; groups of channels without which the outputs differ, or the
    forward fails, stay, and it is said why. `prune(..., granularity="filter", coupled=True)` empties channels
    as this can cut them.

    Args:
        model: a network, pruned or with zeros of its own; it is left as it is.
        example_inputs: what it is called with: a tensor, a tuple of arguments or a dict of keywords.
        tolerance: how far outputs may be apart, as a part of the largest.

    Returns:
        `.model`, a copy in the modes of the original, without masks; `print` shows what was cut.

    Raises:
        TypeError, ValueError: an argument of the wrong type; outputs without tensors.

    Example:
        >>> import prunus
        >>> net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3))
        >>> x = torch.randn(1, 3, 8, 8)
        >>> pruning = prunus.prune(net, 0.5, granularity="filter", coupled=True, example_inputs=x)
        >>> print(prunus.compact(net, x))
        0.weight  16x3x3x3 -> 8x3x3x3
        0.bias    16 -> 8
        2.weight  8x16x3x3 -> 8x8x3x3
        Compacted(808 of 1,608 weights, 16,992 of 33,984 MACs)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not check_number("tolerance", tolerance) >= 0:
        raise ValueError(f"tolerance must be 0 or more, got {tolerance!r}")
    if not any(True for _ in model.parameters()):
        raise ValueError("model has no parameters: there is nothing to cut")
    whole = for_good(model)
    tensors, spared = Tensors.of(whole), Counter[str]()
    units, unused = units_of(whole, tensors, example_inputs)
    dead = dead_units(tensors, units, spared)
    check = Check(whole, example_inputs, tolerance)
    going = _what_holds(whole, tensors, dead, spared, check) if dead else dead
    kept = consistent(tensors, going, spared)
    small = cut(whole, kept)
    if kept and (others := {name.rpartition(".")[0] for name in unused}):
        warnings.warn(
            f"the forward in eval mode does not use {len(others):,} modules, such as {min(others)!r}: they "
            "stay as wide as they were, and may not fit what is cut",
            stacklevel=depth_outside(),
        )
    sizes, counts = (_size(whole), _size(small)), (check.macs(whole), check.macs(small))
    return Compacted(small, _shapes(whole, small), _by_every_name(whole, kept), dict(spared), sizes, counts)


def _by_every_name(model: nn.Module, kept: Mapping[str, Kept]) -> dict[str, Kept]:
    """The same for all of a state_dict, tied parameters by each of their names."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    tied = {name: first[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}
    return {name: kept.get(tied.get(name, name), {}) for name in model.state_dict()}


def cut(model: nn.Module, kept: Mapping[str, Kept]) -> nn.Module:
    """A copy that holds only these parts of its tensors."""
    made = copy.deepcopy(model)
    tensors = Tensors.of(made)
    for name, of in kept.items():
        put(made, tensors, name, _part(tensors[name], of))
    for path in {name.rpartition(".")[0] for name in kept}:
        fit(made.get_submodule(path))
    return made


def _part(values: Tensor, kept: Kept) -> Tensor:
    """Of a tensor that which stays, in memory of its own; channels last, if they were."""
    last = values.dim() == 4 and not values.is_contiguous()
    for axis, indices in kept.items():
        values = values.index_select(axis, indices.to(values.device))
    return values.clone(memory_format=torch.channels_last) if last else values.clone()


class Check:
    """Whether another network gives what this one does.

    Args:
        model: the network.
        example_inputs: of it; beside them it is run on random ones of the same kind.
        tolerance: see `compact`.
    """

    def __init__(self, model: nn.Module, example_inputs: Any, tolerance: float) -> None:
        generator = torch.Generator().manual_seed(0x5EED)
        self._inputs = [example_inputs]
        for scale in (1.0, 10.0):
            self._inputs.append(random_like(example_inputs, generator, scale))
        self._tolerance = tolerance
        self._wanted = [self._outputs(model, inputs) for inputs in self._inputs]
        given = tree_leaves(example_inputs)
        others = [
            wanted
            for inputs, wanted in zip(self._inputs, self._wanted, strict=True)
            if not all(map(_unchanged, given, tree_leaves(inputs)))
        ]
        pairs = [pair for wanted in others for pair in zip(self._wanted[0], wanted, strict=False)]
        if pairs and all(_same(one, other) for one, other in pairs):
            warnings.warn(
                "the outputs are the same for other inputs, as of a last layer of zeros: that they stay so "
                "tells nothing of what was cut",
                stacklevel=depth_outside(),
            )

    def _outputs(self, model: nn.Module, inputs: Any) -> list[Tensor]:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        args, kwargs = arguments(inputs, device)
        with eval_mode(model), torch.no_grad(), torch.random.fork_rng([]):
            torch.default_generator.manual_seed(0)  # torch.manual_seed would seed GPUs too
            output = model(*args, **kwargs)
        numbers = [leaf for leaf in tree_leaves(output) if isinstance(leaf, (int, float, complex))]
        return [*tensors_in(output), *map(torch.tensor, numbers)]

    def macs(self, model: nn.Module) -> int:
        """Of the example inputs."""
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        args, kwargs = arguments(self._inputs[0], device)
        return macs(model, *args, **kwargs).get("", 0)

    def __call__(self, model: nn.Module) -> str:
        """What is wrong; "" where nothing is."""
        for inputs, wanted in zip(self._inputs, self._wanted, strict=True):
            try:
                found = self._outputs(model, inputs)
            except Exception as error:  # whatever a forward raises
                return f"are counted on by the forward, which fails without ({type(error).__name__})"
            if [leaf.shape for leaf in found] != [leaf.shape for leaf in wanted]:
                return "are in the shape of the outputs"
            for one, other in zip(wanted, found, strict=True):
                if one.is_floating_point() and one.numel():
                    apart = float((one - other).abs().max()) / max(float(one.abs().max()), 1e-12)
                    if not apart <= self._tolerance:
                        return "change the outputs when they go"
                elif not _same(one, other):
                    return "change the outputs when they go"
        return ""


def _unchanged(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, Tensor) and torch.equal(one, other))


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(((one == other) | (one != one)).all())


def _what_holds(
    model: nn.Module, tensors: Tensors, dead: Sequence[Unit], spared: Counter[str], check: Check
) -> list[Unit]:
    """Those of as many groups of channels as can go: halves of the groups are tried, and of these halves."""
    groups: dict[frozenset[str], list[Unit]] = {}
    for unit in dead:
        groups.setdefault(frozenset(name for name, _, _ in tensors.sites(unit) or ()), []).append(unit)
    going: list[Unit] = []

    def attempt(some: Sequence[list[Unit]]) -> None:
        units = [unit for group in some for unit in group]
        why = check(cut(model, consistent(tensors, [*going, *units], Counter())))
        if not why:
            going.extend(units)
        elif len(some) == 1:
            spared[why] += len(units)
        else:
            attempt(some[: len(some) // 2])
            attempt(some[len(some) // 2 :])

    attempt(list(groups.values()))
    return going


def _shapes(before: nn.Module, after: nn.Module) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    smaller = dict(after.named_parameters())
    pairs = {name: (tuple(p.shape), tuple(smaller[name].shape)) for name, p in before.named_parameters()}
    return {name: (old, new) for name, (old, new) in pairs.items() if old != new}


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
