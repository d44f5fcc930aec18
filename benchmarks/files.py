"""How small are files of pruned networks, and how long do they take?

Usage: python -m benchmarks.files
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models import get_model

import prunus


def timed(task: Callable[[], object]) -> float:
    """Seconds, the best of three."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        task()
        times.append(time.perf_counter() - began)
    return min(times)


def csr(state: dict[str, Tensor], path: Path) -> None:
    """As torch saves sparse matrices by default: int64 indices."""
    torch.save({n: t.flatten(1).to_sparse_csr() if t.dim() > 1 else t for n, t in state.items()}, path)


WAYS: dict[str, tuple[Callable[..., object], Callable[..., object]]] = {
    "CSR": (csr, partial(torch.load, weights_only=True)),
    "bits": (prunus.save_sparse, prunus.load_sparse),
    "bits, zstd-3": (partial(prunus.save_sparse, compress=3), prunus.load_sparse),
}


def rows(ratio: float, state: dict[str, Tensor], path: Path) -> Iterator[str]:
    """One for each way."""
    dense = sum(tensor.numel() * tensor.itemsize for tensor in state.values())
    for way, (save, load) in WAYS.items():
        saving = timed(partial(save, state, path))
        size, loading = path.stat().st_size, timed(partial(load, path))
        yield f"{ratio:<6}  {way:12} {size / 1e6:5.1f} {dense / size:14.1f} {saving:7.2f} {loading:7.2f}"


def main(arch: str = "resnet50") -> None:
    """Print a table."""
    warnings.simplefilter("ignore")  # torch calls sparse matrices a prototype
    print(f"{arch}, random weights pruned by magnitude in each layer, layers='all'")
    print("pruned  way             MB  times smaller  save s  load s")
    for ratio in (0.5, 0.8, 0.9, 0.95, 0.98):
        model = get_model(arch, weights=None).eval()
        prunus.global_prune(model, ratio, layers="all", scope="layer", keep_original=False)
        with tempfile.TemporaryDirectory() as folder:
            for row in rows(ratio, model.state_dict(), Path(folder) / "file"):
                print(row)


if __name__ == "__main__":
    main()
