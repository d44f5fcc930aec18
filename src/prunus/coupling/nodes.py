"""What falls as one: numbers for filters and for single entries of parameters, joined to classes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


class Filter(NamedTuple):
    """One output of a weight.

    Args:
        name: of the weight.
        inputs: the axis of its inputs, along which the filter lies.
        place: of an entry of it, in the order of the weight's memory.
    """

    name: str
    inputs: int
    place: int


@dataclass
class Unit:
    """All that falls as one.

    Args:
        filters: one or more.
        entries: names and places of biases, scales and whatever else has a value for each channel.
        why: for what reasons it must stay whole, if it must.
        reads: where others read it: the name of a weight or of a buffer, an axis, and an index along it.
        counted: why it must stay where it is even as zeros, if it must.
    """

    filters: list[Filter] = field(default_factory=list)
    entries: list[tuple[str, int]] = field(default_factory=list)
    why: list[str] = field(default_factory=list)
    reads: list[tuple[str, int, int]] = field(default_factory=list)
    counted: str = ""


OPAQUE = 1  # the label of values of which is not known where they come from: what meets them stays whole


class Nodes:
    """Whole numbers as names of filters and entries, and which of them are joined."""

    def __init__(self) -> None:
        self._starts: list[int] = [OPAQUE, OPAQUE + 1]
        self._ranges: list[tuple[str, int | None]] = [("", None)]
        self._known: dict[tuple[str, int | None], int] = {}
        self._parents: dict[int, int] = {OPAQUE: OPAQUE}
        self._why: dict[int, str] = {}
        self._counted: dict[int, str] = {}
        self._reads: dict[tuple[str, int], Tensor] = {}
        self._filters: set[int] = set()

    def first(self, name: str, size: int, inputs: int | None = None) -> int:
        """The number of the first entry of a parameter, those of the others follow; as filters, if `inputs`.

        Args:
            name: of the parameter.
            size: how many entries it has.
            inputs: the axis of its inputs, along which and along those after it a filter lies.
        """
        key = name, inputs
        if key not in self._known:
            self._known[key] = self._starts[-1]
            self._ranges.append(key)
            self._starts.append(self._starts[-1] + size)
        return self._known[key]

    def root(self, node: int) -> int:
        """The same number for all that are joined."""
        parents = self._parents
        top = node
        while (above := parents.get(top, top)) != top:
            top = above
        while node != top:
            parents[node], node = top, parents.get(node, node)
        parents[top] = top
        return top

    def roots(self, labels: Tensor) -> Tensor:
        """The same of each; 0 stays."""
        found, places = torch.unique(labels, return_inverse=True)
        return torch.tensor([self.root(node) if node else 0 for node in found.tolist()])[places]

    def join(self, a: Tensor, b: Tensor) -> None:
        """Let these hang together pairwise, where neither is 0; the shapes broadcast."""
        size = torch.broadcast_shapes(a.shape, b.shape)  # type: ignore[no-untyped-call]
        a, b = a.expand(size), b.expand(size)
        both = (a > 0) & (b > 0) & (a != b)
        for one, other in torch.unique(torch.stack([a[both], b[both]], 1), dim=0).tolist():
            above, below = sorted((self.root(one), self.root(other)))
            self._parents[below] = above
            if below in self._filters:
                self._filters.add(above)

    def fix(self, labels: Tensor, why: str) -> None:
        """Let these stay whole, and all that hang together with them."""
        for node in torch.unique(labels[labels > OPAQUE]).tolist():
            self._why.setdefault(node, why)
            self.root(node)

    def count(self, labels: Tensor, why: str) -> None:
        """Let these be such that they count even where they are zero."""
        for node in torch.unique(labels[labels > OPAQUE]).tolist():
            self._counted.setdefault(node, why)
            self.root(node)

    def read(self, name: str, axis: int, labels: Tensor) -> None:
        """Along this axis of a weight, or of a buffer, these are read; the same where it is read again."""
        before = self._reads.setdefault((name, axis), labels)
        if before.shape == labels.shape:
            self.join(before, labels)

    def add_filters(self, labels: Tensor) -> None:
        """Let these be known as filters, if only by themselves."""
        self._filters.update(self.root(node) for node in torch.unique(labels).tolist())

    def of_filters(self, labels: Tensor) -> bool:
        """Whether any of these hangs together with a filter."""
        return any(self.root(node) in self._filters for node in torch.unique(labels[labels > 0]).tolist())

    def units(self) -> list[Unit]:
        """What hangs together, in the order of the first filters."""
        found: dict[int, Unit] = {}
        for node in sorted(self._parents):
            unit = found.setdefault(self.root(node), Unit())
            place = bisect_right(self._starts, node) - 1
            (name, inputs), flat = self._ranges[place], node - self._starts[place]
            if node == OPAQUE:
                continue
            if inputs is None:
                unit.entries.append((name, flat))
            else:
                unit.filters.append(Filter(name, inputs, flat))
        for node, why in self._why.items():
            unit = found[self.root(node)]
            unit.why += [why] if why not in unit.why else []
        for node, why in self._counted.items():
            found[self.root(node)].counted = why
        for (name, axis), labels in self._reads.items():
            for index, node in enumerate(labels.tolist()):
                if node > OPAQUE and (reader := found.get(self.root(node))):
                    reader.reads.append((name, axis, index))
        unfollowed = found[self.root(OPAQUE)]
        unfollowed.why = unfollowed.why or ["hang together with what is not followed"]
        return [unit for unit in found.values() if unit.filters]


def narrowed(label: Tensor) -> Tensor:
    """The part of labels that holds them all, where they are the same along an axis: 1 long along that."""
    for axis, (size, stride) in enumerate(zip(label.shape, label.stride(), strict=True)):
        if size > 1 and stride == 0:
            label = label.narrow(axis, 0, 1)
    for axis, size in enumerate(label.shape):
        if size > 1 and bool((label == label.narrow(axis, 0, 1)).all()):
            label = label.narrow(axis, 0, 1)
    return label


def merged(label: Tensor, axes: Sequence[int]) -> Tensor | None:
    """The label along axes on which it is the same, but for zeros; 1 long there. None where it is not."""
    for axis in axes:
        if label.shape[axis] != 1:
            most = label.amax(axis, keepdim=True)
            if not bool(((label == most) | (label == 0)).all()):
                return None
            label = most
    return label
