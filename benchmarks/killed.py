"""`prunus train`, killed (SIGKILL) at ten random moments and started again: are ten results the same?

Usage: python -m benchmarks.killed
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

TRAIN = (
    "train -a digits:plain --schedule one-shot,iterative,gradual,cyclic,rigl,set --rewind weights --to 0.9 "
    "--epochs 4 --retrain-epochs 3 --augment shift --optimizer adamw --checkpoint-every 0 -o"
)


def run(output: Path, seconds: float | None = None) -> int:
    """All trainings into a folder, or so many seconds of them; the exit code."""
    process = subprocess.Popen(
        [sys.executable, "-m", "prunus", *TRAIN.split(), str(output)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        return process.wait()


def same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same rows, but for the seconds, and the same networks to the bit."""
    rows = [json.loads((folder / "results.json").read_text())["points"] for folder in (one, other)]
    for row in (*rows[0], *rows[1]):
        del row["seconds"]
    files = [sorted(path.name for path in (folder / "networks").iterdir()) for folder in (one, other)]
    if rows[0] != rows[1] or files[0] != files[1]:
        return False
    for file in files[0]:
        a, b = (torch.load(folder / "networks" / file) for folder in (one, other))
        if not all(torch.equal(value, b[name]) for name, value in a.items()):
            return False
    return True


def main() -> None:
    """Print a line for each moment."""
    moments = random.Random(0)
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        began = time.monotonic()
        run(whole)
        took = time.monotonic() - began
        equal = 0
        for number in range(10):
            broken = Path(place) / str(number)
            after = moments.uniform(0.2, 0.95) * took
            killed = run(broken, after) == -signal.SIGKILL
            done = broken / "results.json"
            rows = len(json.loads(done.read_text())["points"]) if done.exists() else 0
            run(broken)
            again = same(whole, broken)
            equal += again
            when = f"killed after {after:.1f} of {took:.1f} s" if killed else "came to its end before"
            print(f"{when}, {rows} trainings done: {'the same' if again else 'ANOTHER RESULT'}", flush=True)
        print(f"{equal} of 10 the same")


if __name__ == "__main__":
    main()
