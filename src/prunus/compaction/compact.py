"""A network without the channels that pruning emptied."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from prunus.checks import check_number, check_whole, knows_keywords
from prunus.compaction.blocks import outermost, skip, watching
from prunus.compaction.checking import Check
from prunus.compaction.compacted import Compacted, CutLayer
from prunus.compaction.constants import Constants, constants, seeing
from prunus.compaction.forgood import for_good, make_good
from prunus.compaction.plan import Kept, Tensors, consistent, dead_units, part, put, rounded, units_of
from prunus.compaction.widths import fit
from prunus.coupling.nodes import Unit
from prunus.weights import CUT, depth_outside


@knows_keywords()
def compact(
    model: nn.Module,
    example_inputs: Any,
    *,
    round_to: int = 1,
    inplace: bool = False,
    tolerance: float = 1e-5,
) -> Compacted:
    """Cut out channels that are empty, or that nobody reads, so that the outputs stay what they are.

    What can go is found by one forward (see `prunus.rank`, coupled): filters that hang together, with the
    biases, scales and statistics of their channels, and the inputs of the layers that read them; heads of
    attention, units of recurrent layers; blocks that add nothing to what they are given. Constants that
    biases and shifts leave behind are folded into who reads them. The cut network is then run beside the
    other one; groups of channels without which the outputs differ, or the forward fails, stay, and it is said
    why.
    `prune(..., granularity="filter", coupled=True)` empties channels as this can cut them.

    Args:
        model: a network, pruned or with zeros of its own. What only the backward pass does without stays.
        example_inputs: what it is called with: a tensor, a tuple of arguments or a dict of keywords.
        round_to: channels stay until what is left of a width is a multiple of this, as kernels like it.
        inplace: whether the network itself is cut; if not, it is left as it is. Its parameters are then new
            ones, which an optimizer has yet to be told of, and there is nothing left to `restore`.
        tolerance: how far outputs may be apart, as a part of the largest.

    Returns:
        `.model`, by default a copy, in the modes of the original and without masks; `print` shows what was
        cut.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of its range; outputs without tensors.

    Example:
        >>> import prunus, torch
        >>> net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3))
        >>> x = torch.randn(1, 3, 8, 8)
        >>> pruning = prunus.prune(net, 0.5, granularity="filter", coupled=True, example_inputs=x)
        >>> print(prunus.compact(net, x))
        0.weight  16x3x3x3 -> 8x3x3x3  15,552 -> 7,776 MACs
        0.bias    16 -> 8
        2.weight  8x16x3x3 -> 8x8x3x3  18,432 -> 9,216 MACs
        Compacted(808 of 1,608 weights, 16,992 of 33,984 MACs)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not check_number("tolerance", tolerance) >= 0:
        raise ValueError(f"tolerance must be 0 or more, got {tolerance!r}")
    check_whole("round_to", round_to, 1)
    if not any(True for _ in model.parameters()):
        raise ValueError("model has no parameters: there is nothing to cut")
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        raise ValueError("model is in DistributedDataParallel, which knows its parameters: give its .module")
    with torch.inference_mode(False):
        return _compacted(model, example_inputs, round_to, inplace, tolerance)


def _compacted(
    model: nn.Module, example_inputs: Any, round_to: int, inplace: bool, tolerance: float
) -> Compacted:
    whole, spared = for_good(model), Counter[str]()
    probe = copy.deepcopy(whole)  # for what forwards change, as observers do
    with seeing(Tensors.of(probe)) as seen, watching(probe) as same:
        check = Check(probe, example_inputs, tolerance)
    blocks = _without_effect(whole, outermost(same), check)
    short = Plan(blocks, {}, Constants({}, {})).applied(whole)[0]
    tensors = Tensors.of(short)
    units, unused = units_of(short, tensors, example_inputs)
    dead = dead_units(tensors, units, spared)
    left = constants(tensors, dead, seen.values(), spared)

    def kept(units: list[Unit], spared: Counter[str]) -> dict[str, dict[int, Tensor]]:
        rounded(tensors, units, round_to, spared)
        return consistent(tensors, units, spared)

    def wrong(units: Sequence[Unit], first: int | None = None) -> str:
        try:
            return check(Plan([], kept(list(units), Counter()), left).applied(short)[0], first)
        except ValueError:  # of a module that cannot be as narrow
            return "are such that no module of theirs can be without"

    plan = Plan(blocks, kept(_what_holds(tensors, dead, spared, wrong), spared), left)
    if plan.kept and (others := {name.rpartition(".")[0] for name in unused}):
        warnings.warn(
            f"the forward in eval mode does not use {len(others):,} modules, such as "
            f"{min(others) or 'the network itself'!r}: they stay as wide as they were, and may not fit what "
            "is cut",
            stacklevel=depth_outside(),
        )
    small, folded = plan.applied(whole)
    told = _told(whole, small, check, plan)
    if inplace:
        make_good(model)
        small, _ = plan.apply(model)
    setattr(small, CUT, True)
    return Compacted(small, skipped=blocks, spared=dict(spared), folded=folded, **told)


