"""How much shorter a step is under `sparse_backward`: `python -m benchmarks.sparse_steps [NAME ...]`.

One thread; forward, backward and a step of SGD with momentum, of networks that take turns, layers chosen by
timing (`faster=True`). For "static" both have the same masks, by `global_prune`. The ceiling is what it would
be if what is kept of the pruned products took its share of their time: the rest is timed without them.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import prunus
from benchmarks.measure import Task, by_turns
from benchmarks.nets import mlp_500_500
from prunus.extras import need

ROUNDS = 15
Made = tuple[nn.Module, Tensor]


def resnet18() -> Made:
    """Batch 8 at 112²."""
    return torchvision.models.resnet18(), torch.randn(8, 3, 112, 112)


def resnet50() -> Made:
    """Batch 4 at 112²."""
    return torchvision.models.resnet50(), torch.randn(4, 3, 112, 112)


def mlp() -> Made:
    """Four layers that are 1024 wide, batch 256."""
    layers: list[nn.Module] = [module for _ in range(4) for module in (nn.Linear(1024, 1024), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(1024, 10)), torch.randn(256, 1024)


def mlp_500() -> Made:
    """The network of meProp's authors for MNIST, 784-500-500-10, and their batch of 50."""
    return mlp_500_500(), torch.randn(50, 784)


def transformer() -> Made:
    """Four layers of BERT, 512 wide, batch 8 of 64 words."""
    transformers: Any = need("transformers", "transformers")
    config = transformers.BertConfig(
        hidden_size=512, num_hidden_layers=4, num_attention_heads=8, intermediate_size=2048, vocab_size=1000
    )
    return transformers.BertModel(config), torch.randint(1000, (8, 64))


@dataclass(frozen=True)
class Row:
    """What is timed.

    Args:
        network: its maker.
        rules, k, every: of `sparse_backward`.
    """

    network: Callable[[], Made]
    rules: str
    k: float
    every: int = 1000

    def dense(self) -> Made:
        """The network, whose weights are zero by then where the rules go by masks that are in force."""
        model, x = self.network()
        if self.rules == "static":
            prunus.global_prune(model, 1 - self.k, layers=("Conv2d", "Linear"), scope="layer")
        return model.train(), x

    def sparse(self, model: nn.Module) -> prunus.SparseBackward:
        """The network under the rules."""
        if self.rules == "static":
            return prunus.sparse_backward(model, "static", faster=True)
        return prunus.sparse_backward(model, self.rules, k=self.k, every=self.every, faster=True)


ROWS = [
    *(
        Row(network, "channels", k, every)
        for network in (resnet18, resnet50)
        for k in (0.5, 0.25)
        for every in (1, 10)
    ),
    *(Row(mlp_500, "channels", k, 1) for k in (0.16, 0.06)),
    *(Row(network, "magnitude", k) for network in (mlp, transformer) for k in (0.1, 0.05, 0.02)),
    *(Row(network, "static", k, 1) for network in (mlp, transformer) for k in (0.1, 0.05, 0.02)),
]


def stepping(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """One step of it."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-6, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        made = model(x)
        (made if isinstance(made, Tensor) else made[0]).square().mean().backward()
        optimizer.step()

    return step


def without(rules: str, model: nn.Module) -> nn.Module:
    """A network that does not make the products which the rules prune, and else all."""
    wanted = {"channels": (), "magnitude": ("weight",), "static": None}[rules]
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            vars(layer)["forward"] = partial(_skipped, layer, wanted)
    return model


def _skipped(layer: Any, wanted: tuple[str, ...] | None, x: Tensor) -> Tensor:
    with torch.no_grad():
        if wanted is None:
            shape = (*x.shape[:-1], layer.out_features)
            made = x.new_zeros(shape)
        else:
            made = type(layer).forward(layer, x)
    skipped: Tensor = _Skipped.apply(x, layer.weight, layer.bias, made, wanted == ("weight",))
    return skipped


class _Skipped(torch.autograd.Function):
    """An output that is known, with zeros for gradients, or with that of the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, made: Tensor, by_weight: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.by_weight, ctx.bias = by_weight, bias is not None
        return made.view_as(made)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = grads[0].reshape(-1, grads[0].shape[-1])
        of_weight = rows.T @ x.reshape(-1, x.shape[-1]) if ctx.by_weight else torch.zeros_like(weight)
        wanted = ctx.needs_input_grad
        to_bias = grads[0].new_zeros(len(weight)) if ctx.bias else None
        return torch.zeros_like(x) if wanted[0] else None, of_weight, to_bias, None, None


def measured(row: Row) -> list[str]:
    """The row of the table."""
    torch.manual_seed(0)
    model, x = row.dense()
    pruned = copy.deepcopy(model)
    sparse = row.sparse(pruned)
    steps = {"dense": stepping(model, x), "prunus": stepping(pruned, x)}
    steps["rest"] = stepping(without(row.rules, copy.deepcopy(model)), x)
    for _ in range(8):  # for the trial
        steps["prunus"]()
    found = by_turns({name: Task(step) for name, step in steps.items()}, ROUNDS)
    ratio, seconds = found["times_the"]["dense"], found["seconds"]
    rest = seconds["rest"] + row.k * (seconds["dense"] - seconds["rest"])
    layers = sparse.report().layers
    taken = sum(layer.way != "dense" for layer in layers)
    figures = [f"{1000 * seconds['dense']:.0f}", f"{1 / ratio:.2f}", f"{seconds['dense'] / rest:.2f}"]
    return [
        row.network.__name__,
        row.rules,
        f"{row.k:g}",
        str(row.every),
        *figures,
        f"{taken} of {len(layers)}",
    ]


def main() -> None:
    """The table."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print("| network | rules | k | every | dense step, ms | shorter | ceiling | layers pruned |")
    print("|---|---|---|---|---|---|---|---|")
    for row in ROWS:
        if len(sys.argv) == 1 or {row.network.__name__, row.rules} & set(sys.argv[1:]):
            print("|", " | ".join(measured(row)), "|", flush=True)


if __name__ == "__main__":
    main()
