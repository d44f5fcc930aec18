"""Real attack libraries on a surrogate: they run as on any network, and the network stays as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prunus
from tests.conftest import everything, labels_of, same, small_net

torchattacks = pytest.importorskip("torchattacks")
foolbox = pytest.importorskip("foolbox")
pytest.importorskip("art")

EPS, STEPS, CLASSES = 8 / 255, 4, 10
Run = Callable[[nn.Module, Tensor, Tensor], Tensor]


def from_torchattacks(name: str, **options: Any) -> Run:
    def run(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        attack = getattr(torchattacks, name)(model, eps=EPS, **options)
        return attack(images, labels)

    return run


def from_foolbox(name: str) -> Run:
    def run(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        attack = getattr(foolbox.attacks, name)(steps=STEPS)
        _, clipped, _ = attack(foolbox.PyTorchModel(model, bounds=(0, 1)), images, labels, epsilons=EPS)
        return clipped

    return run


def from_art(name: str) -> Run:
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier

    def run(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        loss = nn.CrossEntropyLoss()
        classifier = PyTorchClassifier(
            model, loss, images.shape[1:], CLASSES, clip_values=(0, 1), device_type="cpu"
        )
        attack = getattr(evasion, name)(
            classifier, eps=EPS, eps_step=EPS / 4, max_iter=STEPS, batch_size=len(images), verbose=False
        )
        return torch.from_numpy(attack.generate(images.numpy(), np.eye(CLASSES)[labels.numpy()]))

    return run


# With the number of gradients that each takes
ATTACKS: dict[str, tuple[Run, int]] = {
    "torchattacks MIFGSM": (from_torchattacks("MIFGSM", steps=STEPS), STEPS),
    "torchattacks DIFGSM": (from_torchattacks("DIFGSM", steps=STEPS), STEPS),
    "torchattacks TIFGSM": (from_torchattacks("TIFGSM", steps=STEPS, len_kernel=5), STEPS),
    "torchattacks SINIFGSM": (from_torchattacks("SINIFGSM", steps=STEPS, m=5), 5 * STEPS),
    "torchattacks VMIFGSM": (from_torchattacks("VMIFGSM", steps=STEPS, N=5), 6 * STEPS),
    "torchattacks PGD": (from_torchattacks("PGD", steps=STEPS), STEPS),
    "torchattacks APGD": (from_torchattacks("APGD", steps=STEPS), STEPS + 1),
    "foolbox LinfPGD": (from_foolbox("LinfPGD"), STEPS),
    "foolbox MIFGSM": (from_foolbox("MIFGSM"), STEPS),
    "ART ProjectedGradientDescent": (from_art("ProjectedGradientDescent"), STEPS),
    "ART MomentumIterativeMethod": (from_art("MomentumIterativeMethod"), STEPS),
}


@pytest.fixture
def images() -> Tensor:
    return (torch.rand(6, 3, 16, 16) * 255).round() / 255


def watched(surrogate: prunus.Diversified) -> list[bytes]:
    """The masks under which gradients are asked for, as they come."""
    seen: list[bytes] = []

    def see(module: prunus.Diversified, args: object, output: Tensor) -> None:
        if output.requires_grad:
            assert module.masks is not None
            seen.append(torch.cat([mask.flatten() for mask in module.masks.values()]).numpy().tobytes())

    surrogate.register_forward_hook(see)
    return seen


@pytest.mark.parametrize("training", [False, True], ids=["eval", "mixed modes"])
@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.filterwarnings("ignore")
def test_an_attack_runs_on_new_masks_and_leaves_the_network_alone(
    name: str, training: bool, images: Tensor
) -> None:
    run, gradients = ATTACKS[name]
    model = small_net().eval()
    labels = labels_of(model, images)
    model[3].train(training)  # some modules in one mode and some in the other
    model.training = training
    before = everything(model)
    surrogate = prunus.Diversified(model, 0.5, seed=0)
    masks = watched(surrogate)
    adversarial = run(surrogate, images, labels)
    assert (adversarial - images).abs().max() <= EPS + 1e-6
    assert (adversarial - images).abs().max() > 0
    assert len(masks) == gradients
    assert len(set(masks)) == gradients
    assert same(before, everything(model))


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.filterwarnings("ignore")
def test_without_pruning_adversarial_images_are_those_of_the_plain_network(name: str, images: Tensor) -> None:
    run, _ = ATTACKS[name]
    model = small_net().eval()
    labels = labels_of(model, images)
    found = []
    for attacked in (copy.deepcopy(model), prunus.Diversified(model, 0.0)):
        torch.manual_seed(1)
        np.random.seed(1)
        found.append(run(attacked, images, labels))
    assert torch.equal(*found)


def test_autoattack_which_reseeds_at_every_batch_meets_new_masks(images: Tensor) -> None:
    model = small_net().eval()
    labels = labels_of(model, images)
    before, surrogate = everything(model), prunus.Diversified(model, 0.5, seed=0)
    masks = watched(surrogate)
    attack = torchattacks.AutoAttack(surrogate, eps=EPS, version="standard", n_classes=CLASSES, seed=0)
    for some, kinds in zip(images.split(3), labels.split(3), strict=True):
        adversarial = attack(some, kinds)
        assert (adversarial - some).abs().max() <= EPS + 1e-6
    assert len(masks) > 10
    assert len(set(masks)) == len(masks)
    assert same(before, everything(model))


@pytest.mark.parametrize("average", ["logits", "probabilities", "losses"])
def test_an_ensemble_of_surrogates_in_an_attack(average: str, images: Tensor) -> None:
    models = [small_net().eval(), small_net().eval()]
    surrogates = [prunus.Diversified(model, 0.5, seed=seed) for seed, model in enumerate(models)]
    masks = [watched(surrogate) for surrogate in surrogates]
    ensemble = prunus.Ensemble(surrogates, average=average)
    adversarial = torchattacks.MIFGSM(ensemble, eps=EPS, steps=STEPS)(images, labels_of(ensemble, images))
    assert 0 < (adversarial - images).abs().max() <= EPS + 1e-6
    assert len({*masks[0], *masks[1]}) == 2 * STEPS
