"""A layer whose passes are pruned by rules, as long as its `forward` is another."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunus.application.calls import is_batched, unobserved
from prunus.application.operations import Call, as_it_is, call_of, outputs_first
from prunus.application.passing import Pass
from prunus.application.penalties import due
from prunus.application.placed import PLACES
from prunus.application.places import About, Places
from prunus.application.products import Kept
from prunus.application.reused import Reused
from prunus.application.state import pruned_weights
from prunus.application.tallies import Tally, counts
from prunus.application.trial import Trial, Tried
from prunus.processes import number
from prunus.randomness import stream


@dataclass(frozen=True)
class Plan:
    """When rules act.

    Args:
        every: so many steps the rules of a weight are asked anew.
        dense_every: every so many-th step is dense; 0 for none.
        warmup: so many steps at first are dense.
        seed: of all draws.
        faster: whether a layer stays dense where its rules would save no time.
    """

    every: int = 1
    dense_every: int = 0
    warmup: int = 0
    seed: int = 0
    faster: bool = False


class RuledLayer:
    """What a layer is called by in place of its `forward`, while rules prune its passes.

    A step is a backward pass that comes to the layer, however often it does.

    Args:
        layer: for which `has_operation`.
        places: the rules.
        plan: when they act.
        numbers: of the weight, which other layers may share, and of the layer, for draws of their own.
    """

    def __init__(self, layer: nn.Module, places: Places, plan: Plan, numbers: tuple[int, int]) -> None:
        self.layer: Any = layer
        self.places, self.plan, self.numbers = places, plan, numbers
        self.steps = self.draws = 0
        self.tally, self.memory = Tally(), Reused()
        self.trial = Trial(plan.every) if plan.faster else None
        self.kept: dict[str, Kept] = {}
        self.held: dict[str, Tensor] = {}
        self._last: Mapping[str, Kept] = {}
        self._kept_at = self._counted_in = -1
        self._asking = 0.0

    def attach(self) -> None:
        """Stand in for the layer's forward."""
        vars(self.layer)["forward"] = self
        # Where layers have hooks, no encoder of torch goes past their forward to their weights, either
        self._hook = self.layer.register_forward_pre_hook(self._check_caller)

    def detach(self) -> None:
        """Let the layer be as it was."""
        if self.is_attached:
            del vars(self.layer)["forward"]
            self._hook.remove()

    def _check_caller(self, layer: nn.Module, args: object) -> None:
        if layer is not self.layer:  # which has other tensors, and this forward
            raise RuntimeError(
                f"a shallow copy of a {type(layer).__name__} under sparse_backward, as nn.DataParallel makes "
                "them, cannot be run: use DistributedDataParallel, or copy.deepcopy"
            )

    @property
    def prunes(self) -> bool:
        """Whether its rules act: not where timing has chosen the dense way, or has yet to choose."""
        return self.trial is None or self.trial.way in ("pruned", "sparse")

    @property
    def is_attached(self) -> bool:
        """Whether it stands there."""
        return vars(self.layer).get("forward") is self

    @torch._disable_dynamo  # type: ignore[attr-defined]  # what is counted here is no graph's business
    def __call__(self, *args: Any, **named: Any) -> Tensor:
        """The layer's output."""
        layer = self.layer
        if named:
            args = inspect.signature(type(layer).forward).bind(layer, *args, **named).args[1:]
        call = call_of(layer, *args)
        tensors = call.x, layer.weight, layer.bias
        within = torch._C._current_graph_task_id()  # of a backward pass that runs this once more
        if self.trial and within == -1 and torch.is_grad_enabled():
            self.trial.settle()  # by all processes together, of which one alone may evaluate
        step = self._step
        if self._is_dense(step):
            return call.output(self._dense(call, within, *tensors))
        once = self._pass(call, step)
        tried = not self.prunes and torch.is_grad_enabled()
        run = self.trial.of(once, self._asking) if self.trial and tried else once
        if torch._C._get_tracing_state() is not None or torch.compiler.is_exporting():
            return call.output(run.forward(*tensors))  # what is exported has no backward pass
        kept = {} if tried else once.kept
        made: Tensor = _Ruled.apply(run, partial(self.passed, within, kept), *tensors)
        return call.output(made)

    @property
    def _step(self) -> int:
        """How many were made, but for that which may be running this forward once more."""
        task = torch._C._current_graph_task_id()
        return self.steps - (task != -1 and task == self._counted_in)

    def passed(self, within: int, kept: Mapping[str, Kept]) -> None:
        """A backward pass has come here.

        Args:
            within: the pass that ran this forward once more, or -1.
            kept: of the weight, in this forward.
        """
        task = torch._C._current_graph_task_id() if within == -1 else within
        self.steps += task == -1 or task != self._counted_in
        self._counted_in = task
        if self.places.penalty:
            self._last = kept
            due(self)

    def _is_dense(self, step: int) -> bool:
        every, since = self.plan.dense_every, step - self.plan.warmup
        apart = bool(every) and (since + 1) % every == 0 and self.layer.training
        return since < 0 or apart or (self.trial is not None and self.trial.way == "dense")

    def _dense(self, call: Call, within: int, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        made = call.operation.forward(x, weight, bias)
        if made.requires_grad:
            made.register_hook(lambda grad: self.passed(within, {}))  # type: ignore[no-untyped-call]
        if counts():
            macs = call.operation.macs(x, weight, made)
            wanted = {"forward": True, "input_grad": x.requires_grad, "weight_grad": weight.requires_grad}
            for product in (name for name, used in wanted.items() if used):
                self.tally.multiply(product, macs)
        return made

    def _pass(self, call: Call, step: int) -> Pass:
        operation = call.operation
        about = About(operation.axis, operation.groups, self._draw, self._in_force)
        settled = self.trial is not None and self.trial.way == "sparse"
        by_sparse = settled and counts() and not torch.is_autocast_enabled(call.x.device.type)
        at = self._number(step)
        if at != self._kept_at:
            self.held = {}
        begun, stands = time.perf_counter(), self._stands(at)
        kept = self.masks(step)
        self._asking = self._asking if stands else time.perf_counter() - begun
        self.kept, self._kept_at = kept, at
        held, holds = self.held, self.plan.every > 1 and counts()
        return Pass(operation, self.places, kept, about, self.tally, self.memory, held, holds, by_sparse)

    def masks(self, step: int | None = None) -> dict[str, Kept]:
        """By place, what is kept of the weight at a step, by default at that which is next."""
        at = self._number(self._step if step is None else step)
        weight = self.layer.weight
        if is_batched(weight) and self.places.of_weight():
            raise RuntimeError(
                "vmap runs a stack of several networks' parameters, each with masks of its own, which rules "
                "cannot find: let functional_call run prunus.restore(copy.deepcopy(model))"
            )
        if not self._stands(at):
            return self._ask(at, weight)
        return {place: kept.to(weight.device) for place, kept in self.kept.items()}

    def _stands(self, at: int) -> bool:
        """Whether what was kept last is for this time, too."""
        return self.plan.every > 1 and not self.places.anew and at == self._kept_at

    def _number(self, step: int) -> int:
        """Of those times at which rules are asked."""
        return max(0, step - self.plan.warmup) // self.plan.every

    def _ask(self, number: int, weight: Tensor) -> dict[str, Kept]:
        """What the rules keep of the weight now."""
        rules = self.places.of_weight()
        if not rules:
            return {}
        draw = partial(stream, self.plan.seed, self.numbers[0], _WEIGHT, number)
        groups = getattr(self.layer, "groups", 1)
        about = About(0, groups, lambda device: draw(device=device), self._in_force)
        found = {}
        with unobserved(), torch.inference_mode(False), torch.no_grad():
            values = outputs_first(self.layer, weight.detach())
            for place, rule in rules.items():
                mask = rule(values, about)
                if mask.dtype != torch.bool or mask.shape != values.shape:
                    raise ValueError(
                        f"the rule of {place} gave {mask.dtype} of shape {tuple(mask.shape)}: expected "
                        f"booleans of shape {tuple(values.shape)}"
                    )
                mask = as_it_is(self.layer, mask)
                before = self.kept.get(place)
                found[place] = before if before and before.is_of(mask) else Kept(mask)
        return found

    def penalize(self, scale: float | Tensor) -> None:
        """Add the penalty to the gradient that the weight has got in the last step, times this."""
        penalty, weight = self.places.penalty, self.layer.weight
        if penalty and self.is_attached and self._last:
            with torch.no_grad():
                kept = {place: one.mask for place, one in self._last.items()}
                weight.grad.add_(penalty(weight.detach(), kept) * scale)

    def _draw(self, device: torch.device) -> torch.Generator:
        self.draws += 1
        return stream(self.plan.seed, self.numbers[1], _GRADIENT, self.draws, number(), device=device)

    def _in_force(self, place: str) -> Tensor | None:
        """The mask of the weight there; of its gradient none, where something asks for all of that."""
        state = pruned_weights(self.layer).get("weight")
        if state is None or (place == "weight_grad" and state.listened):
            return None
        mask = PLACES[place](state.placed)
        return None if mask is None else outputs_first(self.layer, mask)

    def state_dict(self) -> dict[str, Any]:
        """What a training that is resumed goes on from."""
        kept = {place: kept.mask.clone() for place, kept in self.kept.items()}
        at = {"steps": self.steps, "draws": self.draws, "kept_at": self._kept_at}
        return {**at, "kept": kept, "held": dict(self.held)}

    def fits(self, state: Mapping[str, Any]) -> bool:
        """Whether a state is of such a layer and such rules."""
        shapes = [(place, mask.shape) for place, mask in state["kept"].items()]
        wanted = [(place, self.layer.weight.shape) for place in self.places.of_weight()]
        return shapes == (wanted if state["kept_at"] >= 0 else [])

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        device = self.layer.weight.device
        self.steps, self.draws, self._kept_at = state["steps"], state["draws"], state["kept_at"]
        self.kept = {place: Kept(mask.to(device)) for place, mask in state["kept"].items()}
        self.held = {place: channels.to(device) for place, channels in state["held"].items()}
        self._counted_in = -1


_WEIGHT, _GRADIENT = 0, 1  # so that what is drawn for the one is not drawn for the other


class _Ruled(torch.autograd.Function):
    """W x by a pass, and its gradients."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        run: Pass | Tried, passed: Callable[[], None], x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        return run.forward(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.run, ctx.passed, x, weight, _ = inputs
        ctx.wanted = list(ctx.needs_input_grad[2:])
        # As torch does: a linear map needs x for the weight's gradient alone, a convolution always
        ctx.save_for_backward(x if ctx.wanted[1] or weight.dim() > 2 else None, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        [grad] = grads
        ctx.passed()
        return None, None, *ctx.run.gradients(grad, *ctx.saved_tensors, ctx.wanted)


# As in `detour`: torch would find it at every call
_Ruled.forward.__signature__ = inspect.signature(_Ruled.forward)  # type: ignore[attr-defined]


def check_unruled(model: nn.Module) -> None:
    """Refuse a network whose passes rules prune, for what copies or cuts it.

    Raises:
        ValueError: it is one.
    """
    if found := ruled_layers(model):
        first = next(iter(found)) or "the network"
        raise ValueError(
            f"sparse_backward prunes the passes of {first}: prunus.restore(model) first; where it has pruned "
            "the forward, prunus.apply_masks(model, sparse.masks) then does that"
        )


def ruled_layers(model: nn.Module) -> dict[str, RuledLayer]:
    """By their paths, the layers of a network whose passes rules prune."""
    found = {path: vars(layer).get("forward") for path, layer in model.named_modules()}
    return {path: ruled for path, ruled in found.items() if isinstance(ruled, RuledLayer)}
