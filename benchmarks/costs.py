"""The rows of the table of costs: what is measured, on a ResNet-50 with random weights."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet50

import prunus
from benchmarks import contenders, measure
from benchmarks.measure import Task
from benchmarks.scaling import FRACTION, cost, linear_stack
from prunus.scores.evidence import Evidence
from prunus.scores.inputs import inputs

Row = dict[str, Any]


def network(change: Callable[[Tensor], Tensor] = lambda weight: weight) -> nn.Module:
    """ResNet-50 with random weights, which were changed."""
    torch.manual_seed(0)
    model: nn.Module = resnet50()
    for layer in contenders.layers_of(model):
        layer.register_parameter("weight", nn.Parameter(change(layer.get_parameter("weight").detach())))
    return model


def fifteen_levels(weight: Tensor) -> Tensor:
    """The same weights rounded to 15 values."""
    return (weight / weight.abs().max() * 7).round() / 7


def selection(rounds: int) -> Row:
    """All convolution weights ranked together, by everybody."""
    model, pruned_by_torch = network(), network()
    tasks = {
        "read": Task(lambda: contenders.read(model)),
        "prunus": Task(lambda: contenders.by_prunus(model, FRACTION)),
        "sort": Task(lambda: contenders.by_sorting(model, FRACTION)),
        "torch.nn.utils.prune": Task(
            lambda: contenders.by_torch(pruned_by_torch, FRACTION),
            contenders.tidy(contenders.by_torch, pruned_by_torch),
        ),
    }
    return {"what": "make_masks, single weights", **measure.by_turns(tasks, rounds)}


def ties(rounds: int) -> Iterator[Row]:
    """Tied weights against untied ones."""
    kinds = {
        "15 levels": network(fifteen_levels),
        "bfloat16": network(lambda weight: weight.bfloat16()),
    }
    plain = network()
    for kind, model in kinds.items():
        tasks = {
            "read": Task(partial(contenders.read, plain)),
            "prunus": Task(partial(contenders.by_prunus, model, FRACTION)),
            "untied": Task(partial(contenders.by_prunus, plain, FRACTION)),
        }
        yield {"what": f"make_masks, {kind}", **measure.by_turns(tasks, rounds)}


def filters(rounds: int) -> Row:
    """Filters ranked together, beside Torch-Pruning where it is installed."""
    model = network()
    tasks = {
        "read": Task(lambda: contenders.read(model)),
        "prunus": Task(lambda: contenders.filters_by_prunus(model, FRACTION)),
    }
    if importlib.util.find_spec("torch_pruning"):
        tasks["Torch-Pruning"] = Task(lambda: contenders.filters_by_torch_pruning(model, FRACTION))
    return {"what": "make_masks, filters", **measure.by_turns(tasks, rounds)}


def ratios(rounds: int) -> Row:
    """Nine ratios from one ranking, against one."""
    model = network()

    def cut(count: int) -> None:
        for candidates in prunus.rank(model).candidates([0.1 + 0.08 * index for index in range(count)]):
            candidates.draw()

    tasks = {
        "read": Task(lambda: contenders.read(model)),
        "prunus": Task(lambda: cut(9)),
        "one ratio": Task(lambda: cut(1)),
    }
    return {"what": "masks at nine ratios, one ranking", **measure.by_turns(tasks, rounds)}


def budgets(rounds: int) -> Iterator[Row]:
    """2:4, and Wanda by norms that are there, on 10⁸ weights in linear layers, beside a plain program."""
    model = linear_stack(10**8, torch.float32)
    norms = [torch.rand_like(weight[0]) for weight in contenders.weights_of(model)]
    names = [name for name, _ in model.named_parameters()]
    found = {
        name: norm.expand(len(norm), len(norm)).contiguous() for name, norm in zip(names, norms, strict=True)
    }
    evidence = Evidence({inputs: found})
    ours = {
        "2:4": lambda: prunus.make_masks(model, 0.5, scope="2:4", layers="Linear"),
        "wanda": lambda: prunus.make_masks(model, 0.5, criterion="wanda", layers="Linear", evidence=evidence),
    }
    theirs = {
        "2:4": lambda: contenders.two_of_four(model),
        "wanda": lambda: contenders.wanda(model, norms, 0.5),
    }
    for name, task in ours.items():
        tasks = {
            "read": Task(lambda: contenders.read(model)),
            "prunus": Task(task),
            "plain": Task(theirs[name]),
        }
        yield {"what": f"{name}, 10⁸ weights", **measure.by_turns(tasks, rounds)}


def steps(rounds: int, trains: bool) -> Iterator[Row]:
    """A forward and a backward pass: of a frozen network, as attacks run it, or of one that is trained."""
    plain = network().requires_grad_(trains)
    handle = prunus.prune(copy.deepcopy(plain), 0.5, p_bern=0.5)
    backward = prunus.gradient_prune(copy.deepcopy(plain), 0.5)
    x = torch.randn(4, 3, 224, 224, requires_grad=True)

    def step(model: nn.Module) -> None:
        model(x).sum().backward()

    def redraw_and_step() -> None:
        handle.redraw()
        step(handle.model)

    def forget() -> None:
        for model in (plain, handle.model, backward):
            model.zero_grad()
        x.grad = None

    kind = "trained" if trains else "frozen"
    for name, ours in {"redraw": redraw_and_step, "gradient_prune": lambda: step(backward)}.items():
        tasks = {"plain step": Task(lambda: step(plain), forget), "prunus": Task(ours, forget)}
        yield {"what": f"step with {name}, parameters {kind}", **measure.by_turns(tasks, rounds)}


def training(rounds: int, batch: int) -> Row:
    """Forward, backward and a step of SGD with momentum, after each of which pruned weights are zero."""
    plain = network()
    pruned = prunus.global_prune(copy.deepcopy(plain), 0.5)
    x = torch.randn(batch, 3, 224, 224)

    def task(model: nn.Module) -> Task:
        optimizer = torch.optim.SGD(model.parameters(), 1e-9, momentum=0.9)

        def step() -> None:
            model(x).sum().backward()
            optimizer.step()

        return Task(step, optimizer.zero_grad)

    tasks = {"plain step": task(plain), "prunus": task(pruned)}
    return {"what": f"training step under global_prune, batch {batch}", **measure.by_turns(tasks, rounds)}


def inference(rounds: int) -> Row:
    """A forward pass without gradients, of one image, before which zeros are written again."""
    plain = network().eval().requires_grad_(False)
    pruned = prunus.global_prune(copy.deepcopy(plain), 0.5)
    for_good = prunus.global_prune(copy.deepcopy(plain), 0.5, keep_original=False)
    x = torch.randn(1, 3, 224, 224)

    def task(model: nn.Module) -> Task:
        def forward() -> None:
            with torch.no_grad():
                model(x)

        return Task(forward)

    tasks = {"plain forward": task(plain), "prunus": task(pruned), "for good": task(for_good)}
    return {"what": "forward of one image under global_prune", **measure.by_turns(tasks, rounds)}


def peak(select: contenders.Select) -> int:
    """Bytes a selection took at most beyond its masks."""
    select(linear_stack(10**5, torch.float32), FRACTION)  # for what is loaded at the first call
    model = network()
    weights = sum(weight.numel() for weight in contenders.weights_of(model))
    bytes_, result = measure.extra_memory(lambda: select(model, FRACTION))
    kept = 8 if isinstance(result, nn.Module) else 1  # torch's masks are floats, with a copy of the weights
    return bytes_ - kept * weights


def memory() -> Row:
    """Peaks beyond the masks, in bytes."""
    selects = {
        "prunus": contenders.by_prunus,
        "sort": contenders.by_sorting,
        "torch.nn.utils.prune": contenders.by_torch,
    }
    found = {name: measure.in_fresh_process(peak, select) for name, select in selects.items()}
    weights = 4 * sum(weight.numel() for weight in contenders.weights_of(network()))
    return {"what": "peak beyond the masks", "bytes": {**found, "the weights": weights}}


def billion() -> Row:
    """`global_prune(keep_original=False)` on 10⁹ bfloat16 weights."""
    found = measure.in_fresh_process(cost, contenders.for_good_by_prunus, 10**9, torch.bfloat16)
    return {
        "what": "global_prune(keep_original=False), 10⁹ bfloat16",
        "seconds": {"read": found["seconds"]["read"], "prunus": found["seconds"]["call"]},
        "times_the": found["times_the"],
        "bytes": {"prunus": found["bytes"]},
    }
