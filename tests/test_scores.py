"""Criteria and what they need to know: a criterion is one function, and evidence is handed over."""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus import digits
from prunus.cli.main import main
from prunus.scores.criteria import CRITERIA, TRAITS, criterion
from prunus.scores.evidence import Evidence
from prunus.scores.gradients import gradients
from prunus.scores.inputs import inputs
from prunus.selection.scope import over_network
from prunus.weights import find_weights
from tests.conftest import everything, layer_name, layer_zoo, same, small_net


def batches() -> list[tuple[Tensor, Tensor]]:
    images, labels = digits.load_images(train=True)
    return [(images[:64], labels[:64]), (images[64:200], labels[64:200])]


def gradients_by_hand(model: nn.Module) -> dict[str, Tensor]:
    twin = copy.deepcopy(model).eval().requires_grad_(True)
    for images, labels in batches():
        (F.cross_entropy(twin(images), labels) / 2).backward()
    return {name: p.grad for name, p in twin.named_parameters() if p.dim() > 1 and p.grad is not None}


@pytest.fixture
def squared() -> Iterator[None]:
    """A criterion, added as one would add it to the library."""

    @criterion(gradients)
    def squared(pieces: prunus.Pieces) -> Tensor:
        return (pieces.values * pieces.gradients).square()

    yield
    del CRITERIA["squared"], TRAITS[squared]


@pytest.mark.usefixtures("squared")
class TestACriterionThatReadsGradientsIsOneFunction:
    def wanted(self, model: nn.Module) -> prunus.Masks:
        """Squares are ordered as magnitudes."""
        found = gradients_by_hand(model)
        scores = {name: (model.get_parameter(name) * found[name]).abs() for name in found if "weight" in name}
        convolutions = [n for n, p in model.named_parameters() if p.dim() == 4]
        line = torch.cat([scores[n].flatten() for n in convolutions]).sort().values
        count = int(0.4 * len(line))
        return prunus.Masks({n: scores[n] > line[count - 1] for n in convolutions})

    def test_in_python(self) -> None:
        model = digits.load_network("plain")
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)  # of the user's own
        before = everything(model)
        evidence = prunus.evidence(model, batches(), criterion="squared")
        masks = prunus.make_masks(model, 0.4, criterion="squared", evidence=evidence)
        wanted = self.wanted(model)
        differing = sum(int((masks[name] != wanted[name]).sum()) for name in masks)
        assert differing <= 4  # whose scores are equal but for rounding
        [point] = prunus.sweep(model, batches(), p_prune=0.4, criterion="squared", evidence=evidence)
        assert point.layers == masks.counts
        with prunus.prune(model, 0.4, criterion="squared", evidence=evidence) as pruning:
            assert pruning.masks == masks
        assert same(before, everything(model))

    def test_in_mup(self) -> None:
        model, x = digits.load_network("plain"), digits.load_images()[0][:3]
        answers = []
        for name in ("squared", "taylor"):  # which prune the same weights
            surrogate = prunus.MUP(model, 0.3, criterion=name)
            answers.append(surrogate(x.clone().requires_grad_()))
        torch.testing.assert_close(*answers)
        assert not torch.allclose(answers[0], model(x))

    @pytest.mark.parametrize("command", ["sweep", "eval", "inspect"])
    def test_on_the_command_line(
        self, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([command, "--help"]) == 0
        assert "|squared]" in "".join(capsys.readouterr().out.split())  # as help breaks its lines
        arguments = [command, "-a", "digits:plain", "--p-prune", "0.4", "--granularity", "weight"]
        arguments += ["--prune-type", "global"] if command == "eval" else []
        arguments += [] if command == "inspect" else ["-o", str(tmp_path / "results")]
        outputs = []
        for name in ("squared", "taylor", "magnitude"):
            if tmp_path.joinpath("results").exists():
                tmp_path.joinpath("results").rename(tmp_path / f"not {name}")
            assert main([*arguments, "--criterion", name]) == 0
            outputs.append(capsys.readouterr().out)
        assert outputs[0] == outputs[1] != outputs[2]


def test_commands_and_surrogates_leave_no_gradient(tmp_path: Path) -> None:
    """The network of a file stays in memory, with whatever was left on it."""
    from torchvision.transforms.functional import to_pil_image

    for split, label, index in itertools.product(("val", "train"), range(10), range(2)):
        folder = tmp_path / "data" / split / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        to_pil_image(torch.rand(1, 8, 8)).save(folder / f"{index}.png")
    nets = tmp_path / "nets.py"
    nets.write_text(
        "import torch\nfrom torch import nn\n"
        "model = nn.Sequential(nn.Conv2d(3, 9, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(9, 10))\n"
        "def net():\n    return model\n"
    )
    for command in (["eval", "--prune-type", "global"], ["inspect"], ["sweep", "-o", str(tmp_path / "out")]):
        arguments = [*command, "-a", f"{nets}:net", "--data", str(tmp_path / "data"), "-j", "0"]
        assert main([*arguments, "--p-prune", "0.5", "--criterion", "taylor"]) == 0
        model = sys.modules["prunus_nets"].model
        assert all(parameter.grad is None for parameter in model.parameters())
    x = torch.rand(2, 3, 8, 8, requires_grad=True)
    for surrogate in (prunus.MUP(model), prunus.Diversified(model, 0.5)):
        surrogate(x).sum().backward()
        assert all(parameter.grad is None for parameter in model.parameters())


def test_inspect_says_where_evidence_would_come_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "-a", "resnet18", "--weights", "none", "--criterion", "taylor"]) == 1
    assert "resnet18 needs images: --data DIR with DIR/train/<class>/*" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_the_definition(dtype: torch.dtype) -> None:
    model = digits.load_network("plain").requires_grad_(False).train()
    before = everything(model)
    wanted = gradients_by_hand(model)
    moved = [(images.to(dtype), labels) for images, labels in batches()]
    found = prunus.evidence(model.to(dtype), moved, criterion="gradient").found[gradients]
    tolerance = {} if dtype is torch.float32 else {"rtol": 0.1, "atol": 0.02}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient.float(), wanted[name], **tolerance)
        assert gradient.dtype is torch.float32
    assert not any(parameter.requires_grad for parameter in model.parameters())
    if dtype is torch.float32:
        assert same(before, everything(model))
    half = prunus.rank(model.half(), criterion="taylor", evidence=Evidence({gradients: wanted}), include="0")
    assert (half.scores["0.weight"].every(0, 1) > 0).sum() > 100  # no underflow


