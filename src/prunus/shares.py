"""How much of a model do some layers hold, and who holds the rest?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

from torch import Tensor, nn

Types: TypeAlias = tuple[type[nn.Module], ...]

SHOWN = 3  # kinds of layers that are named, beside those that were asked for
LEAST = 0.01  # of the model, what a kind must hold to be named


class Shares:
    """The parameters of a model: the `weight`s of some layers, and the rest. What is tied counts once.

    Args:
        model: any network.
        types: the types that were asked for.
        layers: all of its layers of these types.
        usual: the types that `layers="all"` takes.
    """

    def __init__(self, model: nn.Module, types: Types, layers: Sequence[nn.Module], usual: Types) -> None:
        self.types, self.usual = types, usual
        self.total = sum(parameter.numel() for parameter in model.parameters())
        held, taken = _weights(layers)
        self.held = sum(held.values())
        self.rest = _by_kind(model, taken)
        self.packed = sorted({name for module in model.modules() if (name := _packed(module))})
        # A type whose layers all keep their weights elsewhere holds more than its share here says
        self.elsewhere = [kind for kind in self.rest if issubclass(kind, types) and _named(self.rest[kind])]

    def __str__(self) -> str:
        """In one line, how much the layers hold, what holds the rest, and what may be done."""
        head = f"{self._asked()} layers hold {self._share()} of the model's {self.total:,} weights"
        if not self.total:
            head = "the model has no parameters"
        elif not self.held and self.elsewhere:
            head = f"no {self._asked()} layer has a parameter called weight"
        return "; ".join(filter(None, [head, self.holders, self._quantized(), self._hint()]))

    def _asked(self) -> str:
        if self.types == self.usual:
            return "Convolution, Linear and Embedding"
        types = [kind for kind in self.types if not any(issubclass(one, kind) for one in self.elsewhere)]
        return "/".join(kind.__name__ for kind in types or self.types)

    def _share(self) -> str:
        few = "only " if 2 * self.held < self.total else ""
        return few + _percent(self.held, self.total) if self.held else "0%"

    @property
    def holders(self) -> str:
        """The kinds of layers that hold most of the rest."""
        kinds = sorted(self.rest, key=lambda kind: -self.rest[kind].total())
        large = [kind for kind in kinds[:SHOWN] if self.rest[kind].total() >= LEAST * self.total]
        shown = [kind for kind in kinds if kind in large or kind in self.elsewhere]
        shares = [
            f"{_percent(self.rest[kind].total(), self.total)}{_where(self.rest[kind])}" for kind in shown
        ]
        verbs = [" holds", *[""] * len(shown)]
        held = zip(shown, verbs, shares, strict=False)
        return ", ".join(f"{kind.__name__}{verb} {share}" for kind, verb, share in held)

    def _quantized(self) -> str:
        if not self.packed:
            return ""
        return f"the weights of {', '.join(self.packed)} are packed, not parameters: prune before quantizing"

    def _hint(self) -> str:
        """How to take more, where that can be."""
        more = [kind for kind, names in self.rest.items() if names["weight"]]
        if self.types != self.usual and any(issubclass(kind, self.usual) for kind in more):
            return 'layers="all" takes every convolution, linear layer and embedding'
        largest = max(more, key=lambda kind: self.rest[kind]["weight"], default=None)
        return f"layers= takes other types, too, as layers=({largest.__name__},)" if largest else ""


def _percent(part: int, whole: int) -> str:
    """Rounded, but for what would round to nothing or to all."""
    rounded = f"{part / whole:.1%}"
    if rounded == "0.0%":
        return "less than 0.1%" if part else "0%"
    return "more than 99.9%" if rounded == "100.0%" and part < whole else rounded


def _weights(layers: Sequence[nn.Module]) -> tuple[dict[int, int], set[int]]:
    """The sizes of the weights of these layers, and which parameters they are, or are computed from."""
    held: dict[int, int] = {}
    taken: set[int] = set()
    for layer in layers:
        own = layer._parameters.get("weight")
        weight = own if own is not None else getattr(layer, "weight", None)
        if isinstance(weight, Tensor):
            held[id(layer if own is None else own)] = weight.numel()
            taken.update(map(id, layer.parameters() if own is None else [own]))
    return held, taken


def _by_kind(model: nn.Module, taken: set[int]) -> dict[type[nn.Module], Counter[str]]:
    """By the type of the module that holds them, the sizes of all other parameters by their names in it."""
    found: dict[type[nn.Module], Counter[str]] = {}
    seen = set(taken)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                found.setdefault(type(module), Counter())[name] += parameter.numel()
    return found


def _named(names: Counter[str]) -> list[str]:
    """Under which names weights are kept, where that is not `weight`; largest first."""
    return [] if names["weight"] else [name for name, _ in names.most_common() if name != "bias"]


def own_names(layer: nn.Module) -> list[str]:
    """Under which names a layer keeps weights that it has not got at `weight`; none where it has."""
    if isinstance(getattr(layer, "weight", None), Tensor):  # computed, as by a parametrization
        return []
    return _named(Counter({name: p.numel() for name, p in layer._parameters.items() if p is not None}))


def _where(names: Counter[str]) -> str:
    if others := _named(names):
        return f" (as {others[0]}{' …' if len(others) > 1 else ''}, which is not prunable yet)"
    return "" if names["weight"] else " (bias)"


def _packed(module: nn.Module) -> str | None:
    """The name of a quantized layer, whose weights are no parameters."""
    name = str(module._get_name())  # type: ignore[no-untyped-call]
    own = type(module).__module__.startswith("torch.ao.nn.")
    return name if own and name.startswith(("Quantized", "DynamicQuantized")) else None
