"""Tables: of a sweep, of sensitivities, and of masks layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from prunus.evaluation.evaluate import Result
from prunus.evaluation.rows import ProbeRow, SweepRow, titled, varied
from prunus.evaluation.sensitivity import Sensitivity
from prunus.masks import Masks, table_of
from prunus.table import Table


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
    more: dict[str, list[int | None]] = {"bytes": [row.bytes for row in rows]}
    if any(row.macs is not None for row in rows):
        more = {
            "MACs": [row.macs for row in rows],
            "pruned MACs": [row.pruned_macs for row in rows],
            **more,
        }
    shapes = {row.name: row.shape for row in rows}
    return table_of(title, shapes, {row.name: (row.pruned, row.weights) for row in rows}, more)


def table(rows: Sequence[SweepRow]) -> Table:
    """Network, p_prune, pruned fraction, acc@1, acc@5 and loss, or a metric, and whatever else varies."""
    extra = varied(rows)
    by_metric = any(row.point.result.metric is not None for row in rows)
    measured = ("metric",) if by_metric else ("acc@1", "acc@5", "loss")
    lines = []
    for row in rows:
        columns = row.columns()
        setting = [row.network, *(str(columns[name]) for name in extra), f"{columns['p_prune']:g}"]
        lines.append([*setting, f"{columns['pruned_fraction']:.4f}", *_measured(row.point.result)])
    return Table(("network", *extra, "p_prune", "fraction", *measured), lines, named=1 + len(extra))


def _measured(result: Result) -> list[str]:
    if result.metric is not None:
        return [shown(result)]
    return [shown(result), f"{result.top5:.2f}", f"{result.loss:.4f}"]


def shown(result: Result) -> str:
    """Its top-1 accuracy, or its metric."""
    if result.metric is None:
        return f"{result.top1:.2f}"
    return f"{result.metric:.4g}" if isinstance(result.metric, float) else str(result.metric)


@dataclass(frozen=True)
class Units:
    """What was measured, in words: at length, in short, and the sign after a number."""

    long: str
    short: str
    sign: str


def units_of(rows: Sequence[SweepRow]) -> Units:
    """Accuracies in percent, or a metric."""
    if any(row.point.result.metric is not None for row in rows):
        return Units("metric", "metric", "")
    return Units("top-1 accuracy (%)", "top-1 (%)", "%")


def panels(rows: Sequence[ProbeRow]) -> Iterator[tuple[str, Sensitivity]]:
    """Probes that differ in group and ratio alone, and what sets them apart."""
    for told, found in probed(rows):
        yield titled(told), found


def probed(rows: Sequence[ProbeRow]) -> Iterator[tuple[dict[str, str], Sensitivity]]:
    """The same, by the network and the settings that set them apart."""
    apart = varied(rows)
    found: dict[tuple[str, ...], list[ProbeRow]] = {}
    for row in rows:
        columns = row.columns()
        found.setdefault((row.network, *(str(columns[name]) for name in apart)), []).append(row)
    for names, members in found.items():
        clean = next((row.point.result for row in members if not row.group), None)
        probes = [row.probe for row in members if row.group]
        if clean and probes:  # which a run that was interrupted may not have come to
            yield dict(zip(("network", *apart), names, strict=True)), Sensitivity(clean, probes)


def ranked_tables(rows: Sequence[ProbeRow]) -> Iterator[Table]:
    """For each network: its groups, most sensitive first, with the accuracy at every ratio.

    `predicted` is the share of all scores that falls, as a mean over the ratios.
    """
    for title, found in panels(rows):
        ratios = sorted({probe.p_prune for probe in found.probes})
        what = "acc@1" if found.clean.metric is None else "metric"
        lines = []
        for group in found.ranked:
            probes = found.groups[group]
            results = {probe.p_prune: shown(probe.result) for probe in probes}
            predicted = sum(probe.predicted for probe in probes) / len(probes)
            about = [group.removesuffix(".weight"), f"{probes[0].weights:,}", f"{predicted:.4f}"]
            lines.append([*about, *(results.get(p, "") for p in ratios)])
        unpruned = ["unpruned", "", "", shown(found.clean), *[""] * (len(ratios) - 1)]
        head = ("group", "weights", "predicted", *(f"{what} at {p:g}" for p in ratios))
        yield Table(head, lines, title=title, totals=[unpruned])
