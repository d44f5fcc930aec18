"""Prunus prunes the weights of PyTorch networks and measures what that costs.

>>> import prunus, torch
>>> net = prunus.global_prune(torch.nn.Conv2d(3, 16, 3), p_prune=0.5)
>>> int((net.weight == 0).sum())
216
"""

from prunus.application.pruning import Pruning
from prunus.evaluation.evaluate import Result, evaluate
from prunus.evaluation.sweep import Point, Setting, sweep
from prunus.inputs import digits
from prunus.masks import Masks
from prunus.scores.criteria import Criterion, Pieces
from prunus.scores.collecting import evidence, fill_gradients
from prunus.scores.evidence import Evidence
from prunus.selection.ranking import Ranking, rank
from prunus.surrogates.diversified import Diversified
from prunus.surrogates.ensemble import Ensemble
from prunus.surrogates.mup import MUP
from prunus.verbs import apply_masks, global_prune, gradient_prune, make_masks, prune, restore

Groups = Pieces  # its former name

__version__ = "0.1.0"

__all__ = [
    "MUP",
    "Criterion",
    "Diversified",
    "Ensemble",
    "Evidence",
    "Groups",
    "Masks",
    "Pieces",
    "Point",
    "Pruning",
    "Ranking",
    "Result",
    "Setting",
    "apply_masks",
    "digits",
    "evaluate",
    "evidence",
    "fill_gradients",
    "global_prune",
    "gradient_prune",
    "make_masks",
    "prune",
    "rank",
    "restore",
    "sweep",
]
