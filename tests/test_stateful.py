"""Random sequences of what people do to a pruned network, beside a slow model of what must be true.

The slow model is a network that Prunus never sees: tensors, masks and the values from before pruning, which
every rule brings up to date by hand.
"""

from __future__ import annotations

import copy
import io
import os
import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import prunus

OPTIMIZERS: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
    "decay": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.1, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, 0.05),
    "fused": lambda p: torch.optim.AdamW(p, 0.05, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01),
}
PASSES = ("both", "backward", "forward")


class Block(nn.Module):
    """A convolution, an activation and a linear map."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, channels, 2)
        self.linear = nn.Linear(channels * 4, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x).tanh().flatten(1))


class PrunedNetwork(RuleBasedStateMachine):
    """A network under the rules below, and what must be true of it."""

    @initialize(
        channels=st.integers(1, 4), out=st.integers(1, 3), seed=st.integers(0, 99), frozen=st.booleans()
    )
    def build(self, channels: int, out: int, seed: int, frozen: bool) -> None:
        torch.manual_seed(seed)
        self.net: nn.Module = Block(channels, out)
        self.values = {name: p.detach().clone() for name, p in self.net.named_parameters()}
        self.before: dict[str, Tensor] = {}
        self.masks: dict[str, Tensor] = {}
        self.passes, self.pruning = "both", None
        if frozen:
            self.net.requires_grad_(False)
        self.new_optimizer("momentum")

    @property
    def zeros(self) -> bool:
        return self.passes != "backward"

    def set_zeros(self) -> None:
        for name, mask in self.masks.items():
            if self.zeros:
                self.values[name] = self.values[name].where(mask, torch.zeros_like(self.values[name]))

    def take_off(self) -> None:
        for name, mask in self.masks.items():
            if self.zeros:
                self.values[name] = self.values[name].where(mask, self.before[name])
        self.masks, self.before, self.pruning = {}, {}, None

    def put_on(self, masks: dict[str, Tensor], passes: str) -> None:
        self.passes, self.masks = passes, {name: mask.clone() for name, mask in masks.items()}
        self.before = {name: self.values[name].clone() for name in masks}
        self.set_zeros()

    def lowest(self, fraction: float) -> dict[str, Tensor]:
        flat = torch.cat([self.values[name].flatten().abs() for name in ("conv.weight", "linear.weight")])
        kept = torch.ones(len(flat), dtype=torch.bool)
        kept[flat.argsort(stable=True)[: int(fraction * len(flat))]] = False
        split = kept.split([self.values[name].numel() for name in ("conv.weight", "linear.weight")])
        names = ("conv.weight", "linear.weight")
        return {n: part.view_as(self.values[n]) for n, part in zip(names, split, strict=True)}

    def run(self, x: Tensor, values: dict[str, Tensor]) -> Tensor:
        """What the network gives, with the gradients that the passes ask for."""

        def through(layer: Callable[[Tensor, Tensor, Tensor | None], Tensor], name: str, x: Tensor) -> Tensor:
            weight = values[f"{name}.weight"]
            mask = self.masks.get(f"{name}.weight")
            plain = layer(x, weight, values[f"{name}.bias"])
            if mask is None or self.passes == "both":
                return plain
            other = self.before[f"{name}.weight"] if self.passes == "forward" else torch.zeros_like(weight)
            detour = layer(x, weight.detach().where(mask, other), None)
            return layer(x.detach(), weight, values[f"{name}.bias"]) + detour - detour.detach()

        return through(F.linear, "linear", through(F.conv2d, "conv", x).tanh().flatten(1))

    def images(self) -> Tensor:
        dtype = next(iter(self.values.values())).dtype
        return torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(7)).to(dtype)

    @rule(fraction=st.floats(0, 1), passes=st.sampled_from(PASSES), p_bern=st.sampled_from([1.0, 0.5]))
    def prune(self, fraction: float, passes: str, p_bern: float) -> None:
        pruning = prunus.prune(self.net, fraction, p_bern=p_bern, passes=passes, layers="all")
        self.take_off()
        if p_bern == 1:
            assert {**prunus.masks_of(self.net)}.keys() == self.lowest(fraction).keys()
            assert all(torch.equal(pruning.masks[n], m) for n, m in self.lowest(fraction).items())
        self.put_on({**pruning.masks}, passes)
        self.pruning = pruning

    @rule(passes=st.sampled_from(PASSES), seed=st.integers(0, 9), one=st.booleans())
    def apply(self, passes: str, seed: int, one: bool) -> None:
        generator = torch.Generator().manual_seed(seed)
        names = ["linear.weight"] if one else ["conv.weight", "linear.weight"]
        masks = {n: torch.rand(self.values[n].shape, generator=generator) > 0.5 for n in names}
        prunus.apply_masks(self.net, prunus.Masks(masks), passes)
        self.take_off()
        self.put_on(masks, passes)

    @precondition(lambda self: self.pruning)
    @rule()
    def redraw(self) -> None:
        passes, pruning = self.passes, self.pruning
        masks = {**pruning.redraw()}
        self.take_off()
        self.put_on(masks, passes)
        self.pruning = pruning

    @precondition(lambda self: self.pruning)
    @rule(more=st.floats(0, 1))
    def deepen(self, more: float) -> None:
        passes, pruning, former = self.passes, self.pruning, {**self.masks}
        total, candidates = (
            pruning.masks.total,
            sum(int((~k).sum()) for k in pruning.candidates.kept.values()),
        )
        p_prune = min(1.0, (candidates + more * (total - candidates) + 0.5) / total)
        masks = {**pruning.deepen(p_prune)}
        assert all(not (mask & ~former[name]).any() for name, mask in masks.items())  # nothing comes back
        fallen = sum(int((~mask).sum()) for mask in masks.values())
        assert fallen <= int(p_prune * total)
        assert pruning.p_bern < 1 or fallen == int(p_prune * total)
        self.take_off()
        self.put_on(masks, passes)
        self.pruning = pruning

    @rule()
    def restore(self) -> None:
        prunus.restore(self.net)
        self.take_off()

    @rule(name=st.sampled_from(sorted(OPTIMIZERS)))
    def new_optimizer(self, name: str) -> None:
        self.optimizer = OPTIMIZERS[name](list(self.net.parameters()))
        self.leaves = {name: value.clone().requires_grad_() for name, value in self.values.items()}
        self.slow_optimizer = OPTIMIZERS[name](list(self.leaves.values()))

    @precondition(lambda self: self.net.conv.weight.requires_grad)
    @rule()
    def train(self) -> None:
        for name, leaf in self.leaves.items():
            leaf.data = self.values[name].clone()
        for optimizer, run in (
            (self.optimizer, self.net),
            (self.slow_optimizer, lambda x: self.run(x, self.leaves)),
        ):
            optimizer.zero_grad()
            run(self.images()).square().sum().backward()
            if optimizer is self.slow_optimizer and self.passes == "both":
                for name, mask in self.masks.items():
                    self.leaves[name].grad.mul_(mask)
            optimizer.step()
        self.values = {name: leaf.detach().clone() for name, leaf in self.leaves.items()}
        self.set_zeros()
        self.agree(dict(self.net.named_parameters()))  # right after the step

    @rule(seed=st.integers(0, 9), name=st.sampled_from(["conv.weight", "linear.weight", "linear.bias"]))
    def write(self, seed: int, name: str) -> None:
        change = torch.randn(self.values[name].shape, generator=torch.Generator().manual_seed(seed)) > 0
        self.net.get_parameter(name).data[change] = 0.25
        self.values[name][change] = 0.25
        self.set_zeros()

    @rule(seed=st.integers(0, 9), assign=st.booleans())
    def load(self, seed: int, assign: bool) -> None:
        torch.manual_seed(seed)
        state = {name: torch.randn_like(value) for name, value in self.values.items()}
        self.net.load_state_dict({name: value.clone() for name, value in state.items()}, assign=assign)
        self.loaded(state, assign)

    @rule()
    def save_and_load(self) -> None:
        file = io.BytesIO()
        torch.save(self.net.state_dict(), file)
        state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
        self.agree(state)
        self.net.load_state_dict(state)  # its own, which it knows

    def loaded(self, state: dict[str, Tensor], exchanged: bool) -> None:
        self.before = {name: state[name].clone() for name in self.before}
        self.values = {name: value.clone() for name, value in state.items()}
        self.set_zeros()
        if exchanged:
            self.new_optimizer("momentum")

    @rule(how=st.sampled_from(["deepcopy", "pickle"]))
    def copy(self, how: str) -> None:
        if how == "deepcopy":
            self.net = copy.deepcopy(self.net)
        else:
            file = io.BytesIO()
            torch.save(self.net, file)
            self.net = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
        self.pruning = None  # the handle is on the original
        self.new_optimizer("adam")

    @rule(dtype=st.sampled_from([torch.float64, torch.float32]))
    def convert(self, dtype: torch.dtype) -> None:
        self.net.to(dtype)
        self.values = {name: value.to(dtype) for name, value in self.values.items()}
        self.before = {name: value.to(dtype) for name, value in self.before.items()}
        self.new_optimizer("decay")

    @rule(multi=st.booleans())
    def average(self, multi: bool) -> None:
        options = {"multi_avg_fn": get_ema_multi_avg_fn(0.9)} if multi else {}
        average = AveragedModel(self.net, use_buffers=True, **options)
        for _ in range(2):
            average.update_parameters(self.net)
        self.agree(average.module.state_dict())

    @rule()
    def compile(self) -> None:
        compiled = torch.compile(self.net, backend="eager", fullgraph=True)
        assert torch.allclose(compiled(self.images()), self.run(self.images(), self.values), atol=1e-4)

    @rule(frozen=st.booleans())
    def freeze(self, frozen: bool) -> None:
        self.net.requires_grad_(not frozen)
        self.net.zero_grad()

    @rule(call=st.integers(0, 5))
    def fail(self, call: int) -> None:
        wrong: list[Callable[[], object]] = [
            lambda: prunus.prune(self.net, 1.5),
            lambda: prunus.prune(self.net, 0.5, passes="sideways"),
            lambda: prunus.global_prune(self.net, 0.5, granularity="leaf"),
            lambda: prunus.prune(self.net, 0.5, include="nothing"),
            lambda: prunus.apply_masks(self.net, prunus.Masks({"no.weight": torch.ones(1).bool()})),
            lambda: self.net(torch.ones(1, 5, 1, 1)),
        ]
        with pytest.raises((ValueError, RuntimeError)):
            wrong[call]()

    def agree(self, state: dict[str, Tensor]) -> None:
        assert state.keys() == self.values.keys()
        for name, value in self.values.items():
            assert torch.allclose(state[name], value, atol=1e-4, rtol=1e-4), name
            if name in self.masks and self.zeros:
                assert not state[name][~self.masks[name]].any(), name
            self.values[name] = state[name].detach().clone()  # rounding does not add up

    @invariant()
    def it_is_what_it_must_be(self) -> None:
        x = self.images()
        mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        given, wanted = self.net(mine), self.run(theirs, self.values)
        assert torch.allclose(given, wanted, atol=1e-4, rtol=1e-4)
        gradients = [
            torch.autograd.grad(y.square().sum(), z)[0] for y, z in ((given, mine), (wanted, theirs))
        ]
        assert torch.allclose(*gradients, atol=1e-3, rtol=1e-3)
        self.agree(self.net.state_dict())
        assert not dict(self.net.named_buffers())
        found = prunus.masks_of(self.net)
        assert found.keys() == self.masks.keys()
        assert all(torch.equal(found[name], mask) for name, mask in self.masks.items())

    def teardown(self) -> None:
        if not hasattr(self, "net"):
            return
        prunus.restore(self.net)
        self.take_off()
        for name, value in self.net.state_dict().items():
            assert torch.allclose(value, self.values[name], atol=1e-4, rtol=1e-4), name


EXAMPLES = int(os.environ.get("PRUNUS_EXAMPLES", "75"))
TestPrunedNetwork = pytest.mark.filterwarnings("ignore")(PrunedNetwork.TestCase)
TestPrunedNetwork.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
warnings.filterwarnings("ignore", message=".*recompile")
