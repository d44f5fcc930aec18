"""How much of a model do some layers hold, and who holds the rest?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from torch import Tensor, nn

Types: TypeAlias = tuple[type[nn.Module], ...]
Names: TypeAlias = Sequence[str]

SHOWN = 3  # kinds of layers that are named, beside those that were asked for
LEAST = 0.01  # of the model, what a kind must hold to be named


class Shares:
    """The parameters of a model: the weights of some layers, and the rest. What is tied counts once.

    Args:
        model: any network.
        types: the types that were asked for; nn.Module is all of them.
        chosen: by layer, the names of its weights.
        names_of: under which names any module keeps weights.
    """

    def __init__(
        self,
        model: nn.Module,
        types: Types,
        chosen: Mapping[nn.Module, Names],
        names_of: Callable[[nn.Module], Names],
    ) -> None:
        self.types = types
        self.total = sum(parameter.numel() for parameter in model.parameters())
        held, taken = _weights(chosen)
        self.held = sum(held.values())
        self.rest: dict[type[nn.Module], Counter[str]] = {}
        self.reachable = False  # whether layers="all" would take more
        others = [(p.numel(), name) for name, p in model.named_parameters() if id(p) not in taken]
        self.largest = max(others, default=(0, ""))[1]
        for module in model.modules():
            self._add(module, names_of(module), taken)
        self.packed = sorted({name for module in model.modules() if (name := _packed(module))})

    def _add(self, module: nn.Module, names: Names, taken: set[int]) -> None:
        """Count what is not taken, once, by the type of the module that holds it and its name there."""
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in taken:
                taken.add(id(parameter))
                self.rest.setdefault(type(module), Counter())[name] += parameter.numel()
                self.reachable |= name in names and parameter.dim() > 1

    def __str__(self) -> str:
        """In one line, how much the layers hold, what holds the rest, and what may be done."""
        head = f"{self._asked()} hold {self._share()} of the model's {self.total:,} weights"
        if not self.total:
            head = "the model has no parameters"
        return "; ".join(filter(None, [head, self.holders, self._quantized(), self._hint()]))

    @property
    def _all(self) -> bool:
        return nn.Module in self.types

    def _asked(self) -> str:
        return "all layers" if self._all else f"{'/'.join(kind.__name__ for kind in self.types)} layers"

    def _share(self) -> str:
        few = "only " if 2 * self.held < self.total else ""
        return few + _percent(self.held, self.total) if self.held else "0%"

    @property
    def holders(self) -> str:
        """The kinds of layers that hold most of the rest."""
        kinds = sorted(self.rest, key=lambda kind: -self.rest[kind].total())
        shown = [kind for kind in kinds[:SHOWN] if self.rest[kind].total() >= LEAST * self.total]
        percents = [_percent(self.rest[kind].total(), self.total) for kind in shown]
        shares = [percent + _where(self.rest[kind]) for percent, kind in zip(percents, shown, strict=True)]
        verbs = [" holds", *[""] * len(shown)]
        held = zip(shown, verbs, shares, strict=False)
        return ", ".join(f"{kind.__name__}{verb} {share}" for kind, verb, share in held)

    def _quantized(self) -> str:
        if not self.packed:
            return ""
        return f"the weights of {', '.join(self.packed)} are packed, not parameters: prune before quantizing"

    def _hint(self) -> str:
        """How to take more, where that can be."""
        if self.reachable and not self._all:
            return 'layers="all" takes every layer that has weights'
        return f'others can be taken by name, as include="{self.largest}"' if self.largest else ""


def _percent(part: int, whole: int) -> str:
    """Rounded, but for what would round to nothing or to all."""
    rounded = f"{part / max(1, whole):.1%}"
    if rounded == "0.0%":
        return "less than 0.1%" if part else "0%"
    return "more than 99.9%" if rounded == "100.0%" and part < whole else rounded


def _weights(chosen: Mapping[nn.Module, Names]) -> tuple[dict[int, int], set[int]]:
    """The sizes of these weights, and which parameters they are, or are computed from."""
    held: dict[int, int] = {}
    taken: set[int] = set()
    for layer, names in chosen.items():
        for name in names:
            own = layer._parameters.get(name)
            weight = own if own is not None else getattr(layer, name, None)
            if isinstance(weight, Tensor):
                held[id(layer if own is None else own)] = weight.numel()
                taken.update(map(id, layer.parameters() if own is None else [own]))
    return held, taken


def _where(names: Counter[str]) -> str:
    """Under which names they are kept, where that is not `weight`; largest first."""
    if names["weight"]:
        return ""
    others = [name for name, _ in names.most_common()]
    return f" (as {others[0]}{' …' if len(others) > 1 else ''})"


def _packed(module: nn.Module) -> str | None:
    """The name of a quantized layer, whose weights are no parameters."""
    name = str(module._get_name())  # type: ignore[no-untyped-call]
    own = type(module).__module__.startswith("torch.ao.nn.")
    return name if own and name.startswith(("Quantized", "DynamicQuantized")) else None
