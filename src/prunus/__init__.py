"""Prunus prunes the weights of PyTorch networks and measures what that costs.

>>> import prunus, torch
>>> net = prunus.global_prune(torch.nn.Conv2d(3, 16, 3), p_prune=0.5)
>>> int((net.weight == 0).sum())
216
"""

from prunus.application import apply_masks, restore
from prunus.criteria import Criterion, Groups, fill_gradients
from prunus.ensemble import Ensemble
from prunus.evaluation import Point, Result, Setting, evaluate, sweep
from prunus.masks import Masks
from prunus.mup import MUP
from prunus.pruning import Pruning, global_prune, gradient_prune, make_masks, prune
from prunus.ranking import Ranking, rank
from prunus.surrogate import Diversified

__version__ = "0.1.0"

__all__ = [
    "MUP",
    "Criterion",
    "Diversified",
    "Ensemble",
    "Groups",
    "Masks",
    "Point",
    "Pruning",
    "Ranking",
    "Result",
    "Setting",
    "apply_masks",
    "evaluate",
    "fill_gradients",
    "global_prune",
    "gradient_prune",
    "make_masks",
    "prune",
    "rank",
    "restore",
    "sweep",
]