@pytest.mark.parametrize("layer", layer_zoo(), ids=layer_name)
def test_inputs_are_those_that_each_weight_was_multiplied_with(layer: nn.Module) -> None:
    """With 1 for one weight and 0 for the others, a layer gives what that weight is multiplied with."""
    layer.register_parameter("bias", None)
    weight = layer.get_parameter("weight")
    sides = () if isinstance(layer, nn.Linear) else (6,) * (weight.dim() - 2)
    width = weight.shape[1] if isinstance(layer, nn.Linear) else layer.in_channels
    data = [(torch.randn(2, width, *sides), torch.tensor(0)) for _ in range(2)]
    found = inputs(layer, list(find_weights(layer, "all").values()), data, F.cross_entropy)
    wanted = torch.zeros_like(weight)
    for index in itertools.product(*map(range, weight.shape)):
        one = copy.deepcopy(layer)
        with torch.no_grad():
            one.get_parameter("weight").zero_()[index] = 1
            wanted[index] = torch.stack([one(x).square().sum() for x, _ in data]).sum().sqrt()
    torch.testing.assert_close(found["weight"], wanted)


@pytest.fixture
def by_inputs() -> Iterator[None]:
    """Another."""

    @criterion(inputs)
    def by_inputs(pieces: prunus.Pieces) -> Tensor:
        return pieces.values.abs() * pieces.inputs

    yield
    del CRITERIA["by_inputs"], TRAITS[by_inputs]


@pytest.mark.usefixtures("by_inputs")
def test_a_criterion_by_inputs() -> None:
    """|w|·‖x‖ (Sun et al. 2023, arXiv 2306.11695) of a linear layer, by its definition."""
    layer, x = nn.Linear(6, 5), torch.randn(7, 6)
    evidence = prunus.evidence(layer, [(x, torch.zeros(7))], criterion="by_inputs")
    masks = prunus.make_masks(layer, 0.5, criterion="by_inputs", layers="all", evidence=evidence)
    with pytest.raises(ValueError, match=r"weight has no inputs, which this criterion needs: its"):
        prunus.make_masks(layer, 0.5, criterion="by_inputs", layers="all")
    with pytest.raises(TypeError, match="batches is an iterator"):
        prunus.evidence(layer, iter([(x, torch.zeros(7))]))  # of all criteria, so two kinds
    scores = (layer.weight * x.norm(dim=0)).abs()
    assert scores[~masks["weight"]].max() < scores[masks["weight"]].min()
    assert masks.pruned == 15


