"""SparseGPT beside magnitude at the same masks' shapes, one-shot.

`python -m benchmarks.sparsegpt FILE.py:callable WEIGHTS DATA`, of a CIFAR-10 network and images in DATA/val
and DATA/train; without arguments the built-in digits.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from prunus.evaluation.evaluate import evaluate
from prunus.inputs.images import Images, Source, open_images
from prunus.inputs.networks import Network, Preprocessing, load_networks
from prunus.reconstruction import sparsegpt
from prunus.verbs import prune
from prunus.weights import find_weights

CIFAR = Preprocessing(32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SETTINGS = (("2:4", 0.5), ("layer", 0.5), ("layer", 0.7), ("layer", 0.9))


def rows(network: Network, measured: Images, calibration: Images) -> Iterator[str]:
    """A line for each setting; 2:4 spares the first layer, whose inputs are no multiple of four."""
    model, weights = network.model, list(find_weights(network.model))
    for scope, p in SETTINGS:
        exclude = [weights[0]] if scope == "2:4" else []
        with prune(model, p, scope=scope, exclude=exclude):
            magnitude = evaluate(model, measured).top1
        with sparsegpt(model, calibration, p, scope=scope, exclude=exclude):
            solved = evaluate(model, measured).top1
        yield f"| {network.name} | {scope} {p:g} | {magnitude:.1f} | {solved:.1f} |"


def main() -> None:
    """Print the table, as Markdown."""
    data = Path(sys.argv[3]) if len(sys.argv) > 3 else None
    if data:
        networks = load_networks([sys.argv[1]], [sys.argv[2]], CIFAR)
    else:
        networks = load_networks(["digits:plain", "digits:residual"], None, Preprocessing(None, None, None))
    source = Source(data, False, 32 if data else None, False, 512, 500, 0)
    print("| network | scope and ratio | magnitude | SparseGPT |\n|---|---|---|---|")
    for network in networks:
        measured, calibration = open_images(network, source), open_images(network, source, train=True)
        clean = evaluate(network.model, measured).top1
        print(f"| {network.name} | unpruned | {clean:.1f} | |")
        for line in rows(network, measured, calibration):
            print(line, flush=True)


if __name__ == "__main__":
    main()
