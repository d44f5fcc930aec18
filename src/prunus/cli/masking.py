"""What options of the command line would prune."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from prunus.cli.options import HowToPrune

if TYPE_CHECKING:
    from torch import Tensor

    from prunus.inputs.images import Source
    from prunus.inputs.networks import Network
    from prunus.masks import Masks
    from prunus.weights import Which


def masks_for(network: Network, how: HowToPrune, which: Which, source: Source, example: Tensor) -> Masks:
    """Of a network that is not pruned; images are read where the criterion needs them."""

    from prunus.inputs.images import open_images
    from prunus.scores.collecting import evidence
    from prunus.scores.criteria import needs_of
    from prunus.selection.patterns import with_others
    from prunus.verbs import make_masks

    choice = asdict(how)
    del choice["passes"]  # masks are the same for all
    choice["p_prune"] = with_others(choice["p_prune"], choice.pop("p_prune_of"))
    known = None
    if needs_of([choice["criterion"]]):
        calibration = open_images(network, source, train=True)
        known = evidence(network.model, calibration, criterion=choice["criterion"], **which)
    return make_masks(network.model, **choice, **which, evidence=known, example_inputs=example)