@pytest.mark.usefixtures("by_inputs")
def test_inputs_that_cannot_be_known_are_refused() -> None:
    class Own(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(2 * input)

    x = (torch.randn(2, 3, 8, 8), torch.tensor([0, 1]))
    known = prunus.evidence(Own(3, 4, 3), [x], criterion="by_inputs")
    with pytest.raises(ValueError, match=r"weight has no inputs, which this criterion needs"):
        prunus.rank(Own(3, 4, 3), criterion="by_inputs", evidence=known)
    unused = small_net()
    unused.extra = nn.Conv2d(3, 3, 1)
    unused.forward = lambda x: unused[:8](x)
    known = prunus.evidence(unused, [x], criterion="by_inputs")
    with pytest.raises(ValueError, match=r"extra\.weight has no inputs, which this criterion needs"):
        prunus.rank(unused, criterion="by_inputs", evidence=known)
    assert not any(module._forward_pre_hooks for module in unused.modules())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda pieces: pieces.values.abs()[:, 0], r"shape \(216,\) for 0\.weight; expected \(216, 1\)$"),
        (lambda pieces: pieces.values.abs().tolist(), r"gave list for 0\.weight; expected a tensor of shape"),
        (lambda pieces: None, "gave NoneType for"),
    ],
)
def test_scores_of_another_kind_are_refused(wrong: prunus.Criterion, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        prunus.make_masks(small_net(), 0.5, criterion=wrong)
    with pytest.raises((ValueError, TypeError), match=r"expected .*\(96, 9\) or \(96, 1\)|\(24, 9\) or"):
        prunus.make_masks(small_net(), 0.5, criterion=lambda pieces: pieces.values[:1], granularity="kernel")


def test_evidence_of_something_else_is_refused() -> None:
    model, other = small_net(), nn.Sequential(nn.Conv2d(3, 9, 3), nn.Flatten())
    known = prunus.evidence(other, [(torch.rand(2, 3, 3, 3), torch.tensor([0, 1]))])
    with pytest.raises(ValueError, match=r"another network: that of 0\.weight has shape \(9, 3, 3, 3\)"):
        prunus.make_masks(model, 0.5, criterion="taylor", evidence=known)
    with pytest.raises(TypeError, match=r"evidence must come from prunus\.evidence, got dict"):
        prunus.make_masks(model, 0.5, evidence={})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"batches is empty"):
        prunus.evidence(model, [])
    assert repr(known) == "Evidence(gradients of 1 tensor, inputs of 1 tensor)"
    with pytest.raises(ValueError, match=r"has no gradients, .*: collect it with prunus\.evidence\(model"):
        prunus.make_masks(nn.Conv2d(3, 4, 3), 0.5, criterion="taylor", evidence=known)


def test_a_function_of_ones_own_may_read_all_there_is() -> None:
    model, loader = digits.load_network("plain"), batches()

    def own(pieces: prunus.Pieces) -> Tensor:
        return (pieces.values * pieces.gradients).abs()

    evidence = prunus.evidence(model, loader, criterion=own)
    assert prunus.make_masks(model, 0.4, criterion=own, evidence=evidence) == prunus.make_masks(
        model, 0.4, criterion="taylor", evidence=prunus.evidence(model, loader, criterion="taylor")
    )


def test_a_criterion_that_is_an_object() -> None:
    @dataclass
    class Power:  # which cannot be hashed
        exponent: float

        def __call__(self, pieces: prunus.Pieces) -> Tensor:
            return pieces.values.abs() ** self.exponent

    model, squares = digits.load_network("plain"), Power(2)
    masks = prunus.make_masks(model, 0.4, criterion=squares)
    assert masks == prunus.make_masks(model, 0.4)
    [point] = prunus.sweep(model, batches(), p_prune=0.4, criterion=squares)
    assert point.layers == masks.counts
    x = digits.load_images()[0][:2].requires_grad_()
    torch.testing.assert_close(
        prunus.MUP(model, 0.3, criterion=squares)(x), prunus.MUP(model, 0.3, criterion="magnitude")(x)
    )


def test_functions_wherever_names_are_taken() -> None:
    model, loader = digits.load_network("plain"), batches()

    def negative(pieces: prunus.Pieces) -> Tensor:
        return -pieces.values.abs()

    points = prunus.sweep(model, loader, p_prune=0.3, criterion=(negative, "magnitude"), scope=over_network)
    largest, smallest = (point.result.top1 for point in points)
    assert largest < smallest
    assert points[0].setting.criterion is negative
    assert prunus.make_masks(model, 0.3, criterion=negative).counts == points[0].layers
    x = digits.load_images()[0][:2].requires_grad_()
    assert not torch.equal(prunus.MUP(model, 0.3, criterion=negative)(x), model(x))
