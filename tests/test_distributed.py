"""Two real processes under torchrun: every rank draws the same line, and DDP trains a pruned model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import prunus
from tests.conftest import small_net

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(rank)  # the ranks differ in everything that does not matter
torch.set_num_threads(1 + rank)

for passes in ("both", "backward", "forward"):
    model = small_net()
    parallel = DistributedDataParallel(model)
    generator = torch.Generator().manual_seed(0)
    pruning = prunus.prune(model, 0.5, p_bern=0.5, passes=passes, granularity="kernel", seed=generator)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        parallel(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        pruning.redraw()
    flat = torch.cat([mask.flatten().float() for mask in pruning.masks.values()])
    flat = torch.cat([flat, *(p.detach().flatten() for p in model.parameters())])
    everyone = [torch.empty_like(flat) for _ in range(2)]
    dist.all_gather(everyone, flat)
    assert torch.equal(everyone[0], everyone[1]), passes
    if passes == "both":
        assert all((model.get_parameter(name)[~mask] == 0).all() for name, mask in pruning.masks.items())
    prunus.restore(model)
    assert all(parameter.all() for name, parameter in model.named_parameters() if "weight" in name)
print("done", rank, flush=True)
dist.barrier()
os._exit(0)  # all is said; gloo's threads now and then abort an interpreter that winds down
"""


DECIDED = """
import os
import torch
import torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

import prunus
from tests.conftest import small_net

dist.init_process_group("gloo")
rank = dist.get_rank()


def check(model, masks, what):
    flat = torch.cat([mask.flatten().float() for mask in masks.values()])
    flat = torch.cat([flat, *(p.detach().flatten() for p in model.parameters())])
    everyone = [torch.empty_like(flat) for _ in range(2)]
    dist.all_gather(everyone, flat)
    assert torch.equal(everyone[0], everyone[1]), what


for first in ("prune", "ddp"):
    for passes in ("both", "backward", "forward"):
        for p_bern, criterion in ((0.5, "magnitude"), (1.0, "magnitude"), (1.0, "random")):
            model = small_net()
            torch.manual_seed(rank)
            for parameter in model.parameters():  # other weights on each process, until DDP comes
                torch.nn.init.normal_(parameter)
            parallel = DistributedDataParallel(model) if first == "ddp" else None
            pruning = prunus.prune(model, 0.5, p_bern=p_bern, passes=passes, criterion=criterion)
            parallel = parallel or DistributedDataParallel(model)
            optimizer = ZeroRedundancyOptimizer(parallel.parameters(), torch.optim.Adam, lr=0.1)
            for _ in range(3):
                optimizer.zero_grad()
                parallel(torch.randn(4, 3, 8, 8)).square().mean().backward()
                optimizer.step()
                check(model, pruning.masks, (first, passes, p_bern, criterion))
                if passes != "backward":
                    assert all(not model.get_parameter(n)[~m].any() for n, m in pruning.masks.items())
                pruning.redraw()
model = small_net()
masks = prunus.make_masks(model, 0.5, p_bern=0.5)
check(model, masks, "make_masks")
prunus.global_prune(model, 0.5, p_bern=0.5, keep_original=False)
check(model, {"": torch.ones(1)}, "for good")
if rank == 0:
    prunus.make_masks(model, 0.5)  # nothing is random: no process waits for the others
    prunus.prune(model, 0.5, seed=0)
print("done", rank, flush=True)
dist.barrier()
os._exit(0)
"""

