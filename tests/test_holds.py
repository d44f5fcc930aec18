"""Zero means zero, whoever writes to the weights and how, and whatever else is done to the network."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils._python_dispatch import TorchDispatchMode

import prunus
from tests.conftest import trained_under


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3))


def images() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def holds(model: nn.Module, masks: prunus.Masks, state: dict[str, Any] | None = None) -> bool:
    """Whether every pruned weight is exactly zero, and not all others are."""
    tensors = state or dict(model.named_parameters())
    return all(not tensors[name][~mask].any() and tensors[name][mask].any() for name, mask in masks.items())


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    def loss() -> float:
        optimizer.zero_grad()
        value = model(images()).square().mean()
        value.backward()
        return float(value.detach())

    optimizer.step(loss)


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "SGD foreach": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, foreach=True),
    "SGD fused": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True),
    "Adam fused": lambda p: torch.optim.Adam(p, 0.1, fused=True),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, 0.1, foreach=True),
    "AdamW amsgrad": lambda p: torch.optim.AdamW(p, 0.1, amsgrad=True),
    "Adagrad fused": lambda p: torch.optim.Adagrad(p, 0.1, fused=True),
    **{
        name: lambda p, name=name: getattr(torch.optim, name)(p, lr=0.1)  # type: ignore[misc]
        for name in ("Adadelta", "Adafactor", "Adamax", "ASGD", "LBFGS", "NAdam", "RAdam", "RMSprop", "Rprop")
    },
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("passes", ["both", "forward"])
def test_zero_right_after_a_step_whatever_the_optimizer_remembers(name: str, passes: str) -> None:
    model = net()
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    for _ in range(2):
        train_step(model, optimizer)
    masks = prunus.prune(model, 0.5, layers="all", passes=passes).masks
    for _ in range(2):
        before = model[0].weight.detach().clone()
        train_step(model, optimizer)
        assert holds(model, masks)
        assert not torch.equal(before, model[0].weight)
        assert holds(copy.deepcopy(model), masks)
        assert holds(model, masks, model.state_dict())


def test_an_optimizer_within_the_backward_pass() -> None:
    model = net()
    optimizers = {p: torch.optim.Adam([p], 0.1) for p in model.parameters()}
    for parameter, optimizer in optimizers.items():
        parameter.register_post_accumulate_grad_hook(lambda p, optimizer=optimizer: optimizer.step())
    model(images()).square().mean().backward()
    masks = prunus.prune(model, 0.5).masks
    for _ in range(2):
        model(images()).square().mean().backward()
        assert holds(model, masks)


def test_a_network_that_is_dropped_is_let_go() -> None:
    import gc
    import weakref

    model = prunus.global_prune(net(), 0.5)
    gone = weakref.ref(model[0])
    del model
    gc.collect()
    assert gone() is None
    trained_under(net())


def merge_lora(model: nn.Sequential) -> None:
    for layer in (model[0], model[2]):
        layer.weight.data += 0.01


def swap_average(model: nn.Sequential) -> None:
    for parameter in model.parameters():
        parameter.data = torch.full_like(parameter, 0.5)


def write_vector(model: nn.Sequential) -> None:
    vector_to_parameters(torch.ones_like(parameters_to_vector(model.parameters())), model.parameters())


def write_one_entry(model: nn.Sequential) -> None:
    with torch.no_grad():
        mask = model[0].weight_mask
        model[0].weight.data[tuple((~mask).nonzero()[-1])] = 3.0


def load_dense(model: nn.Sequential) -> None:
    model.load_state_dict(net().state_dict())


def fused_write(model: nn.Sequential) -> None:
    grads = [torch.ones_like(p) for p in model.parameters()]
    torch._fused_sgd_(
        list(model.parameters()), grads, [], weight_decay=0, momentum=0, lr=0.1, dampening=0, nesterov=False,
        maximize=False, is_first_step=False,
    )  # fmt: skip


WRITES = [merge_lora, swap_average, write_vector, write_one_entry, load_dense, fused_write]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("look", ["forward", "inference", "state_dict", "deepcopy", "pickle"])
def test_zero_in_the_next_look_whoever_wrote_and_how(
    write: Callable[[nn.Sequential], None], frozen: bool, look: str
) -> None:
    model = net().requires_grad_(not frozen)
    masks = prunus.prune(model, 0.5).masks
    model(images())
    with torch.no_grad():
        write(model)
    if look == "forward":
        model(images())
    elif look == "inference":
        with torch.inference_mode():
            model(images())
    elif look == "state_dict":
        assert holds(model, masks, model.state_dict())
    elif look == "deepcopy":
        model = copy.deepcopy(model)
    else:
        file = io.BytesIO()
        torch.save(model, file)
        model = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    assert holds(model, masks)


def test_no_buffer_is_registered_and_mask_and_backup_follow() -> None:
    model = net()
    before, buffers = model[0].weight.detach().clone(), dict(model.named_buffers())
    masks = prunus.prune(model, 0.5).masks
    assert dict(model.named_buffers()) == buffers
    file = io.BytesIO()
    torch.save(model, file)
    loaded = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    for each in (model, copy.deepcopy(model), loaded, copy.deepcopy(model[0])):
        layer = each if isinstance(each, nn.Conv2d) else each[0]
        assert torch.equal(layer.weight_mask, masks["0.weight"])
        assert torch.equal(layer.weight_orig, before)
        each.double()
        assert layer.weight_orig.dtype is torch.float64
        each.to("meta")
        each.to_empty(device="cpu")
        assert torch.equal(layer.weight_mask, masks["0.weight"])
    copied = copy.deepcopy(prunus.global_prune(net(), 0.5)[0])
    assert holds(copied, prunus.masks_of(copied))
    assert len(prunus.masks_of(copied)) == 1


def test_copies_are_pruned_by_themselves() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    train_step(model, optimizer)
    pruning = prunus.prune(model, 0.5, p_bern=0.5)
    masks, twin = pruning.masks, copy.deepcopy(model)
    pruning.redraw()
    trained_under(twin)
    assert holds(twin, masks)
    assert prunus.masks_of(twin) == masks
    assert prunus.masks_of(model) == pruning.masks != masks
    prunus.restore(model)
    trained_under(twin)
    assert holds(twin, masks)


@pytest.mark.parametrize("passes", ["both", "backward", "forward"])
def test_replicas_of_data_parallel_leave_the_hooks_of_the_original(passes: str) -> None:
    model, x = net(), images().requires_grad_()
    masks = prunus.prune(model, 0.5, passes=passes).masks
    wanted = torch.autograd.grad(model[0](x).sum(), x)[0]
    for _ in range(2):
        replica = model[0]._replicate_for_data_parallel()  # what `replicate` makes on every GPU
        replica.weight, replica.bias = model[0].weight * 1, model[0].bias * 1
        assert torch.equal(torch.autograd.grad(replica(x).sum(), x)[0], wanted)
    with torch.no_grad():
        merge_lora(model)
    model(images())
    assert holds(model, masks) == (passes != "backward")
    assert len(prunus.masks_of(model)) == 2


# Checkpoints


def test_what_is_loaded_counts_when_it_is_restored_and_two_networks_are_never_mixed() -> None:
    dense = {name: torch.randn_like(p) for name, p in net().state_dict().items()}
    for assign in (False, True):
        model = prunus.global_prune(net(), 0.5)
        model.load_state_dict({name: p.clone() for name, p in dense.items()}, assign=assign)
        masks = prunus.masks_of(model)
        assert len(masks) == 2
        assert holds(model, masks)
        trained_under(model)
        assert holds(model, masks)
        prunus.restore(model)
        assert torch.equal(model[0].weight[~masks["0.weight"]], dense["0.weight"][~masks["0.weight"]])


@pytest.mark.parametrize("road", ["state_dict", "file"])
def test_a_network_knows_its_own_checkpoint_and_keeps_what_was_before_pruning(road: str) -> None:
    model, before = net(), net()[0].weight.detach()
    mask = prunus.prune(model, 0.5).masks["0.weight"]
    trained_under(model)
    best, kept = copy.deepcopy(model.state_dict()), model[0].weight.detach().clone()
    trained_under(model)
    if road == "file":
        file = io.BytesIO()
        torch.save(best, file)
        best = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    model.load_state_dict(best)
    assert torch.equal(model[0].weight, kept)
    prunus.restore(model)
    assert torch.equal(model[0].weight, kept.where(mask, before))


def test_another_network_under_the_same_masks_is_not_mixed_with_this_one() -> None:
    model, other = net(), nn.Sequential(*net())
    masks = prunus.prune(model, 0.5).masks
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    saved = prunus.apply_masks(other, masks).state_dict()
    model.load_state_dict(saved)
    prunus.restore(model)
    assert torch.equal(model[0].weight, saved["0.weight"])


def test_what_was_loaded_between_is_not_mixed_with_an_own_checkpoint() -> None:
    model = prunus.global_prune(net(), 0.5)
    own = copy.deepcopy(model.state_dict())
    model.load_state_dict({name: torch.randn_like(value) for name, value in own.items()})
    model.load_state_dict(own)
    prunus.restore(model)
    assert torch.equal(model[0].weight, own["0.weight"])


def test_backups_go_at_once_when_pruning_ends() -> None:
    import weakref

    model = prunus.global_prune(net(), 0.5)
    backup = weakref.ref(model[0].weight_orig)
    prunus.global_prune(model, 0.5)
    assert backup() is None


def test_an_interrupted_functional_call_leaves_the_parameter_in_its_layer() -> None:
    model = prunus.global_prune(net(), 0.5)
    parameter, dense = model[0].weight, {name: torch.ones_like(p) for name, p in model.named_parameters()}

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    hook = model[0].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        functional_call(model, dense, (images(),))
    hook.remove()
    model(images())
    assert model[0].weight is parameter


def test_a_checkpoint_of_other_masks_is_named_once_with_counts() -> None:
    model, other = prunus.global_prune(net(), 0.5), prunus.global_prune(net(), 0.5, criterion="random")
    with pytest.warns(UserWarning, match=r"pruned by other masks") as said:
        model.load_state_dict(other.state_dict())
    theirs, ours = prunus.masks_of(other), prunus.masks_of(model)
    [message] = [str(warning.message) for warning in said]
    for name, mask in ours.items():
        alive, zeros = int((theirs[name] & ~mask).sum()), int((~theirs[name] & mask).sum())
        assert f"{name} ({alive} pruned weights not zero there, {zeros} zeros not pruned here)" in message
    saved = other.state_dict()
    prunus.restore(model).load_state_dict(saved)
    prunus.apply_masks(model, prunus.Masks.from_zeros(model))
    assert prunus.masks_of(model) == theirs
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_state_dict(saved)  # of its own masks
        model.load_state_dict(net().state_dict())  # dense
        model.load_state_dict({}, strict=False)
    prunus.restore(model)


def test_a_part_that_is_loaded_is_named_before_the_next_forward() -> None:
    model, other = prunus.global_prune(net(), 0.5), prunus.global_prune(net(), 0.5, criterion="random")
    model[0].load_state_dict(other[0].state_dict())
    with pytest.warns(UserWarning, match=r"pruned by other masks: 0\.weight"):
        model(images())


def test_masks_from_zeros_are_of_weights_and_not_of_scales() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Embedding(3, 2, padding_idx=0))
    nn.init.zeros_(model[1].weight)
    assert {*prunus.Masks.from_zeros(model)} == {"2.weight"}
    with pytest.raises(ValueError, match="no weight of the model is zero"):
        prunus.Masks.from_zeros(nn.Linear(2, 2))


# Functional use


def test_the_mask_acts_on_the_parameters_of_a_functional_call() -> None:
    model = net()
    dense = {name: p.detach().clone() for name, p in model.named_parameters()}
    masks = prunus.prune(model, 0.5).masks
    wanted, x = model(images()), images()
    assert torch.equal(functional_call(model, dense, (x,)), wanted)
    assert torch.equal(functional_call(model, {k: nn.Parameter(v) for k, v in dense.items()}, (x,)), wanted)
    assert all(torch.equal(p, q) for p, q in zip(net().parameters(), dense.values(), strict=True))
    gradients = grad(lambda p: functional_call(model, p, (x,)).square().sum())(dense)
    for name, mask in masks.items():
        assert not gradients[name][~mask].any()
    assert holds(model, masks)
    assert torch.equal(model(x), wanted)
    per_image = vmap(grad(lambda p, one: functional_call(model, p, (one[None],)).sum()), (None, 0))(dense, x)
    assert not per_image["0.weight"][:, ~masks["0.weight"]].any()
    jacobian = torch.func.jacrev(lambda image: model(image))(x)
    assert torch.equal(jacobian.shape and model(x), wanted)


@pytest.mark.parametrize("passes", ["both", "backward", "forward"])
def test_a_functional_call_leaves_the_network_as_it_was_even_if_it_fails(passes: str) -> None:
    model = net()
    prunus.prune(model, 0.5, passes=passes)
    parameters, wanted = dict(model.named_parameters()), model(images())
    dense = {name: torch.ones_like(p) for name, p in parameters.items()}
    functional_call(model, dense, (images(),))
    with pytest.raises(RuntimeError):
        functional_call(model, dense, (torch.ones(1, 5, 8, 8),))
    assert all(p is q for p, q in zip(parameters.values(), model.parameters(), strict=True))
    assert torch.equal(model(images()), wanted)


def test_stacked_networks_are_refused_by_name_with_a_way_round() -> None:
    models = [prunus.global_prune(net(), 0.5, criterion="random") for _ in range(3)]
    (parameters, buffers), x = stack_module_state(models), images()
    for base in (models[0], copy.deepcopy(models[0]).to("meta")):
        with pytest.raises(RuntimeError, match=r"0\.weight is pruned, and vmap"):
            vmap(lambda p, b, base=base: functional_call(base, (p, b), (x,)))(parameters, buffers)
    base = prunus.restore(copy.deepcopy(models[0]))
    given = vmap(lambda p, b: functional_call(base, (p, b), (x,)))(parameters, buffers)
    for one, model in zip(given, models, strict=True):
        assert torch.allclose(one, model(x), atol=1e-6)


# Parameters exchanged


def exchange_by_hand(model: nn.Sequential) -> None:
    model[0].weight = nn.Parameter(torch.ones_like(model[0].weight))


def exchange_by_loading(model: nn.Sequential) -> None:
    model.load_state_dict(net().state_dict(), assign=True)


def exchange_by_converting(model: nn.Sequential) -> None:
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        model.double().float()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


def exchange_by_swapping(model: nn.Sequential) -> None:
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.double().float()
        model.load_state_dict(net().state_dict())
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.parametrize(
    "exchange", [exchange_by_hand, exchange_by_loading, exchange_by_converting, exchange_by_swapping]
)
@pytest.mark.parametrize("passes", ["both", "backward", "forward"])
def test_the_mask_follows_an_exchanged_parameter(exchange: Callable[..., None], passes: str) -> None:
    model = net()
    pruning = prunus.prune(model, 0.5, p_bern=0.9, passes=passes)
    exchange(model)
    zeros = passes != "backward"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(images())
        assert prunus.masks_of(model) == pruning.masks
        assert holds(model, pruning.masks) == zeros
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        train_step(model, optimizer)
        mask = pruning.masks["0.weight"]
        assert bool(model[0].weight.grad[~mask].any()) == (passes != "both")
        trained_under(model)
        assert holds(model, pruning.masks) == zeros
        pruning.redraw()
        assert holds(model, pruning.masks) == zeros
        prunus.restore(model)
        prunus.global_prune(model, 0.25)
    assert int(sum((model[i].weight == 0).sum() for i in (0, 2))) == int(0.25 * 252)


@pytest.mark.parametrize("passes", ["both", "forward"])
def test_a_parameter_that_comes_back_is_restored_to_what_it_was(passes: str) -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    prunus.prune(model, 0.5, passes=passes)
    own = model[0].weight
    model[0].weight = average = nn.Parameter(torch.randn_like(own))
    drawn = average.detach().clone()
    model(images())
    with torch.no_grad():
        own.view(-1)[own.view(-1).nonzero()[0]] = 5.0  # and what is written meanwhile counts
    model[0].weight = own
    model(images())
    prunus.restore(model)
    changed = model[0].weight != before["0.weight"]
    assert int(changed.sum()) == 1
    assert model[0].weight[changed].item() == 5.0
    assert not torch.equal(average, drawn)  # it was pruned, and is another's now


@pytest.mark.parametrize("passes", ["both", "backward", "forward"])
def test_a_parameter_exchanged_before_the_network_is_compiled(passes: str) -> None:
    torch._dynamo.reset()
    model = net()
    pruning = prunus.prune(model, 0.5, passes=passes)
    model[0].weight = nn.Parameter(torch.randn_like(model[0].weight))
    compiled = torch.compile(model, fullgraph=True, backend="eager")(images())
    assert holds(model, pruning.masks) == (passes != "backward")
    torch.testing.assert_close(compiled, model(images()))


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("passes", ["both", "forward"])
def test_a_redraw_that_fails_changes_nothing(
    number: int, passes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    pruning = prunus.prune(model, 0.5, p_bern=0.5, passes=passes)
    masks, values = pruning.masks, copy.deepcopy(dict(model.named_parameters()))
    calls, write = iter(range(100)), torch.bitwise_and

    def out_of_memory(*args: Any, **kwargs: Any) -> Tensor:
        if next(calls) == number:
            raise torch.OutOfMemoryError("no memory left")
        return write(*args, **kwargs)

    monkeypatch.setattr(torch, "bitwise_and", out_of_memory)
    failed = False
    try:
        pruning.redraw()
    except torch.OutOfMemoryError:
        failed = True
    assert failed == (number < 2)  # one write for each of two layers, and the eager write is their last
    if failed:
        assert pruning.masks is masks
        assert prunus.masks_of(model) == masks
        assert all(torch.equal(p, values[name]) for name, p in model.named_parameters())
    prunus.restore(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_layer_is_pickled_without_the_masks_of_others() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 256, 3), nn.Conv2d(256, 256, 3))
    pruning = prunus.prune(model, 0.5, p_bern=0.5)
    for _ in range(2):
        assert len(pickle.dumps(model[0])) < 10_000
        assert pickle.loads(pickle.dumps(model[0])).weight_mask.equal(pruning.masks["0.weight"])
        pruning.redraw()


def test_a_redraw_in_inference_mode_leaves_masks_that_graphs_can_hold() -> None:
    model = net()
    pruning = prunus.prune(model, 0.5, p_bern=0.5)
    with torch.inference_mode():
        pruning.redraw()
        model[0].weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        model(images())
    model[0].weight = nn.Parameter(torch.randn(4, 3, 3, 3))
    weight = model[2].weight
    [first] = torch.autograd.grad(model(images()).square().sum(), weight, create_graph=True)
    first.square().sum().backward()
    assert not weight.grad[~pruning.masks["2.weight"]].any()
    assert weight.grad[pruning.masks["2.weight"]].any()


def test_a_parameter_pruned_through_another_network_is_refused_until_it_is_restored() -> None:
    embedding, head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
    head.weight = embedding.weight
    before = embedding.weight.detach().clone()
    prunus.prune(head, 0.5, layers="all")
    with pytest.raises(ValueError, match=r"weight is pruned already, as weight of another network .*restore"):
        prunus.prune(embedding, 0.25, layers=nn.Embedding)
    assert prunus.masks_of(head).pruned == 18
    prunus.restore(embedding)  # through which it was not pruned
    assert prunus.masks_of(head).pruned == 18
    prunus.restore(head)
    assert torch.equal(head.weight, before)
    prunus.prune(embedding, 0.25, layers=nn.Embedding)
    assert int((head.weight == 0).sum()) == 9


def test_complex_weights_are_pruned_where_they_were_real() -> None:
    model = net()
    pruning = prunus.prune(model, 0.5)
    before = {
        name: state.clone() for name, state in prunus.restore(copy.deepcopy(model)).state_dict().items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of torch, that this is new
        model.to(torch.complex128)
    model[2].weight.data += 1j
    model.state_dict()
    assert holds(model, pruning.masks)
    prunus.restore(model)
    assert torch.equal(model[0].weight.real.float(), before["0.weight"])


def test_autocast_casts_a_weight_once_and_never_an_old_one() -> None:
    layer = nn.Linear(8, 8, bias=False)
    x = torch.randn(2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        dense = layer(x)
        prunus.prune(layer, 0.5, layers="all")
        pruned = layer(x)
        casts = []

        class Count(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                casts.append(func is torch.ops.aten._to_copy.default and args[0].shape == layer.weight.shape)
                return func(*args, **(kwargs or {}))

        with Count():
            for _ in range(5):
                layer(x)
    expected = nn.functional.linear(x.bfloat16(), layer.weight.detach().bfloat16())
    assert torch.equal(pruned, expected)
    assert not torch.equal(pruned, dense)
    assert sum(casts) == 0


def test_tied_layers_that_are_untied_are_both_pruned() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    mask = prunus.prune(model, 0.5, layers="all").masks["0.weight"]
    model[1].weight = nn.Parameter(torch.ones(4, 4))
    model(torch.randn(2, 4))
    trained_under(model)
    for layer in model:
        assert not layer.weight[~mask].any()
        assert layer.weight[mask].all()
    prunus.restore(model)
    assert model[0].weight.all()
    assert model[1].weight.all()


def cut(model: nn.Sequential) -> None:
    tp = pytest.importorskip("torch_pruning")
    group = tp.DependencyGraph().build_dependency(model, example_inputs=images())
    group.get_pruning_group(model[0], tp.prune_conv_out_channels, idxs=[0, 1]).prune()


LOSSES: dict[str, Callable[[nn.Sequential], object]] = {
    "weight_norm": lambda m: nn.utils.parametrizations.weight_norm(m[0]),
    "spectral_norm": lambda m: nn.utils.parametrizations.spectral_norm(m[0]),
    "weight_norm of old": lambda m: nn.utils.weight_norm(m[0]),
    "surgery": cut,
    "data": lambda m: setattr(m[0].weight, "data", torch.ones(4, 3, 5, 5)),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("how", LOSSES)
def test_where_the_mask_cannot_follow_one_warning_names_the_layer_and_what_to_do(how: str) -> None:
    model = net()[:3]
    prunus.global_prune(model, 0.5)
    LOSSES[how](model)
    with pytest.warns(UserWarning, match=r"no longer pruned: 0\.weight .*prunus\.restore") as said:
        model(images())
    assert len([w for w in said if "no longer pruned" in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(images())
        train_step(model, torch.optim.SGD(model.parameters(), 0.1))
        assert "0.weight" not in prunus.masks_of(model)
        prunus.restore(model)
    prunus.global_prune(model, 0.5, include="2")
    assert int((model[2].weight == 0).sum()) == model[2].weight.numel() // 2


def test_prunings_of_torch_are_refused_and_change_nothing() -> None:
    import torch.nn.utils.prune as core

    for passes in ("both", "backward", "forward"):
        model = net()
        masks = prunus.prune(model, 0.5, passes=passes).masks
        with pytest.raises(KeyError, match="already exists"):
            core.l1_unstructured(model[0], "weight", 0.5)
        assert prunus.masks_of(model) == masks
        model(images())
        prunus.restore(model)
        core.l1_unstructured(model[0], "weight", 0.5)


# Averages


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
def test_averages_of_a_pruned_network_are_pruned(use_buffers: bool, multi: bool, when: str) -> None:
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

    model = nn.Sequential(net()[:3], nn.BatchNorm2d(4))
    options: dict[str, Any] = {"use_buffers": use_buffers}
    if multi:
        options["multi_avg_fn"] = get_ema_multi_avg_fn(0.9)
    average = AveragedModel(model, **options) if when == "before" else None
    masks = prunus.prune(model, 0.5).masks
    average = average or AveragedModel(model, **options)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(3):
        train_step(model, optimizer)
        average.update_parameters(model)
    update_bn([images()], average)
    average(images())
    assert holds(average.module, masks)
    assert holds(average.module, masks, average.module.state_dict())


def test_timm_averages_are_pruned() -> None:
    utils = pytest.importorskip("timm.utils")
    model = net()
    masks = prunus.prune(model, 0.5).masks
    averages = [utils.ModelEmaV2(model, 0.9), utils.ModelEmaV3(model, 0.9)]
    trained_under(model)
    for average in averages:
        average.update(model)
        assert holds(average.module, masks)


# Quantization


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("passes", ["both", "backward", "forward"])
def test_quantization_keeps_zeros(passes: str) -> None:
    from torch.ao import quantization as tq
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    if "x86" not in torch.backends.quantized.supported_engines:
        pytest.skip("no engine for quantized layers")

    def model() -> nn.Module:
        torch.manual_seed(0)
        made = nn.Sequential(
            tq.QuantStub(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 8), tq.DeQuantStub()
        )
        return prunus.prune(made, 0.5, layers="all", passes=passes).model

    masks = prunus.masks_of(model())

    def check(quantized: nn.Module, conv: bool) -> None:
        quantized(images())
        name, layer = ("1.weight", quantized[1]) if conv else ("4.weight", quantized[4])
        weight = layer.weight() if callable(layer.weight) else layer.weight
        values = weight.dequantize() if weight.is_quantized else weight
        assert values[masks[name]].any()
        assert bool(values[~masks[name]].any()) == (passes == "backward")

    check(tq.quantize_dynamic(model().eval(), {nn.Linear}), conv=False)
    eager = model().eval()
    eager.qconfig = tq.get_default_qconfig("x86")
    prepared = tq.prepare(tq.fuse_modules(eager, [["1", "2"]]))
    prepared(images())
    check(tq.convert(prepared), conv=True)
    aware = model().train()
    aware.qconfig = tq.get_default_qat_qconfig("x86")
    aware = tq.prepare_qat(aware)
    train_step(aware, torch.optim.SGD(aware.parameters(), 0.1, momentum=0.9))
    check(aware, conv=True)
    trained_under(aware)
    assert prunus.masks_of(aware) == masks
    assert bool(aware[1].weight[~masks["1.weight"]].any()) == (passes == "backward")
    check(tq.convert(aware.eval()), conv=True)
    graph = prepare_fx(model().eval(), tq.get_default_qconfig_mapping("x86"), (images(),))
    graph(images())
    convert_fx(graph)(images())


def test_folded_batch_normalization_keeps_zeros() -> None:
    from torch.nn.utils import fuse_conv_bn_eval

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    mask = prunus.prune(model, 0.5).masks["0.weight"]
    fused = fuse_conv_bn_eval(model[0], model[1])
    assert torch.allclose(fused(images()), model(images()), atol=1e-6)
    assert not fused.weight[~mask].any()
    prunus.restore(fused)
    prunus.restore(model)


# Other ways to differentiate


def test_sparse_gradients_of_an_embedding_are_masked() -> None:
    model = nn.Embedding(10, 4, sparse=True)
    mask = prunus.prune(model, 0.5, layers=(nn.Embedding,)).masks["weight"]
    optimizer = torch.optim.SparseAdam(model.parameters(), 0.1)
    model(torch.tensor([1, 2, 2])).sum().backward()
    dense = model.weight.grad.to_dense()
    assert not dense[~mask].any()
    assert torch.equal(dense[2][mask[2]], torch.full_like(dense[2][mask[2]], 2.0))
    optimizer.step()
    assert not model.weight[~mask].any()


@pytest.mark.parametrize("passes", ["both", "backward", "forward"])
def test_forward_mode_differentiation_is_right_or_refused_by_name(passes: str) -> None:
    from torch.autograd import forward_ad as fw

    model, x = net(), images()
    prunus.prune(model, 0.5, passes=passes)
    with fw.dual_level():
        dual = fw.make_dual(x, torch.ones_like(x))
        if passes == "both":
            tangent = fw.unpack_dual(model(dual)).tangent
            wanted = torch.autograd.functional.jvp(model, x, torch.ones_like(x))[1]
            assert torch.allclose(tangent, wanted, atol=1e-5)
        else:
            with pytest.raises(RuntimeError, match="Conv2d is pruned in one pass, for which forward-mode"):
                model(dual)
            with pytest.raises(RuntimeError, match="Conv2d is pruned in one pass, for which forward-mode"):
                model.requires_grad_(False)(dual)
