"""`keep_original=False`: the same zeros, and nothing besides."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import prunus
from tests.conftest import small_net


def zeros(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value == 0 for name, value in model.named_parameters()}


@pytest.mark.parametrize("p_bern", [1.0, 0.5, 0.3])
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("granularity", ["weight", "kernel", "channel"])
def test_the_same_weights_fall_and_nothing_is_kept(granularity: str, scope: str, p_bern: float) -> None:
    choice = {"granularity": granularity, "scope": scope}
    model, twin = small_net(), small_net()
    assert model is prunus.global_prune(model, 0.4, p_bern, keep_original=False, seed=1, **choice)
    prunus.global_prune(twin, 0.4, p_bern, seed=1, **choice)
    assert all(torch.equal(value, zeros(twin)[name]) for name, value in zeros(model).items())
    assert [name for name, _ in model.named_buffers()] == [name for name, _ in small_net().named_buffers()]
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    before = zeros(model)
    prunus.restore(model)
    assert all(torch.equal(value, before[name]) for name, value in zeros(model).items())


def test_a_pruned_network_is_ranked_by_its_originals_and_its_pruning_ends() -> None:
    model, fresh = prunus.global_prune(small_net(), 0.9), small_net()
    prunus.global_prune(model, 0.2, keep_original=False)
    assert not any(hasattr(module, "weight_mask") or module._forward_pre_hooks for module in model.modules())
    prunus.global_prune(fresh, 0.2)
    for name, value in fresh.named_parameters():
        assert torch.equal(model.get_parameter(name), value)


def test_a_refused_call_changes_nothing() -> None:
    model = prunus.global_prune(small_net(), 0.5)
    before = {name: value.clone() for name, value in model.named_parameters()}
    with pytest.raises(ValueError, match="p_bern"):
        prunus.global_prune(model, 0.2, 1.5, keep_original=False)
    model[3].weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"3\.weight has values"):
        prunus.global_prune(model, 0.2, keep_original=False)
    model[3].weight.data[0, 0, 0, 0] = before["3.weight"][0, 0, 0, 0]
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to reset the peak")
def test_a_hundred_million_weights_take_less_memory_than_their_masks_would() -> None:
    script = """
        import torch, prunus
        from pathlib import Path
        def memory(kind):
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith(kind)) * 1024
        layers = (torch.nn.Linear(1000, 1000, bias=False, dtype=torch.bfloat16) for _ in range(100))
        model = torch.nn.Sequential(*layers)
        prunus.make_masks(model[0], 0.5, layers="all")
        Path("/proc/self/clear_refs").write_text("5")
        before = memory("VmRSS")
        prunus.global_prune(model, 0.3, layers="all", keep_original=False)
        print(memory("VmHWM") - before, sum(int((p == 0).sum()) for p in model.parameters()))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    extra, fallen = map(int, done.stdout.split())
    assert extra < 10**8
    assert fallen >= 3 * 10**7  # bfloat16 has zeros of its own
