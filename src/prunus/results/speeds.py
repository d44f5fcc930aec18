"""What networks take in runtimes: bars, and files of the rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from prunus.files import whole_file
from prunus.results.figures import Picture, fit, legend_outside
from prunus.results.folder import write_config, write_csv, write_picture
from prunus.results.palette import color, plain


def write_speeds(rows: Sequence[Mapping[str, Any]], folder: Path, config: str) -> None:
    """As bench.csv, bench.json, bench.png and bench.svg; and config.toml, of these options."""
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, config)
    with whole_file(folder / "bench.json") as partial:
        partial.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    write_csv(folder / "bench.csv", rows)
    write_picture(folder / "bench", speeds(rows))


def speeds(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Milliseconds, as bars with their quartiles: a panel a network and batch size, a colour a variant."""
    panels: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        panels.setdefault((row["network"], row["batch_size"]), []).append(row)
    figure = Picture(figsize=(1 + 4.4 * len(panels), 3.8), layout="constrained")
    bars: dict[str, Any] = {}
    for axes, ((network, size), found) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        runtimes = list(dict.fromkeys(row["runtime"] for row in found))
        models = list(dict.fromkeys(row["model"] for row in found))
        width = 0.8 / len(models)
        for number, model in enumerate(models):
            ran = [row for row in found if row["model"] == model and row["ms"] is not None]
            bars[model] = axes.bar(
                [runtimes.index(row["runtime"]) + (number + 0.5) * width - 0.4 for row in ran],
                [row["ms"] for row in ran],
                width,
                yerr=[
                    [row["ms"] - row["low"] for row in ran],
                    [row["high"] - row["ms"] for row in ran],
                ],
                capsize=2,
                color=color(number),
            )
        axes.set_xticks(range(len(runtimes)), runtimes)
        axes.set_title(plain(f"{network}, {size} at a time"), fontsize=10)
        axes.set_ylabel("milliseconds, median and quartiles")
        axes.spines[["top", "right"]].set_visible(False)
    legend_outside(figure, bars)
    return fit(figure)
