"""What `prunus sweep` and `prunus eval` share: accuracy at every setting, into a results folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunus.cli.config import config_of
from prunus.cli.options import (
    Calibration,
    HowToPrune,
    Machine,
    WhichImages,
    WhichNetworks,
    WhichWeights,
    output_option,
    recorded,
    refused,
    takes,
)

if TYPE_CHECKING:
    from prunus.evaluation.rows import SweepRow


@dataclass(frozen=True)
class Measuring:
    """All that such a command is told."""

    networks: WhichNetworks
    how: HowToPrune
    which: WhichWeights
    calibration: Calibration
    images: WhichImages
    machine: Machine
    output: Path | None

    def rows(self) -> Sequence[SweepRow]:
        """A row for every network and setting."""
        from prunus.evaluation.experiment import Sweep
        from prunus.results.curves import SWEEP

        return self.run(Sweep, SWEEP)

    def run(self, kind: Any, layout: Any, **more: Any) -> Sequence[Any]:
        """The rows of an experiment, which takes all this, and more that its folder records."""
        from prunus.results.loop import run

        experiment = self.experiment(kind, **more)
        scopes = list(dict.fromkeys(str(setting.scope) for setting in experiment.settings))
        options = {**self.how.recorded(scopes), **recorded(self.which, self.calibration), **more}
        options |= {**self.images.recorded(), **self.machine.recorded(), "passes": self.how.passes}
        config = config_of(click.get_current_context())
        return run(experiment, layout, self.output, options, config=config)

    def experiment(self, kind: Any, **more: Any) -> Any:
        """An experiment, which takes all this."""
        device = self.machine.find()
        return kind(
            networks=self.networks.load(self.images),
            settings=self.how.settings(),
            source=self.images.source(self.calibration.calibration_images),
            device=device,
            amp=self.machine.half(device),
            which=self.which.which(),
            **more,
        )


def measuring(
    arch: str,
    output: str | None,
    several: bool = False,
    without: Mapping[str, str] | None = None,
    **defaults: Any,
) -> Callable[[Any], Any]:
    """Let a command have all these options, with these defaults, and get them as the argument `measuring`.

    Args:
        arch, output: defaults of these two.
        several, without, **defaults: of what is pruned, see `takes`.
    """

    def decorate(command: Any) -> Any:
        @wraps(command)
        def called(*args: Any, **values: Any) -> Any:
            told = Measuring(**{name: values.pop(name) for name in Measuring.__dataclass_fields__})
            return command(*args, **values, measuring=told)

        no_output = refused(without["output"]) if without and "output" in without else {}
        made = output_option(output, **no_output)(called)
        for record, argument in ((Machine, "machine"), (WhichImages, "images"), (Calibration, "calibration")):
            made = takes(record, argument)(made)
        made = takes(WhichWeights, "which")(made)
        made = takes(HowToPrune, "how", several=several, without=without, **defaults)(made)
        return takes(WhichNetworks, "networks", arch=arch)(made)

    return decorate
