"""Diversified Weight Pruning in the benchmark TransferAttack.

Copy this file beside the benchmark's main.py, and start it in place of main.py:

    python transferattack_dwp.py --attack dwp --input_dir DATA --output_dir adv_data/dwp/resnet50
    python main.py --input_dir DATA --output_dir adv_data/dwp/resnet50 --eval

and with its targeted protocol `--attack dwp_logit --targeted`.
"""

import transferattack
from torch import nn
from transferattack.advanced_objective.logit import LOGIT
from transferattack.gradient.mifgsm import MIFGSM
from transferattack.utils import EnsembleModel, wrap_model

import prunus


class Diversified:
    """Before an attack of the benchmark: its surrogate loses other weights at every step.

    Args:
        model_name: as everywhere in the benchmark; several are an ensemble, each with masks of its own.
            Or a network that takes normalised images.
        p_prune: fraction of the weights that are candidates, those closest to zero.
        p_bern: chance that a candidate falls, drawn anew at every step.
        seed: of these draws.
        **options: of the attack.
    """

    def __init__(self, model_name, p_prune=0.7, p_bern=0.5, seed=0, **options):
        self.pruning = {"p_prune": p_prune, "p_bern": p_bern, "seed": seed}
        super().__init__(model_name, **options)
        self.attack = f"DWP {self.attack}"

    def load_model(self, model_name):
        """The surrogate, pruned anew whenever a gradient of its input is asked for."""
        if isinstance(model_name, list):
            return EnsembleModel([self.load_model(name) for name in model_name])
        own = isinstance(model_name, nn.Module)
        network = wrap_model(model_name.eval()) if own else super().load_model(model_name)
        return prunus.Diversified(network, **self.pruning)


class DWP(Diversified, MIFGSM):
    """MI-FGSM; likewise with any other attack, as `class DWPDIM(Diversified, DIM)`."""


class DWPLogit(Diversified, LOGIT):
    """The benchmark's targeted attack."""


transferattack.attack_zoo |= {"dwp": (__name__, "DWP"), "dwp_logit": (__name__, "DWPLogit")}

if __name__ == "__main__":
    import main

    main.main()
