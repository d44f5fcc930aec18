"""What `compact` gives: a smaller network, and what was cut."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from prunus.compaction.plan import Kept, part

Sizes = tuple[int, int]  # before and after


@dataclass(frozen=True)
class CutLayer:
    """A module that has parameters of its own.

    Args:
        name: its path.
        weights: entries of these parameters, before and after.
        macs: multiply-accumulates that it makes of the example inputs, before and after.
    """

    name: str
    weights: Sizes
    macs: Sizes


@dataclass(frozen=True, repr=False)
class Compacted:
    """A smaller network, and what was cut.

    Args:
        model: the network.
        shapes: of every parameter that was cut, before and after.
        kept: by name in the state_dict and axis, the indices that stayed; none of what is whole.
        skipped: blocks that were taken out, as they gave back what they were given.
        spared: how many channels are empty and stayed, by the reason.
        folded: how many constants that channels left behind are in the weights or biases of who read them.
        weights: entries of all parameters, before and after.
        macs: multiply-accumulates of the example inputs, before and after.
        layers: the same of each module.
    """

    model: nn.Module
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    kept: Mapping[str, Kept]
    skipped: Sequence[str]
    spared: Mapping[str, int]
    folded: int
    weights: Sizes
    macs: Sizes
    layers: Sequence[CutLayer]

    def state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Another state_dict of the whole network, such as an average of its weights, cut likewise.

        Raises:
            ValueError: a name that is none of the network's, with or without "module." before it; or
                constants were folded, of which this has others.
        """
        if self.folded:
            raise ValueError(
                f"{self.folded:,} constants were folded, and other weights have others: compact a copy of "
                "the network that has loaded them"
            )
        known = {f"{prefix}{name}": of for name, of in self.kept.items() for prefix in ("", "module.")}
        found = {}
        for name, values in state.items():
            if self._is_skipped(name.removeprefix("module.")):
                continue
            if name not in known and name != "n_averaged":
                raise ValueError(
                    f"{name!r} is none of the network's: expected names such as {min(self.kept)!r}"
                )
            found[name] = part(values, known[name]) if known.get(name) else copy.deepcopy(values)
        return found

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
            if not self._is_skipped(name):
                state[smaller[name]] = {
                    k: self._carried(name, parameter, k, v) for k, v in remembered.items()
                }
        groups = []
        for group in optimizer.param_groups:
            held = [name for p in group["params"] if not self._is_skipped(name := names[id(p)])]
            others = {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}
            if "param_names" in group:
                pairs = zip(group["params"], group["param_names"], strict=True)
                others["param_names"] = [told for p, told in pairs if not self._is_skipped(names[id(p)])]
            groups.append({"params": [smaller[name] for name in held], **others})
        made: Optimizer = object.__new__(type(optimizer))  # a copy would lose attributes of subclasses
        vars(made).update({name: copy.copy(value) for name, value in vars(optimizer).items()})
        made.__setstate__({"param_groups": groups, "state": state})
        return made

    def report(self) -> dict[str, Any]:
        """All but the network and the indices, of what JSON takes."""
        told = ("weights", "macs", "folded", "skipped", "spared", "shapes")
        return {**{name: getattr(self, name) for name in told}, "layers": [asdict(of) for of in self.layers]}

    def _is_skipped(self, name: str) -> bool:
        return any(name.startswith(f"{path}.") for path in self.skipped)

    def _carried(self, name: str, parameter: Tensor, key: str, value: Any) -> Any:
        kept = self.kept.get(name, {})
        if not kept or not isinstance(value, Tensor) or value.numel() == 1:
            return copy.deepcopy(value)
        if value.shape != parameter.shape:
            raise ValueError(
                f"{key} of {name} has shape {tuple(value.shape)}, and no value for each of its entries"
            )
        return part(value, kept)

    def __repr__(self) -> str:
        told = {"weights": self.weights, "MACs": self.macs}
        sizes = (f"{new:,} of {old:,} {what}" for what, (old, new) in told.items())
        stayed = f", {sum(self.spared.values()):,} empty channels stayed" if self.spared else ""
        return f"Compacted({', '.join(sizes)}{stayed})"

    def __str__(self) -> str:
        macs = {layer.name: layer.macs for layer in self.layers if any(layer.macs)}
        rows = []
        for name, (old, new) in self.shapes.items():
            told = macs.pop(name.rpartition(".")[0], None)  # beside the first parameter of a layer
            rows.append(
                (name, f"{_shown(old)} -> {_shown(new)}", "{:,} -> {:,} MACs".format(*told) if told else "")
            )
        first, second = (max((len(row[column]) for row in rows), default=0) for column in (0, 1))
        lines = [f"{name:{first}}  {sizes:{second}}  {told}".rstrip() for name, sizes, told in rows]
        lines += [f"{path} is gone: it gave back what it was given" for path in self.skipped]
        lines += [f"{count:,} empty channels stayed: they {why}" for why, count in self.spared.items()]
        lines += [f"{self.folded:,} constants are folded into those who read them"] if self.folded else []
        return "\n".join([*lines, repr(self)])


def _shown(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
