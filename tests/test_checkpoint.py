"""torch.utils.checkpoint over a surrogate: the backward pass sees the mask that its forward had."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import prunus
from prunus.surrogates.ghost import Ghost
from prunus.surrogates.surrogate import Surrogate


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 3))


SURROGATES: dict[str, Callable[[], Surrogate]] = {
    "both": lambda: prunus.Diversified(net(), 0.8),
    "backward": lambda: prunus.Diversified(net(), 0.8, passes="backward"),
    "forward": lambda: prunus.Diversified(net(), 0.8, passes="forward"),
    "every 2": lambda: prunus.Diversified(net(), 0.8, redraw=2),
    "manual": lambda: prunus.Diversified(net(), 0.8, redraw="manual"),
    "ghost": lambda: Ghost(net(), 0.3),
}


def gradients(run: Callable[[Tensor], Tensor], count: int = 3) -> list[Tensor]:
    """Of the image, by several forwards, of which the last goes backward first."""
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    losses = [run(x * 1).square().sum() for _ in range(count)]
    found = [torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in reversed(losses)]
    return [*found, torch.autograd.grad(sum(losses), x)[0]]


@pytest.mark.parametrize("name", SURROGATES)
def test_a_recomputed_forward_has_the_mask_of_its_forward(name: str) -> None:
    wanted = gradients(SURROGATES[name]())
    surrogate = SURROGATES[name]()
    found = gradients(lambda x: checkpoint(surrogate, x, use_reentrant=False))
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


def test_several_calls_within_one_region() -> None:
    def twice(surrogate: Surrogate) -> Callable[[Tensor], Tensor]:
        return lambda x: surrogate(x) * surrogate(-x)

    plain, surrogate = SURROGATES["both"](), SURROGATES["both"]()
    found = gradients(lambda x: checkpoint(twice(surrogate), x, use_reentrant=False))
    assert all(torch.equal(a, b) for a, b in zip(found, gradients(twice(plain)), strict=True))
    assert surrogate.draws == 6
    copy.deepcopy(surrogate)(torch.randn(2, 3, 8, 8).requires_grad_())


def test_where_the_forward_is_not_known_it_is_refused_by_name() -> None:
    surrogate, x = SURROGATES["both"](), torch.randn(2, 3, 8, 8).requires_grad_()
    y = checkpoint(surrogate, x, use_reentrant=True)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        y.sum().backward()


@pytest.mark.parametrize("passes", ["both", "backward", "forward"])
def test_a_pruned_network_that_is_checkpointed(passes: str) -> None:
    model, x = net(), torch.randn(2, 3, 8, 8).requires_grad_()
    prunus.prune(model, 0.5, passes=passes)
    wanted = torch.autograd.grad(model(x).sum(), [x, *model.parameters()])
    given = checkpoint_sequential(model, 2, x, use_reentrant=False)
    for one, other in zip(torch.autograd.grad(given.sum(), [x, *model.parameters()]), wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
