"""Surrogates: pruned where a gradient is asked for, and the wrapped network never touched."""

from __future__ import annotations

import copy
import functools
import itertools
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.inputs import digits
from prunus.scores.criteria import TRAITS, Traits
from prunus.scores.inputs import inputs
from prunus.selection.line import keep_rows
from prunus.surrogates.surrogate import Surrogate
from tests.conftest import everything, import_file, labels_of, same, small_net


def gradient_of(model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    x = x.clone().requires_grad_()
    output = model(x)
    value = loss(output) if loss else output.float().logsumexp(1).sum()
    [gradient] = torch.autograd.grad(value, x)
    return gradient


class Attention(nn.Module):
    """A weight that is used without a call of its layer, and an output projection that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x.flatten(2)[..., :6])
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        y: Tensor = self.head(mixed.mean(1))
        return y


class Referring(nn.Module):
    """Layers reached by a list, by a bound method and by tied weights, and a state kept by a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.third = nn.Conv2d(3, 3, 3, padding=1)
        self.third.weight = self.first.weight
        self.layers = [self.first, {"second": self.second}]
        self.run = self._run
        self.first.register_forward_hook(self._keep)
        self.kept: Any = None

    def _keep(self, module: nn.Module, args: object, output: Tensor) -> None:
        self.kept = output

    def _run(self, x: Tensor) -> Tensor:
        first, others = self.layers
        y = others["second"](first(x).relu()).relu()  # type: ignore[index,operator]
        y = F.conv2d(self.kept + y, self.second.weight)
        z: Tensor = self.third(y).mean((2, 3))
        return z

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


def networks() -> dict[str, Callable[[], nn.Module]]:
    return {"small": small_net, "attention": Attention, "referring": Referring}


@pytest.mark.parametrize("granularity", ["weight", "kernel"])
@pytest.mark.parametrize("passes", ["both", "backward", "forward"])
@pytest.mark.parametrize("name", networks())
def test_gradients_are_those_of_the_network_pruned_by_hand(name: str, passes: str, granularity: str) -> None:
    model = networks()[name]().eval()
    x = torch.randn(4, 3, 8, 8)
    surrogate = prunus.Diversified(model, 0.5, granularity=granularity, passes=passes, layers="all", seed=0)
    before = everything(model)
    for _ in range(2):
        found = gradient_of(surrogate, x)
        assert surrogate.masks is not None
        model.kept = None  # of a forward before, which cannot be copied
        by_hand = prunus.apply_masks(copy.deepcopy(model), surrogate.masks, passes)
        if name == "referring" and passes != "both":
            continue  # a weight that other code uses is out of reach of one pass
        torch.testing.assert_close(found, gradient_of(by_hand, x), rtol=0, atol=0)
        assert not torch.equal(found, gradient_of(model, x))
    assert same(before, everything(model))


def test_without_a_gradient_asked_for_the_network_answers_as_it_is() -> None:
    model, x = small_net().eval(), torch.randn(4, 3, 8, 8)
    surrogate = prunus.Diversified(model, 0.5)
    assert torch.equal(surrogate(x), model(x))
    with torch.no_grad():
        assert torch.equal(surrogate(x.clone().requires_grad_()), model(x))
    with torch.inference_mode():
        assert torch.equal(surrogate(x), model(x))
    assert surrogate.draws == 0
    assert surrogate.masks is None


def test_predictions_under_one_fixed_mask() -> None:
    model, x = small_net().eval(), torch.randn(4, 3, 8, 8)
    surrogate = prunus.Diversified(model, 0.5, predict="pruned", seed=3)
    first = surrogate(x)
    gradient_of(surrogate, x)
    assert torch.equal(surrogate(x), first)
    assert not torch.equal(first, model(x))
    assert not torch.equal(first, prunus.Diversified(model, 0.5, predict="pruned", seed=4)(x))


@pytest.mark.parametrize(
    ("redraw", "expected"), [("forward", [1, 2, 3, 4, 5]), (2, [1, 1, 2, 2, 3]), ("manual", [1, 1, 1, 1, 1])]
)
def test_when_masks_change(redraw: str | int, expected: list[int]) -> None:
    surrogate, x = prunus.Diversified(small_net().eval(), 0.5, redraw=redraw), torch.randn(2, 3, 8, 8)
    draws = []
    for _ in expected:
        gradient_of(surrogate, x)
        draws.append(surrogate.draws)
    assert draws == expected
    before = surrogate.masks
    surrogate.redraw()
    gradient_of(surrogate, x)
    assert surrogate.masks != before


def test_a_graph_keeps_its_mask_however_often_it_is_run() -> None:
    surrogate, x = prunus.Diversified(small_net().eval(), 0.5), torch.randn(2, 3, 8, 8, requires_grad=True)
    loss = surrogate(x).square().sum()
    [first] = torch.autograd.grad(loss, x, retain_graph=True)
    gradient_of(surrogate, x)
    [second] = torch.autograd.grad(loss, x)
    assert torch.equal(first, second)


def masks_of(surrogate: prunus.Diversified, count: int) -> list[prunus.Masks]:
    return [surrogate.redraw() for _ in range(count)]


def test_draws_depend_on_the_seed_and_their_number_alone() -> None:
    model = small_net()
    expected = masks_of(prunus.Diversified(model, 0.5, seed=5), 6)
    surrogate, found = prunus.Diversified(model, 0.5, seed=5), []
    for _ in range(6):
        torch.manual_seed(0)  # as AutoAttack does before every batch
        state = torch.get_rng_state()
        found.append(surrogate.redraw())
        assert torch.equal(torch.get_rng_state(), state)
    assert found == expected
    assert all(a != b for a, b in itertools.pairwise(expected))
    assert masks_of(prunus.Diversified(model, 0.5, seed=6), 6) != expected
    resumed = prunus.Diversified(model.eval(), 0.5, seed=np.int64(5), redraw="manual")
    resumed.redraw()
    resumed.draws = 4
    gradient_of(resumed, torch.randn(2, 3, 8, 8))
    assert resumed.masks == expected[4]
    assert masks_of(resumed, 1) == expected[5:]
    with pytest.raises(ValueError, match="draws must be a whole number from 0, got -1"):
        resumed.draws = -1


@pytest.mark.parametrize("criterion", ["magnitude", "random"])
@pytest.mark.parametrize("again", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copy_goes_on_with_the_same_draws_on_its_own_network(
    criterion: str, again: Callable[[Any], Any]
) -> None:
    surrogate = prunus.Diversified(small_net().eval(), 0.5, criterion=criterion, seed=2)
    x = torch.randn(2, 3, 8, 8)
    gradient_of(surrogate, x)
    twin = again(surrogate)
    assert torch.equal(gradient_of(twin, x), gradient_of(surrogate, x))
    with torch.no_grad():
        next(twin.parameters()).zero_()
    assert torch.equal(twin.wrapped[0].weight, torch.zeros(8, 3, 3, 3))
    assert torch.equal(twin(x), twin.wrapped(x))
    assert not torch.equal(twin(x), surrogate(x))


def test_one_network_behind_several_surrogates_in_threads() -> None:
    model, x = small_net().eval(), torch.randn(4, 3, 8, 8)
    before = everything(model)

    def gradients(seed: int) -> Tensor:
        surrogate = prunus.Diversified(model, 0.5, seed=seed)
        return torch.stack([gradient_of(surrogate, x) for _ in range(20)])

    expected = [gradients(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(gradients, range(4)))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert same(before, everything(model))


@pytest.mark.parametrize("kind", [lambda m: prunus.Diversified(m, 0.5), lambda m: prunus.Diversified(m, 0)])
def test_training_mode_moves_no_statistics_of_the_network(kind: Callable[[nn.Module], Surrogate]) -> None:
    model, x = small_net().train(), torch.randn(4, 3, 8, 8)
    surrogate, before = kind(model), everything(model)
    assert surrogate.training
    expected = copy.deepcopy(model)(x)
    assert torch.equal(surrogate(x), expected)
    x.requires_grad_()
    surrogate(x).sum().backward()
    assert x.grad is not None
    surrogate.eval()
    assert torch.equal(surrogate(x.detach()), copy.deepcopy(model).eval()(x))
    assert not surrogate.get_submodule("1").training
    assert same(before, everything(model))


def test_the_parts_of_the_network_stay_reachable() -> None:
    model = Referring()
    model.answer = 42
    surrogate = prunus.Diversified(model, 0.5)
    assert surrogate.answer == 42
    assert not isinstance(prunus.Diversified(small_net(), 0.5), nn.Sequential)
    assert [name for name, _ in surrogate.named_parameters()] == [
        name for name, _ in model.named_parameters()
    ]
    assert all(a is b for a, b in zip(surrogate.parameters(), model.parameters(), strict=True))
    assert surrogate.state_dict().keys() == model.state_dict().keys()
    assert {name for name, _ in surrogate.named_modules()} == {name for name, _ in model.named_modules()}
    assert surrogate.device == torch.device("cpu")
    assert surrogate.second.weight is model.second.weight
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        surrogate.absent  # noqa: B018


def test_a_hook_on_a_layer_sees_what_an_attack_computes() -> None:
    model, seen = small_net().eval(), list[Tensor]()
    surrogate = prunus.Diversified(model, 0.5)
    surrogate.get_submodule("3").register_forward_hook(lambda module, args, output: seen.append(output))
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    surrogate(x)
    [by_feature] = torch.autograd.grad(seen[0].square().sum(), x)
    assert by_feature.abs().sum() > 0
    assert torch.equal(prunus.apply_masks(model, surrogate.masks or prunus.Masks({}))[:4](x), seen[0])


def test_what_happens_to_the_network_later_is_seen() -> None:
    model, x = small_net().eval(), torch.randn(2, 3, 8, 8)
    surrogate = prunus.Diversified(model, 0.5)
    with torch.no_grad():
        model[0].weight.mul_(2)
    model[3].weight = nn.Parameter(model[3].weight * 3)
    assert torch.equal(surrogate(x), model(x))
    surrogate.double()
    assert model[1].running_mean.dtype == torch.float64
    assert torch.equal(surrogate(x.double()), model(x.double()))
    assert gradient_of(surrogate, x.double()).dtype == torch.float64
    model.float()
    assert surrogate.get_submodule("1").running_mean.dtype == torch.float32
    by_hand = prunus.apply_masks(copy.deepcopy(model), surrogate.redraw())
    surrogate.draws -= 1
    assert torch.equal(gradient_of(surrogate, x), gradient_of(by_hand, x))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_same_masks_on_a_gpu() -> None:
    model = small_net().eval()
    on_cpu = prunus.Diversified(copy.deepcopy(model), 0.5, seed=1)
    on_gpu, moved = prunus.Diversified(model.cuda(), 0.5, seed=1), copy.deepcopy(on_cpu).cuda()
    assert on_cpu.redraw() == on_gpu.redraw() == moved.redraw()
    x = torch.randn(2, 3, 8, 8)
    for surrogate in (on_gpu, moved):
        torch.testing.assert_close(
            gradient_of(surrogate, x.cuda()).cpu(), gradient_of(on_cpu, x), rtol=1e-3, atol=1e-5
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p_prune": 1.5}, "p_prune must be in"),
        ({"p_bern": -1}, "p_bern must be in"),
        ({"passes": "none"}, "passes must be one of both, backward, forward"),
        ({"redraw": 0}, "redraw must be a whole number from 1, got 0"),
        ({"redraw": "step"}, "redraw must be one of forward, manual"),
        ({"redraw": True}, "redraw must be a whole number from 1, got True"),
        ({"predict": "best"}, "predict must be one of unpruned, pruned"),
        ({"seed": -1}, "seed must be a whole number from 0, below .* got -1"),
        ({"seed": 0.5}, "seed must be a whole number from 0, below .* got 0.5"),
        ({"granularity": "layer"}, "granularity must be one of"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    model = small_net()
    before = everything(model)
    with pytest.raises(ValueError, match=message):
        prunus.Diversified(model, **{"p_prune": 0.5, **arguments})
    assert same(before, everything(model))


def test_networks_that_cannot_be_wrapped_are_refused() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got function"):
        prunus.Diversified(lambda x: x, 0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="model is a surrogate already"):
        prunus.MUP(prunus.Diversified(small_net(), 0.5))
    with pytest.raises(ValueError, match="1 is a surrogate already"):
        prunus.Diversified(nn.Sequential(nn.Identity(), prunus.Diversified(small_net(), 0.5)), 0.5)
    with pytest.raises(ValueError, match="0 is pruned already"):
        prunus.Diversified(prunus.global_prune(small_net(), 0.5), 0.5)
    with pytest.raises(ValueError, match="model is compiled"):
        prunus.Diversified(torch.compile(small_net()), 0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="model is compiled"):
        prunus.MUP(torch.jit.script(small_net()))


@pytest.mark.parametrize("average", ["logits", "probabilities", "losses"])
def test_what_an_ensemble_averages(average: str) -> None:
    torch.manual_seed(1)
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(12, 5)).double().eval() for _ in range(3)]
    ensemble = prunus.Ensemble(networks, average=average)
    labels = torch.tensor([0, 4, 2, 2])
    x = 3 * torch.randn(4, 3, 2, 2, dtype=torch.float64)

    def expected(x: Tensor) -> Tensor:
        logits = torch.stack([network(x) for network in networks])
        if average == "logits":
            return F.cross_entropy(logits.mean(0), labels)
        if average == "probabilities":
            return F.nll_loss(logits.softmax(2).mean(0).log(), labels)
        return torch.stack([F.cross_entropy(one, labels) for one in logits]).mean()

    x.requires_grad_()
    value, wanted = F.cross_entropy(ensemble(x), labels), expected(x)
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(wanted, x))
    assert ensemble(x.detach()).shape == (4, 5)


def test_an_ensemble_that_agrees_entirely_has_gradients() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    x, labels = 100 * torch.randn(4, 3, 2, 2), torch.arange(4)
    both = prunus.Ensemble([network, network], average="losses")
    loss = lambda output: F.cross_entropy(output, labels)  # noqa: E731
    torch.testing.assert_close(
        gradient_of(both, x, loss), gradient_of(network, x, loss), rtol=1e-3, atol=1e-5
    )


def test_an_ensemble_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="networks is empty"):
        prunus.Ensemble([])
    with pytest.raises(ValueError, match="average must be one of logits, probabilities, losses"):
        prunus.Ensemble([small_net()], average="votes")


@settings(deadline=None)
@given(
    rows=st.integers(1, 5).flatmap(
        lambda width: st.lists(
            st.lists(st.sampled_from([0.0, 1.0, 2.0, 0.5]), min_size=width, max_size=width),
            min_size=1,
            max_size=4,
        )
    ),
    p_prune=st.floats(0, 1),
)
def test_rows_lose_their_lowest_scores(rows: list[list[float]], p_prune: float) -> None:
    kept = keep_rows(torch.tensor(rows), p_prune)
    for row, keep in zip(rows, kept, strict=True):
        order = sorted(range(len(row)), key=lambda place: (row[place], place))
        assert [bool(flag) for flag in keep] == [
            place not in order[: int(p_prune * len(row))] for place in range(len(row))
        ]


@pytest.mark.parametrize(
    ("criterion", "granularity"), [("taylor", "weight"), ("gradient", "filter"), ("magnitude", "kernel")]
)
def test_mup_prunes_for_every_image_by_itself(criterion: str, granularity: str) -> None:
    model = small_net().double().eval()
    x, labels = torch.randn(5, 3, 8, 8, dtype=torch.float64), torch.tensor([1, 7, 0, 3, 3])
    before = everything(model)
    surrogate = prunus.MUP(model, 0.4, criterion=criterion, granularity=granularity)
    surrogate.labels = labels
    found = gradient_of(surrogate, x, lambda output: F.cross_entropy(output, labels, reduction="sum"))
    assert torch.equal(surrogate(x), model(x))
    assert same(before, everything(model))
    for image, label, gradient in zip(x.split(1), labels.split(1), found, strict=True):
        twin = copy.deepcopy(model)
        F.cross_entropy(twin(image), label).backward()
        prunus.prune(twin, 0.4, criterion=criterion, granularity=granularity, scope="layer")
        one = gradient_of(twin, image, lambda output, label=label: F.cross_entropy(output, label))
        torch.testing.assert_close(gradient[None], one, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("pointwise", [False, True])
def test_mup_on_a_network_in_channels_last(pointwise: bool) -> None:
    model = digits.load_network("residual")
    if pointwise:  # kernels of one weight do not say in which order they are
        model.insert(-3, nn.Conv2d(32, 32, 1))
        model.insert(-3, nn.BatchNorm2d(32))
    model, x = model.double().eval(), digits.load_images()[0][:6].double()
    found = gradient_of(prunus.MUP(model), x)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.testing.assert_close(gradient_of(prunus.MUP(model), x.to(memory_format=torch.channels_last)), found)


def test_mup_takes_its_own_predictions_where_no_labels_are_given() -> None:
    model, x = small_net().double().eval(), torch.randn(3, 3, 8, 8, dtype=torch.float64)
    first, second = prunus.MUP(model), prunus.MUP(model)
    second.labels = labels_of(model, x)
    assert torch.equal(gradient_of(first, x), gradient_of(second, x))
    second.labels = (second.labels + 1) % 10
    assert not torch.equal(gradient_of(first, x), gradient_of(second, x))


def test_what_is_assigned_to_a_surrogate() -> None:
    class WithHead(prunus.Diversified):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.head = nn.Linear(10, 2)

    model = small_net().eval()
    model.labels = ["cat", "dog"]
    surrogate = WithHead(model, 0.5)
    assert surrogate.labels == ["cat", "dog"]
    assert surrogate.double().head.weight.dtype is torch.float64
    assert "head.weight" in surrogate.state_dict()
    assert "head" not in dict(model.named_modules())
    model.float()
    plain = prunus.Diversified(nn.Linear(3, 2), 0.5, layers="all")
    zeros = {name: torch.zeros_like(value) for name, value in plain.state_dict().items()}
    plain.load_state_dict(zeros, assign=True)
    assert not plain(torch.ones(1, 3)).any()
    with pytest.raises(NotImplementedError):
        Surrogate(model)(torch.randn(1, 3, 8, 8, requires_grad=True))


def test_mup_takes_every_criterion_that_gradients_are_enough_for(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 3, 8, 8)
    answers = [gradient_of(prunus.MUP(small_net().eval(), 0.5, criterion="random"), x) for _ in range(2)]
    assert not torch.equal(*answers)

    def by_inputs(pieces: prunus.Pieces) -> Tensor:
        return pieces.inputs

    x.requires_grad_()
    with pytest.raises(ValueError, match="has no inputs, which this criterion needs: it is not to be had"):
        prunus.MUP(small_net().eval(), criterion=by_inputs)(x)
    monkeypatch.setitem(TRAITS, by_inputs, Traits((inputs,)))
    with pytest.raises(ValueError, match="criterion 'by_inputs' needs inputs; MUP has gradients only"):
        prunus.MUP(small_net(), criterion=by_inputs)


def test_mup_refuses_what_would_mix_images() -> None:
    surrogate, x = prunus.MUP(small_net().train()), torch.randn(3, 3, 8, 8, requires_grad=True)
    with pytest.raises(ValueError, match="1 is in training mode and mixes images"):
        surrogate(x)
    surrogate.eval().labels = torch.tensor([1])
    with pytest.raises(ValueError, match="one for each of 3 images, got shape"):
        surrogate(x)


@pytest.mark.parametrize("name", ["resnet20", "mobile"])
def test_mup_on_trained_networks_equals_one_by_one(name: str, shared: Path) -> None:
    file = "cifar_resnet" if name == "resnet20" else "cifar_others"
    model = getattr(import_file(shared / "models" / f"{file}.py"), name)()
    model.load_state_dict(torch.load(shared / "models" / f"{name}.pth", weights_only=True))
    surrogate, x = prunus.MUP(model.double().eval()), torch.randn(4, 3, 32, 32, dtype=torch.float64)
    one_by_one = torch.cat([gradient_of(surrogate, image) for image in x.split(1)])
    torch.testing.assert_close(gradient_of(surrogate, x), one_by_one, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", ["resnet18", "inception_v3", "vit_b_16"])
def test_networks_of_torchvision(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    options = {"init_weights": False, "aux_logits": True} if name == "inception_v3" else {}
    size = {"vit_b_16": 224, "inception_v3": 80}.get(name, 64)
    model = models.get_model(name, weights=None, **options).eval()
    x, before = torch.randn(1, 3, size, size), everything(model)
    surrogate = prunus.Diversified(model, 0.5, layers="all")
    found = gradient_of(surrogate, x)
    assert same(before, everything(model))
    prunus.apply_masks(model, surrogate.masks or prunus.Masks({}))
    assert torch.equal(found, gradient_of(model, x))


def test_a_forward_that_was_exchanged_on_the_instance() -> None:
    model, x = small_net().eval(), torch.randn(2, 3, 8, 8)
    model.forward = MethodType(lambda self, x: nn.Sequential.forward(self, 2 * x), model)  # type: ignore[method-assign]
    surrogate = prunus.Diversified(model, 0.5)
    found = gradient_of(surrogate, x)
    assert torch.equal(surrogate(x), model(x))
    assert torch.equal(found, gradient_of(prunus.apply_masks(model, surrogate.masks or prunus.Masks({})), x))


class Named(nn.Module):
    """Buffers, a parameter and a submodule with the names of what surrogates have, and counts of calls."""

    def __init__(self) -> None:
        super().__init__()
        self.draws = small_net()
        self.labels = nn.Parameter(torch.ones(10))
        self.register_buffer("masks", torch.ones(10))
        self.register_buffer("calls", torch.zeros(()))
        self.dropping = True
        self.counts = [torch.zeros(())]  # no buffer

    def train(self, mode: bool = True) -> Named:
        self.dropping = mode
        return super().train(mode)

    def forward(self, images: dict[str, Tensor]) -> Tensor:
        self.calls += 1
        self.counts[0] += 1
        return F.dropout(self.draws(images["x"]), 0.5, self.dropping) * self.masks * self.labels


@pytest.mark.parametrize("kind", [lambda m: prunus.Diversified(m, 0.5), lambda m: prunus.MUP(m, 0.5)])
def test_a_network_whose_parts_are_named_as_those_of_a_surrogate(
    kind: Callable[[nn.Module], Surrogate],
) -> None:
    model, x = Named(), torch.randn(2, 3, 8, 8)
    before = everything(model)
    surrogate = kind(model)
    if isinstance(surrogate, prunus.MUP):
        surrogate.labels = torch.tensor([1, 2])
    surrogate.eval()
    assert torch.equal(surrogate({"x": x}), surrogate({"x": x}))
    assert model.dropping
    assert model.counts == [0]
    if isinstance(surrogate, prunus.Diversified):
        surrogate({"x": x.requires_grad_()}).sum().backward()
        assert surrogate._draws == 1
        assert x.grad is not None
    assert same(before, everything(model))


def test_what_an_attack_clears_is_not_the_networks() -> None:
    model, x = small_net(), torch.randn(2, 3, 8, 8)
    model(x).sum().backward()
    before = everything(model)
    prunus.Diversified(model, 0.5).zero_grad()
    assert same(before, everything(model))


def test_copies_of_a_network_that_copies_itself() -> None:
    model, x = torch.fx.symbolic_trace(small_net().eval()), torch.randn(2, 3, 8, 8)
    surrogate = prunus.Diversified(model, 0.5)
    twin = copy.deepcopy(surrogate)
    assert isinstance(twin, prunus.Diversified)
    assert torch.equal(gradient_of(twin, x), gradient_of(surrogate, x))
    assert not torch.equal(gradient_of(twin, x), gradient_of(model, x))
    assert next(twin.parameters()) is next(twin.wrapped.parameters())


def test_a_forward_out_of_reach_is_warned_of() -> None:
    model, x = small_net().eval(), torch.randn(2, 3, 8, 8)
    plain = model.forward
    model.forward = lambda x: plain(x)  # type: ignore[method-assign]
    surrogate = prunus.Diversified(model, 0.5)
    with pytest.warns(UserWarning, match="no layer of the copy of Sequential was called"):
        surrogate(x)
    model.forward = functools.partial(lambda forward, x: forward(x), plain)  # type: ignore[method-assign]
    found = gradient_of(prunus.Diversified(model, 0.5), x)
    assert not torch.equal(found, gradient_of(model, x))
