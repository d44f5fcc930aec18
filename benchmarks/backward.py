"""Does a network learn under pruned passes as it does densely, in as many steps, or in as many seconds?

Usage: python -m benchmarks.backward FOLDER OPTIONS, those of `prunus train --backward`, without -o

`prunus train` trains densely and under all rules; then densely again, for so many epochs as take the seconds
that each of the rules took, learning rates spread over them. The table has both differences, in percentage
points and paired by seed, with 95% intervals (Student's t). Killed and started again, it goes on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from prunus.cli.main import main as prunus
from prunus.results.trained import Outcome, outcomes
from prunus.training.rows import TrainRow


def train(folder: Path, options: Sequence[str]) -> list[Outcome]:
    """What `prunus train` comes to."""
    if code := prunus(["train", *options, "-o", str(folder)]):
        sys.exit(code)
    points = json.loads((folder / "results.json").read_text())["points"]
    return outcomes([TrainRow.read(point) for point in points])


def times(outcome: Outcome) -> float:
    """Its seconds, in those of dense trainings of the same seeds."""
    dense = {row.run.setting.seed: row.seconds or 0.0 for row in outcome.dense}
    ratios = [(row.seconds or 0.0) / dense[row.run.setting.seed] for row in outcome.rows]
    return sum(ratios) / len(ratios)


def shown(outcome: Outcome) -> str:
    """What it lost, with the interval."""
    mean, reach = outcome.lost or (0.0, 0.0)
    return f"{mean:.2f} [{mean - reach:.2f}, {mean + reach:.2f}]"


def main(folder: Path, options: Sequence[str]) -> None:
    """Train, and print the table."""
    found = train(folder / "rules", options)

    def dense_of(network: str, epochs: int) -> Sequence[TrainRow]:
        if epochs == found[0].rows[0].epochs:
            trained = found
        else:  # of options of one name the last counts
            last = ["--backward", "none", "--epochs", str(epochs)]
            trained = train(folder / f"dense-{epochs}", [*options, *last])
        return next(one.rows for one in trained if one.run.network == network and one.run.is_dense)

    rows = []
    for outcome in found:
        top1, reach = outcome.top1
        cells = [outcome.run.network, outcome.run.how.removeprefix("backward "), f"{outcome.fraction:.0%}"]
        cells.append(f"{top1:.2f} ± {reach:.2f}")
        if outcome.run.is_dense:
            cells += ["", f"1 ({outcome.seconds:.1f} s)", "", ""]
        else:
            epochs = max(1, round(times(outcome) * outcome.rows[0].epochs))
            as_long = dense_of(outcome.run.network, epochs)
            cells += [shown(outcome), f"{times(outcome):.2f}", f"{epochs}"]
            cells.append(shown(replace(outcome, dense=as_long)))
        rows.append(cells)
    head = ["network", "rules", "zero at last", "acc@1", "lost", "seconds, times dense"]
    head += ["dense epochs in that time", "lost against these"]
    for row in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
