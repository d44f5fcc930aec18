"""How masks reach the computation: which values each pass sees, and that all of it can be undone."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import pickle
import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import prunus
from tests.conftest import everything, layer_name, layer_zoo, same, small_net

PASSES = ("both", "backward", "forward")


def inputs_for(layer: nn.Module) -> Tensor:
    weight = layer.get_parameter("weight")
    if isinstance(layer, nn.Linear):
        return torch.randn(3, weight.shape[1], dtype=weight.dtype)
    return torch.randn(2, layer.in_channels, *[6] * (weight.dim() - 2), dtype=weight.dtype)  # type: ignore[arg-type]


def run(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and gradient of its weighted sum with respect to the input."""
    x = x.clone().requires_grad_()
    y = model(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    [grad] = torch.autograd.grad((y * weights).sum(), x)
    return y.detach(), grad


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def expected(layer: nn.Module, mask: Tensor, passes: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """One layer: the output of one set of values, the gradient of another."""
    pruned = copy.deepcopy(layer)
    with torch.no_grad():
        pruned.get_parameter("weight").mul_(mask)
    return run(layer if passes == "backward" else pruned, x)[0], run(
        layer if passes == "forward" else pruned, x
    )[1]


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("layer", layer_zoo(), ids=layer_name)
def test_each_pass_sees_its_values(layer: nn.Module, passes: str, frozen: bool) -> None:
    layer = copy.deepcopy(layer).requires_grad_(not frozen)
    original, x = copy.deepcopy(layer), inputs_for(layer)
    with prunus.prune(layer, 0.5, passes=passes, layers="all") as pruning:
        output, grad = run(layer, x)
        wanted_output, wanted_grad = expected(original, pruning.masks["weight"], passes, x)
    assert torch.equal(output, wanted_output)
    torch.testing.assert_close(grad, wanted_grad)
    assert not torch.allclose(expected(original, pruning.masks["weight"], "both", x)[0], run(original, x)[0])


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes(passes: str, dtype: torch.dtype) -> None:
    layer = nn.Conv2d(4, 6, 3).to(dtype)
    original, x = copy.deepcopy(layer), inputs_for(layer)
    with prunus.prune(layer, 0.3, passes=passes) as pruning:
        assert pruning.masks.pruned == int(0.3 * 6 * 4 * 9)
        output, grad = run(layer, x)
        wanted_output, wanted_grad = expected(original, pruning.masks["weight"], passes, x)
    assert torch.equal(output, wanted_output)
    torch.testing.assert_close(grad, wanted_grad)
    assert torch.equal(layer.weight, original.weight)


def straight_through(value: Tensor, route: Tensor) -> Tensor:
    return value.detach() + (route - route.detach())


class Standardised(nn.Conv2d):
    """A forward of its own that never hands the weight itself to autograd."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias)


class Padded(nn.Conv2d):
    """A forward of its own that uses the weight as it is."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(F.pad(x, (1, 0, 1, 0)), self.weight, self.bias)


@pytest.mark.parametrize("kind", [Standardised, Padded])
@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("frozen", [False, True])
def test_subclasses_with_a_forward_of_their_own(kind: type[nn.Conv2d], passes: str, frozen: bool) -> None:
    layer = kind(4, 6, 3).requires_grad_(not frozen)
    original, x = copy.deepcopy(layer), inputs_for(layer)
    with prunus.prune(layer, 0.5, passes=passes) as pruning:
        output, grad = run(layer, x)
        wanted_output, wanted_grad = expected(original, pruning.masks["weight"], passes, x)
    assert torch.equal(output, wanted_output)
    torch.testing.assert_close(grad, wanted_grad)


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3), nn.Linear(5, 7)], ids=layer_name)
@pytest.mark.parametrize("frozen", [False, True])
def test_under_autocast(layer: nn.Module, passes: str, frozen: bool) -> None:
    layer = copy.deepcopy(layer).requires_grad_(not frozen)
    original, x = copy.deepcopy(layer), inputs_for(layer)
    with prunus.prune(layer, 0.5, passes=passes, layers="all") as pruning:
        with torch.autocast("cpu", torch.bfloat16):
            output, grad = run(layer, x)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            wanted_output, wanted_grad = expected(original, pruning.masks["weight"], passes, x)
    assert torch.equal(output, wanted_output)
    torch.testing.assert_close(grad, wanted_grad)


