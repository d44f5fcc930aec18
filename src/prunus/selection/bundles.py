"""Pieces that are made of filters of several tensors, which fall together with what hangs on them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.coupling.nodes import Filter, Unit
from prunus.coupling.trace import OUTPUTS, trace
from prunus.masks import counted
from prunus.selection.pieces import GRANULARITIES, Partition
from prunus.weights import WeightTensor, depth_outside, layer_weights

SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Bundle:
    """Pieces alike, each of so many filters of these tensors.

    Args:
        filters: by weight name the numbers of its filters, a row a piece, shape (count, filters of each).
        partitions: by weight name, how it falls into filters.
        count: number of pieces.
        members: number of weights of each.
        hanging: number of other entries, such as biases, that all of them take along.
    """

    filters: Mapping[str, Tensor]
    partitions: Mapping[str, Partition]
    count: int
    members: int
    hanging: int

    @property
    def shape(self) -> tuple[int, int]:
        """As of a matrix with a row for each piece."""
        return self.count, self.members

    @property
    def size(self) -> int:
        """Number of entries of parameters that fall with all the pieces."""
        return self.count * self.members + self.hanging

    def tables(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors of these weights' shapes, in their order, as (count, members)."""
        parts = zip(self.filters.items(), tensors, strict=True)
        return torch.cat(
            [self.partitions[name].table(t)[own.to(t.device)].flatten(1) for (name, own), t in parts], dim=1
        )

    def sizes(self) -> None:
        """Every piece has as many weights."""

    def grid(self, pieces: Tensor) -> Tensor:
        """One value a piece, as (outputs, inputs, positions): a piece is an output."""
        return pieces.reshape(self.count, 1, 1)

    def flat(self, grid: Tensor) -> Tensor:
        """Back from `grid` to shape (count,)."""
        return grid.reshape(-1)