SHARDED = """
import os
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import prunus

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
x = torch.randn(2, 8)


def within(model):
    outer = nn.Sequential(model, nn.ReLU())
    return fully_shard(outer, mesh=mesh)


WAYS = {
    "FSDP2": lambda m: fully_shard(m, mesh=mesh),
    "FSDP2 of a layer": lambda m: (fully_shard(m[0], mesh=mesh), m)[1],
    "FSDP2 around it": within,
    "tensor parallel": lambda m: parallelize_module(
        m, mesh, {"0": ColwiseParallel(output_layouts=Replicate())}
    ),
    "FSDP1": lambda m: FullyShardedDataParallel(m, device_id=torch.device("cpu")),
    "FSDP1, original parameters": lambda m: FullyShardedDataParallel(
        m, device_id=torch.device("cpu"), use_orig_params=True
    ),
}
masks = prunus.make_masks(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)), 0.5, layers="all")
for name, shard in WAYS.items():
    for passes in ("both", "backward", "forward"):
        torch.manual_seed(0)
        model = shard(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)))
        wanted = model(x)
        for verb in (
            lambda: prunus.prune(model, 0.5, layers="all", passes=passes),
            lambda: prunus.make_masks(model, 0.5, layers="all"),
            lambda: prunus.global_prune(model, 0.5, layers="all", keep_original=False),
            lambda: prunus.apply_masks(model, masks, passes),
        ):
            try:
                verb()
            except ValueError as error:
                assert "is sharded (" in str(error), (name, error)
            else:
                raise AssertionError(f"{name}: pruned after sharding")
        assert torch.equal(model(x), wanted), name

        torch.manual_seed(0)
        inner = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
        prunus.prune(inner, 0.5, layers="all", passes=passes)
        model = shard(inner)
        try:
            model(x)
        except RuntimeError as error:
            assert "weight was pruned and is now sharded" in str(error), (name, error)
        else:
            raise AssertionError(f"{name}: sharded after pruning")

for own in (True, False):  # of a part of what FSDP1 has sharded, where no module says so
    inner = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    outer = FullyShardedDataParallel(inner, device_id=torch.device("cpu"), use_orig_params=own)
    for verb in (
        lambda: prunus.make_masks(inner, 0.5, layers="all"),
        lambda: prunus.apply_masks(inner, masks),
    ):
        try:
            verb()
        except ValueError as error:
            assert "weight is sharded (FullyShardedDataParallel)" in str(error), error
        else:
            raise AssertionError("a part of what is sharded was pruned")
print("done", dist.get_rank(), flush=True)
dist.barrier()
os._exit(0)
"""


TRAINED = """
import os
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import prunus

dist.init_process_group("gloo")
rank = dist.get_rank()


def evidence(model):  # of other data on each process
    return prunus.evidence(model, [(torch.randn(4, 8), torch.randint(4, (4,)))], criterion="snip")


WAYS = {
    "random": lambda m, o: prunus.Gradual(m, 0.8, range(2, 12, 2), criterion="random", layers="Linear"),
    "evidence": lambda m, o: prunus.Gradual(
        m, 0.8, range(2, 12, 2), criterion="snip", collect=lambda: evidence(m), layers="Linear"
    ),
    "SET": lambda m, o: prunus.SET(m, 0.8, range(2, 12, 2), optimizer=o, layers="Linear"),
    "RigL": lambda m, o: prunus.RigL(m, 0.8, range(2, 12, 2), optimizer=o, layers="Linear"),
    "RigL, one infinite": lambda m, o: prunus.RigL(m, 0.8, range(2, 12, 2), optimizer=o, layers="Linear"),
}
for name, made in WAYS.items():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    torch.manual_seed(rank)
    pruner = made(model, optimizer)
    for step in range(1, 14):
        optimizer.zero_grad()
        x = torch.randn(4, 8)
        if "infinite" in name and step == 4 and rank == 0:
            x = x * torch.inf
        parallel(x).square().mean().backward()
        if step != 4 or "infinite" not in name:
            optimizer.step()
        pruner.step()
        flat = torch.cat([mask.flatten().float() for mask in pruner.masks.values()] or [torch.zeros(1)])
        flat = torch.cat([flat, *(p.detach().flatten() for p in model.parameters())])
        everyone = [torch.empty_like(flat) for _ in range(2)]
        dist.all_gather(everyone, flat)
        assert torch.equal(everyone[0], everyone[1]), (name, step)
    assert pruner.masks.pruned == int(0.8 * 192), (name, pruner.masks)
print("done", rank, flush=True)
dist.barrier()
os._exit(0)
"""


@pytest.mark.parametrize(
    "script",
    [SCRIPT, DECIDED, SHARDED, TRAINED],
    ids=["seeded", "decided by the first", "sharded", "trained"],
)
def test_two_processes(script: str, tmp_path: Path) -> None:
    (tmp_path / "ranks.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "ranks.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("done") == 2
