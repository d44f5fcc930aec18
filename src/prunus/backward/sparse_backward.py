"""Passes pruned by rules: the verb, and the handle on it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from prunus.application.applying import rule
from prunus.application.operations import has_operation
from prunus.application.passes import OtherGradient
from prunus.application.places import Places
from prunus.application.pruning import Restoring
from prunus.application.ruled import Plan, RuledLayer
from prunus.application.state import pruned_weights
from prunus.backward.presets import PRESETS
from prunus.backward.report import Report, report_of
from prunus.checks import check_flag, check_keywords, check_whole, chosen
from prunus.masks import SHOWN, Masks, counted
from prunus.randomness import Seed, number_of
from prunus.selection.patterns import taken
from prunus.weights import (
    PLAIN,
    Layers,
    Patterns,
    WeightTensor,
    aliases_of,
    conv1d,
    depth_outside,
    find_weights,
)

if TYPE_CHECKING:
    pass


class SparseBackward(Restoring):
    """A network whose passes are pruned by rules; as a context manager, lets it be as it was at the end.

    Attributes:
        model: the network.
        layers: by path, what stands in for the forward of each pruned layer.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, RuledLayer], dense: Mapping[str, str]) -> None:
        self.model, self.layers, self._dense = model, dict(layers), dict(dense)
        rule(model, list(layers.values()))

    def __repr__(self) -> str:
        places = dict.fromkeys(place for ruled in self.layers.values() for place in ruled.places.used)
        ended = "" if self._in_force else ", ended"
        return f"SparseBackward({counted(len(self.layers), 'layer')}, {', '.join(places)}{ended})"

    @property
    def _in_force(self) -> bool:
        return any(ruled.is_attached for ruled in self.layers.values())

    @property
    def masks(self) -> Masks:
        """What the forward keeps of each weight now; none, where it is not pruned, or stays dense by timing.

        `prunus.apply_masks(model, sparse.masks)` makes the rest zero once training is done.
        """
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        kept = {
            names[id(ruled.layer.weight)]: ruled.masks() for ruled in self.layers.values() if ruled.prunes
        }
        return Masks({name: one["forward"].mask for name, one in kept.items() if "forward" in one})

    def report(self) -> Report:
        """What was kept at each place of each layer so far, and which multiplications that saves."""
        return Report([report_of(path, ruled) for path, ruled in self.layers.items()], self._dense)

    def restore(self) -> nn.Module:
        """Let the network be as it was; nothing happens where other rules have taken the place of these."""
        for ruled in self.layers.values():
            ruled.detach()
        return self.model

    def state_dict(self) -> dict[str, Any]:
        """What a training that is resumed goes on from, beside the states of the model and the optimizer."""
        return {path: ruled.state_dict() for path, ruled in self.layers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another one was, of the same arguments.

        Raises:
            ValueError: it is of other layers or places. Nothing has changed then.
        """
        if state.keys() != self.layers.keys() or not all(
            ruled.fits(state[path]) for path, ruled in self.layers.items()
        ):
            raise ValueError("the state is of another network, or of other layers of it")
        for path, ruled in self.layers.items():
            ruled.load_state_dict(state[path])


def sparse_backward(
    model: nn.Module,
    rules: str | Callable[..., Places] | Places,
    *,
    every: int = 1,
    dense_every: int = 0,
    warmup: int = 0,
    seed: Seed = 0,
    faster: bool = False,
    layers: Layers | None = None,
    include: Patterns | None = None,
    exclude: Patterns | None = None,
    **settings: Any,
) -> SparseBackward:
    """Prune the passes of layers by rules that are evaluated as they run.

    A layer y = W x has five places: forward (the W that gives y), input_grad (the W that gives dL/dx),
    weight_grad (which weights get a gradient), output_grad (which entries of dL/dy go on) and activation
    (which entries of x are kept for dL/dW). The weights themselves stay dense; no zero is written.

    Args:
        model: the network, in place of any rules it is under.
        rules: the name of a preset, such as "meprop" or "channels" (see `prunus.backward.presets`; another
            name is answered by all of them); a function from settings to `prunus.Places`; or such `Places`.
        every: so many steps have the same masks of weights, and the same channels; single entries of dL/dy
            and x are chosen in each. A step is a backward pass that comes to the layer.
        dense_every: every so many-th step is dense, 0 for none.
        warmup: so many steps at first are dense.
        seed: of random rules, see `prunus.rank`.
        faster: let timing decide in the first six steps, which are dense, layer by layer, and leave a layer
            dense in all its passes where its rules save no time. Weights of linear layers are then also tried
            as sparse matrices. What is chosen depends on the machine. Under reentrant checkpoints nothing is
            ever chosen: use_reentrant=False.
        layers, include, exclude: which weights, as in `prunus.rank`; by default those of all convolutions and
            linear layers.
        **settings: of the rules, such as k, the fraction that is kept. One may be given by name pattern,
            `k={"layer1.*": 0.5, "*": 0.1}`; what no pattern matches stays dense.

    Returns:
        A handle: `.report()`, `.masks`, `.restore()`, `.state_dict()`; also a context manager that restores.

    Raises:
        TypeError: a setting that the rules do not have, or an argument of the wrong type.
        ValueError: an argument out of range; weights that the rules cannot prune; a layer under masks of one
            pass. The model is left as it was.

    Example:
        >>> import prunus, torch
        >>> net = nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 5))
        >>> x, y = torch.randn(8, 20), torch.randint(5, (8,))
        >>> with prunus.sparse_backward(net, "meprop", k=0.1, exclude="2") as sparse:
        ...     nn.functional.cross_entropy(net(x), y).backward()
        >>> sparse.report()
        layer  output_grad  saved  way
        0      0.100        45.0%  pruned
        saved of all multiplications: 45.0%
    """
    plan = Plan(
        check_whole("every", every, least=1),
        check_whole("dense_every", dense_every),
        check_whole("warmup", warmup),
        number_of(seed),
        check_flag("faster", faster),
    )
    kinds = (*PLAIN, *conv1d()) if layers is None else layers
    weights = find_weights(model, kinds, include, exclude)
    ruled, dense = _ruled(model, weights, _places(model, rules, settings, list(weights)), plan)
    if dense:
        shown = "; ".join(f"{name}, {reason}" for name, reason in list(dense.items())[:SHOWN])
        more = f" and {len(dense) - SHOWN:,} more" if len(dense) > SHOWN else ""
        warnings.warn(f"passes stay dense of {shown}{more}", stacklevel=depth_outside())
    return SparseBackward(model, ruled, dense)


def _places(
    model: nn.Module,
    rules: str | Callable[..., Places] | Places,
    settings: Mapping[str, Any],
    names: Sequence[str],
) -> dict[str, Places]:
    """By the name of each weight that is pruned, the rules for its layer."""
    make = _always(rules) if isinstance(rules, Places) else chosen("rules", rules, PRESETS)
    allowed = inspect.signature(make).parameters
    check_keywords("sparse_backward", settings, allowed)
    aliases = aliases_of(model)
    known = {name: aliases[name] for name in names}
    own: dict[str, dict[str, Any]] = {name: {} for name in names}
    for setting, value in settings.items():
        by_pattern = value if isinstance(value, Mapping) else {"*": value}
        if not by_pattern:
            raise ValueError(f"{setting} is empty: expected a value by each name pattern")
        meant = taken(by_pattern, known)
        found = {name: by_pattern[pattern] for pattern, matched in meant.items() for name in matched}
        own = {name: {**one, setting: found[name]} for name, one in own.items() if name in found}
    return {name: make(**one) for name, one in own.items()}


def _always(places: Places) -> Callable[..., Places]:
    return lambda: places


def _ruled(
    model: nn.Module, weights: Mapping[str, WeightTensor], places: Mapping[str, Places], plan: Plan
) -> tuple[dict[str, RuledLayer], dict[str, str]]:
    """By path what is to stand in for forwards; and by name of weight why that cannot be."""
    paths = {layer: path for path, layer in model.named_modules()}
    uncalled = {m.out_proj for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    found: dict[str, RuledLayer] = {}
    dense = {}
    for number, name in enumerate(places):
        for layer in weights[name].owners:
            if weights[name].attribute != "weight":
                dense[name] = f"which is no weight of a {type(layer).__name__}"
            elif layer in uncalled:
                dense[name] = "which nn.MultiheadAttention uses without a call of its layer"
            elif not (has_operation(layer) or isinstance(vars(layer).get("forward"), RuledLayer)):
                dense[name] = f"{type(layer).__name__} is no plain convolution or linear layer"
            else:
                _check_masks(name, layer)
                found[paths[layer]] = RuledLayer(layer, places[name], plan, (number, len(found)))
                _check_rules(name, found[paths[layer]])
    if not found:
        raise ValueError(f"nothing to prune: {'; '.join(f'{n}, {reason}' for n, reason in dense.items())}")
    return found, dense


def _check_masks(name: str, layer: nn.Module) -> None:
    if any(OtherGradient in state.kinds for state in pruned_weights(layer).values()):
        raise ValueError(
            f"{name} is under masks of one pass, beside which no rules can act: prunus.restore(model) first"
        )


def _check_rules(name: str, ruled: RuledLayer) -> None:
    try:
        ruled.masks()
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