@dataclass(frozen=True)
class Coupled:
    """What falls of every tensor where pieces of bundles fall: a layout, see `draw.Separate`.

    Args:
        parts: bundles by name: that of the first weight, and how many others there are.
        owners: by parameter name, for each of its filters or entries the number of its piece, counted through
            all bundles; -1 of what never falls.
        partitions: by parameter name, how it falls into those.
        devices: by parameter name, where its mask is wanted.
    """

    parts: Mapping[str, Bundle]
    owners: Mapping[str, Tensor]
    partitions: Mapping[str, Partition]
    devices: Mapping[str, torch.device]

    @property
    def names(self) -> list[str]:
        """Of the parameters that have masks."""
        return list(self.owners)

    def weights_of(self, name: str) -> Sequence[str]:
        """The weights of a bundle."""
        return list(self.parts[name].filters)

    def masks(self, survivors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """A mask for every parameter, of bundles' booleans, one a piece."""
        flags = [flags.cpu() for _, flags in survivors]
        kept = torch.cat([*flags, torch.ones(1, dtype=torch.bool)])
        for name, owner in self.owners.items():
            yield name, self.partitions[name].expand(kept[owner].to(self.devices[name]))


def couple(model: nn.Module, weights: Mapping[str, WeightTensor], example_inputs: Any) -> Coupled:
    """Bundles of the filters of these weights that hang together, and all that hangs on them.

    Filters that hang together with others than of these weights, or are the network's outputs, stay whole.

    Raises:
        ValueError: that leaves none.
    """
    known = layer_weights(model)
    filters = {name: _partition(weight, "filter") for name, weight in weights.items()}
    units = trace(model, {name: weight.parameter for name, weight in known.items()}, example_inputs)
    for name in sorted(_with_entries(units) & filters.keys()):
        _take_whole_filters(name, units, filters[name], known[name].parameter)
    free = [unit for unit in units if _kept_by(unit, filters) is None]
    if not free:
        raise ValueError(f"coupled=True leaves nothing to prune: {_reasons(units, filters, silent=False)}")
    _warn_of_spared(units, filters)
    entries = {name: _partition(known[name], "weight") for name in _with_entries(free)}
    partitions = {name: part for name in known if (part := (filters | entries).get(name))}
    numbers = {name: _numbers(part, known[name].parameter) for name, part in partitions.items()}
    owners = {name: np.full(part.count, -1) for name, part in partitions.items()}
    for piece, unit in enumerate(unit for alike in _alike(free, filters) for unit in alike):
        for name, place in (*((f.name, f.place) for f in unit.filters), *unit.entries):
            owners[name][numbers[name][place]] = piece
    devices = {name: known[name].parameter.device for name in owners}
    held = {name: torch.from_numpy(own) for name, own in owners.items()}
    return Coupled(_bundles(free, filters, numbers), held, partitions, devices)


def _with_entries(units: Iterable[Unit]) -> set[str]:
    """The parameters of which single entries hang on filters."""
    return {name for unit in units for name, _ in unit.entries}


def _take_whole_filters(name: str, units: Sequence[Unit], partition: Partition, parameter: Tensor) -> None:
    """Take entries of a chosen weight for its filters, where all that were seen of each are of one unit.

    So a table that is read by an index or a slice is as one that is read by its own layer.
    """
    numbers = _numbers(partition, parameter)
    homes: dict[int, dict[int, int]] = {}  # of each filter the units, and a place in each
    for number, unit in enumerate(units):
        for _, place in (entry for entry in unit.entries if entry[0] == name):
            homes.setdefault(int(numbers[place]), {})[number] = place
    whole = {filter_: next(iter(of.items())) for filter_, of in homes.items() if len(of) == 1}
    for number, place in whole.values():
        units[number].filters.append(Filter(name, partition.inputs_axis, place))
    for number in {number for number, _ in whole.values()}:
        unit = units[number]
        unit.entries = [e for e in unit.entries if e[0] != name or int(numbers[e[1]]) not in whole]


def _partition(weight: WeightTensor, granularity: str) -> Partition:
    return Partition.of(weight.owners[0], GRANULARITIES[granularity], weight.attribute)


def _kept_by(unit: Unit, filters: Mapping[str, Partition]) -> str | None:
    """Why it has to stay whole, if it has."""
    if unit.why:
        return unit.why[0]
    for name, axis, _ in unit.filters:
        if name not in filters:
            return f"hang together with {name}, which is not chosen"
        if axis != filters[name].inputs_axis:
            return f"hang together with the inputs of {name}"
    both = next((name for name, _ in unit.entries if name in filters), None)
    return f"hang together with single weights of {both}" if both else None


def _alike(units: Sequence[Unit], filters: Mapping[str, Partition]) -> list[list[Unit]]:
    """Those together that have as many filters of the same weights."""
    order = {name: place for place, name in enumerate(filters)}
    found: dict[tuple[tuple[int, int], ...], list[Unit]] = {}
    for unit in units:
        kinds = Counter(order[f.name] for f in unit.filters)
        found.setdefault(tuple(sorted(kinds.items())), []).append(unit)
    return [found[kinds] for kinds in sorted(found)]


def _bundles(
    units: Sequence[Unit], filters: Mapping[str, Partition], numbers: Mapping[str, np.ndarray]
) -> dict[str, Bundle]:
    """By a name of each."""
    made = [_bundle(alike, filters, numbers) for alike in _alike(units, filters)]
    within = Counter(name for bundle in made for name in bundle.filters)
    found: dict[str, Bundle] = {}
    for bundle in made:
        first, *others = bundle.filters
        name = f"{first} +{len(others)}" if others else first
        if name in found or (not others and within[first] > 1):
            name = next(new for place in range(len(made)) if (new := f"{name} #{place + 1}") not in found)
        found[name] = bundle
    return found


def _bundle(
    alike: Sequence[Unit], filters: Mapping[str, Partition], numbers: Mapping[str, np.ndarray]
) -> Bundle:
    names = {f.name for f in alike[0].filters}
    own = {
        name: [[int(numbers[name][f.place]) for f in unit.filters if f.name == name] for unit in alike]
        for name in filters
        if name in names
    }
    return Bundle(
        {name: torch.tensor(rows) for name, rows in own.items()},
        {name: filters[name] for name in own},
        count=len(alike),
        members=sum(len(rows[0]) * filters[name].members for name, rows in own.items()),
        hanging=sum(len(unit.entries) for unit in alike),
    )


def _numbers(partition: Partition, parameter: Tensor) -> np.ndarray:
    """By place in the memory of a parameter, the number of the piece that an entry is of.

    As an array, of which single entries are read much faster than of a tensor.
    """
    numbers = torch.empty(parameter.numel(), dtype=torch.int32)
    placed = numbers.as_strided(parameter.shape, parameter.stride())
    placed.copy_(partition.expand(torch.arange(partition.count, dtype=torch.int32)))
    return numbers.numpy()


def _reasons(units: Sequence[Unit], filters: Mapping[str, Partition], silent: bool) -> str:
    """What keeps filters of these weights, most filters first.

    Args:
        units: all of the network.
        filters: the weights.
        silent: of the outputs of the network's last layers, that they stay.
    """
    found: Counter[str] = Counter()
    for unit in units:
        why = _kept_by(unit, filters)
        last = why == OUTPUTS and len({f.name for f in unit.filters}) == 1
        if why and not (last and silent):
            found[why] += sum(f.name in filters for f in unit.filters)
    seen = {f.name for unit in units for f in unit.filters}
    unseen = {name: part.count for name, part in filters.items() if name not in seen}
    if unseen:
        found[f"are of {', '.join(list(unseen)[:SHOWN])}, which no operation that is followed has used"] = (
            sum(unseen.values())
        )
    found = +found
    told = [f"{counted(count, 'filter')} {why}" for why, count in found.most_common(SHOWN)]
    more = [f"and {len(found) - SHOWN:,} more reasons"] * (len(found) > SHOWN)
    return "; ".join([*told, *more])


def _warn_of_spared(units: Sequence[Unit], filters: Mapping[str, Partition]) -> None:
    """Say which filters of the chosen weights stay whole, but for the network's outputs."""
    reasons = _reasons(units, filters, silent=True)
    if reasons:
        warnings.warn(f"coupled=True leaves filters whole: {reasons}", stacklevel=depth_outside())
