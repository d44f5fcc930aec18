"""The verbs users call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor, nn

from prunus.application import PASSES, apply_masks, exchange_masks, original_values, restore
from prunus.arguments import check_fraction, choose
from prunus.criteria import CRITERIA, Criterion, Groups
from prunus.granularity import GRANULARITIES, NORMS, Grouping
from prunus.masks import Candidates, Masks
from prunus.selection import SCOPES, Scope
from prunus.weights import Layers, Patterns, Weight, find_weights

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Choice(TypedDict, total=False):
    """How weights are ranked: the keyword arguments of `rank`, which every verb passes on."""

    criterion: str | Criterion
    granularity: str
    scope: str
    norm: str
    layers: Layers
    include: Patterns | None
    exclude: Patterns
    generator: torch.Generator | None


@dataclass(frozen=True)
class Ranking:
    """The scores of a network's groups: ranked once, cut at any number of fractions."""

    scores: dict[str, Tensor]
    groupings: dict[str, Grouping]
    devices: dict[str, torch.device]
    scope: Scope

    def candidates(self, fractions: Sequence[float]) -> list[Candidates]:
        """The lowest fraction of groups, for each fraction in [0, 1]."""
        cuts = self.scope(self.scores, [check_fraction("p_prune", p) for p in fractions])
        return [Candidates(chosen, self.groupings, self.devices) for chosen in cuts]


def rank(
    model: nn.Module,
    *,
    criterion: str | Criterion = "magnitude",
    granularity: str = "weight",
    scope: str = "global",
    norm: str = "l1",
    layers: Layers = (nn.Conv2d,),
    include: Patterns | None = None,
    exclude: Patterns = (),
    generator: torch.Generator | None = None,
) -> Ranking:
    """Score the weights of a network, which is left untouched.

    Args:
        model: any network; of a pruned one, the original weights are scored.
        criterion: "magnitude" |w|, "random", "gradient" |g|, "taylor" |w·g| (the last two read the
            parameters' `.grad`), or a function from `prunus.Groups` to scores; lower goes first.
        granularity: what is pruned as one piece: "weight"; "kernel", one k×k slice of a
            convolution; "filter", one output channel; "channel", one input channel.
        scope: "global", the lowest fraction over all layers together; "layer", of every layer.
        norm: scores of one piece are summed ("l1") or averaged ("mean", so that small pieces are
            not pruned first merely for being small).
        layers: layer types, or "all" for every convolution, transposed convolution and Linear.
        include: name patterns of the weights to take, default all of those layers. A pattern is a
            shell wildcard for a weight ("conv1.weight") or a module around it ("layer4.*").
        exclude: name patterns of the weights to leave out.
        generator: source of random scores; default the global one.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an unknown name, a pattern that matches nothing, nothing to prune, weights or
            scores that are NaN or infinite, or a criterion without the `.grad` it needs.
    """
    pool = choose("norm", norm, NORMS)
    pieces = choose("granularity", granularity, GRANULARITIES)
    cut = choose("scope", scope, SCOPES)
    score = criterion if callable(criterion) else choose("criterion", criterion, CRITERIA)
    weights = find_weights(model, layers, include, exclude)
    groupings = {name: Grouping.of(weight.owners[0], pieces) for name, weight in weights.items()}
    scores = {
        name: _scores(weight, groupings[name], score, pool, generator) for name, weight in weights.items()
    }
    devices = {name: weight.parameter.device for name, weight in weights.items()}
    return Ranking(scores, groupings, devices, cut)


def _scores(
    weight: Weight,
    grouping: Grouping,
    criterion: Criterion,
    pool: Callable[[Tensor], Tensor],
    generator: torch.Generator | None,
) -> Tensor:
    values, grad = grouping.rows(original_values(weight)), weight.parameter.grad
    _check_finite(weight.name, "values", values)
    gradients = None if grad is None else grouping.rows(grad)
    scores = criterion(Groups(weight.name, values, gradients, generator))
    shape = tuple(scores.shape)
    if shape not in ((grouping.count, grouping.members), (grouping.count, 1)):
        raise ValueError(
            f"criterion gave scores of shape {shape} for {weight.name}; expected "
            f"{(grouping.count, grouping.members)} or {(grouping.count, 1)}"
        )
    _check_finite(weight.name, "scores", scores)
    return pool(scores)


def _check_finite(name: str, what: str, tensor: Tensor) -> None:
    if tensor.numel() and not torch.isfinite(torch.stack(tensor.aminmax())).all():
        raise ValueError(f"{name} has {what} that are NaN or infinite: they cannot be ranked")


