"""`python -m benchmarks`: the table of costs in docs/costs.md, printed and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from benchmarks import costs, measure


def shown(row: costs.Row) -> list[str]:
    """A row of the table: what, the cost, how many times reading every weight once, and the others."""
    units = {name: f"{1e3 * seconds:,.0f} ms" for name, seconds in row.get("seconds", {}).items()}
    times = dict(row.get("times_the", {}))
    for name, size in row.get("bytes", {}).items():
        units[name] = ", ".join([*([units[name]] if name in units else []), f"{size / 1e6:,.0f} MB"])
        if name != "prunus":
            times[name] = row["bytes"]["prunus"] / size
    reads = f"{times.pop('read'):.1f}" if "read" in times else ""
    others = [f"{units[name]} {name} ({ratio:.3g})" for name, ratio in times.items()]
    return [row["what"], units["prunus"], reads, "; ".join(others)]


@click.command()
@click.option("--rounds", default=9, show_default=True, help="Turns that everyone gets; medians count.")
@click.option("--json", "target", type=Path, default=Path("benchmarks/costs.json"), show_default=True)
def main(rounds: int, target: Path) -> None:
    """Measure everything, print the table, and write JSON."""
    rows = [
        costs.selection(rounds),
        *costs.ties(rounds),
        costs.filters(rounds),
        costs.ratios(rounds),
        *costs.budgets(min(rounds, 3)),
        *costs.steps(rounds, trains=False),
        *costs.steps(rounds, trains=True),
        costs.training(rounds, 4),
        costs.training(min(rounds, 3), 32),
        costs.inference(rounds),
        costs.memory(),
        costs.billion(),
    ]
    about = measure.machine()
    target.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")
    table = Table("what", "Prunus", "reads", "others (Prunus as a multiple of them)")
    for row in rows:
        table.add_row(*shown(row))
    Console().print(table)
    click.echo(", ".join(f"{name} {value}" for name, value in about.items()))


if __name__ == "__main__":
    main()
