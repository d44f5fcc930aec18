"""Memory that is taken again: nobody who still holds it sees other values."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.application.reused import Reused
from tests.conftest import small_net


def taken(memory: Reused, value: float, like: Tensor) -> Tensor:
    return memory.like("weight", like).fill_(value)


KEEPERS: list[Callable[[Tensor], object]] = [
    lambda tensor: tensor,
    lambda tensor: tensor.view(-1)[5:],
    lambda tensor: tensor.detach(),
    lambda tensor: nn.Parameter(tensor, requires_grad=False),
    lambda tensor: tensor.numpy(),
    lambda tensor: memoryview(tensor.numpy()),
    lambda tensor: tensor.untyped_storage(),
    lambda tensor: torch.utils.dlpack.to_dlpack(tensor),  # type: ignore[attr-defined]
    lambda tensor: (torch.ones_like(tensor, requires_grad=True) * tensor).grad_fn,
]


@pytest.mark.parametrize("keep", KEEPERS, ids=range(len(KEEPERS)))
def test_memory_that_something_holds_is_not_taken(keep: Callable[[Tensor], object]) -> None:
    memory, like = Reused(), torch.zeros(4, 6)
    first = taken(memory, 1, like)
    place, held = first.data_ptr(), keep(first)
    del first
    assert taken(memory, 2, like).data_ptr() != place
    del held


def test_memory_that_nothing_holds_is_taken() -> None:
    memory, like = Reused(), torch.zeros(4, 6)
    place = taken(memory, 1, like).data_ptr()
    held = taken(memory, 2, like)
    assert held.data_ptr() == place
    assert taken(memory, 3, like).data_ptr() != place
    assert (held == 2).all()
    place = taken(memory, 4, like).data_ptr()
    assert taken(memory, 5, like).data_ptr() == place
    for other in (torch.zeros(6, 4), torch.zeros(6, 4).T, like.double(), like.bfloat16()):
        found = taken(memory, 6, other)
        assert (found.shape, found.dtype, found.stride()) == (other.shape, other.dtype, other.stride())
    assert not copy.deepcopy(memory)._kept
    assert not pickle.loads(pickle.dumps(memory))._kept


def test_memory_of_inference_serves_gradients_later() -> None:
    memory, like = Reused(), torch.zeros(4, 6)
    with torch.inference_mode():
        place = taken(memory, 1, like).data_ptr()
    again = taken(memory, 2, like)
    assert again.data_ptr() == place
    (torch.ones(4, 6, requires_grad=True) * again).sum().backward()


def test_where_torch_does_not_count_all_memory_is_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C, "_storage_Use_Count")
    memory, like = Reused(), torch.zeros(4, 6)
    kept = [memory.like("weight", like)]
    kept.append(memory._kept["weight"])
    memory.like("weight", like)
    assert memory._kept["weight"] is not kept[1]


def test_a_transformed_call_takes_none() -> None:
    memory, like = Reused(), torch.zeros(4, 6)
    torch.func.grad(lambda x: (x * memory.like("weight", like).fill_(1)).sum())(torch.ones(4, 6))
    assert not memory._kept


def by_hand(model: nn.Module, surrogate: prunus.Diversified, number: int, x: Tensor, passes: str) -> Tensor:
    """The gradient under mask number n, on a network of its own."""
    other = prunus.apply_masks(copy.deepcopy(model), surrogate._draw(number), passes)
    [found] = torch.autograd.grad(other(x).square().sum(), x)
    return found


@pytest.mark.parametrize("passes", ["both", "backward", "forward"])
def test_graphs_that_are_kept_alive_keep_their_masks(passes: str) -> None:
    model, x = small_net().eval(), torch.randn(2, 3, 8, 8, requires_grad=True)
    surrogate = prunus.Diversified(model, 0.7, passes=passes, seed=3)
    wanted = [by_hand(model, surrogate, number, x, passes) for number in range(1, 13)]
    losses = []
    for number in range(1, 13):
        losses.append((number, surrogate(x).square().sum()))
        if number % 3 == 0:  # some graphs are run at once, some later, and one twice
            index, loss = losses.pop(number % len(losses))
            [found] = torch.autograd.grad(loss, x, retain_graph=number == 6)
            torch.testing.assert_close(found, wanted[index - 1])
            if number == 6:
                losses.append((index, loss))
    for number, loss in reversed(losses):
        [found] = torch.autograd.grad(loss, x)
        torch.testing.assert_close(found, wanted[number - 1])


def test_gradients_of_gradients_after_other_forwards() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 2)).eval()
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    surrogate = prunus.Diversified(model, 0.7, seed=3, layers="all")

    def second(run: nn.Module, between: Callable[[], object]) -> Tensor:
        [first] = torch.autograd.grad(run(x).square().sum(), x, create_graph=True)
        between()
        return torch.autograd.grad(first.square().sum(), x)[0]

    wanted = second(prunus.apply_masks(copy.deepcopy(model), surrogate._draw(1)), lambda: None)
    torch.testing.assert_close(second(surrogate, lambda: [surrogate(x) for _ in range(3)]), wanted)


def test_threads_that_share_a_surrogate_see_the_masks_of_their_own_forward() -> None:
    model = small_net().eval()
    surrogate = prunus.Diversified(model, 0.7, redraw="manual", seed=3)
    masks = surrogate.redraw()
    x = torch.randn(2, 3, 8, 8)

    def gradient(run: nn.Module) -> Tensor:
        given = x.clone().requires_grad_()
        return torch.autograd.grad(run(given).square().sum(), given)[0]

    wanted, wrong = gradient(prunus.apply_masks(copy.deepcopy(model), masks)), []

    def attack() -> None:
        for _ in range(40):
            found = gradient(surrogate)
            if not torch.allclose(found, wanted, atol=1e-6):
                wrong.append(found)

    threads = [threading.Thread(target=attack) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_threads_never_hold_the_same_memory() -> None:
    memory, like, wrong = Reused(), torch.zeros(1000), []

    def work(number: int) -> None:
        for _ in range(300):
            mine = taken(memory, number, like)
            view = mine[1:]
            del mine
            if not (view == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_steps_take_the_memory_of_the_step_before() -> None:
    model, x = small_net().eval(), torch.randn(2, 3, 8, 8, requires_grad=True)
    surrogate = prunus.Diversified(model, 0.7, seed=3)
    gc.disable()
    try:
        places = []
        for _ in range(4):
            loss = surrogate(x).sum()
            torch.autograd.grad(loss, x)  # the loss is still there at the next step
            places.append({name: kept.data_ptr() for name, kept in surrogate._memory._kept.items()})
        assert places[0] == places[1] == places[2] == places[3]
        assert set(places[0]) == set(surrogate.masks or {})
    finally:
        gc.enable()