def make_masks(model: nn.Module, p_prune: float, p_bern: float = 1.0, **choice: Unpack[Choice]) -> Masks:
    """Compute masks and touch nothing.

    `int(p_prune · N)` of the N groups become candidates, lowest score first, ties by position; each
    is pruned with chance `p_bern`, one independent draw a group (Wang, Wu, Chen 2022, arXiv
    2208.08677, section 3.2).

    Args:
        model: any network; of a pruned one, the original weights are ranked.
        p_prune: fraction of groups that become candidates, in [0, 1].
        p_bern: chance that a candidate is pruned, in [0, 1]; at 0 and 1 no random number is drawn.
        **choice: criterion, granularity, scope, norm, layers, include, exclude, generator: see
            `prunus.rank`.

    Returns:
        Boolean tensors by weight name, True = keep.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range; see `prunus.rank`.

    Example:
        >>> import prunus
        >>> net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3))
        >>> prunus.make_masks(net, 0.25, granularity="kernel")
        Masks(2 weights, 684 of 2,736 pruned)
    """
    p_prune, p_bern = check_fraction("p_prune", p_prune), check_fraction("p_bern", p_bern)
    [candidates] = rank(model, **choice).candidates([p_prune])
    return candidates.draw(p_bern, choice.get("generator"))


class Pruning:
    """A pruned model and the candidates it was pruned from; as a context manager, restores at the end."""

    def __init__(
        self,
        model: nn.Module,
        candidates: Candidates,
        p_bern: float,
        passes: str,
        generator: torch.Generator | None,
    ) -> None:
        self.model, self.candidates, self.p_bern, self.generator = model, candidates, p_bern, generator
        self._masks = candidates.draw(p_bern, generator)
        apply_masks(model, self._masks, passes)

    @property
    def masks(self) -> Masks:
        """The masks in force, True = keep."""
        return self._masks

    def redraw(self) -> Masks:
        """Draw anew which of the same candidates fall, and prune by that."""
        masks = self.candidates.draw(self.p_bern, self.generator)
        exchange_masks(self.model, masks)
        self._masks = masks
        return masks

    def restore(self) -> nn.Module:
        """Undo the pruning; see `prunus.restore`."""
        return restore(self.model)

    def __enter__(self) -> Pruning:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()


def prune(
    model: nn.Module,
    p_prune: float,
    *,
    p_bern: float = 1.0,
    passes: str = "both",
    **choice: Unpack[Choice],
) -> Pruning:
    """Prune in place of any mask the model is under, and keep a handle on it.

    Args:
        model: the network; its modules, parameters and state_dict keys stay the same objects.
        p_prune: fraction of groups that become candidates, in [0, 1].
        p_bern: chance that a candidate is pruned, in [0, 1].
        passes: where pruned weights count as zero: "both", "backward" or "forward".
        **choice: see `prunus.rank`.

    Returns:
        A handle: `.masks`, `.redraw()`, `.restore()`; also a context manager that restores.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range; see `prunus.rank`. The model is left as it was.

    Example:
        >>> import prunus
        >>> net = nn.Conv2d(3, 16, 3)
        >>> with prunus.prune(net, 0.5, generator=torch.Generator().manual_seed(0)) as pruning:
        ...     print(pruning.masks.sparsity, int((net.weight == 0).sum()))
        0.5 216
        >>> int((net.weight == 0).sum())
        0
    """
    p_prune, p_bern = check_fraction("p_prune", p_prune), check_fraction("p_bern", p_bern)
    choose("passes", passes, PASSES)
    [candidates] = rank(model, **choice).candidates([p_prune])
    return Pruning(model, candidates, p_bern, passes, choice.get("generator"))


def global_prune(
    model: nn.Module, p_prune: float = 0.3, p_bern: float = 1.0, **choice: Unpack[Choice]
) -> nn.Module:
    """Prune the forward and the backward pass. `module.weight_orig` holds the original values.

    Args, raises: as `prunus.prune`.

    Returns:
        The same model.

    Example:
        >>> import prunus
        >>> net = prunus.global_prune(nn.Conv2d(3, 16, 3), p_prune=0.25)
        >>> int((net.weight == 0).sum()), int((net.weight_orig == 0).sum())
        (108, 0)
    """
    return prune(model, p_prune, p_bern=p_bern, passes="both", **choice).model


def gradient_prune(
    model: nn.Module, p_prune: float = 0.3, p_bern: float = 1.0, **choice: Unpack[Choice]
) -> nn.Module:
    """Prune the backward pass only: outputs stay bitwise those of the unpruned network.

    Gradients that flow *through* pruned weights change; the pruned weights' own do not.

    Args, raises: as `prunus.prune`.

    Returns:
        The same model.

    Example:
        >>> import prunus
        >>> net, x = nn.Conv2d(1, 1, 1, bias=False), torch.ones(1, 1, 1, 1, requires_grad=True)
        >>> y = prunus.gradient_prune(net, p_prune=1.0)(x)
        >>> bool((y == net.weight).all()), torch.autograd.grad(y.sum(), x)[0].item()
        (True, 0.0)
    """
    return prune(model, p_prune, p_bern=p_bern, passes="backward", **choice).model
