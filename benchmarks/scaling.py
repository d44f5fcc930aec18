"""`python -m benchmarks.scaling`: time and memory from 10⁵ to 10⁹ weights, as JSON and as a picture."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click
import torch
from rich.progress import track
from torch import nn

from benchmarks import contenders, measure
from benchmarks.measure import Task

FRACTION = 0.3
TENSORS = 200
CONTENDERS: dict[str, tuple[contenders.Select, int]] = {  # and the most weights they are tried on
    "prunus.make_masks": (contenders.by_prunus, 10**9),
    "prunus.global_prune(keep_original=False)": (contenders.for_good_by_prunus, 10**9),
    "sort": (contenders.by_sorting, 10**8),
    "torch.nn.utils.prune": (contenders.by_torch, 10**8),
}


def linear_stack(count: int, dtype: torch.dtype) -> nn.Module:
    """About so many weights in 200 linear layers."""
    side = 4 * round(math.sqrt(count / TENSORS) / 4)  # for 2:4
    layers = (nn.Linear(side, side, bias=False, dtype=dtype, device="meta") for _ in range(TENSORS))
    model = nn.Sequential(*layers).to_empty(device="cpu")
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.02)
    return model


def cost(select: contenders.Select, count: int, dtype: torch.dtype) -> dict[str, Any]:
    """Time of a call, beside that of reading every weight once, and by how many bytes the process grew."""
    select(linear_stack(10**5, dtype), FRACTION)
    model = linear_stack(count, dtype)
    grown, result = measure.extra_memory(lambda: select(model, FRACTION))
    del result
    tidy = contenders.tidy(select, model)
    tidy()
    tasks = {
        "read": Task(lambda: contenders.read(model)),
        "call": Task(lambda: select(model, FRACTION), tidy),
    }
    weights = sum(parameter.numel() for parameter in model.parameters())
    return {"weights": weights, "bytes": grown, **measure.by_turns(tasks, 3, "call")}


def draw(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Two panels: seconds and bytes against weights."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    time, memory = figure.subplots(1, 2)
    for name, points in found.items():
        weights = [point["weights"] for point in points]
        time.loglog(weights, [point["seconds"]["call"] for point in points], marker="o", label=name)
        memory.loglog(weights, [max(point["bytes"], 1) / 1e6 for point in points], marker="o")
    floor = found["prunus.make_masks"]
    weights = [point["weights"] for point in floor]
    time.loglog(weights, [point["seconds"]["read"] for point in floor], "k:", label="every weight read once")
    memory.loglog(weights, [4 * count / 1e6 for count in weights], "k--", label="the weights themselves")
    time.set(xlabel="float32 weights, in 200 tensors", ylabel="seconds", title="time of a call")
    memory.set(xlabel="float32 weights, in 200 tensors", ylabel="MB", title="extra memory, masks included")
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=150)


@click.command()
@click.option("--most", default=10**9, show_default=True, help="Weights of the largest network.")
@click.option("--draw-only", is_flag=True, help="Draw what was measured before.")
@click.option("--json", "target", type=Path, default=Path("benchmarks/scaling.json"), show_default=True)
@click.option("--png", type=Path, default=Path("docs/scaling.png"), show_default=True)
def main(most: int, draw_only: bool, target: Path, png: Path) -> None:
    """Measure, write JSON, and draw."""
    if not draw_only:
        record = {"machine": measure.machine(), "found": measured(most)}
        target.write_text(json.dumps(record, indent=1) + "\n")
    draw(json.loads(target.read_text())["found"], png)


def measured(most: int) -> dict[str, list[dict[str, Any]]]:
    """Every contender at every size up to `most`, each in a process of its own."""
    cases: list[tuple[str, int]] = [
        (name, count)
        for count in (10**power for power in range(5, 10))
        for name, (_, limit) in CONTENDERS.items()
        if count <= min(most, limit)
    ]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    for name, count in track(cases, "measuring"):
        select, _ = CONTENDERS[name]
        found[name].append(measure.in_fresh_process(cost, select, count, torch.float32))
    return found


if __name__ == "__main__":
    main()