class Attention(nn.Module):
    """Uses the weight of its `out_proj` without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("passes", PASSES)
def test_weights_that_a_parent_uses_without_calling_the_layer(passes: str) -> None:
    model = Attention()
    plain, x = copy.deepcopy(model), torch.randn(2, 5, 8)
    pruned = copy.deepcopy(model)
    with pytest.warns(UserWarning, match="only"):
        pruning = prunus.prune(model, 0.5, passes=passes, layers=(nn.Linear,))
    with torch.no_grad():
        pruned.attention.out_proj.weight.mul_(pruning.masks["attention.out_proj.weight"])
    assert torch.equal(run(model, x)[0], run(plain if passes == "backward" else pruned, x)[0])
    torch.testing.assert_close(run(model, x)[1], run(plain if passes == "forward" else pruned, x)[1])
    assert not torch.allclose(run(plain, x)[1], run(pruned, x)[1])


class Twice(nn.Module):
    """One layer used twice, and a second module that shares its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(self.first(x).tanh()).tanh())


@pytest.mark.parametrize("passes", PASSES)
def test_a_layer_used_twice_and_a_shared_weight(passes: str) -> None:
    model, x = Twice(), torch.randn(2, 4, 6, 6)
    plain = copy.deepcopy(model)
    mask = prunus.prune(model, 0.5, passes=passes).masks
    assert list(mask) == ["first.weight"]
    assert model.first.weight is model.second.weight

    weight = plain.first.weight.detach()
    forward = weight if passes == "backward" else weight * mask["first.weight"]
    backward = weight if passes == "forward" else weight * mask["first.weight"]

    def reference(x: Tensor) -> Tensor:
        for layer in (plain.first, plain.first, plain.second):
            y, route = (F.conv2d(x, w, layer.bias, padding=1) for w in (forward, backward))
            y = straight_through(y, route)
            x = y if layer is plain.second else y.tanh()
        return x

    output, grad = run(model, x)
    wanted_output, wanted_grad = run(reference, x)  # type: ignore[arg-type]
    torch.testing.assert_close(output, wanted_output)
    torch.testing.assert_close(grad, wanted_grad)
    prunus.restore(model)
    assert torch.equal(model.second.weight, plain.first.weight)
    assert model.first.weight is model.second.weight


def test_backward_only_leaves_outputs_bitwise_alone_in_training_mode_too() -> None:
    model, x = small_net(), torch.randn(4, 3, 8, 8)
    plain = copy.deepcopy(model)
    prunus.gradient_prune(model, 0.7)
    assert torch.equal(model(x), plain(x))
    assert torch.equal(model[1].running_mean, plain[1].running_mean)
    assert torch.equal(model.eval()(x), plain.eval()(x))


def test_only_gradients_through_pruned_weights_change() -> None:
    """The last convolution's own weight gradient does not flow through it: it stays."""
    model, x = small_net().eval(), torch.randn(4, 3, 8, 8)
    plain = copy.deepcopy(model)
    prunus.gradient_prune(model, 0.7)
    for net in (model, plain):
        net(x).square().sum().backward()
    assert torch.equal(model[3].weight.grad, plain[3].weight.grad)
    assert torch.equal(model[7].weight.grad, plain[7].weight.grad)
    assert not torch.allclose(model[0].weight.grad, plain[0].weight.grad)


