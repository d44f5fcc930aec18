"""The rows of `prunus train`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunus.checks import check_number, check_text, check_whole
from prunus.evaluation.points import Setting
from prunus.evaluation.rows import SweepRow
from prunus.training.methods import METHODS

DENSE = "dense"
# The settings that rows tell by themselves, by which a results folder can grow
GROWS = ("p_prune", "seed", "schedule", "rewind", "backward", "granularity", "criterion", "scope")


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        network: its name.
        schedule: a method, see `prunus.training.methods`, or "dense".
        rewind: what rounds begin with, see `prunus.training.goingback`; "" where there are none.
        setting: how much is pruned, and what ranks.
        backward: the rules that prune passes, see `prunus.training.named_rules`; "" for none.
    """

    network: str
    schedule: str
    rewind: str
    setting: Setting
    backward: str = ""

    @property
    def is_dense(self) -> bool:
        """Whether nothing is pruned at all."""
        return self.schedule == DENSE and not self.backward

    @property
    def how(self) -> str:
        """In words, without the network, the amount and the seed."""
        method, plain = METHODS.get(self.schedule), Setting(0.0)
        usual = method.settle(plain) if method else plain
        names = ("criterion", "granularity", "scope")
        differing = [name for name in names if getattr(self.setting, name) != getattr(usual, name)]
        first = f"backward {self.backward}" if self.backward else self.schedule
        parts = [first, self.rewind, *(str(getattr(self.setting, name)) for name in differing)]
        return " ".join(part for part in parts if part)

    def __str__(self) -> str:
        amount = "" if self.schedule == DENSE else f" to {self.setting.p_prune:.15g}"  # files are named by it
        return f"{self.network} {self.how}{amount} seed {self.setting.seed}"


@dataclass(frozen=True)
class TrainRow(SweepRow):
    """What a training came to.

    Args:
        schedule, rewind: of its run.
        epochs: that were trained, the dense training before rounds of pruning not counted.
        over_time: after each epoch, how many weights of each layer were pruned; none of those not named.
        backward: as `rewind`.
        seconds: of these epochs, images read and no checkpoint written; None in rows of earlier versions.
    """

    schedule: str
    rewind: str
    epochs: int
    over_time: Sequence[Mapping[str, int]]
    backward: str = ""
    seconds: float | None = None

    @property
    def item(self) -> Any:
        """The run."""
        return self.run

    @property
    def run(self) -> Run:
        """What was trained, and how."""
        return Run(self.network, self.schedule, self.rewind, self.point.setting, self.backward)

    def columns(self) -> dict[str, Any]:
        """Every column of the CSV by name."""
        columns = super().columns()
        first = {"network": columns.pop("network"), "schedule": self.schedule, "rewind": self.rewind}
        seconds = None if self.seconds is None else round(self.seconds, 3)
        last = {"backward": self.backward, "seconds": seconds}
        return {**first, "epochs": self.epochs, **columns, **last}

    def stored(self) -> dict[str, Any]:
        """What `read` makes the row of, as JSON can keep it."""
        return {**super().stored(), "over_time": list(self.over_time)}

    @classmethod
    def read(cls, columns: Mapping[str, Any]) -> TrainRow:
        """The row of which `stored` gave this.

        Raises:
            KeyError, TypeError, ValueError: `stored` gives no such thing.
        """
        row = SweepRow.read(columns)
        over_time = [
            {name: check_whole(name, pruned) for name, pruned in epoch.items()}
            for epoch in columns["over_time"]
        ]
        schedule, rewind = (check_text(name, columns[name]) for name in ("schedule", "rewind"))
        epochs, seconds = check_whole("epochs", columns["epochs"]), columns.get("seconds")
        return cls(
            row.network,
            row.point,
            schedule,
            rewind,
            epochs,
            over_time,
            check_text("backward", columns.get("backward", "")),
            None if seconds is None else check_number("seconds", seconds),
        )
