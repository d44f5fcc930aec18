"""The verbs users call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from prunus.application.applying import forget_rules, masks_in_force, prune_by, take_off, zero
from prunus.application.placed import PASSES, PLACES, Placed, by_passes, by_place
from prunus.application.pruning import Pruning
from prunus.checks import Amount, check_amount, check_fraction, choose, knows_keywords
from prunus.masks import Masks, check_same_weights, emptied, warn_of_emptied
from prunus.processes import of_first
from prunus.scores.evidence import Evidence
from prunus.selection.draw import Candidates
from prunus.selection.ranking import Choice, lay_out, rank, rank_as_is, seeded
from prunus.weights import CUT, layer_weights

if TYPE_CHECKING:
    from typing_extensions import Unpack


@knows_keywords(Choice)
def make_masks(model: nn.Module, p_prune: Amount, p_bern: float = 1.0, **choice: Unpack[Choice]) -> Masks:
    """Compute masks and touch nothing.

    `int(p_prune · N)` of the N pieces become candidates, lowest score first, ties by position; each
    is pruned with chance `p_bern`, one independent draw a piece (Wang, Wu, Chen 2022, arXiv
    2208.08677, section 3.2). Warns where a layer loses all its weights, unless p_prune is 1.

    Args:
        model: any network; of a pruned one, the original weights are ranked.
        p_prune: fraction of pieces that become candidates, in [0, 1]; or fractions by name pattern, such as
            `{"layer1.*": 0.3, "*": 0.5}`: each holds, under `scope`, over the weights that it matches and no
            earlier one does, and what none matches is left whole.
        p_bern: chance that a candidate is pruned, in [0, 1]; at 0 and 1 no random number is drawn.
        **choice: keyword arguments of `prunus.rank`.

    Returns:
        Boolean tensors by weight name, True = keep.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range; see `prunus.rank`.

    Example:
        >>> import prunus
        >>> net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3))
        >>> prunus.make_masks(net, 0.25, granularity="kernel")
        Masks(2 tensors, 684 of 2,736 weights pruned)
    """
    p_prune, p_bern = check_amount("p_prune", p_prune), check_fraction("p_bern", p_bern)
    choice, generator = seeded(choice)
    [candidates] = rank(model, **choice).candidates([p_prune])
    masks = candidates.draw(p_bern, generator)
    decided = p_bern in (0, 1) or generator is not None
    masks = masks if decided else Masks(dict(of_first(masks.items())))
    candidates.warn_of_emptied(masks)
    return masks


@knows_keywords(Choice)
def prune(
    model: nn.Module,
    p_prune: Amount,
    *,
    p_bern: float = 1.0,
    passes: str = "both",
    **choice: Unpack[Choice],
) -> Pruning:
    """Prune in place of any mask the model is under, and keep a handle on it.

    Warns where a layer loses all its weights, unless `p_prune` is 1; `keep_at_least=1` prevents that.

    Args:
        model: the network; its modules, parameters and state_dict keys stay the same objects.
        p_prune: fraction of pieces that become candidates, in [0, 1], or fractions by name pattern; see
            `make_masks`.
        p_bern: chance that a candidate is pruned, in [0, 1].
        passes: where pruned weights count as zero: "both", "backward" or "forward".
        **choice: keyword arguments of `prunus.rank`.

    Returns:
        A handle: `.masks`, `.redraw()`, `.deepen()`, `.restore()`; also a context manager that restores.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range; see `prunus.rank`. The model is left as it was.

    Example:
        >>> import prunus
        >>> net = nn.Conv2d(3, 16, 3)
        >>> with prunus.prune(net, 0.5, seed=0) as pruning:
        ...     print(pruning.masks.sparsity, int((net.weight == 0).sum()))
        0.5 216
        >>> int((net.weight == 0).sum())
        0
    """
    p_prune, p_bern = check_amount("p_prune", p_prune), check_fraction("p_bern", p_bern)
    choose("passes", passes, PASSES)
    choice, _ = seeded(choice)
    [candidates] = rank(model, **choice).candidates([p_prune])
    return _pruning(model, candidates, p_bern, passes, choice)


def resume(model: nn.Module, kept: Mapping[str, Tensor], choice: Choice) -> Pruning:
    """Prune by what was kept of each tensor or bundle, one boolean a piece, as if it had been ranked now.

    Raises:
        ValueError: it is of another network, or of other pieces.
    """
    layout = lay_out(model, choice)
    counts = {name: part.count for name, part in layout.parts.items()}
    if counts != {name: len(flags) for name, flags in kept.items()}:
        raise ValueError("the state is of another network, or of other weights or pieces of it")
    return _pruning(model, Candidates(dict(kept), layout), 1.0, "both", choice)


def _pruning(model: nn.Module, candidates: Candidates, p_bern: float, passes: str, choice: Choice) -> Pruning:
    choice, generator = seeded(choice)
    return Pruning(model, candidates, p_bern, passes, generator, partial(_deeper, choice))


def _deeper(
    choice: Choice, model: nn.Module, p_prune: Amount, before: Candidates, evidence: Evidence | None
) -> Candidates:
    """More candidates of the same choice, by the weights as they are now."""
    given = choice if evidence is None else Choice(**{**choice, "evidence": evidence})
    return rank_as_is(model, **given).deeper(p_prune, before)


@knows_keywords(Choice)
def global_prune(
    model: nn.Module,
    p_prune: Amount = 0.3,
    p_bern: float = 1.0,
    *,
    keep_original: bool = True,
    **choice: Unpack[Choice],
) -> nn.Module:
    """Prune the forward and the backward pass.

    Args:
        model, p_prune, p_bern, **choice: as `prunus.prune`, which also says what is raised.
        keep_original: keep a backup (`module.weight_orig`) and the mask (`module.weight_mask`, one byte a
            weight), so that `prunus.restore` can undo the pruning and training leaves pruned weights at
            zero. If False, weights are set to zero for good, one tensor after another, and next to no
            memory is taken: nothing can be restored, training may move the zeros, and an interrupt leaves
            some weights pruned and others not.

    Returns:
        The same model.

    Example:
        >>> import prunus
        >>> net = prunus.global_prune(nn.Conv2d(3, 16, 3), p_prune=0.25)
        >>> int((net.weight == 0).sum()), int((net.weight_orig == 0).sum())
        (108, 0)
    """
    if keep_original:
        return prune(model, p_prune, p_bern=p_bern, passes="both", **choice).model
    check_fraction("p_bern", p_bern)
    choice, generator = seeded(choice)
    ranking = rank(model, **choice)
    masks = ranking.masks(p_prune, p_bern, generator)
    gone: dict[str, int] = {}
    zero(model, ranking.layout.names, _noting(masks if generator else of_first(masks), gone))
    if p_prune != 1:
        warn_of_emptied(gone, len(ranking.layout.names))
    return model


def _noting(masks: Iterable[tuple[str, Tensor]], gone: dict[str, int]) -> Iterator[tuple[str, Tensor]]:
    """The same masks, which do not exist all at once; meanwhile, those that keep nothing are noted."""
    for name, mask in masks:
        gone |= emptied([(name, mask)])
        yield name, mask


@knows_keywords(Choice)
def gradient_prune(
    model: nn.Module, p_prune: Amount = 0.3, p_bern: float = 1.0, **choice: Unpack[Choice]
) -> nn.Module:
    """Prune the backward pass only: outputs stay bitwise those of the unpruned network.

    Gradients that flow *through* pruned weights change; the pruned weights' own do not. It acts where
    a layer is called on tensors (or is the output of an `nn.MultiheadAttention`), not where other code
    takes its weight and uses it.

    Args, raises: as `prunus.prune`.

    Returns:
        The same model.

    Example:
        >>> import prunus, torch
        >>> net, x = nn.Conv2d(1, 1, 1, bias=False), torch.ones(1, 1, 1, 1, requires_grad=True)
        >>> y = prunus.gradient_prune(net, p_prune=1.0)(x)
        >>> bool((y == net.weight).all()), torch.autograd.grad(y.sum(), x)[0].item()
        (True, 0.0)
    """
    return prune(model, p_prune, p_bern=p_bern, passes="backward", **choice).model


@knows_keywords()
def apply_masks(
    model: nn.Module,
    masks: Masks | None = None,
    passes: str = "both",
    *,
    forward: Masks | None = None,
    input_grad: Masks | None = None,
    weight_grad: Masks | None = None,
) -> nn.Module:
    """Prune `model` by masks made before, in place of any mask it is under.

    Either `masks` act on the passes that are named, or each place of a layer y = W x where its weight acts
    has masks of its own. A weight that has none at a place acts there unpruned.

    Args:
        model: the network; its weights that have no mask are left alone.
        masks: by weight name, as `make_masks` or `Masks.load` give them.
        passes: "both" (all three places), "backward" (`input_grad` alone: outputs stay bitwise those of the
            unpruned network) or "forward" (`forward` alone: gradients flow through the unpruned weights).
        forward: of the W that gives y. What falls is zero in the parameter itself, after every step too.
        input_grad: of the W that gives the gradient of x, made of the weights before pruning.
        weight_grad: which weights get a gradient. Alone it does not hold the others still: weight decay moves
            them, and so does momentum from before.

    Returns:
        The same model.

    Raises:
        TypeError: masks that are not a `Masks`.
        ValueError: unknown `passes`, no masks at all, `masks` or `passes` beside a place, masks of another
            network, or a layer with a `weight_mask` or `weight_orig` of its own.

    Example:
        >>> import prunus
        >>> net = nn.Conv2d(1, 2, 1, bias=False)
        >>> masks = prunus.make_masks(net, 0.5)
        >>> int((prunus.apply_masks(net, masks).weight == 0).sum())
        1
        >>> net = prunus.apply_masks(net, forward=masks, weight_grad=masks)  # gradients by all weights
        >>> prunus.masks_of(net, "weight_grad"), prunus.masks_of(net, "input_grad")
        (Masks(1 tensor, 1 of 2 weights pruned), Masks(0 tensors, 0 of 0 weights pruned))
    """
    choose("passes", passes, PASSES)
    places = {"forward": forward, "input_grad": input_grad, "weight_grad": weight_grad}
    placed = {place: found for place, found in places.items() if found is not None}
    if placed and (masks is not None or passes != "both"):
        other = f"passes={passes!r}" if masks is None else "masks"
        raise ValueError(
            f"{other} and {next(iter(placed))} are given: expected masks of passes, or of places"
        )
    weights = layer_weights(model)
    shapes = {name: weight.parameter.shape for name, weight in weights.items()}
    given: dict[str, Masks | None] = {**placed} if placed else {"masks": masks}
    for argument, found in given.items():
        _check_masks(argument, found, shapes)
    prune_by(model, by_place(placed) if masks is None else by_passes(masks, passes))
    return model


def _check_masks(argument: str, masks: Masks | None, shapes: Mapping[str, torch.Size]) -> None:
    if masks is not None and not isinstance(masks, Masks):
        raise TypeError(f"{argument} must be prunus.Masks, got {type(masks).__name__}")
    if not masks:
        raise ValueError(
            f"{argument} is empty: expected one of a weight at least; prunus.restore undoes all pruning"
        )
    check_same_weights(masks, shapes)


def masks_of(model: nn.Module, place: str | None = None) -> Masks:
    """The masks that a network is pruned by now, True = keep; none where it is not pruned.

    Args:
        model: a pruned network, a copy of one, or one that holds it.
        place: "forward", "input_grad" or "weight_grad", see `apply_masks`: the masks that act there. By
            default the one mask of each weight, at whichever places it acts.

    Returns:
        By the names that the weights have in `model`; the tensors are those in force.

    Raises:
        ValueError: unknown `place`, or none given where a weight has several masks.

    Example:
        >>> import prunus
        >>> net = nn.Sequential(prunus.global_prune(nn.Conv2d(1, 2, 3), 0.5))
        >>> prunus.masks_of(net)
        Masks(1 tensor, 9 of 18 weights pruned)
        >>> prunus.masks_of(prunus.restore(net))
        Masks(0 tensors, 0 of 0 weights pruned)
    """
    at = None if place is None else choose("place", place, PLACES)
    placed = masks_in_force(model)
    found = {name: at(masks) if at else _only(name, masks) for name, masks in placed.items()}
    return Masks({name: mask for name, mask in found.items() if mask is not None})


def _only(name: str, placed: Placed) -> Tensor:
    if len(placed.masks) > 1:
        raise ValueError(f"{name} has several masks: give the place of those wanted, {', '.join(PLACES)}")
    return placed.masks[0]


def restore(model: nn.Module) -> nn.Module:
    """Undo all pruning, rules of `sparse_backward` too: every weight is bit for bit what it was.

    Pruning is undone, and not training: weights that survived keep what they have learned (or been
    loaded with) since. A parameter that was exchanged by hand since is left as it is.

    Returns:
        The same model.

    Raises:
        ValueError: `compact` has cut it, and it was not pruned since: what is gone is not kept anywhere.

    Example:
        >>> import prunus, torch
        >>> net = nn.Conv2d(1, 2, 3)
        >>> before = net.weight.clone()
        >>> torch.equal(prunus.restore(prunus.global_prune(net, 0.5)).weight, before)
        True
    """
    if not (forget_rules(model) + take_off(model)) and any(
        getattr(module, CUT, False) for module in model.modules()
    ):
        raise ValueError(
            "model was cut by compact, and what is gone is not kept: restore the network that it was given"
        )
    return model