def test_one_forward_has_one_mask_however_often_its_graph_is_run_backward() -> None:
    model, x = small_net().eval(), torch.randn(2, 3, 8, 8, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    pruning = prunus.prune(model, 0.7, p_bern=0.5, passes="backward", seed=generator)
    loss = model(x).square().sum()
    [before] = torch.autograd.grad(loss, x, retain_graph=True)
    old = pruning.masks
    pruning.redraw()
    assert any(not torch.equal(old[name], pruning.masks[name]) for name in old)
    [after] = torch.autograd.grad(loss, x)
    assert torch.equal(before, after)
    [fresh] = torch.autograd.grad(model(x).square().sum(), x)
    assert not torch.allclose(before, fresh)


@pytest.mark.parametrize("passes", PASSES)
def test_redraw_prunes_by_the_new_mask_and_restores_bit_for_bit(passes: str) -> None:
    model = small_net()
    before = copy.deepcopy(model.state_dict())
    generator = torch.Generator().manual_seed(1)
    with prunus.prune(model, 0.8, p_bern=0.5, passes=passes, seed=generator) as pruning:
        for _ in range(3):
            masks = pruning.redraw()
            for name, mask in masks.items():
                kept = torch.ones_like(mask) if passes == "backward" else mask
                assert torch.equal(model.get_parameter(name), before[name] * kept)
            assert 0.3 < masks.sparsity < 0.5
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("passes", PASSES)
def test_modules_that_work_in_place(passes: str) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), Standardised(4, 4, 3), nn.ReLU(inplace=True)
    )
    apart = nn.Sequential(model[0], nn.ReLU(), model[2], nn.ReLU())
    prunus.prune(model, 0.5, passes=passes)
    x = torch.randn(2, 3, 8, 8)
    for got, wanted in zip(run(model, x), run(apart, x), strict=True):
        assert torch.equal(got, wanted)


def test_a_weight_modified_before_backward_is_an_error() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    prunus.gradient_prune(model, 0.5)
    y = model(torch.randn(1, 3, 7, 7, requires_grad=True))
    with torch.no_grad():
        model[1].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_the_graph_is_freed() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid()), torch.randn(1, 3, 5, 5, requires_grad=True)
    prunus.gradient_prune(model, 0.5)
    gc.disable()
    try:
        y = model(x)
        gone = weakref.ref(y)
        del y
        assert gone() is None
    finally:
        gc.enable()


def test_checkpointing_gives_the_same_gradients() -> None:
    model, x = small_net().eval(), torch.randn(2, 3, 8, 8, requires_grad=True)
    prunus.gradient_prune(model, 0.5)
    [plain] = torch.autograd.grad(model(x).square().sum(), x)
    y = model[4:](checkpoint(model[:4], x, use_reentrant=False))
    [checkpointed] = torch.autograd.grad(y.square().sum(), x)
    assert torch.equal(plain, checkpointed)


