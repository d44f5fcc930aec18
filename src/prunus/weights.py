"""Which tensors may be pruned? And what were their values before?"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Protocol, TypeAlias, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from prunus.checks import choose
from prunus.shards import check_unsharded, refusal
from prunus.shares import Shares

Layer: TypeAlias = "type[nn.Module] | str"
Layers: TypeAlias = "Layer | Sequence[Layer]"
Patterns: TypeAlias = "str | Sequence[str]"


class Which(TypedDict, total=False):
    """The keyword arguments of `find_weights`, which all that prunes passes on."""

    layers: Layers
    include: Patterns | None
    exclude: Patterns | None


STATE = "_prunus"  # the attribute in which a pruned layer keeps the state of its weight
CUT = "_prunus_cut"  # the attribute of a network that `compact` has cut
Types: TypeAlias = tuple[type[nn.Module], ...]
PLAIN: Types = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)
SCALES: Types = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def conv1d() -> Types:
    """The linear layer of GPT-2 and its like in transformers, where that has been imported."""
    kind = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    return (kind,) if kind else ()


NAMED: Types = (*PLAIN, nn.Embedding, nn.RNN, nn.LSTM, nn.GRU, nn.MultiheadAttention)
LAYERS: dict[str, Callable[[], Types]] = {
    "all": lambda: (nn.Module,),
    **{kind.__name__: lambda kind=kind: (kind,) for kind in NAMED},  # type: ignore[misc]
    "Conv1D": conv1d,
}


def weight_names(module: nn.Module) -> list[str]:
    """Under which names a module keeps weights, and neither biases nor scales nor embeddings of places.

    That is `weight`; what has "weight" in its name and is a matrix, as in recurrent and attention layers; and
    stacks of matrices, as of experts.

    Example:
        >>> weight_names(nn.Linear(2, 2)), weight_names(nn.GRU(2, 2))
        (['weight'], ['weight_ih_l0', 'weight_hh_l0'])
    """
    if isinstance(module, (*PLAIN, nn.Embedding, *conv1d())):
        return ["weight"]  # which, if it is no parameter, is computed
    if isinstance(module, nn.RNNBase):
        return [name for name in module._flat_weights_names if name.startswith("weight")]
    if isinstance(module, ParametrizationList):  # that which computes
        return []
    return [name for name, p in module._parameters.items() if p is not None and _is_weight(name, p)]


def _is_weight(name: str, parameter: Tensor) -> bool:
    stack = parameter.dim() == 3 and min(parameter.shape) > 1 and "bias" not in name
    return name == "weight" or ("weight" in name and parameter.dim() > 1) or stack


def chosen_names(module: nn.Module, types: Types) -> list[str]:
    """Which of a module's parameters layers of these types take: of nn.Module, no vectors."""
    if isinstance(module, tuple(kind for kind in types if kind is not nn.Module)):
        return weight_names(module) or ["weight"]
    if nn.Module not in types or isinstance(module, SCALES):
        return []
    own = module._parameters
    return [name for name in weight_names(module) if (p := own.get(name)) is None or p.dim() > 1]


def inputs_first(layer: nn.Module) -> bool:
    """Whether the first axis of the weight is that of the inputs: an embedding has a row for each token."""
    return bool(getattr(layer, "transposed", False)) or isinstance(
        layer, (nn.Embedding, nn.EmbeddingBag, *conv1d())
    )


class State(Protocol):
    """What a pruned layer keeps at `STATE`."""

    layers: Sequence[nn.Module]  # whose weight is pruned

    def original_of(self, layer: nn.Module) -> Tensor | None:
        """The values of this layer's weight before pruning; None where its parameter was exchanged since."""


def states_of(layer: nn.Module) -> dict[str, State]:
    """By parameter name, the states of a layer's weights; none of a copy around other tensors."""
    found: dict[str, State] = vars(layer).get(STATE, {})
    return {name: state for name, state in found.items() if any(layer is pruned for pruned in state.layers)}


@dataclass(frozen=True)
class WeightTensor:
    """One prunable parameter and every module that holds it (several where weights are tied).

    Args:
        name: in the model.
        parameter: itself.
        owners: the modules.
        attribute: its name in each of them.
        elsewhere: names of it in other modules, in which it is called otherwise.
        as_is: whether its values are those that it has now, zeros included.
    """

    name: str
    parameter: nn.Parameter
    owners: tuple[nn.Module, ...]
    attribute: str = "weight"
    elsewhere: tuple[str, ...] = ()
    as_is: bool = False

    @property
    def values(self) -> Tensor:
        """The values before pruning, detached: survivors as they are now, even if trained since."""
        if self.as_is:
            return self.parameter.detach()
        states = ((owner, states_of(owner).get(self.attribute)) for owner in self.owners)
        found = (state.original_of(owner) for owner, state in states if state)
        return next((values for values in found if values is not None), self.parameter.detach())


