"""Tables: of a sweep, and of masks layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table
from torch import nn

from prunus.evaluation.rows import SweepRow, varied
from prunus.masks import Masks


@dataclass(frozen=True)
class LayerRow:
    """What one weight tensor holds, and what pruning takes of it.

    Args:
        name: of the weight.
        shape: of it.
        weights, pruned: numbers of them.
        bytes: that the dense tensor takes.
        macs, pruned_macs: multiply-accumulates of one image, and those by pruned weights; None where they are
            not known, as of a layer that has several weights, or that another one calls for.
    """

    name: str
    shape: tuple[int, ...]
    weights: int
    pruned: int
    bytes: int
    macs: int | None
    pruned_macs: int | None


def layer_rows(model: nn.Module, masks: Masks, macs: Mapping[str, int]) -> list[LayerRow]:
    """A row for each mask.

    Args:
        model: whose weights they are of.
        masks: what is pruned.
        macs: by module path, see `prunus.macs`.
    """
    made = []
    for name, (pruned, weights) in masks.counts.items():
        path, _, attribute = name.rpartition(".")
        parameter, count = model.get_parameter(name), macs.get(path) if attribute == "weight" else None
        of_pruned = None if count is None else round(count * pruned / max(1, weights))
        size = parameter.numel() * parameter.element_size()
        made.append(LayerRow(name, tuple(parameter.shape), weights, pruned, size, count, of_pruned))
    return made


def layer_table(title: str, rows: Sequence[LayerRow]) -> Table:
    """Shape, weights, pruned count and fraction, multiply-accumulates and bytes of each layer, and of all."""
    made = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    made.add_column("layer", no_wrap=True)
    counted = any(row.macs is not None for row in rows)
    for column in ("shape", "weights", "pruned", "fraction", *(("MACs", "pruned MACs") * counted), "bytes"):
        made.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        shape = " x ".join(map(str, row.shape))
        made.add_row(row.name.removesuffix(".weight"), shape, *_cells([row], counted))
    made.add_section()
    made.add_row(f"{len(rows)} layers", "", *_cells(rows, counted))
    return made


def _cells(rows: Sequence[LayerRow], counted: bool) -> list[str]:
    pruned, weights = sum(row.pruned for row in rows), sum(row.weights for row in rows)
    macs = [row.macs for row in rows if row.macs is not None]
    of_pruned = [row.pruned_macs for row in rows if row.pruned_macs is not None]
    both = [f"{sum(macs):,}", f"{sum(of_pruned):,}"] if macs else ["", ""]
    size = sum(row.bytes for row in rows)
    return [
        f"{weights:,}",
        f"{pruned:,}",
        f"{pruned / max(1, weights):.4f}",
        *(both if counted else []),
        f"{size:,}",
    ]


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
