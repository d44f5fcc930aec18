"""What would be pruned of a network, layer by layer."""

from __future__ import annotations

from rich.table import Table

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
