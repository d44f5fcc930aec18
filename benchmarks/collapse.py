"""At which ratio does each criterion empty a layer? `python -m benchmarks.collapse` prints the table.

On a network of 16 convolutions at its initialization, with the built-in digits where data is read. The kept
fraction falls by a quarter of a power of ten at a time; the last ratio at which every layer keeps a weight is
shown, for three seeds (Tanaka et al. 2020, arXiv 2006.05467, figure 1, where synaptic flow lasts longest).
"""

from __future__ import annotations

import warnings
from bisect import bisect_left
from collections.abc import Iterator

import torch
from torch import nn

import prunus
from prunus import digits

WIDTH, DEPTH, SEEDS = 32, 16, (0, 1, 2)
CRITERIA = ("magnitude", "random", "lamp", "taylor", "grasp", "synflow")  # taylor of single weights is snip
KEPT = [10 ** (-quarter / 4) for quarter in range(1, 17)]


def network(seed: int) -> nn.Sequential:
    """Convolutions with batch norm, and a linear layer."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for number in range(DEPTH):
        first = nn.Conv2d(WIDTH if number else 1, WIDTH, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(first.weight, nonlinearity="relu")
        layers += [first, nn.BatchNorm2d(WIDTH), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 10))


def lasts(criterion: str, seed: int) -> float:
    """The smallest kept fraction before a layer is emptied."""
    model = network(seed)
    images, labels = digits.load_images(train=True)
    with torch.no_grad():
        model.train()(images)  # for the statistics of batch norm
    known = prunus.evidence(model, [(images[:256], labels[:256])], criterion=criterion)
    ranking = prunus.rank(model, criterion=criterion, layers="all", evidence=known, seed=seed)

    def empties(kept: float) -> bool:
        [candidates] = ranking.candidates([1 - kept])
        return not all(bool(flags.any()) for flags in candidates.kept.values())

    first = bisect_left(KEPT, True, key=empties)
    return KEPT[first - 1] if first else 1.0


def rows() -> Iterator[tuple[str, list[float]]]:
    """Each criterion, and the largest ratio for each seed."""
    for criterion in CRITERIA:
        yield criterion, [1 - lasts(criterion, seed) for seed in SEEDS]


def main() -> None:
    """Print the table."""
    print(f"| criterion | largest p_prune without an empty layer, seeds {SEEDS} |\n|---|---|")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for criterion, ratios in rows():
            print(f"| {criterion} | {', '.join(f'{ratio:.4f}' for ratio in ratios)} |", flush=True)


if __name__ == "__main__":
    main()
