"""What may I call? Every public name, flat: `prunus.NAME` for each of these."""

from prunus.application.places import Places
from prunus.application.pruning import Pruning
from prunus.backward.sparse_backward import SparseBackward, sparse_backward
from prunus.compaction.checkpoints import save_compact
from prunus.compaction.compact import compact
from prunus.compaction.compacted import Compacted
from prunus.compaction.sparse import load_sparse, save_sparse
from prunus.evaluation.evaluate import Result, evaluate
from prunus.evaluation.find import Found, find
from prunus.evaluation.points import Point, Probe, Setting
from prunus.evaluation.sensitivity import Sensitivity, sensitivity
from prunus.evaluation.sweep import Points, sweep
from prunus.inputs import digits
from prunus.inputs.compact import load_compact
from prunus.masks import Masks
from prunus.reconstruction import Reconstruction, sparsegpt
from prunus.scores.collecting import evidence, fill_gradients
from prunus.scores.criteria import Criterion, Pieces
from prunus.scores.evidence import Evidence
from prunus.selection.ranking import Ranking, rank
from prunus.speed.accelerate import Accelerated, accelerate
from prunus.speed.export import Exported, export
from prunus.speed.latency import Latency, Timing, latency
from prunus.speed.semi_structured import SemiStructured, semi_structured
from prunus.surrogates.diversified import Diversified
from prunus.surrogates.ensemble import Ensemble
from prunus.surrogates.mup import MUP
from prunus.training.gradual import Gradual
from prunus.training.regrowth import SET, RigL
from prunus.training.rewinding import Snapshot
from prunus.training.schedules import Cubic, Cyclic, Exponential, Iterative, Linear, OneShot, Schedule
from prunus.verbs import apply_masks, global_prune, gradient_prune, make_masks, masks_of, prune, restore
from prunus.zeros import Sparsity, sparsity

Groups = Pieces  # its former name

__all__ = [
    "MUP",
    "SET",
    "Accelerated",
    "Compacted",
    "Criterion",
    "Cubic",
    "Cyclic",
    "Diversified",
    "Ensemble",
    "Evidence",
    "Exponential",
    "Exported",
    "Found",
    "Gradual",
    "Groups",
    "Iterative",
    "Latency",
    "Linear",
    "Masks",
    "OneShot",
    "Pieces",
    "Places",
    "Point",
    "Points",
    "Probe",
    "Pruning",
    "Ranking",
    "Reconstruction",
    "Result",
    "RigL",
    "Schedule",
    "SemiStructured",
    "Sensitivity",
    "Setting",
    "Snapshot",
    "SparseBackward",
    "Sparsity",
    "Timing",
    "accelerate",
    "apply_masks",
    "compact",
    "digits",
    "evaluate",
    "evidence",
    "export",
    "fill_gradients",
    "find",
    "global_prune",
    "gradient_prune",
    "latency",
    "load_compact",
    "load_sparse",
    "make_masks",
    "masks_of",
    "prune",
    "rank",
    "restore",
    "save_compact",
    "save_sparse",
    "semi_structured",
    "sensitivity",
    "sparse_backward",
    "sparsegpt",
    "sparsity",
    "sweep",
]