@dataclass(frozen=True)
class Plan:
    """What is done to a network.

    Args:
        blocks: that are taken out.
        kept: by name and axis, the indices that stay.
        left: constants, which others take.
    """

    blocks: Sequence[str]
    kept: Mapping[str, Kept]
    left: Constants

    def apply(self, model: nn.Module) -> tuple[nn.Module, int]:
        """The network itself, now smaller, and how often one of its layers took a constant."""
        skip(model, self.blocks)
        tensors = Tensors.of(model)
        folded = self.left.taken(tensors, self.kept)
        before = {name: tensors[name].shape for name in self.kept}
        for name, of in self.kept.items():
            put(model, tensors, name, part(tensors[name], of))
        fit(model, before)
        return model, folded

    def applied(self, model: nn.Module) -> tuple[nn.Module, int]:
        """The same of a copy."""
        return self.apply(copy.deepcopy(model))


def _without_effect(model: nn.Module, blocks: Sequence[str], check: Check) -> list[str]:
    """Those of the blocks without which the outputs stay what they are."""
    found: list[str] = []
    for block in blocks:
        if not check(Plan([*found, block], {}, Constants({}, {})).applied(model)[0]):
            found.append(block)
    return found


def _what_holds(
    tensors: Tensors, dead: Sequence[Unit], spared: Counter[str], wrong: Callable[..., str]
) -> list[Unit]:
    """Those of as many groups of channels as can go, by as few runs as that takes."""
    groups: dict[frozenset[str], list[Unit]] = {}
    for unit in dead:
        groups.setdefault(frozenset(name for name, _, _ in tensors.sites(unit) or ()), []).append(unit)
    for first in (1, None):  # the example, as that is quicker; all inputs where these then say otherwise
        going, staying = _by_halves(list(groups.values()), partial(wrong, first=first))
        if not wrong(going):
            break
    spared.update(staying)
    return going


def _by_halves(
    groups: Sequence[list[Unit]], wrong: Callable[[Sequence[Unit]], str]
) -> tuple[list[Unit], Counter[str]]:
    """All units of groups that nothing is wrong without, by halves of them; how many of others, and why."""
    going: list[Unit] = []
    staying = Counter[str]()

    def attempt(some: Sequence[list[Unit]]) -> None:
        units = [unit for group in some for unit in group]
        why = wrong([*going, *units])
        if not why:
            going.extend(units)
        elif len(some) == 1:
            staying[why] += len(units)
        else:
            attempt(some[: len(some) // 2])
            attempt(some[len(some) // 2 :])

    if groups:
        attempt(groups)
    return going, staying


def _told(before: nn.Module, after: nn.Module, check: Check, plan: Plan) -> dict[str, Any]:
    """What is known of both networks, as `Compacted` has it."""
    smaller = dict(after.named_parameters())
    pairs = {
        n: (tuple(p.shape), tuple(smaller[n].shape)) for n, p in before.named_parameters() if n in smaller
    }
    counts, all_of_it = zip(
        *(_alone(check.macs(copy.deepcopy(network))) for network in (before, after)), strict=True
    )
    whole, small = _sizes(before), _sizes(after)
    layers = [
        CutLayer(name, (size, small[name]), (counts[0].get(name, 0), counts[1].get(name, 0)))
        for name, size in whole.items()
    ]
    return {
        "shapes": {name: (old, new) for name, (old, new) in pairs.items() if old != new},
        "kept": _by_every_name(before, after, plan.kept),
        "weights": (sum(whole.values()), sum(small.values())),
        "macs": all_of_it,
        "layers": layers,
    }


def _alone(macs: Mapping[str, int]) -> tuple[Counter[str], int]:
    """What modules make without those within them, and what the network makes."""
    found = Counter(macs)
    for path, count in macs.items():
        if path:
            found[path.rpartition(".")[0]] -= count
    return found, macs.get("", 0)


def _sizes(model: nn.Module) -> Counter[str]:
    """Entries of the parameters that each module holds, tied ones once."""
    found: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        found[name.rpartition(".")[0]] += parameter.numel()
    return found


def _by_every_name(before: nn.Module, after: nn.Module, kept: Mapping[str, Kept]) -> dict[str, Kept]:
    """The same for all of the cut network's state_dict, tied parameters by each of their names."""
    first = {id(parameter): name for name, parameter in before.named_parameters()}
    tied = {name: first[id(p)] for name, p in before.named_parameters(remove_duplicate=False)}
    return {name: kept.get(tied.get(name, name), {}) for name in after.state_dict()}
