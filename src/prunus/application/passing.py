"""One call of a layer whose passes are pruned: by which products it is made, forward and backward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunus.application.calls import is_batched
from prunus.application.operations import Gradients, Linear, Operation, sums
from prunus.application.places import About, Places, Rule
from prunus.application.products import Kept, Wanted, sparse_forward
from prunus.application.reused import Reused
from prunus.application.tallies import Share, Tally, counts, share_of


@dataclass(frozen=True)
class Pass:
    """What prunes a call.

    Args:
        operation: of the layer.
        places: the rules.
        kept: of the weight, by place.
        about: for the rules of dL/dy and of x.
        tally: to which all is added.
        memory: for gradients.
        held: channels that this call does not choose anew, as booleans.
        holds: whether those that it chooses are for later calls, too.
        by_sparse: whether by sparse matrices, where the layer is linear.
    """

    operation: Operation
    places: Places
    kept: Mapping[str, Kept]
    about: About
    tally: Tally
    memory: Reused
    held: dict[str, Tensor]
    holds: bool = False
    by_sparse: bool = False

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """W x."""
        operation, kept = self.operation, self.kept.get("forward")
        if kept and self.by_sparse and isinstance(operation, Linear):
            made = sparse_forward(operation, x, weight, bias, kept)
        else:
            made = operation.forward(x, kept(weight) if kept else weight, bias)
        if counts():
            self.tally.multiply("forward", operation.macs(x, weight, made), kept.share if kept else 1.0)
        return made

    def gradients(self, grad: Tensor, x: Tensor | None, weight: Tensor, wanted: list[bool]) -> Gradients:
        """Of x, weight and bias, which has its own from all of dL/dy."""
        operation, places = self.operation, self.places
        macs = operation.macs(x, weight, grad)
        left, channels, of_grad = self._output_grad(grad)
        of_x: Share = 1.0
        if x is not None:
            x = x.to(grad.dtype)  # of the layer's output, which autocast has chosen
            if wanted[1] and places.activation:
                x = _spread(x, _chosen("activation", places.activation, x, self.about))
                of_x = share_of(x)
        apart = bool(places.output_grad) and wanted[2]
        masks = self.kept.get("input_grad", self.kept.get("forward")), self.kept.get("weight_grad")
        asked = Wanted(operation, left, x, weight, [*wanted[:2], wanted[2] and not apart], *masks)
        if channels is not None:
            found = asked.of_channels(channels, self.memory)
        elif self.by_sparse and isinstance(operation, Linear) and not torch.is_grad_enabled():
            found = asked.sparse(self.memory)
        else:
            found = asked.whole()
        if counts():
            self._count(macs, wanted, of_grad, of_x)
        return found[0], found[1], sums(operation, grad) if apart else found[2]

    def _output_grad(self, grad: Tensor) -> tuple[Tensor, Tensor | None, Share]:
        """What goes on of dL/dy, or all of it and the indices of channels that do; and the share of that."""
        rule = self.places.output_grad
        if rule is None:
            return grad, None, 1.0
        chosen = self.held.get("output_grad")
        if chosen is None or chosen.device != grad.device:
            chosen = _chosen("output_grad", rule, grad, self.about)
        if self.holds and chosen.dtype == torch.bool and self._is_of_channels(chosen, grad):
            self.held["output_grad"] = chosen
        channels = self._channels(chosen, grad)
        left = grad if channels is not None else _spread(grad, chosen)
        share = share_of(left) if channels is None else len(channels) / chosen.numel()
        return left, channels, share

    def _is_of_channels(self, chosen: Tensor, grad: Tensor) -> bool:
        """Whether it is the same for all items, whatever their number."""
        return chosen.shape != grad.shape and chosen.numel() == grad.shape[self.operation.axis]

    def _channels(self, chosen: Tensor, grad: Tensor) -> Tensor | None:
        """The channels that are chosen as wholes, where there are some, and as many of each group."""
        operation = self.operation
        count = grad.shape[operation.axis]
        if chosen.dtype != torch.bool or chosen.numel() != count or chosen.shape[operation.axis] != count:
            return None
        if operation.groups > 1:
            each = chosen.view(operation.groups, -1).sum(1)
            if operation.inputs_first or bool((each != each[0]).any()):
                return None
        found = chosen.flatten().nonzero().flatten()
        return found if len(found) else None

    def _count(self, macs: int, wanted: list[bool], of_grad: Share, of_x: Share) -> None:
        keep, shares = self.tally.keep, {place: kept.share for place, kept in self.kept.items()}
        if self.places.output_grad:
            keep("output_grad", of_grad)
        if wanted[0]:
            weight = shares.get("input_grad", shares.get("forward", 1.0))
            self.tally.multiply("input_grad", macs, of_grad, weight)
        if wanted[1]:
            if self.places.activation:
                keep("activation", of_x)
            self.tally.multiply("weight_grad", macs, of_grad, of_x, shares.get("weight_grad", 1.0))
        for place, share in shares.items():
            keep(place, share)


def _chosen(place: str, rule: Rule, values: Tensor, about: About) -> Tensor:
    if is_batched(values):
        raise RuntimeError(
            f"the rule of {place} cannot look at what vmap has stacked: call the network in a loop"
        )
    with torch.no_grad():
        chosen = rule(values.detach(), about)
    spreads = chosen.dtype == torch.bool and chosen.dim() == values.dim()
    fits = all(n == m or (spreads and n == 1) for n, m in zip(chosen.shape, values.shape, strict=False))
    if not fits or chosen.dim() != values.dim() or not (spreads or chosen.is_floating_point()):
        raise ValueError(
            f"the rule of {place} gave {chosen.dtype} of shape {tuple(chosen.shape)}: expected booleans that "
            f"spread over shape {tuple(values.shape)}, or numbers of it"
        )
    return chosen


def _spread(values: Tensor, chosen: Tensor) -> Tensor:
    """What is kept of values, or what takes their place."""
    if chosen.dtype == torch.bool:
        return values * chosen.view(torch.int8)
    chosen = chosen.to(values.dtype)
    if not torch.is_grad_enabled():
        return chosen
    replaced: Tensor = _Replaced.apply(values, (chosen,))
    return replaced


class _Replaced(torch.autograd.Function):
    """Values that have taken the place of others, of which no derivative is known."""

    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor, chosen: tuple[Tensor]) -> Tensor:
        return chosen[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        raise RuntimeError("a rule that puts other values in place of gradients has no second derivative")
