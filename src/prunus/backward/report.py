"""What rules kept, and which multiplications that saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from prunus.application.places import Places
from prunus.application.ruled import RuledLayer
from prunus.table import Table


@dataclass(frozen=True)
class LayerReport:
    """One layer.

    Args:
        name: its path.
        density: by place, the share of entries that was kept, as a mean over passes. Entries of dL/dy and x
            that were zero anyway count as not kept, but in channels that are kept as wholes.
        macs, left: multiply-accumulates by product ("forward", "input_grad", "weight_grad") so far: those of
            dense passes, and what is left of them where each zero is skipped and zeros lie as if at random.
        way: "pruned" by dense products, of some channels by smaller ones; "sparse", or "dense", as timing has
            chosen; "" while it has not.
        milliseconds: that were timed, by way; of one step.
    """

    name: str
    density: Mapping[str, float]
    macs: Mapping[str, int]
    left: Mapping[str, float]
    way: str
    milliseconds: Mapping[str, float]

    @property
    def saved(self) -> float:
        """The share of multiplications that zeros make needless; 0 before any."""
        return _saved([self])


def report_of(name: str, ruled: RuledLayer) -> LayerReport:
    """What a layer has seen."""
    tally, trial = ruled.tally, ruled.trial
    seconds = trial.seconds if trial else {}
    return LayerReport(
        name,
        tally.density,
        dict(tally.macs),
        tally.left,
        trial.way if trial else "pruned",
        {way: 1000 * time for way, time in seconds.items()},
    )


@dataclass(frozen=True, repr=False)
class Report:
    """What `sparse_backward` kept since it began; printed, a table.

    Args:
        layers: in the order of the network.
        dense: by weight name, why rules cannot act there.
    """

    layers: Sequence[LayerReport]
    dense: Mapping[str, str]

    @property
    def saved(self) -> float:
        """The share of multiplications that zeros make needless, of all of these layers; 0 before any."""
        return _saved(self.layers)

    def __repr__(self) -> str:
        seen = {place for layer in self.layers for place in layer.density}
        places = [field.name for field in fields(Places) if field.name in seen]
        head = ("layer", *places, "saved", "way")
        rows = [self._row(layer, places) for layer in self.layers]
        lines = [str(Table(head, rows, named=len(head)))]
        lines += [f"{name}: dense, {reason}" for name, reason in self.dense.items()]
        return "\n".join([*lines, f"saved of all multiplications: {self.saved:.1%}"])

    def _row(self, layer: LayerReport, places: Sequence[str]) -> list[str]:
        kept = [f"{layer.density[place]:.3f}" if place in layer.density else "" for place in places]
        return [layer.name, *kept, f"{layer.saved:.1%}", layer.way or "being timed"]


def _saved(layers: Sequence[LayerReport]) -> float:
    macs = sum(sum(layer.macs.values()) for layer in layers)
    return 1 - sum(sum(layer.left.values()) for layer in layers) / macs if macs else 0.0