def test_threads_do_not_disturb_each_other() -> None:
    model, x = small_net().eval(), torch.randn(2, 3, 8, 8)
    prunus.gradient_prune(model, 0.5)
    wanted = run(model, x)[1]
    results: list[Tensor] = []
    threads = [
        threading.Thread(target=lambda: results.extend(run(model, x)[1] for _ in range(10))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 40
    assert all(torch.equal(result, wanted) for result in results)


def copy_by_deepcopy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


def copy_by_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def copy_by_torch_save(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("duplicate", [copy_by_deepcopy, copy_by_pickle, copy_by_torch_save])
def test_copies_are_pruned_alike_and_independent(duplicate: Callable, passes: str) -> None:
    model, x = small_net().eval(), torch.randn(2, 3, 8, 8)
    before = copy.deepcopy(model.state_dict())
    prunus.prune(model, 0.5, passes=passes)
    wanted = run(model, x)
    twin = duplicate(model)
    prunus.restore(model)  # must not change the copy
    assert all(torch.equal(a, b) for a, b in zip(run(twin, x), wanted, strict=True))
    prunus.restore(twin)
    for net in (model, twin):
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        assert not any("weight_" in name for name, _ in net.named_buffers())
        assert all(not m._forward_pre_hooks and not m._forward_hooks for m in net.modules())


def test_a_pickled_model_keeps_its_hooks_when_others_are_added() -> None:
    """Hook numbers start anew in a new process; a fresh hook must not take the place of ours."""
    import subprocess
    import sys

    model = small_net()
    prunus.global_prune(model, 0.5)
    code = (
        "import sys, pickle, torch, prunus\n"
        "model = pickle.load(sys.stdin.buffer)\n"
        "model[0].register_forward_pre_hook(lambda module, args: None)\n"
        "assert len(model[0]._forward_pre_hooks) == 2, model[0]._forward_pre_hooks\n"
        "prunus.restore(model)\n"
        "assert (model[0].weight != 0).all() and len(model[0]._forward_pre_hooks) == 1\n"
    )
    subprocess.run([sys.executable, "-c", code], input=pickle.dumps(model), check=True)


@pytest.mark.parametrize("passes", ["both", "forward"])
def test_training_keeps_pruned_weights_at_zero_even_with_momentum_from_before(passes: str) -> None:
    model, x = small_net(), torch.randn(4, 3, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)

    train_step(model, optimizer, x)
    before = model[0].weight.detach().clone()
    masks = prunus.prune(model, 0.5, passes=passes).masks
    for _ in range(3):
        train_step(model, optimizer, x)
    model(x)
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        assert (weight[~mask] == 0).all()
        assert (weight[mask] != 0).all()
    trained = model[0].weight.detach().clone()
    assert not torch.equal(trained[masks["0.weight"]], before[masks["0.weight"]])
    prunus.restore(model)  # survivors keep what they learned, the others come back
    assert torch.equal(model[0].weight, torch.where(masks["0.weight"], trained, before))


def test_pruned_weights_have_no_gradient_and_a_fresh_optimizer_never_moves_them() -> None:
    for model in (small_net(), copy.deepcopy(prunus.global_prune(small_net(), 0.5))):
        masks = prunus.prune(model, 0.5).masks if not hasattr(model[0], "weight_mask") else None
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(4, 3, 8, 8)).square().mean().backward()
            optimizer.step()
        mask = masks["0.weight"] if masks else model[0].weight_mask
        assert (model[0].weight[~mask] == 0).all()  # with no forward since the step
        assert (model[0].weight.grad[~mask] == 0).all()
        assert (model[0].weight.grad[mask] != 0).any()


def test_the_model_keeps_its_identity() -> None:
    model = small_net()
    modules, parameters = list(model.modules()), list(model.parameters())
    keys = list(model.state_dict())
    for passes in PASSES:
        assert prunus.prune(model, 0.5, passes=passes).model is model
        assert all(a is b for a, b in zip(modules, model.modules(), strict=True))
        assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
        assert list(model.state_dict()) == keys
    fresh = small_net()
    fresh.load_state_dict(prunus.global_prune(model, 0.5).state_dict())
    assert torch.equal(fresh[0].weight, model[0].weight)


def test_the_original_is_readable_and_the_mask_follows_a_parameter_exchanged_by_hand() -> None:
    model, x = small_net().eval(), torch.randn(1, 3, 8, 8)
    before, wanted = model[0].weight.detach().clone(), model(x)
    pruned = prunus.global_prune(model, 0.5)(x)
    assert torch.equal(model[0].weight_orig, before)
    for index in (0, 3):
        model[index].weight = nn.Parameter(model[index].weight_orig.clone())
    assert torch.equal(model(x), pruned)
    mask = prunus.make_masks(model, 0.25)["0.weight"]
    prunus.global_prune(model, 0.25)
    assert torch.equal(model[0].weight, before * mask)
    prunus.restore(model)
    assert torch.equal(model(x), wanted)


def test_data_parallel_replicas_are_pruned_in_the_backward_pass() -> None:
    from torch.nn.parallel import replicate  # what DataParallel does, without needing two GPUs

    if not torch.cuda.is_available():
        pytest.skip("replicas need a GPU")
    model, x = small_net().eval().cuda(), torch.randn(2, 3, 8, 8).cuda()
    prunus.gradient_prune(model, 0.5)
    [replica] = replicate(model, [0])
    assert torch.equal(run(replica, x)[1], run(model, x)[1])


def test_checkpoints_hold_zeros_whatever_momentum_adds() -> None:
    model, x = small_net(), torch.randn(4, 3, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train_step(model, optimizer, x)
    masks = prunus.make_masks(model, 0.5)
    prunus.apply_masks(model, masks)
    train_step(model, optimizer, x)
    for saved in (copy.deepcopy(model).state_dict(), model.state_dict()):
        assert not any(saved[name][~mask].any() for name, mask in masks.items())
    learned = model[0].weight.detach().clone()
    prunus.restore(model)
    assert torch.equal(model[0].weight[masks["0.weight"]], learned[masks["0.weight"]])


def test_masks_change_within_one_autocast_block() -> None:
    model, x = small_net().eval(), torch.randn(2, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        plain = model(x)
        with prunus.prune(model, 0.5, p_bern=0.5, seed=0) as pruning:
            first = model(x)
            pruning.redraw()
            assert not torch.equal(model(x), first)
        assert not torch.equal(first, plain)
        assert torch.equal(model(x), plain)


def test_a_weight_of_another_type_is_refused_before_anything_changes() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(4, 2))
    prunus.global_prune(model[0], 0.5)
    model[1].weight = nn.Parameter(model[1].weight.detach().to(torch.float8_e5m2), requires_grad=False)
    before = everything(model)
    masks = prunus.Masks({"0.weight": torch.ones(2, 1, 3, 3).bool(), "1.weight": torch.ones(2, 4).bool()})
    with pytest.raises(ValueError, match=r"1\.weight is torch\.float8_e5m2; prunable are"):
        prunus.apply_masks(model, masks)
    assert same(before, everything(model))


def test_replicas_whose_weight_is_out_of_reach_are_refused() -> None:
    class Own(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(2 * input)

    layer = prunus.gradient_prune(Own(1, 2, 3), 0.5)
    replica = layer._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
    replica.weight, replica.bias = layer.weight * 1, layer.bias * 1  # as DataParallel does on every GPU
    with pytest.raises(RuntimeError, match=r"Own is pruned in one pass.*use DistributedDataParallel"):
        replica(torch.randn(1, 1, 4, 4, requires_grad=True))


def test_an_interrupted_forward_leaves_nothing_behind() -> None:
    class Stop(nn.Module):
        stopped = True

        def forward(self, x: Tensor) -> Tensor:
            if self.stopped:
                raise KeyboardInterrupt
            return x

    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), Stop(), nn.Conv2d(4, 4, 3)), torch.randn(1, 3, 8, 8)
    prunus.gradient_prune(model, 1.0)
    with pytest.raises(KeyboardInterrupt):
        run(model, x)
    prunus.restore(model)
    model[1].stopped = False
    assert run(model, x)[1].any()


@pytest.mark.parametrize("padding", [1, "same", "valid"])
@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize("size", [3, 4])
def test_every_kind_of_padding(padding: int | str, mode: str, size: int) -> None:
    layer = nn.Conv2d(4, 6, size, padding=padding, padding_mode=mode)
    original, x = copy.deepcopy(layer), inputs_for(layer)
    with prunus.prune(layer, 0.5, passes="backward") as pruning:
        grad = run(layer, x)[1]
        torch.testing.assert_close(grad, expected(original, pruning.masks["weight"], "backward", x)[1])
        one = run(layer, x[0])[1]  # without a batch axis
        torch.testing.assert_close(one, run(layer, x[:1])[1][0])


def test_a_transposed_convolution_told_its_output_size() -> None:
    layer = nn.ConvTranspose2d(4, 6, 3, stride=2)
    x, original = torch.randn(1, 4, 5, 5), copy.deepcopy(layer)
    mask = prunus.prune(layer, 0.5, passes="backward", layers="all").masks["weight"]
    with torch.no_grad():
        original.weight.mul_(mask)
    got = run(lambda x: layer(x, output_size=(12, 12)), x)[1]  # type: ignore[arg-type]
    torch.testing.assert_close(got, run(lambda x: original(x, output_size=(12, 12)), x)[1])  # type: ignore[arg-type]


class Scaled(nn.Conv2d):
    """Its weight is multiplied by a parameter before it is used, and penalised besides."""

    def __init__(self) -> None:
        super().__init__(4, 6, 3)
        self.gain = nn.Parameter(torch.rand(6, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.gain, self.bias) + self.weight.square().sum()


def test_gradients_of_the_parameters_are_those_of_the_unpruned_layer() -> None:
    for layer in (Scaled(), Standardised(4, 6, 3), nn.Conv2d(4, 6, 3), nn.ConvTranspose2d(4, 6, 3)):
        original, x = copy.deepcopy(layer), torch.randn(2, 4, 6, 6, requires_grad=True)
        prunus.prune(layer, 0.7, passes="backward", layers="all")
        for net in (layer, original):
            net(x).square().sum().backward()
        for (name, parameter), plain in zip(layer.named_parameters(), original.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, plain.grad, msg=name)


def test_hooks_of_others_are_called_once_and_keep_their_effect() -> None:
    model, x, seen = small_net().eval(), torch.randn(2, 3, 8, 8), []
    prunus.gradient_prune(model, 0.5)
    plain = run(model, x)[1]
    model[0].register_forward_pre_hook(lambda layer, args: (args[0] * 1.0,))
    model[0].register_forward_hook(lambda layer, args, output: seen.append(output))
    model[7].register_forward_hook(lambda layer, args, output: output * 2)
    torch.testing.assert_close(run(model, x)[1], 2 * plain)
    assert len(seen) == 1
    assert torch.equal(seen[0], F.conv2d(x, model[0].weight, model[0].bias, padding=1))


class Dropped(nn.Conv2d):
    """A layer that draws random numbers and writes to a buffer."""

    def __init__(self) -> None:
        super().__init__(4, 4, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return F.dropout(super().forward(x))


def test_random_draws_and_buffers_are_those_of_one_run() -> None:
    model, x = nn.Sequential(Dropped(), Dropped()), torch.randn(2, 4, 8, 8)
    torch.manual_seed(1)
    output, grad = run(model, x)
    state = torch.get_rng_state()
    prunus.prune(model, 0.0, passes="backward")
    torch.manual_seed(1)
    got, got_grad = run(model, x)
    assert torch.equal(got, output)
    torch.testing.assert_close(got_grad, grad)
    assert torch.equal(torch.get_rng_state(), state)
    assert int(model[0].calls) == 2


def test_outer_hooks_see_what_autograd_saves() -> None:
    model, x, packed = small_net().eval(), torch.randn(2, 3, 8, 8), []
    prunus.gradient_prune(model, 0.5)
    wanted = run(model, x)[1]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        assert torch.equal(run(model, x)[1], wanted)
    assert len(packed) > 8


def test_double_backward_and_torch_func() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3)), torch.randn(2, 3, 8, 8)
    masks = prunus.prune(model, 0.5, passes="backward").masks

    def reference(x: Tensor) -> Tensor:
        for name, layer in (("0.weight", model[0]), ("2.weight", model[2])):
            y = F.conv2d(x, layer.weight, layer.bias)
            y = straight_through(y, F.conv2d(x, layer.weight * masks[name], layer.bias))
            x = y if layer is model[2] else y.tanh()
        return x

    seconds = []
    for net in (model, reference):
        x.requires_grad_()
        [grad] = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
        seconds.append(torch.autograd.grad(grad.square().sum(), x)[0])
    torch.testing.assert_close(*seconds)
    functional = torch.func.grad(lambda t: model(t).square().sum())(x.detach())
    torch.testing.assert_close(functional, grad)
    one_by_one = torch.func.vmap(torch.func.grad(lambda t: model(t[None]).square().sum()))(x.detach())
    torch.testing.assert_close(one_by_one, grad)


def test_weights_that_are_slices() -> None:
    layer = nn.Conv2d(6, 8, 3)
    layer.weight = nn.Parameter(layer.weight.data[:, :3])
    original, x = copy.deepcopy(layer), torch.randn(2, 3, 6, 6)
    for passes in PASSES:
        with prunus.prune(layer, 0.5, passes=passes) as pruning:
            output, grad = run(layer, x)
            wanted_output, wanted_grad = expected(original, pruning.masks["weight"], passes, x)
        assert torch.equal(output, wanted_output)
        torch.testing.assert_close(grad, wanted_grad)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_fused_optimizers_which_leave_no_trace_in_the_version(kind: type[torch.optim.Optimizer]) -> None:
    model, x = small_net(), torch.randn(4, 3, 8, 8)
    optimizer = kind(
        model.parameters(), lr=0.01, fused=True, **({"momentum": 0.9} if kind is torch.optim.SGD else {})
    )

    train_step(model, optimizer, x)
    before = model[0].weight.detach().clone()
    mask = prunus.prune(model, 0.5).masks["0.weight"]
    for _ in range(3):
        train_step(model, optimizer, x)
    with torch.no_grad():
        model(x)
    assert not model[0].weight[~mask].any()
    trained = model[0].weight.detach().clone()
    prunus.restore(model)
    assert torch.equal(model[0].weight, torch.where(mask, trained, before))
    assert not torch.equal(model[0].weight[mask], before[mask])


@pytest.mark.filterwarnings("ignore:Linear layers hold only")
@pytest.mark.parametrize("amp", [False, True])
def test_attention_under_training_autocast_and_deepcopy(amp: bool) -> None:
    model, x = Attention(), torch.randn(2, 5, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for twin in (False, True):
        model(x).square().sum().backward()
        optimizer.step()
        masks = prunus.prune(model, 0.5, layers=(nn.Linear,)).masks
        if twin:
            model = copy.deepcopy(model)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(2):
            model(x).square().sum().backward()
            optimizer.step()
        model(x)
        [mask] = masks.values()
        assert not model.attention.out_proj.weight[~mask].any()
    prunus.prune(model, 1.0, passes="backward", layers=(nn.Linear,))
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        assert not run(model, x)[1].any()


def test_a_handle_acts_on_its_own_pruning_alone() -> None:
    model = small_net()
    before = copy.deepcopy(model.state_dict())
    with prunus.prune(model, 0.5, p_bern=0.5) as outer:
        with prunus.prune(model, 0.2):
            pass
        with pytest.raises(RuntimeError, match="this pruning has ended"):
            outer.redraw()
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        newer = prunus.prune(model, 0.3, passes="backward")
    assert torch.equal(model[0].weight_mask, newer.masks["0.weight"])  # leaving the block took nothing


def test_a_layer_with_a_mask_of_its_own_is_refused() -> None:
    model = small_net()
    model[3].register_buffer("weight_mask", torch.ones(2))
    model[0].weight_orig = "mine"
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"0\.weight: its layer has a weight_mask or weight_orig of its own"):
        prunus.global_prune(model, 0.5)
    assert list(model.state_dict()) == list(before)
    assert model[0].weight.all()


@pytest.mark.parametrize("passes", ["both", "forward"])
@pytest.mark.parametrize("before", ["unpruned", *PASSES])
def test_a_call_that_fails_for_want_of_memory_leaves_the_pruning_before(
    passes: str, before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_net()
    original = copy.deepcopy(model.state_dict())
    if before != "unpruned":
        prunus.prune(model, 0.3, passes=before)
    pruned, hooks = copy.deepcopy(model.state_dict()), [len(m._forward_pre_hooks) for m in model.modules()]
    masks = prunus.make_masks(model, 0.6)
    clone, fails = Tensor.clone, iter([False, True])  # there is memory for one backup, and none for the next

    def limited(self: Tensor, *args: object, **kwargs: object) -> Tensor:
        if any(self.data_ptr() == p.data_ptr() for p in model.parameters()) and next(fails, False):
            raise MemoryError
        return clone(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "clone", limited)
        with pytest.raises(MemoryError):
            prunus.apply_masks(model, masks, passes)
    assert [len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert all(torch.equal(value, pruned[name]) for name, value in model.state_dict().items())
    prunus.restore(model)
    assert all(torch.equal(value, original[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


class Decoder(nn.Linear):
    """Uses a parameter of another module, which it holds where torch does not look."""

    def __init__(self, table: nn.Parameter) -> None:
        super().__init__(4, 4)
        self.held = [table]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(super().forward(x), self.held[0])


@pytest.mark.filterwarnings("ignore:Linear layers hold only")
@pytest.mark.parametrize("passes", PASSES)
def test_a_tensor_in_a_plain_attribute_has_its_gradient_once(passes: str) -> None:
    embedding = nn.Embedding(6, 4)
    model = nn.Sequential(embedding, Decoder(embedding.weight))
    gradients = []
    for prune in (False, True):
        if prune:
            prunus.prune(model, 0.0, passes=passes, layers="Linear")
        model.zero_grad()
        F.cross_entropy(model(torch.arange(6)), torch.arange(6)).backward()
        gradients.append(embedding.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("passes", PASSES)
def test_a_call_interrupted_between_two_layers_of_one_weight_leaves_no_hook(
    passes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Twice()

    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    for name in ("register_state_dict_pre_hook", "register_forward_hook", "register_forward_pre_hook"):
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(model.second, name, stop)
            prunus.prune(model, 0.5, passes=passes)
        prunus.restore(model)
        for module in model.modules():
            assert not module._forward_pre_hooks
            assert not module._forward_hooks
            assert not module._state_dict_pre_hooks
        assert model.first.weight.all()


@pytest.mark.parametrize("passes", ["both", "forward"])
def test_layers_that_share_a_weight_keep_one_backup_after_a_move(passes: str) -> None:
    model = Twice()
    prunus.prune(model, 0.5, passes=passes)
    model.double()
    with torch.no_grad():
        model.first.weight.mul_(3)
    prunus.make_masks(model, 0.3)  # reads the originals
    assert torch.equal(model.first.weight_orig, model.second.weight_orig)


def test_a_shallow_copy_of_a_layer_is_not_pruned_itself() -> None:
    layer = prunus.global_prune(nn.Conv2d(3, 4, 3), 0.5)
    pruned = layer.weight.detach().clone()
    prunus.restore(copy.copy(layer))
    assert torch.equal(layer.weight, pruned)
    prunus.restore(layer)
    assert layer.weight.all()


def test_two_parameters_in_one_memory_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))
    model[1].weight = nn.Parameter(model[0].weight.data)
    with pytest.raises(ValueError, match=r"0\.weight and 1\.weight are two parameters in the same memory"):
        prunus.global_prune(model, 0.5)


def test_lstm_and_attention_beside_pruned_layers_keep_working() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(6, 5, batch_first=True)
            self.attention = nn.MultiheadAttention(5, 1, batch_first=True)
            self.head = nn.Linear(5, 300)

        def forward(self, x: Tensor) -> Tensor:
            y, _ = self.lstm(x)
            return self.head(self.attention(y, y, y)[0])

    model, x = Mixed(), torch.randn(2, 7, 6)
    plain = model(x)
    for passes in PASSES:
        with prunus.prune(model, 0.5, passes=passes, layers="all"):
            model(x).sum().backward()
    assert torch.equal(model(x), plain)


def step_fused(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.Adam(model.parameters(), lr=0.1, fused=True).step()


def write_data(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data.add_(1)


def exchange_data(model: nn.Module) -> None:
    values = torch.randn(sum(parameter.numel() for parameter in model.parameters()))
    nn.utils.vector_to_parameters(values, model.parameters())


def write_in_place(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)


@pytest.mark.parametrize("passes", ["both", "forward"])
@pytest.mark.parametrize("between", [lambda model, x: None, lambda model, x: model(x)])
@pytest.mark.parametrize(
    ("edit", "when"),
    [(edit, "trained") for edit in (step_fused, write_data, exchange_data, write_in_place)]
    + [(write_in_place, "frozen"), (write_data, "thawed")],
)
def test_what_survivors_become_survives_a_redraw(
    edit: Callable, when: str, between: Callable, passes: str
) -> None:
    model, x = small_net().eval().requires_grad_(when == "trained"), torch.randn(1, 3, 8, 8)
    generator = torch.Generator().manual_seed(0)
    with prunus.prune(model, 0.5, p_bern=0.5, passes=passes, seed=generator) as pruning:
        model.requires_grad_(when != "frozen")
        edit(model)
        with torch.no_grad():
            between(model, x)
        layer, kept = model[3], pruning.masks["3.weight"]
        wanted = torch.where(kept, layer.weight.detach(), layer.weight_orig).clone()
        both = kept & pruning.redraw()["3.weight"]
        assert torch.equal(layer.weight, wanted * pruning.masks["3.weight"])
        assert both.any()
    assert torch.equal(layer.weight, wanted)


def test_an_infinite_gradient_of_a_pruned_weight_is_zero_too() -> None:
    layer = prunus.global_prune(nn.Conv2d(2, 2, 1, bias=False), 0.5)
    x = torch.full((1, 2, 1, 1), float("inf"))
    layer(x).sum().backward()
    assert not layer.weight.grad[~layer.weight_mask].any()
    assert layer.weight.grad[layer.weight_mask].isinf().all()


def test_scalar_and_empty_weights() -> None:
    model = nn.Sequential(nn.Conv2d(0, 4, 3), nn.Conv2d(4, 4, 3), nn.PReLU())
    model[2].weight = nn.Parameter(torch.tensor(0.25))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for keep_original in (True, False):
        prunus.global_prune(model, 1.0, layers=[nn.Conv2d, nn.PReLU], keep_original=keep_original)
        assert not any(model[index].weight.any() for index in range(3))
        if keep_original:
            assert all(map(torch.equal, prunus.restore(model).parameters(), before))