def find_weights(
    model: nn.Module,
    layers: Layers = (nn.Conv2d,),
    include: Patterns | None = None,
    exclude: Patterns | None = (),
) -> dict[str, WeightTensor]:
    """Collect the weights of the chosen layers, in module order, tied weights once.

    A pattern is a shell wildcard (`fnmatch`) for the name of a weight ("layer1.0.conv1.weight")
    or of any module around it ("layer1.0.conv1", "layer1"); a tied weight has several. Warns where
    the layer types hold less than half of the model's weights, and says what holds the rest.

    Raises:
        TypeError: `model` is not a module, or `layers` holds neither module types nor names.
        ValueError: no layer type of this name, nothing is left to prune, a pattern matches nothing, or a
            chosen weight is not a plain floating-point parameter.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
        >>> list(find_weights(net, exclude="0"))
        ['2.weight']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    types = _layer_types(layers)
    known = layer_weights(model)
    if any(nn.parameter.is_lazy(p) for p in model.parameters()):
        raise ValueError("model has uninitialized lazy parameters: run one forward pass first")
    slots = {
        _join(path, name): (module, name)
        for path, module in model.named_modules()
        for name in dict.fromkeys((*chosen_names(module, types), *_asked(path, module, include)))
    }
    asked = [slot for slot in slots.values() if slot[1] not in chosen_names(slot[0], types)]
    if len(asked) < len(slots) or not asked:
        _check_share(model, types)
    names = _match(slots, model, include, exclude)
    for name in names:
        _check_weight(name, *slots[name])
    parameters = {name: slots[name][0].get_parameter(slots[name][1]) for name in names}
    chosen = {id(parameters[name]): slots[name] for name in reversed(names)}  # the first of tied layers
    weights = {
        name: _first(weight, chosen[id(weight.parameter)][0])
        for name, weight in known.items()
        if id(weight.parameter) in chosen
    }
    for weight in weights.values():
        check_one_name(weight)
    _check_memory(weights.values())
    return weights


def _asked(path: str, module: nn.Module, include: Patterns | None) -> list[str]:
    """Parameters of any kind and module that a pattern asks for by their own name, as "*.bias" does.

    For a scale, also called `weight`, it must be the whole name: "*.weight" is for the weights of layers.
    """
    return [
        name
        for name, parameter in module._parameters.items()
        if parameter is not None
        and any(_asks(pattern, _join(path, name), name) for pattern in _patterns(include))
    ]


def _asks(pattern: object, full: str, name: str) -> bool:
    if not isinstance(pattern, str) or name == "weight":
        return pattern == full
    return pattern.rpartition(".")[2] == name and fnmatchcase(full, pattern)


def layer_weights(model: nn.Module) -> dict[str, WeightTensor]:
    """Every parameter of any module, in module order, tied ones once.

    Raises:
        ValueError: FSDP has sharded the model: what its layers hold are parts, or gone.
    """
    check_unsharded(model)
    names: dict[int, str] = {}
    found: dict[str, WeightTensor] = {}
    for path, module in model.named_modules():
        for attribute, parameter in module._parameters.items():
            if parameter is None:
                continue
            first = names.setdefault(id(parameter), _join(path, attribute))
            known = found.setdefault(first, WeightTensor(first, parameter, (), attribute))
            if known.attribute == attribute:
                found[first] = replace(known, owners=(*known.owners, module))
            elif module not in known.owners:
                found[first] = replace(known, elsewhere=(*known.elsewhere, _join(path, attribute)))
    return found


def matrices(model: nn.Module) -> dict[str, WeightTensor]:
    """Every matrix and filter bank of any kind of layer, as `layers="all"` takes them."""
    return {
        name: weight
        for name, weight in layer_weights(model).items()
        if any(weight.attribute in chosen_names(owner, (nn.Module,)) for owner in weight.owners)
    }


def _layer_types(layers: Layers) -> Types:
    given = tuple(layers) if isinstance(layers, Sequence) and not isinstance(layers, str) else (layers,)
    named = [choose("layers", one, LAYERS)() if isinstance(one, str) else (one,) for one in given]
    types = [kind for kinds in named for kind in kinds]
    if not types or not all(isinstance(kind, type) and issubclass(kind, nn.Module) for kind in types):
        raise TypeError(f"layers must be torch.nn.Module types or their names, got {layers!r}")
    return tuple(dict.fromkeys(types))


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer runs the forward of torch's own convolution or linear layer."""
    own = "forward" not in vars(layer) and any(type(layer).forward is kind.forward for kind in PLAIN)
    convolve = getattr(type(layer), "_conv_forward", None)
    return own and convolve in (None, *(getattr(kind, "_conv_forward", None) for kind in PLAIN))


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _first(weight: WeightTensor, layer: nn.Module) -> WeightTensor:
    """The same, that layer before its other owners: it says what a piece is."""
    return replace(weight, owners=(layer, *(owner for owner in weight.owners if owner is not layer)))


