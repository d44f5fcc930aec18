"""How much of what is saved in multiplications is saved in time? `python -m benchmarks.speed`.

Filters that hang together fall by magnitude, of random weights; what is cut is timed in turns with the dense
network, one image of 224×224 on one thread.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch

import prunus
from benchmarks.compact import load
from prunus.compaction.runtimes import RUNTIMES

FRACTIONS = (0.25, 0.3, 0.5, 0.53)  # of the filters; those of quarters leave widths of whole registers
NETWORKS = ("resnet18", "resnet50")


def rows(arch: str, rounds: int) -> Iterator[str]:
    """Of the table: how many times faster, and what part that is of how many times fewer MACs."""
    torch.manual_seed(0)
    image, models = torch.randn(1, 3, 224, 224), {"dense": load(arch)}
    for fraction in FRACTIONS:
        pruned = load(arch)
        prunus.prune(pruned, fraction, granularity="filter", coupled=True, example_inputs=image)
        models[f"{fraction:g}"] = prunus.compact(pruned, image).model
    made = prunus.latency(models, image, runtimes=list(RUNTIMES), threads=1, rounds=rounds)
    found = {(row.model, row.runtime): row for row in made.rows}
    for runtime in RUNTIMES:
        dense = found["dense", runtime]
        for fraction in FRACTIONS:
            cut = found[f"{fraction:g}", runtime]
            if dense.ms is None or cut.ms is None or cut.apart is None:
                yield f"| {arch} | {runtime} | {fraction} | {dense.reason or cut.reason} |"
                continue
            fewer, faster = dense.macs / cut.macs, dense.ms / cut.ms
            times = " | ".join(f"{one.ms:.1f} ({one.low:.1f}-{one.high:.1f})" for one in (dense, cut))
            yield (
                f"| {arch} | {runtime} | {fraction:g} | {times} | {fewer:.2f} | {faster:.2f} "
                f"| {faster / fewer:.0%} | {cut.apart:.0e} |"
            )


def main(rounds: int = 100) -> None:
    """Print a table."""
    warnings.simplefilter("ignore")  # of filters that stay whole
    print("| network | runtime | pruned | dense, ms | cut, ms | fewer MACs | faster | of the MACs | apart |")
    print("|---|---|---|---|---|---|---|---|---|")
    for arch in NETWORKS:
        for row in rows(arch, rounds):
            print(row, flush=True)


if __name__ == "__main__":
    main()
