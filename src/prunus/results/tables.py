"""Tables: of a sweep, and of masks layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from prunus.evaluation.rows import SweepRow, varied
from prunus.masks import Masks


def mask_table(title: str, masks: Masks) -> Table:
    """Shape, weights, pruned count and fraction of every layer, and of all."""
    made = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    made.add_column("layer", no_wrap=True)
    for column in ("shape", "weights", "pruned", "fraction"):
        made.add_column(column, justify="right", no_wrap=True)
    for name, (pruned, weights) in masks.counts.items():
        shape = " x ".join(map(str, masks[name].shape))
        layer = name.removesuffix(".weight")
        made.add_row(layer, shape, f"{weights:,}", f"{pruned:,}", f"{pruned / max(1, weights):.4f}")
    made.add_section()
    made.add_row(f"{len(masks)} layers", "", f"{masks.total:,}", f"{masks.pruned:,}", f"{masks.sparsity:.4f}")
    return made


def table(rows: Sequence[SweepRow]) -> Table:
    """Network, p_prune, pruned fraction, acc@1, acc@5, loss, and whatever else varies."""
    extra = varied(rows)
    made = Table(box=None, header_style="bold", pad_edge=False)
    made.add_column("network", no_wrap=True)
    for name in (*extra, "p_prune", "fraction", "acc@1", "acc@5", "loss"):
        made.add_column(name, justify="left" if name in extra else "right", no_wrap=True)
    for row in rows:
        columns = row.columns()
        made.add_row(
            row.network,
            *(str(columns[name]) for name in extra),
            f"{columns['p_prune']:g}",
            f"{columns['pruned_fraction']:.4f}",
            f"{columns['acc1']:.2f}",
            f"{columns['acc5']:.2f}",
            f"{columns['loss']:.4f}",
        )
    return made