def shares_of(model: nn.Module, types: Types) -> Shares:
    """How much of the model the layers of these types hold."""
    chosen = {module: names for module in model.modules() if (names := chosen_names(module, types))}
    return Shares(model, types, chosen, weight_names)


def _check_share(model: nn.Module, types: Types) -> None:
    shares = shares_of(model, types)
    if not shares.held:
        raise ValueError(f"nothing to prune: {shares}")
    if 2 * shares.held < shares.total or shares.packed:  # whose size is in no parameter
        warnings.warn(str(shares), stacklevel=depth_outside())


def depth_outside() -> int:
    """How many frames up a warning belongs: to the user's own line."""
    depth, frame = 1, sys._getframe(1)
    while frame.f_back and str(frame.f_globals.get("__name__")).startswith("prunus."):
        depth, frame = depth + 1, frame.f_back
    return depth


def _match(
    names: Iterable[str], model: nn.Module, include: Patterns | None, exclude: Patterns | None
) -> list[str]:
    """The names that the patterns leave; every pattern must match something in the model."""
    aliases = aliases_of(model)
    parts = {*aliases, *(path for path, _ in model.named_modules())}
    patterns = {"include": _patterns(include), "exclude": _patterns(exclude)}
    for argument, given in patterns.items():
        for pattern in given:
            if not isinstance(pattern, str):
                raise TypeError(f"{argument} must be name patterns, got {pattern!r}")
            if not any(fnmatchcase(part, pattern) for part in parts):
                raise ValueError(f"{argument}={pattern!r} matches nothing; names are like {min(names)!r}")

    def named_by(argument: str, name: str) -> bool:
        known = aliases.get(name, [name])
        return any(matches(alias, pattern) for alias in known for pattern in patterns[argument])

    left = [
        name
        for name in names
        if (include is None or named_by("include", name)) and not named_by("exclude", name)
    ]
    if not left:
        raise ValueError(f"nothing to prune: include={include!r}, exclude={exclude!r} leave no weight")
    return left


def aliases_of(model: nn.Module) -> dict[str, list[str]]:
    """By each name of a parameter all of its names: a tied one has several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: same for same in names.values() for name in same}


def _patterns(given: Patterns | None) -> Sequence[str]:
    return () if given is None else (given,) if isinstance(given, str) else tuple(given)


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern is for the weight of this name, or for a module around it.

    Example:
        >>> [matches("layer1.0.conv1.weight", pattern) for pattern in ("layer1", "*.conv1", "conv1")]
        [True, True, False]
    """
    return any(fnmatchcase(part, pattern) for part in _prefixes(name))


def _prefixes(name: str) -> Iterator[str]:
    """The weight's own name and those of the modules around it: a.b.weight, a.b, a."""
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(len(parts), 0, -1))


def _check_weight(name: str, layer: nn.Module, attribute: str) -> None:
    parameter = layer._parameters.get(attribute)
    if parameter is None:
        raise ValueError(
            f"{name} is not a parameter of its {type(layer).__name__}: a parametrization, "
            "torch.nn.utils.prune or weight_norm computes it, or there is none; undo that, or exclude it"
        )
    check_dtype(name, parameter)
    if parameter.is_meta:
        raise ValueError(f"{name} is on the meta device and has no values to rank")


def check_one_name(weight: WeightTensor) -> None:
    """Raise a ValueError where a weight is tied to one that its layer calls otherwise."""
    if weight.elsewhere:
        raise ValueError(
            f"{weight.name} is tied to {weight.elsewhere[0]}, under another name in its layer, where no mask "
            "would act: untie them, or exclude it"
        )


def check_dtype(name: str, parameter: Tensor) -> None:
    """Raise a ValueError where weights of this type cannot be pruned."""
    kind = type(parameter.data).__name__
    if kind == "DTensor":
        raise refusal(name, kind)
    if is_traceable_wrapper_subclass(parameter):
        raise ValueError(f"{name} is a {kind}, made of other tensors: prune before it is converted to that")
    if parameter.layout != torch.strided:
        raise ValueError(f"{name} is {parameter.layout}; only dense weights, torch.strided, are prunable")
    if parameter.is_quantized:
        raise ValueError(f"{name} is quantized ({parameter.dtype}): prune before quantizing")
    if parameter.dtype not in DTYPES:
        raise ValueError(f"{name} is {parameter.dtype}; prunable are float16, bfloat16, float32, float64")


def _check_memory(weights: Iterable[WeightTensor]) -> None:
    places: dict[int, str] = {}
    for weight in weights:
        first = places.setdefault(weight.parameter.data_ptr(), weight.name)
        if first != weight.name and weight.parameter.numel():
            raise ValueError(
                f"{first} and {weight.name} are two parameters in the same memory: make them one"
            )
